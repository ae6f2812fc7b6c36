"""Plays workloads on clusters under policies, and measures each run the same way.

Every policy sees the same run times for the same seed, and has the same knowledge: the *history*,
runs of other workloads on the same cluster as stock Dask played them. Without a history it begins
cold and learns in the run. A policy called `oracle:<name>` is the policy of that name told the
true run times, but not the noise on them: what could be gained by knowing more, and nothing that
could be used.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from deepflow.backend.placement.live import LivePlacement
from deepflow.backend.placement.plugin import Placement
from deepflow.decide.estimate import Estimates
from deepflow.decide.events import Event, Held, Placed
from deepflow.decide.experience import Experience
from deepflow.decide.place.decision import Tuning
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import STOCK, policy_named
from deepflow.decide.trail import Trail
from deepflow.errors import DeepflowError
from deepflow.sim._clock import Clock
from deepflow.sim._dask import task_keys
from deepflow.sim.bounds import best_run_s, capacity_s, lower_bound_s
from deepflow.sim.cluster import ClusterSpec
from deepflow.sim.engine import Drain, Outcome, simulate
from deepflow.sim.report import Cell, Yardstick, measure
from deepflow.sim.workload import Workload

__all__ = ["ORACLE", "TUNED_DASK", "Played", "compare", "experience_of", "play", "yardstick"]

ORACLE: Final = "oracle:"
"""Before the name of a policy: it is told the true run times."""

_SEED_OF_HISTORY = 1_000_003
TUNED_DASK: Mapping[str, Mapping[str, object]] = {
    "stock-no-stealing": {"distributed.scheduler.work-stealing": False},
    "stock-saturation-1.0": {"distributed.scheduler.worker-saturation": 1.0},
}
"""Stock Dask with settings of its own that an expert might try; policies by these names."""


@dataclass(frozen=True)
class Played:
    """One simulated run."""

    outcome: Outcome
    decision_us: tuple[float, ...]
    faults: tuple[str, ...]
    """Of the placement; none are expected."""
    n_fallbacks: int


def play(
    workload: Workload,
    cluster: ClusterSpec,
    policy: str | Policy,
    *,
    seed: int = 0,
    experience: Experience | None = None,
    tuning: Tuning | None = None,
    is_checking: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Played:
    """One workload on one cluster under one policy. `experience` is copied, not changed.

    Raises :class:`ConfigurationError` for an unknown policy.
    """
    if isinstance(policy, str) and policy.startswith(ORACLE):
        return _play_oracle(
            workload, cluster, policy.removeprefix(ORACLE), seed=seed, tuning=tuning
        )
    if isinstance(policy, str) and policy in (STOCK, *TUNED_DASK):
        config = TUNED_DASK.get(policy, {})
        stealing = bool(config.get("distributed.scheduler.work-stealing", True))
        outcome = simulate(
            workload,
            cluster,
            seed=seed,
            stealing=stealing,
            dask_config=config,
            progress=progress,
        )
        return Played(outcome, (), (), 0)
    own = pickle.loads(pickle.dumps(experience)) if experience is not None else Experience()
    placed: list[LivePlacement] = []

    def install(scheduler: object, clock: Clock) -> Drain:
        placement = Placement(
            _fresh(policy),
            estimates=own.estimates,
            shapes=own.shapes,
            tuning=tuning,
            seed=seed,
            clock=clock,
            call_later=clock.call_later,
            is_checking=is_checking,
        )
        live = placement.attach(scheduler)  # type: ignore[arg-type]
        scheduler.plugins[placement.name] = placement  # type: ignore[attr-defined]
        placed.append(live)
        return lambda: _own_events(live)

    outcome = simulate(
        workload, cluster, install=install, seed=seed, stealing=False, progress=progress
    )
    (live,) = placed
    return Played(
        outcome,
        tuple(1e6 * seconds for seconds in live.record.decision_s),
        tuple(live.guard.faults),
        live.record.n_fallbacks,
    )


class _Truth(Estimates):
    """The true run times on each class, for tasks that are all of a category of their own."""

    def __init__(self, workload: Workload, cluster: ClusterSpec) -> None:
        super().__init__()
        self._true_s: dict[tuple[str, str], dict[str | None, float]] = {}
        for job in workload.jobs:
            for task in job.tasks:
                true_s: dict[str | None, float] = {}
                for worker_class in cluster.classes:
                    for suffix, on_gpu in (("", False), ("+gpu", True)):
                        speed = worker_class.speed_for(task.kind, on_gpu=on_gpu)
                        true_s[worker_class.name + suffix] = task.run_s / speed
                true_s[None] = sum(true_s[c.name] for c in cluster.classes) / len(cluster.classes)
                self._true_s[job.flow, task.task] = true_s

    def observe(self, *_: object, **__: object) -> None:
        """There is nothing to learn."""

    def run_s(self, flow: str, task: str, worker_class: str | None, input_bytes: float) -> float:
        """Seconds without noise."""
        return self._true_s[flow, task][worker_class]

    def spread(self, flow: str, task: str, worker_class: str | None) -> float:
        """None: the mean of the noise is the same for all."""
        return 0.0

    def n_seen(self, flow: str, task: str, worker_class: str) -> int:
        """Enough."""
        return 1


def _own_categories(workload: Workload) -> Workload:
    """Each task in a category of its own; the noise, which goes by run and key, is the same."""
    jobs = tuple(
        replace(
            job,
            tasks=tuple(
                replace(t, task=f"{job.run}.{t.key}", kind=t.kind or t.task) for t in job.tasks
            ),
        )
        for job in workload.jobs
    )
    return replace(workload, jobs=jobs)


def _play_oracle(
    workload: Workload, cluster: ClusterSpec, policy: str, *, seed: int, tuning: Tuning | None
) -> Played:
    own = _own_categories(workload)
    told = Experience(estimates=_Truth(own, cluster))
    return play(own, cluster, policy, seed=seed, experience=told, tuning=tuning)


def _fresh(policy: str | Policy) -> str | Policy:
    """Policies may remember; each run has one of its own."""
    if isinstance(policy, Policy):
        copied: Policy = pickle.loads(pickle.dumps(policy))
        return copied
    return policy


def _own_events(live: LivePlacement) -> list[Event]:
    """What only the placement knows; the engine tells the rest."""
    return [event for event in live.record.drain() if isinstance(event, (Placed, Held))]


def experience_of(
    workloads: Iterable[Workload], cluster: ClusterSpec, *, seed: int = 0
) -> Experience:
    """What stock Dask's runs of these workloads on this cluster teach."""
    experience = Experience()
    for n, workload in enumerate(workloads):
        outcome = simulate(workload, cluster, seed=_SEED_OF_HISTORY + 1000 * seed + n)
        experience.learn(outcome.events)
    return experience


def yardstick(workload: Workload, cluster: ClusterSpec) -> Yardstick:
    """Bounds that no schedule of the workload beats."""
    first_s = min((job.arrives_s for job in workload.jobs), default=0.0)
    job_bound_s = {job.run: lower_bound_s(job, cluster) for job in workload.jobs}
    last_s = max(
        (job.arrives_s - first_s + job_bound_s[job.run] for job in workload.jobs), default=0.0
    )
    all_s = capacity_s([task for job in workload.jobs for task in job.tasks], cluster)
    best_s = {
        key: best_run_s(task, cluster)
        for job in workload.jobs
        for task, key in zip(job.tasks, task_keys(job).values(), strict=True)
    }
    return Yardstick(max(last_s, all_s), best_s, job_bound_s)


def compare(
    workloads: Sequence[Workload],
    clusters: Sequence[ClusterSpec],
    policies: Sequence[str | Policy],
    seeds: Sequence[int],
    *,
    history: Callable[[Workload], Sequence[Workload]] = lambda _: (),
    tuning: Tuning | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_played: Callable[[Cell, Played], None] | None = None,
) -> list[Cell]:
    """Every workload on every cluster under every policy with every seed.

    `history` gives the workloads that were run before this one. `progress(done, all)` is told of
    runs. Raises :class:`DeepflowError` where the placement met a fault: its figures would be those
    of the fallback.
    """
    for policy in policies:
        if policy not in TUNED_DASK:
            policy_named(policy.removeprefix(ORACLE) if isinstance(policy, str) else policy)
    n_all = len(workloads) * len(clusters) * len(policies) * len(seeds)
    cells: list[Cell] = []
    for cluster in clusters:
        for workload in workloads:
            bounds = yardstick(workload, cluster)
            own_bounds = yardstick(_own_categories(workload), cluster)
            for seed in seeds:
                experience = None
                past = history(workload)
                if past and any(policy != STOCK for policy in policies):
                    experience = experience_of(past, cluster, seed=seed)
                for policy in policies:
                    played = play(
                        workload,
                        cluster,
                        policy,
                        seed=seed,
                        experience=experience,
                        tuning=tuning,
                    )
                    name = policy if isinstance(policy, str) else policy.name
                    is_oracle = name.startswith(ORACLE)
                    if played.faults:
                        raise DeepflowError(
                            f"policy {name!r} failed on {workload.name}: {played.faults[0]}"
                        )
                    metrics = measure(
                        Trail.of(played.outcome.events),
                        own_bounds if is_oracle else bounds,
                        decision_us=played.decision_us,
                    )
                    cell = Cell(workload.name, cluster.name, name, seed, metrics)
                    cells.append(cell)
                    if on_played is not None:
                        on_played(cell, played)
                    if progress is not None:
                        progress(len(cells), n_all)
    return cells
