"""A workload and a cluster to simulate, read off the journal of a real run.

Simulated with the policy that was in force they should take about as long as it did; with another
they say what would have happened. What a journal does not tell is taken simply:

- a task that has no result is given the median run time of its name;
- all tasks of a run are known when its first one was submitted, as the judge always has it;
- the noise is in the observed run times already, so the cluster adds none;
- racks are not known by their links, so hosts fill new ones; zones stay as they were;
- inputs that came from another run, and needs of one certain host or rack, are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from statistics import median
from typing import Final

import numpy as np

from deepflow.decide.events import Event
from deepflow.decide.trail import Attempt, TaskTrail, Trail, WorkerTrail
from deepflow.errors import JournalError
from deepflow.hints import CLASS_LABEL, parse_label_resource
from deepflow.sim.cluster import ClusterSpec, NetworkSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.workload import SimJob, SimTask, Workload

__all__ = ["cluster_of", "workload_of"]

_SITE_LABELS: Final = ("host", "rack", "zone", "tier", CLASS_LABEL)
_Kind = tuple[str, bool]
"""A kind of worker, and whether its GPU was used by a task that can do without."""
_LEAST_COPY_BYTES: Final = 100_000
"""Copies below this tell of latency, not of bandwidth."""
_SHRINK: Final = 1e-3
"""Pulls to 1 the speed of a class that shares no task with others: nothing is known of it."""


def workload_of(events: Iterable[Event], *, name: str = "replayed") -> Workload:
    """What was run: a job for each run, its tasks' seconds as on a worker of speed 1.

    Speed 1 is that of the class of workers that did most; see `cluster_of`. Raises
    :class:`JournalError` where nothing finished.
    """
    trail = Trail.of(events)
    groups = _groups(trail)
    speeds = _Speeds.of(groups)
    work_s: dict[str, float] = {}
    for group in groups:
        for attempt in _successes(group):
            if attempt is trail.tasks[attempt.key].success:
                speed = speeds.of_task(attempt.task, (group.kind, attempt.on_gpu))
                work_s[attempt.key] = _run_s(attempt) * speed
    typical_s = _typical(trail, work_s)
    jobs: dict[str, list[SimTask]] = {run: [] for run in trail.runs}
    for task in trail.tasks.values():
        run_s = work_s.get(task.key, typical_s[task.task])
        jobs[task.run].append(_sim_task(trail, task, run_s))
    return Workload(
        name,
        tuple(
            SimJob(run, trail.runs[run].flow, tuple(tasks), _arrival_s(trail, run))
            for run, tasks in jobs.items()
        ),
    )


def cluster_of(events: Iterable[Event], *, name: str = "as it was") -> ClusterSpec:
    """What it was run on: workers by class, with the speeds and bandwidths that were seen.

    A class's speed for a task is the median over the observed run times, as a ratio to the class of
    workers that did most; where a class never ran a task, what the ratios of other tasks say of the
    class. Workers of one class that are not alike (threads, memory, resources, labels, zone, the
    second in which they came) are parted into classes `<class>`, `<class>-2` and so on. Raises
    :class:`JournalError` where nothing finished.
    """
    trail = Trail.of(events)
    groups = _groups(trail)
    speeds = _Speeds.of(groups)
    group_of = {worker.worker: group.name for group in groups for worker in group.workers}
    within, between = _bandwidths(trail, group_of)
    network = NetworkSpec()
    if within:
        network = NetworkSpec(process_bytes_per_s=within)
    return ClusterSpec(
        name,
        tuple(_sim_class(trail, group, speeds, between) for group in groups),
        network,
        tuple(death for group in groups for death in _deaths(trail, group)),
        noise=0.0,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Workers that are alike."""

    name: str
    kind: str
    """What their speed is known by: their class, where they have one."""
    starts_after_s: float
    labels: tuple[tuple[str, str], ...]
    resources: tuple[tuple[str, float], ...]
    workers: tuple[WorkerTrail, ...]


def _groups(trail: Trail) -> list[_Group]:
    found: dict[tuple[object, ...], list[WorkerTrail]] = {}
    for worker in trail.workers.values():
        left_s = worker.present[-1][1]
        if left_s is not None and left_s <= trail.begin_s:
            continue  # gone before the first task came
        alike = (
            worker.worker_class or "unknown",
            round(_starts_after_s(trail, worker)),
            worker.threads,
            worker.memory_bytes,
            *_labels_and_resources(worker),
        )
        found.setdefault(alike, []).append(worker)
    n_of: Counter[str] = Counter()
    groups = []
    for workers in found.values():
        own = workers[0].worker_class or "unknown"
        n_of[own] += 1
        name = own if n_of[own] == 1 else f"{own}-{n_of[own]}"
        labels, resources = _labels_and_resources(workers[0])
        if n_of[own] > 1 and workers[0].worker_class:
            labels = (*labels, (CLASS_LABEL, own))  # tasks may ask for the class by its own name
        groups.append(
            _Group(
                name,
                workers[0].worker_class or name,
                _starts_after_s(trail, workers[0]),
                labels,
                resources,
                tuple(workers),
            )
        )
    return groups


def _starts_after_s(trail: Trail, worker: WorkerTrail) -> float:
    return max(0.0, worker.present[0][0] - trail.begin_s)


def _labels_and_resources(
    worker: WorkerTrail,
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, float], ...]]:
    """Labels without host, rack and class; and resources that are no labels."""
    site = {"zone": worker.zone, "tier": worker.tier}
    labels = {key: value for key, value in site.items() if value}
    resources = {}
    for resource, amount in worker.resources:
        label = parse_label_resource(resource)
        if label is None:
            resources[resource] = amount
        elif label[0] not in _SITE_LABELS:
            labels[label[0]] = label[1]
    return tuple(sorted(labels.items())), tuple(sorted(resources.items()))


@dataclass(frozen=True, slots=True)
class _Speeds:
    """How fast each kind of worker is, as a ratio to the one that did most."""

    of_kind: Mapping[_Kind, float]
    of_pair: Mapping[tuple[str, _Kind], float]
    """(task, kind of worker) where that was seen."""

    def of_task(self, task: str, kind: _Kind) -> float:
        return self.of_pair.get((task, kind), self.of_kind[kind])

    @staticmethod
    def of(groups: Sequence[_Group]) -> _Speeds:
        """Fits log(median run time) = what the task takes + what the kind of worker takes.

        Weighted by the square root of how often each pair was seen. The second term gives a kind's
        speed; a pair that was seen has its own, against what the task takes on the reference.
        """
        seen: dict[tuple[str, _Kind], list[float]] = {}
        for group in groups:
            for attempt in _successes(group):
                pair = (attempt.task, (group.kind, attempt.on_gpu))
                # A run of no time at all would have no logarithm.
                seen.setdefault(pair, []).append(max(1e-6, _run_s(attempt)))
        if not seen:
            raise JournalError(
                "no task of the journal finished, so nothing is known of run times; "
                "replay a journal of a run that got further"
            )
        median_s = {pair: median(runs_s) for pair, runs_s in seen.items()}
        work_s: dict[_Kind, float] = {}
        for (_, kind), runs_s in seen.items():
            work_s[kind] = work_s.get(kind, 0.0) + sum(runs_s)
        reference = max(work_s, key=lambda kind: work_s[kind])
        of_task, of_kind = _fit(
            {pair: math.log(seconds) for pair, seconds in median_s.items()},
            {pair: len(runs_s) for pair, runs_s in seen.items()},
            list(dict.fromkeys([*((group.kind, False) for group in groups), *work_s])),
        )
        # What was seen on the reference is what it takes there, fit or no fit.
        at_reference_s = {
            task: median_s.get((task, reference), math.exp(log_s + of_kind[reference]))
            for task, log_s in of_task.items()
        }
        return _Speeds(
            {kind: math.exp(of_kind[reference] - log_s) for kind, log_s in of_kind.items()},
            {pair: at_reference_s[pair[0]] / seconds for pair, seconds in median_s.items()},
        )


def _fit(
    log_s: Mapping[tuple[str, _Kind], float],
    n_seen: Mapping[tuple[str, _Kind], int],
    kinds: Sequence[_Kind],
) -> tuple[dict[str, float], dict[_Kind, float]]:
    """Least squares of log seconds as a sum of a term of the task and one of the kind of worker."""
    tasks = list(dict.fromkeys(task for task, _ in log_s))
    of_task = {task: i for i, task in enumerate(tasks)}
    of_kind = {kind: len(tasks) + i for i, kind in enumerate(kinds)}
    rows = np.zeros((len(log_s) + len(kinds), len(tasks) + len(kinds)))
    wanted = np.zeros(len(rows))
    for row, (pair, value) in enumerate(log_s.items()):
        weight = math.sqrt(n_seen[pair])
        rows[row, of_task[pair[0]]] = rows[row, of_kind[pair[1]]] = weight
        wanted[row] = weight * value
    for row, kind in enumerate(kinds, start=len(log_s)):
        rows[row, of_kind[kind]] = _SHRINK
    fitted = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return (
        {task: float(fitted[i]) for task, i in of_task.items()},
        {kind: float(fitted[i]) for kind, i in of_kind.items()},
    )


def _successes(group: _Group) -> list[Attempt]:
    return [a for worker in group.workers for a in worker.attempts if a.outcome == "finished"]


def _run_s(attempt: Attempt) -> float:
    assert attempt.stopped_s is not None  # it finished
    return attempt.stopped_s - attempt.started_s


def _typical(trail: Trail, work_s: Mapping[str, float]) -> dict[str, float]:
    """The median work of each name of a task; that of all where none of that name finished."""
    of_name: dict[str, list[float]] = {task.task: [] for task in trail.tasks.values()}
    for key, seconds in work_s.items():
        of_name[trail.tasks[key].task].append(seconds)
    of_all = median(work_s.values())
    return {name: median(found) if found else of_all for name, found in of_name.items()}


def _sim_task(trail: Trail, task: TaskTrail, run_s: float) -> SimTask:
    needs = tuple(
        (resource, amount)
        for resource, amount in task.needs
        if (parse_label_resource(resource) or ("", ""))[0] not in ("host", "rack")
    )
    depends_on = tuple(
        key for key in task.depends_on if key in trail.tasks and trail.tasks[key].run == task.run
    )
    return SimTask(
        key=task.key,
        task=task.task,
        run_s=run_s,
        output_bytes=task.output_bytes,
        depends_on=depends_on,
        input_bytes=task.input_bytes,
        needs=needs,
        soft_gpu=task.soft_gpu,
        priority=task.priority,
    )


def _arrival_s(trail: Trail, run: str) -> float:
    return trail.runs[run].first_submit_s - trail.begin_s


def _sim_class(
    trail: Trail, group: _Group, speeds: _Speeds, between: Mapping[str, float]
) -> SimWorkerClass:
    hosts = {worker.host for worker in group.workers if worker.host}
    can_use_gpu = {task.task for task in trail.tasks.values() if task.soft_gpu > 0}
    pairs = [
        (escape(task), speed)
        for (task, kind), speed in speeds.of_pair.items()
        if kind == (group.kind, False)
    ]
    with_gpu = (group.kind, True)
    if with_gpu in speeds.of_kind:
        pairs += [
            (f"{escape(task)}+gpu", speeds.of_task(task, with_gpu)) for task in sorted(can_use_gpu)
        ]
    default = SimWorkerClass(group.name, 1).nic_bytes_per_s
    return SimWorkerClass(
        name=group.name,
        count=len(group.workers),
        threads=group.workers[0].threads,
        memory_bytes=group.workers[0].memory_bytes,
        speed=speeds.of_kind[group.kind, False],
        speeds=tuple(pairs),
        resources=group.resources,
        labels=group.labels,
        workers_per_host=round(len(group.workers) / len(hosts)) if hosts else 1,
        nic_bytes_per_s=between.get(group.name, default),
        starts_after_s=group.starts_after_s,
    )


def _bandwidths(trail: Trail, group_of: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    """Bytes per second between workers of a group on one host (0: not seen), and by group to and
    from other hosts or groups.

    Of what was seen the ninth decile, since copies that share a link or wait for a worker are slow.
    """
    within: list[float] = []
    between: dict[str, list[float]] = {}
    for copy in trail.transfers:
        ends = (copy.source, copy.target)
        if copy.n_bytes < _LEAST_COPY_BYTES or copy.duration_s <= 0:
            continue
        if any(end not in group_of for end in ends):
            continue
        speed = copy.n_bytes / copy.duration_s
        source, target = (trail.workers[end] for end in ends)
        groups = {group_of[end] for end in ends}
        if source.host and source.host == target.host and len(groups) == 1:
            within.append(speed)
        else:
            for group in groups:
                between.setdefault(group, []).append(speed)
    return (
        float(np.quantile(within, 0.9)) if within else 0.0,
        {group: float(np.quantile(speeds, 0.9)) for group, speeds in between.items()},
    )


def _deaths(trail: Trail, group: _Group) -> list[WorkerDeath]:
    """Who left before the end, and came back or not."""
    deaths = []
    for n, worker in enumerate(group.workers):
        for i, (_, left_s) in enumerate(worker.present):
            if left_s is None or left_s >= trail.end_s:
                continue
            back = worker.present[i + 1][0] - left_s if i + 1 < len(worker.present) else None
            deaths.append(WorkerDeath(f"{group.name}-{n}", left_s - trail.begin_s, back))
    return deaths
