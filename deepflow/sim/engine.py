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
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from random import Random
from statistics import NormalDist
from typing import Any

from distributed.scheduler import ClientState, Scheduler, heartbeat_interval

from deepflow.backend.contract import JUDGE, may_use
from deepflow.decide.events import (
    Event,
    Failed,
    Finished,
    Placed,
    Submitted,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.errors import ConfigurationError, DeepflowError, nearest
from deepflow.hints import CLASS_LABEL, LABEL_OFFER, label_resource
from deepflow.sim._clock import Action, Agenda, Clock, StableHash
from deepflow.sim._dask import (
    Mailbox,
    dask_in_virtual_time,
    ordered,
    periodic_callbacks,
    quiet_config,
    silent_scheduler,
    step,
    task_keys,
)
from deepflow.sim._worker import Gather, SimWorker, WorkerLimits
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.network import HostSite, Network, sites
from deepflow.sim.workload import SimJob, SimTask, Workload

__all__ = ["Install", "Outcome", "simulate"]

Drain = Callable[[], list[Event]]
"""The events of a plugin since the last call."""
Install = Callable[[Scheduler, Clock], Drain | None]
"""Binds a plugin on the scheduler, which is given with its clock (and alarm clock)."""

_SHORTEST_RUN_S = 1e-5
PATIENCE_S = 300.0
"""Virtual time without anything under way or ahead, after which nothing more is expected."""
STEAL_CONFIRMED = frozenset({"ready", "constrained", "waiting"})
"""States in which a worker gives a task away (as in `distributed.stealing`)."""


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
        workload=workload,
        cluster=cluster,
        seed=seed,
        noise_seed=seed if noise_seed is None else noise_seed,
        clock=clock,
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
            engine.limits = WorkerLimits.from_dask_config()
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


@dataclass(slots=True)
class _Job:
    """A job that has arrived."""

    job: SimJob
    client: str
    keys: dict[str, str]
    wanted: set[str]
    """Dask keys whose results the client still waits for."""


@dataclass(slots=True, eq=False)
class Engine:
    """The state of one simulation; see :func:`simulate`."""

    workload: Workload
    cluster: ClusterSpec
    seed: int
    noise_seed: int
    clock: Clock
    stable_hash: StableHash
    progress: Callable[[int, int], None] | None
    validate: bool
    limits: WorkerLimits = field(init=False)
    scheduler: Any = field(init=False)
    network: Network = field(init=False)
    sites: dict[str, HostSite] = field(init=False)
    agenda: Agenda = field(default_factory=Agenda)
    events: list[Event] = field(default_factory=list)
    drain: Drain | None = None
    n_steals: int = 0
    n_failures: int = 0
    last_stop_s: float = 0.0
    last_progress_s: float = 0.0
    n_ahead: int = 0
    """Arrivals, starts, deaths, run times and transfers that are sure to end."""
    _tasks: dict[str, tuple[SimJob, SimTask]] = field(default_factory=dict)
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _n_open: int = 0
    _on_gpu: set[str] = field(default_factory=set)
    """Tasks whose latest execution used a GPU that they could do without."""
    _finished: set[str] = field(default_factory=set)
    _given_up: set[str] = field(default_factory=set)
    _by_name: dict[str, SimWorker] = field(default_factory=dict)
    _by_address: dict[str, SimWorker] = field(default_factory=dict)
    _gathers: dict[int, Gather] = field(default_factory=dict)
    _flow_ids: Any = field(default_factory=count)
    _ports: Any = field(default_factory=lambda: count(20000))
    _hosts: dict[str, int] = field(default_factory=dict)
    _stolen: str | None = None
    """The key that is being given to its thief, while that is so."""

    # --- the main loop

    async def play(
        self, install: Install | None, stealing: bool, exceptions: list[BaseException]
    ) -> Outcome:
        """Run to the end."""
        self.sites = sites(self.cluster)
        self.network = Network(self.cluster.network, self.sites)
        self.scheduler = silent_scheduler(stealing=stealing, validate=self.validate)
        self.clock.wake_by(self.agenda)
        if install is not None:
            self.drain = install(self.scheduler, self.clock)
        for every_s, callback in (await periodic_callbacks(self.scheduler)).values():
            self.agenda.at(every_s, self._periodically, every_s, callback)
        self.later(heartbeat_interval(len(self.sites)), self._heartbeats)
        self._plan()
        self._n_open = len(self.workload.jobs)
        agenda, network, clock = self.agenda, self.network, self.clock
        while self._n_open:
            due_s, flow_s = agenda.next_s(), network.next_event_s()
            if min(due_s, flow_s) == math.inf or self._is_stuck():
                break
            if flow_s <= due_s:
                clock.now_s = max(clock.now_s, flow_s)
                for flow in network.advance(clock.now_s):
                    self._gather_ends(flow)
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
            if self.drain is not None:
                self.events.extend(self.drain())
        return self._outcome()

    def _plan(self) -> None:
        """Enter what is known from the start.

        Workers join in an order drawn by the seed: Dask breaks ties by address, and with the same
        class first every time it would be lucky, or unlucky, every time.
        """
        members = [(c, f"{c.name}-{n}") for c in self.cluster.classes for n in range(c.count)]
        Random(self.seed).shuffle(members)
        for worker_class, name in members:
            self._ahead(worker_class.starts_after_s, self._worker_joins, name, worker_class)
        for death in self.cluster.deaths:
            self._ahead(death.at_s, self._worker_dies, death)
        for job in sorted(self.workload.jobs, key=lambda job: job.arrives_s):
            self._ahead(job.arrives_s, self._job_arrives, job)

    def _ahead(self, when_s: float, action: Action, *arguments: Any) -> None:
        """Enter something that is progress when it happens."""

        def happens() -> Any:
            self.n_ahead -= 1
            self.last_progress_s = self.clock.now_s
            return action(*arguments)

        self.n_ahead += 1
        self.agenda.at(when_s, happens)

    def _is_stuck(self) -> bool:
        return (
            self.n_ahead == 0
            and self.clock.now_s - self.last_progress_s > PATIENCE_S
            and self.network.next_event_s() == math.inf
        )

    def _periodically(self, every_s: float, callback: Callable[[], object]) -> None:
        callback()
        self.later(every_s, self._periodically, every_s, callback)

    def later(self, after_s: float, action: Action, *arguments: Any) -> None:
        """Call `action` after a while."""
        self.agenda.at(self.clock.now_s + after_s, action, *arguments)

    def answer(self, action: Action, *arguments: Any) -> None:
        """Call `action` after a message's way there and back."""
        self.later(2 * self.cluster.control_latency_s, action, *arguments)

    def emit(self, event: Event) -> None:
        """Add an event to the journal."""
        self.events.append(event)

    def _outcome(self) -> Outcome:
        if self.drain is not None:
            self.events.extend(self.drain())
        missing = {key for job in self._jobs.values() for key in job.wanted}
        every_key = [key for job in self.workload.jobs for key in task_keys(job).values()]
        unfinished = tuple(k for k in every_key if k not in self._finished or k in missing)
        first_s = min((job.arrives_s for job in self.workload.jobs), default=0.0)
        return Outcome(
            workload=self.workload,
            cluster=self.cluster,
            seed=self.seed,
            noise_seed=self.noise_seed,
            events=tuple(self.events),
            makespan_s=math.inf if unfinished else max(0.0, self.last_stop_s - first_s),
            ended_s=self.clock.now_s,
            n_steals=self.n_steals,
            n_failures=self.n_failures,
            unfinished=unfinished,
        )

    # --- jobs and their clients

    def _job_arrives(self, job: SimJob) -> None:
        keys = task_keys(job)
        self._tasks.update((keys[task.key], (job, task)) for task in job.tasks)
        for key in keys.values():
            self.stable_hash(key)
        read = {dependency for task in job.tasks for dependency in task.depends_on}
        wanted = {keys[task.key]: None for task in job.tasks if task.key not in read}
        client = f"client-{job.run}"
        self._jobs[client] = _Job(job, client, keys, set(wanted))
        for task in job.tasks:
            self.emit(_submitted(self.clock.now_s, job, task, keys))
        if not wanted:
            self._job_ends(client)
            return
        scheduler = self.scheduler
        scheduler.clients[client] = ClientState(client)
        mailbox = scheduler.client_comms[client] = Mailbox()
        mailbox.connect(lambda messages: self._send_to_client(client, messages))
        for plugin in list(scheduler.plugins.values()):
            plugin.add_client(scheduler=scheduler, client=client)
        scheduler._create_taskstate_from_graph(
            # One generation for each graph, also for those that arrive together.
            start=float(len(self._jobs)),
            dsk={
                keys[task.key]: step(keys[task.key], (keys[d] for d in task.depends_on))
                for task in job.tasks
            },
            keys=wanted.keys(),
            ordered=ordered(job.tasks, keys, self.stable_hash),
            client=client,
            annotations_by_type=_annotations(job, keys),
            global_annotations=None,
            stimulus_id=f"update-graph-{job.run}",
            submitting_task=None,
            span_metadata={},
        )

    def _send_to_client(self, client: str, messages: tuple[dict[str, Any], ...]) -> None:
        self.later(self.cluster.control_latency_s, self._client_hears, client, messages)

    def _client_hears(self, client: str, messages: tuple[dict[str, Any], ...]) -> None:
        wanted = self._jobs[client].wanted
        if not wanted:
            return
        for message in messages:
            if message["op"] == "key-in-memory":
                wanted.discard(message["key"])
            elif message["op"] in ("lost-data", "task-retried"):
                wanted.add(message["key"])
            elif message["op"] == "task-erred":
                wanted.discard(message["key"])
                self._give_up(message["key"])
        if not wanted:
            self._job_ends(client)

    def _give_up(self, key: str) -> None:
        """Book the task whose failure made `key` fail."""
        ts = self.scheduler.tasks[key]
        blamed = ts.exception_blame or ts
        if blamed.key in self._given_up:
            return
        self._given_up.add(blamed.key)
        self.n_failures += 1
        workers = sorted(blamed.erred_on or ())
        at_last = self._by_address[workers[-1]].name if workers else ""
        cause = "given up: its workers died" if blamed.suspicious else "given up: inputs too large"
        self.emit(Failed(self.clock.now_s, blamed.key, at_last, cause))

    def _job_ends(self, client: str) -> None:
        self._n_open -= 1
        if self._n_open and client in self.scheduler.clients:
            self.later(self.cluster.control_latency_s, self.scheduler.remove_client, client)

    def task(self, key: str) -> SimTask:
        """The task of a Dask key."""
        return self._tasks[key][1]

    def run_s(
        self, task: SimTask, key: str, worker_class: SimWorkerClass, *, on_gpu: bool
    ) -> float:
        """Seconds that a task runs on a worker, its noise in them."""
        speed = worker_class.speed_for(task.kind or task.task, on_gpu=on_gpu)
        (self._on_gpu.add if on_gpu else self._on_gpu.discard)(key)
        factor = 1.0
        if self.cluster.noise:
            run = self._tasks[key][0].run
            factor = math.exp(self.cluster.noise * normal_draw(self.noise_seed, run, task.key))
        # Nothing real takes no time, and Dask's stealing asserts so.
        return max(task.run_s / speed * factor, _SHORTEST_RUN_S)

    # --- workers that come and go

    async def _worker_joins(self, name: str, worker_class: SimWorkerClass) -> None:
        site = self.sites[name]
        host = self._hosts.setdefault(site.host, len(self._hosts))
        address = f"tcp://{_ip(host)}:{next(self._ports)}"
        worker = SimWorker(
            engine=self,
            name=name,
            worker_class=worker_class,
            site=site,
            address=address,
            resources=_offers(worker_class, site),
            seed=self.seed,
            validate=self.validate,
        )
        self._by_name[name] = self._by_address[address] = worker
        now_s = self.clock.now_s
        self.emit(
            WorkerJoined(
                now_s,
                name,
                worker_class.name,
                worker_class.threads,
                memory_bytes=worker_class.memory_bytes,
                host=site.host,
                rack=site.rack,
                zone=site.zone,
                tier=site.tier,
                resources=tuple(sorted(worker.resources.items())),
            )
        )
        scheduler = self.scheduler
        await scheduler.add_worker(
            _Reply(),
            address=address,
            status="running",
            server_id=f"Worker-{address}",
            nthreads=worker_class.threads,
            name=name,
            resolve_address=False,
            now=now_s,
            resources=worker.resources,
            memory_limit=worker_class.memory_bytes or None,
            metrics=worker.metrics(),
            services={},
            local_directory="",
            versions={},
            nanny="",
            extra={},
            stimulus_id="worker-connect",
        )
        scheduler.stream_comms[address].connect(
            lambda messages: self._send_to_worker(worker, messages)
        )

    async def _worker_dies(self, death: WorkerDeath) -> None:
        worker = self._by_name.get(death.worker)
        if worker is None or not worker.is_alive:
            return
        self.worker_ends(worker, cause="died")
        if death.back_after_s is not None:
            # Not before the scheduler has seen it go: it takes no name twice.
            back_s = max(death.back_after_s, self.cluster.control_latency_s)
            self._ahead(
                self.clock.now_s + back_s, self._worker_joins, worker.name, worker.worker_class
            )

    def worker_ends(self, worker: SimWorker, *, cause: str) -> None:
        """A worker is gone with all it held; the scheduler and its peers see that later."""
        now_s = self.clock.now_s
        worker.is_alive = False
        for key in worker.running:
            self.emit(Failed(now_s, key, worker.name, f"worker {cause}"))
        self.emit(WorkerLeft(now_s, worker.name, cause))
        self.later(self.cluster.control_latency_s, self._scheduler_loses, worker)
        for flow, gather in list(self._gathers.items()):
            if worker in (gather.source, gather.target):
                self.network.cancel(flow, now_s)
                del self._gathers[flow]
                if gather.source is not None:
                    gather.source.n_outgoing -= 1
                if gather.target is not worker:
                    self.later(self.cluster.control_latency_s, gather.target.gather_fails, gather)

    async def _scheduler_loses(self, worker: SimWorker) -> None:
        await self.scheduler.remove_worker(
            worker.address, stimulus_id="handle-worker-cleanup", close=False
        )

    def worker_at(self, address: str) -> SimWorker | None:
        """The living worker at an address."""
        worker = self._by_address[address]
        return worker if worker.is_alive else None

    def _heartbeats(self) -> None:
        """Every worker tells how it is, at the interval that the scheduler asks for."""
        for worker in list(self._by_name.values()):
            if worker.is_alive and worker.address in self.scheduler.workers:
                worker.heartbeat(self.scheduler)
        self.later(heartbeat_interval(len(self.scheduler.workers)), self._heartbeats)

    # --- messages between scheduler and workers

    def _send_to_worker(self, worker: SimWorker, messages: tuple[dict[str, Any], ...]) -> None:
        for message in messages:
            if message["op"] == "compute-task":
                is_stolen = message["key"] == self._stolen
                self.n_steals += is_stolen
                if self.drain is None:
                    reason = "stolen" if is_stolen else ""
                    self.emit(
                        Placed(
                            self.clock.now_s, message["key"], worker.name, "stock", reason=reason
                        )
                    )
        if worker.is_alive:
            self.later(self.cluster.control_latency_s, worker.receive, messages)

    def send_to_scheduler(self, worker: SimWorker, message: dict[str, Any]) -> None:
        """A message of a worker sets out."""
        self.later(self.cluster.control_latency_s, self._scheduler_hears, worker, message)

    def _scheduler_hears(self, worker: SimWorker, message: dict[str, Any]) -> None:
        if worker.address not in self.scheduler.workers:
            return
        op = message.pop("op")
        if op == "task-finished":
            self._note_result(worker, message)
        elif op == "steal-response" and message["state"] in STEAL_CONFIRMED:
            self._stolen = message["key"]
        try:
            self.scheduler.stream_handlers[op](worker=worker.address, **message)
        finally:
            self._stolen = None

    def _note_result(self, worker: SimWorker, message: dict[str, Any]) -> None:
        """Book a result that the scheduler is about to accept."""
        key = message["key"]
        ts = self.scheduler.tasks.get(key)
        if ts is None or ts.state != "processing" or ts.run_id != message["run_id"]:
            return
        run = next(s for s in reversed(message["startstops"]) if s["action"] == "compute")
        self.emit(
            Finished(
                self.clock.now_s,
                key,
                worker.name,
                run["start"],
                run["stop"],
                message["nbytes"],
                key in self._on_gpu,
            )
        )
        self.last_stop_s = max(self.last_stop_s, run["stop"])
        self.last_progress_s = self.clock.now_s
        self._finished.add(key)
        if self.progress is not None:
            self.progress(len(self._finished), self.workload.n_tasks)

    # --- run times and transfers

    def execution_starts(self, worker: SimWorker, key: str, until_s: float) -> None:
        """A task runs on a worker until then."""

        def ends() -> None:
            if worker.is_alive:
                worker.execution_ends(key)

        self._ahead(until_s, ends)

    def gather_starts(self, gather: Gather) -> None:
        """Data sets out to a worker."""
        flow = next(self._flow_ids)
        self._gathers[flow] = gather
        assert gather.source is not None
        gather.source.n_outgoing += 1
        self.network.start(
            flow,
            gather.source.name,
            gather.target.name,
            sum(gather.sizes.values()),
            self.clock.now_s,
        )

    def _gather_ends(self, flow: int) -> None:
        gather = self._gathers.pop(flow)
        assert gather.source is not None
        gather.source.n_outgoing -= 1
        self.last_progress_s = self.clock.now_s
        gather.target.gather_ends(gather)


class _Reply:
    """Takes what the scheduler answers to a worker that registers."""

    async def write(self, message: dict[str, Any]) -> None:
        """Refuse to go on where the scheduler refuses the worker."""
        if message["status"] != "OK":
            raise DeepflowError(f"the scheduler does not take the worker: {message['message']}")


def _submitted(now_s: float, job: SimJob, task: SimTask, keys: Mapping[str, str]) -> Submitted:
    return Submitted(
        now_s,
        keys[task.key],
        task.task,
        job.flow,
        job.run,
        depends_on=tuple(keys[dependency] for dependency in task.depends_on),
        input_bytes=task.input_bytes,
        needs=task.needs,
        soft_gpu=task.soft_gpu,
        priority=task.priority,
    )


def _annotations(job: SimJob, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """As `dask.annotate` around each task would leave them: annotation → key → value."""
    return {
        "deepflow": {
            keys[task.key]: {
                "task": task.task,
                "flow": job.flow,
                "run": job.run,
                "input_bytes": task.input_bytes,
                "soft_gpu": task.soft_gpu,
                "memory_bytes": task.memory_bytes,
                "n_runs": 1,
            }
            for task in job.tasks
        },
        "resources": {keys[task.key]: dict(task.needs) for task in job.tasks if task.needs},
        "priority": {keys[task.key]: task.priority for task in job.tasks if task.priority},
    }


def _offers(worker_class: SimWorkerClass, site: HostSite) -> dict[str, float]:
    """A worker's Dask resources, its labels among them as a real worker offers them."""
    labels = {
        "host": site.host,
        "rack": site.rack,
        "zone": site.zone,
        **({"tier": site.tier} if site.tier else {}),
        CLASS_LABEL: worker_class.name,
        **dict(worker_class.labels),
    }
    return {
        **dict(worker_class.resources),
        **{label_resource(key, value): LABEL_OFFER for key, value in labels.items()},
    }


def _ip(host: int) -> str:
    """An address for a host: Dask looks names up, and takes workers of one address to be near."""
    return f"10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}"


_NORMAL = NormalDist()


def normal_draw(seed: int, run: str, key: str) -> float:
    """A standard normal number that depends on nothing but the arguments."""
    digest = blake2b(f"{seed}\0{run}\0{key}".encode(), digest_size=8).digest()
    return _NORMAL.inv_cdf((int.from_bytes(digest, "little") >> 14 | 1) / 2.0**50)
