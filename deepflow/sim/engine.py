"""Plays a workload on a cluster with the real Dask scheduler, in virtual time.

The scheduler (`distributed.scheduler.Scheduler`) and the workers' state machines
(`distributed.worker_state_machine.WorkerState`) are Dask's own: queuing, stealing, resources,
priorities, replicas, releasing and recovery are not modelled but run. Modelled are: how long a task
runs, how long a transfer takes (:mod:`deepflow.sim.network`), when messages arrive, when workers
come and go, and how much memory is in use.

Where this is simpler than a real cluster:

- the scheduler and the workers' event loops take no time; a message takes `control_latency_s`,
  messages are not batched, and heartbeats arrive when they are sent;
- nothing spills to disk; memory is the size of outputs and the `memory_bytes` of running tasks;
- a hard need of a GPU does not wait for one that a task uses without having reserved it;
- a job's graph is known to the scheduler at the moment it arrives.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from distributed.scheduler import Scheduler, heartbeat_interval

from deepflow.backend.contract import JUDGE, may_use
from deepflow.decide.events import Event
from deepflow.errors import ConfigurationError, DeepflowError, nearest
from deepflow.sim._clock import Clock, StableHash
from deepflow.sim._dask import (
    dask_in_virtual_time,
    periodic_callbacks,
    quiet_config,
    silent_scheduler,
    task_keys,
)
from deepflow.sim._jobs import Jobs
from deepflow.sim._members import Members
from deepflow.sim._stage import Stage
from deepflow.sim._worker import WorkerLimits
from deepflow.sim.cluster import ClusterSpec
from deepflow.sim.network import Network, sites
from deepflow.sim.workload import Workload

__all__ = ["Install", "Outcome", "simulate"]

Drain = Callable[[], list[Event]]
"""The events of a plugin since the last call."""
Install = Callable[[Scheduler, Clock], Drain | None]
"""Binds a plugin on the scheduler, which is given with its clock (and alarm clock)."""

PATIENCE_S = 300.0
"""Virtual time without anything under way or ahead, after which nothing more is expected."""


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation."""

    workload: Workload
    cluster: ClusterSpec
    seed: int
    noise_seed: int
    events: tuple[Event, ...]
    """In the order they happened."""
    makespan_s: float
    """From the first job's arrival until the last task stopped; inf if something is unfinished."""
    ended_s: float
    """The virtual time at which the simulation ended."""
    n_steals: int
    """Tasks that one worker gave away and another was given."""
    n_failures: int
    """Tasks that Dask gave up: their workers died too often, or their inputs fit in none."""
    unfinished: tuple[str, ...]
    """Dask keys of tasks without a result, those that wait for another among them."""


def simulate(
    workload: Workload,
    cluster: ClusterSpec,
    *,
    install: Install | None = None,
    seed: int = 0,
    stealing: bool = True,
    dask_config: Mapping[str, object] | None = None,
    noise_seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    validate: bool = False,
) -> Outcome:
    """Play `workload` on `cluster` until all jobs are done or nothing more can happen.

    `install` is called once with the scheduler and its clock (virtual seconds), before any worker
    joins. If it returns a function, that is asked after each step for the plugin's events since the
    last call, and no `Placed` is emitted otherwise. Periodic callbacks that it enters in
    `scheduler.periodic_callbacks` are called in virtual time.

    `seed` decides what Dask leaves to chance (the order of its sets, and the choice among peers);
    `noise_seed` (default: `seed`) the factor on each run time, which is the same for a task
    whatever else happens. `stealing=False` leaves Dask's work stealing out. `dask_config` goes over
    Dask's own configuration. `progress(done, all)` is told of each task that finishes. `validate`
    lets Dask check its state at each step, which is slow.

    Not to be called from a coroutine, nor twice at once in a process, nor where a live Dask cluster
    runs in the same process: Dask's module globals are replaced while it runs.

    Raises :class:`ConfigurationError` for a workload or cluster that cannot be,
    :class:`IncompatibleVersionError` where Dask's private parts are not as this was written for,
    and :class:`DeepflowError` where a plugin or Dask itself raises what Dask would only log.
    """
    may_use(JUDGE)
    _check(workload, cluster)
    _refuse_running_loop()
    clock = Clock()
    stable_hash = StableHash(seed)
    engine = Engine(
        workload,
        cluster,
        Stage(clock, cluster.control_latency_s),
        seed=seed,
        noise_seed=seed if noise_seed is None else noise_seed,
        stable_hash=stable_hash,
        progress=progress,
        validate=validate,
    )
    loop = asyncio.new_event_loop()
    try:
        with (
            _no_garbage_collection(),
            quiet_config({"distributed.scheduler.work-stealing": stealing, **(dask_config or {})}),
            dask_in_virtual_time(clock, stable_hash) as exceptions,
        ):
            return loop.run_until_complete(engine.play(install, stealing, exceptions))
    finally:
        _close(loop)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise DeepflowError(
        "simulate() was called where an event loop runs; call it in a thread of its own, such as "
        "by asyncio.to_thread"
    )


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End what the scheduler left for later on its loop, and the loop."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Half of the time would go to looking through task states, which form no dead cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check(workload: Workload, cluster: ClusterSpec) -> None:
    """Refuse what would only show as a puzzle later."""
    runs = [job.run for job in workload.jobs]
    if len(set(runs)) < len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise ConfigurationError(
            f"two jobs of {workload.name!r} are called {twice!r}; give each a run of its own"
        )
    for job in workload.jobs:
        keys = {task.key for task in job.tasks}
        if len(keys) < len(job.tasks):
            raise ConfigurationError(f"two tasks of job {job.run!r} have the same key")
        for task in job.tasks:
            for dependency in task.depends_on:
                if dependency not in keys:
                    raise ConfigurationError(
                        f"task {task.key!r} of job {job.run!r} depends on {dependency!r}, which is "
                        "no task of that job"
                    )
    names = list(sites(cluster))
    for death in cluster.deaths:
        if death.worker not in names:
            raise ConfigurationError(
                f"{death.worker!r} is to die, but there is no such worker; "
                f"did you mean {nearest(death.worker, names)!r}?"
            )


class Engine:
    """One simulation; see :func:`simulate`."""

    def __init__(
        self,
        workload: Workload,
        cluster: ClusterSpec,
        stage: Stage,
        *,
        seed: int,
        noise_seed: int,
        stable_hash: StableHash,
        progress: Callable[[int, int], None] | None,
        validate: bool,
    ) -> None:
        self._workload = workload
        self._cluster = cluster
        self._stage = stage
        self._seed = seed
        self._noise_seed = noise_seed
        self._stable_hash = stable_hash
        self._progress = progress
        self._validate = validate

    async def play(
        self, install: Install | None, stealing: bool, exceptions: list[BaseException]
    ) -> Outcome:
        """Run to the end."""
        stage = self._stage
        agenda, clock = stage.agenda, stage.clock
        sites_of = sites(self._cluster)
        network = Network(self._cluster.network, sites_of)
        scheduler: Any = silent_scheduler(stealing=stealing, validate=self._validate)
        drain = install(scheduler, clock) if install is not None else None
        jobs = Jobs(
            self._workload,
            stage,
            scheduler,
            noise=self._cluster.noise,
            noise_seed=self._noise_seed,
            stable_hash=self._stable_hash,
            progress=self._progress,
        )
        members = Members(
            stage,
            scheduler,
            jobs,
            network,
            sites_of,
            WorkerLimits.from_dask_config(),
            seed=self._seed,
            validate=self._validate,
            is_told_of_placing=drain is None,
        )
        for every_s, callback in (await periodic_callbacks(scheduler)).values():
            agenda.at(every_s, stage.periodically, every_s, callback)
        stage.later(heartbeat_interval(len(sites_of)), members.heartbeats)
        self._plan(jobs, members)
        while jobs.n_open:
            due_s, flow_s = agenda.next_s(), network.next_event_s()
            if min(due_s, flow_s) == math.inf or self._is_stuck(network):
                break
            if flow_s <= due_s:
                clock.now_s = max(clock.now_s, flow_s)
                for flow in network.advance(clock.now_s):
                    members.gather_ends(flow)
            else:
                clock.now_s = due_s
                action, arguments = agenda.pop()
                coroutine = action(*arguments)
                if coroutine is not None:
                    await coroutine
            if exceptions:
                raise DeepflowError(
                    f"at {clock.now_s} s something raised that Dask would only have logged: "
                    f"{exceptions[0]!r}"
                ) from exceptions[0]
            if drain is not None:
                stage.events.extend(drain())
        if drain is not None:
            stage.events.extend(drain())
        return self._outcome(jobs, members)

    def _plan(self, jobs: Jobs, members: Members) -> None:
        """Enter what is known from the start.

        Workers join in an order drawn by the seed: Dask breaks ties by address, and with the same
        class first every time it would be lucky, or unlucky, every time.
        """
        stage, cluster = self._stage, self._cluster
        joining = [(c, f"{c.name}-{n}") for c in cluster.classes for n in range(c.count)]
        Random(self._seed).shuffle(joining)
        for worker_class, name in joining:
            stage.ahead(worker_class.starts_after_s, members.joins, name, worker_class)
        for death in cluster.deaths:
            stage.ahead(death.at_s, members.dies, death)
        for job in sorted(self._workload.jobs, key=lambda job: job.arrives_s):
            stage.ahead(job.arrives_s, jobs.arrives, job)

    def _is_stuck(self, network: Network) -> bool:
        stage = self._stage
        return (
            stage.n_ahead == 0
            and stage.clock.now_s - stage.last_progress_s > PATIENCE_S
            and network.next_event_s() == math.inf
        )

    def _outcome(self, jobs: Jobs, members: Members) -> Outcome:
        every_job = self._workload.jobs
        unfinished = jobs.unfinished(key for job in every_job for key in task_keys(job).values())
        first_s = min((job.arrives_s for job in every_job), default=0.0)
        return Outcome(
            workload=self._workload,
            cluster=self._cluster,
            seed=self._seed,
            noise_seed=self._noise_seed,
            events=tuple(self._stage.events),
            makespan_s=math.inf if unfinished else max(0.0, jobs.last_stop_s - first_s),
            ended_s=self._stage.clock.now_s,
            n_steals=members.n_steals,
            n_failures=jobs.n_failures,
            unfinished=unfinished,
        )
