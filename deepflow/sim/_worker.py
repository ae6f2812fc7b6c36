"""A simulated worker: Dask's own worker state machine, with its effects turned into virtual events.

What `distributed.worker.Worker` does around the machine is done here the same way: executing,
gathering, heartbeats, pausing for memory.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed.core import Status
from distributed.worker_state_machine import (
    AcquireReplicasEvent,
    CancelComputeEvent,
    ComputeTaskEvent,
    Execute,
    ExecuteSuccessEvent,
    FindMissingEvent,
    FreeKeysEvent,
    GatherDep,
    GatherDepBusyEvent,
    GatherDepNetworkFailureEvent,
    GatherDepSuccessEvent,
    Instruction,
    PauseEvent,
    RefreshWhoHasEvent,
    RemoveReplicasEvent,
    RemoveWorkerEvent,
    RetryBusyWorkerEvent,
    RetryBusyWorkerLater,
    SendMessageToScheduler,
    StateMachineEvent,
    StealRequestEvent,
    UnpauseEvent,
    WorkerState,
)

from deepflow.decide.events import Started, Transferred
from deepflow.hints import GPU_RESOURCE
from deepflow.sim._jobs import Jobs
from deepflow.sim._stage import Stage
from deepflow.sim.cluster import SimWorkerClass
from deepflow.sim.network import HostSite
from deepflow.sim.workload import SimTask

__all__ = ["Around", "Gather", "SimWorker", "WorkerLimits"]

RETRY_BUSY_S = 0.15
"""As in `Worker.retry_busy_worker_later`."""
FULL_HEARTBEAT_S = 10.0
"""A worker to which nothing happened tells no more often than this what is not news."""
LEAST_MEASURED_BYTES = 1_000_000
"""Smaller transfers tell nothing about bandwidth (`Worker._update_metrics_received_data`)."""


class _ComputeTask(ComputeTaskEvent):
    """As its base, without the copy of itself for a log that is not kept."""

    __slots__ = ()

    def to_loggable(self, *, handled: float) -> StateMachineEvent:
        """Itself."""
        return self


class _ExecuteSuccess(ExecuteSuccessEvent):
    """As its base, without the copy of itself for a log that is not kept."""

    __slots__ = ()

    def to_loggable(self, *, handled: float) -> StateMachineEvent:
        """Itself."""
        return self


_EVENTS: Mapping[str, type[StateMachineEvent]] = {
    "acquire-replicas": AcquireReplicasEvent,
    "cancel-compute": CancelComputeEvent,
    "compute-task": _ComputeTask,
    "free-keys": FreeKeysEvent,
    "refresh-who-has": RefreshWhoHasEvent,
    "remove-replicas": RemoveReplicasEvent,
    "remove-worker": RemoveWorkerEvent,
    "steal-request": StealRequestEvent,
}
"""What the scheduler may say to a worker's state machine, by the name of the operation."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What Dask's configuration says of workers, read once."""

    incoming_connections: int
    outgoing_connections: int
    message_bytes: float
    transfer_memory_fraction: float
    pause_fraction: float
    memory_interval_s: float
    bandwidth_bytes_per_s: float

    @classmethod
    def from_dask_config(cls) -> WorkerLimits:
        """As `distributed.worker.Worker` reads them; a fraction of `False` is no limit."""
        get = dask.config.get
        return cls(
            incoming_connections=get("distributed.worker.connections.incoming"),
            outgoing_connections=get("distributed.worker.connections.outgoing"),
            message_bytes=parse_bytes(get("distributed.worker.transfer.message-bytes-limit")),
            transfer_memory_fraction=get("distributed.worker.memory.transfer") or float("inf"),
            pause_fraction=get("distributed.worker.memory.pause") or float("inf"),
            memory_interval_s=parse_timedelta(get("distributed.worker.memory.monitor-interval")),
            bandwidth_bytes_per_s=parse_bytes(get("distributed.scheduler.bandwidth")),
        )


@dataclass(slots=True)
class _Execution:
    """A task that runs."""

    task: SimTask
    run_id: int
    started_s: float
    soft_gpu: float
    """GPUs it uses beyond what the state machine has reserved for it."""


@dataclass(slots=True)
class Gather:
    """A request of a worker for data of a peer."""

    source: SimWorker | None
    """None: the peer is gone."""
    target: SimWorker
    address: str
    """The peer's, which may be gone."""
    total_bytes: int
    """As the machine was told; what is sent may be less."""
    sizes: dict[str, int]
    """Bytes of each key that is sent."""
    began_s: float


class Around(Protocol):
    """What a worker asks of the cluster around it."""

    def worker_at(self, address: str) -> SimWorker | None:
        """The living worker at an address."""

    def worker_ends(self, worker: SimWorker, *, cause: str) -> None:
        """The worker is gone with all it held."""

    def send_to_scheduler(self, worker: SimWorker, message: dict[str, Any]) -> None:
        """A message of the worker sets out."""

    def execution_starts(self, worker: SimWorker, key: str, until_s: float) -> None:
        """A task runs on the worker until then."""

    def gather_starts(self, gather: Gather) -> None:
        """Data sets out to the worker."""


@dataclass(slots=True, eq=False)
class SimWorker:
    """One worker, from its start to its end; one that comes back is another."""

    stage: Stage
    jobs: Jobs
    around: Around
    limits: WorkerLimits
    name: str
    worker_class: SimWorkerClass
    site: HostSite
    address: str
    resources: dict[str, float]
    seed: int
    validate: bool
    state: Any = field(init=False)
    is_alive: bool = True
    is_paused: bool = False
    is_memory_check_due: bool = False
    running: dict[str, _Execution] = field(default_factory=dict)
    n_outgoing: int = 0
    bandwidth: float = field(init=False)
    bandwidth_workers: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Since the last heartbeat: peer → sum of bandwidths, number of transfers."""
    n_stimuli: int = 0
    n_stimuli_told: int = -1
    """How many there had been at the last whole heartbeat."""
    told_s: float = 0.0

    def __post_init__(self) -> None:
        limits = self.limits
        memory_bytes = self.worker_class.memory_bytes
        fraction = limits.transfer_memory_fraction
        self.bandwidth = limits.bandwidth_bytes_per_s
        self.state = WorkerState(
            nthreads=self.worker_class.threads,
            address=self.address,
            resources=self.resources,
            transfer_incoming_count_limit=limits.incoming_connections,
            transfer_incoming_bytes_limit=(memory_bytes or float("inf")) * fraction,
            transfer_message_bytes_limit=limits.message_bytes,
            validate=self.validate,
        )
        self.state.rng = random.Random(self.seed)
        self.state.data_needed = _SortedItems(self.state.data_needed.default_factory)

    # --- what comes in

    def receive(self, messages: tuple[dict[str, Any], ...]) -> None:
        """Messages from the scheduler."""
        for message in messages:
            if not self.is_alive:
                return
            arguments = message.copy()
            op = arguments.pop("op")
            if op == "close":
                self.around.worker_ends(self, cause="closed by the scheduler")
                return
            if op == "compute-task":
                # On the wire it is pickled; here it stays the object.
                arguments["run_spec"] = arguments["run_spec"].data
            self.stimulus(_EVENTS[op](**arguments))

    def stimulus(self, *events: StateMachineEvent) -> None:
        """Give events to the state machine and carry out what it answers."""
        self.n_stimuli += 1
        for instruction in self.state.handle_stimulus(*events):
            self._carry_out(instruction)
        self.watch_memory()

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, SendMessageToScheduler):
            self.around.send_to_scheduler(self, instruction.to_dict())
        elif isinstance(instruction, Execute):
            self._execute(str(instruction.key))
        elif isinstance(instruction, GatherDep):
            self._gather(instruction)
        elif isinstance(instruction, RetryBusyWorkerLater):
            event = RetryBusyWorkerEvent(worker=instruction.worker, stimulus_id="retry-busy")
            self.stage.later(RETRY_BUSY_S, self._stimulus_if_alive, event)
        else:
            raise TypeError(f"a worker's state machine asks for {instruction!r}")

    def _stimulus_if_alive(self, event: StateMachineEvent) -> None:
        if self.is_alive:
            self.stimulus(event)

    # --- executing

    def _execute(self, key: str) -> None:
        task = self.jobs.task(key)
        ts = self.state.tasks[key]
        has_reserved = GPU_RESOURCE in (ts.resource_restrictions or ())
        soft_gpu = 0.0
        if task.soft_gpu and not has_reserved:
            offered = self.resources.get(GPU_RESOURCE, 0.0)
            if self._gpus_in_use(besides=key) + task.soft_gpu <= offered:
                soft_gpu = task.soft_gpu
        on_gpu = soft_gpu > 0 or (task.soft_gpu > 0 and has_reserved)
        now_s = self.stage.clock.now_s
        execution = _Execution(task, ts.run_id, now_s, soft_gpu)
        self.running[key] = execution
        self.stage.emit(Started(now_s, key, self.name))
        self.around.execution_starts(
            self, key, now_s + self.jobs.run_s(task, key, self.worker_class, on_gpu=on_gpu)
        )

    def _gpus_in_use(self, *, besides: str) -> float:
        reserved: float = sum(
            (self.state.tasks[key].resource_restrictions or {}).get(GPU_RESOURCE, 0.0)
            for key in self.running
            if key != besides
        )
        return reserved + sum(execution.soft_gpu for execution in self.running.values())

    def execution_ends(self, key: str) -> None:
        """A task's run time is over."""
        execution = self.running.pop(key)
        self.stimulus(
            _ExecuteSuccess(
                key=key,
                run_id=execution.run_id,
                value=None,
                start=execution.started_s,
                stop=self.stage.clock.now_s,
                nbytes=execution.task.output_bytes,
                type=type(None),
                stimulus_id="task-finished",
            )
        )

    # --- gathering

    def _gather(self, instruction: GatherDep) -> None:
        keys = sorted(str(key) for key in instruction.to_gather)
        # The machine goes through them once they have come: not in the order of a set of texts.
        self.state.in_flight_workers[instruction.worker] = tuple(keys)
        peer = self.around.worker_at(instruction.worker)
        gather = Gather(
            peer, self, instruction.worker, instruction.total_nbytes, {}, self.stage.clock.now_s
        )
        if peer is None:
            self.stage.answer(self.gather_fails, gather)
        elif peer.is_busy(with_host=self.site.host):
            self.stage.answer(self._gather_is_refused, gather)
        else:
            gather.sizes = peer.sizes_of(keys)
            self.around.gather_starts(gather)

    def is_busy(self, *, with_host: str) -> bool:
        """Whether it refuses to send more at once, as `Worker.get_data` does."""
        limit = self.limits.outgoing_connections
        if self.is_paused:
            limit = 1
        elif with_host == self.site.host:
            limit *= 2
        return self.n_outgoing >= limit

    def sizes_of(self, keys: list[str]) -> dict[str, int]:
        """Bytes of those of `keys` that it holds."""
        return {key: self.state.tasks[key].nbytes for key in keys if key in self.state.data}

    def _gather_is_refused(self, gather: Gather) -> None:
        if self.is_alive:
            self.stimulus(
                GatherDepBusyEvent(
                    worker=gather.address,
                    total_nbytes=gather.total_bytes,
                    stimulus_id="gather-dep-busy",
                )
            )

    def gather_fails(self, gather: Gather) -> None:
        """The peer was lost before it had answered."""
        if self.is_alive:
            self.stimulus(
                GatherDepNetworkFailureEvent(
                    worker=gather.address,
                    total_nbytes=gather.total_bytes,
                    stimulus_id="gather-dep-network-failure",
                )
            )

    def gather_ends(self, gather: Gather) -> None:
        """What it asked a peer for has arrived."""
        now_s = self.stage.clock.now_s
        self._measure(gather, now_s)
        for key, n_bytes in gather.sizes.items():
            self.stage.emit(
                Transferred(
                    now_s,
                    key,
                    gather.source.name if gather.source else "",
                    self.name,
                    n_bytes,
                    now_s - gather.began_s,
                )
            )
        self.stimulus(
            GatherDepSuccessEvent(
                worker=gather.address,
                total_nbytes=gather.total_bytes,
                data=dict.fromkeys(gather.sizes),
                stimulus_id="gather-dep-success",
            )
        )

    def _measure(self, gather: Gather, now_s: float) -> None:
        """As `Worker._update_metrics_received_data`."""
        total_bytes = sum(gather.sizes.values())
        cause = self._cause(gather.address)
        cause.startstops.append(
            {
                "action": "transfer",
                "start": gather.began_s,
                "stop": now_s,
                "source": gather.address,
            }
        )
        if total_bytes > LEAST_MEASURED_BYTES:
            bandwidth = total_bytes / max(0.001, now_s - gather.began_s)
            self.bandwidth = self.bandwidth * 0.95 + bandwidth * 0.05
            total, number = self.bandwidth_workers.get(gather.address, (0.0, 0))
            self.bandwidth_workers[gather.address] = (total + bandwidth, number + 1)

    def _cause(self, address: str) -> Any:
        """The task that a transfer is booked on, as in `Worker._get_cause`."""
        tasks = [self.state.tasks[key] for key in self.state.in_flight_workers[address]]
        for ts in tasks:
            if ts.dependents:
                return next(iter(ts.dependents))
        return tasks[-1]

    # --- memory and heartbeats

    @property
    def memory_bytes(self) -> int:
        """What it holds, and what its running tasks take beside."""
        running = sum(execution.task.memory_bytes for execution in self.running.values())
        return int(self.state.nbytes) + running

    def watch_memory(self) -> None:
        """See that the memory monitor looks at its next turn, if it would then change something."""
        if not self.worker_class.memory_bytes or self.is_memory_check_due:
            return
        if self._is_over_memory() != self.is_paused:
            self.is_memory_check_due = True
            interval_s = self.limits.memory_interval_s
            turns = math.floor(self.stage.clock.now_s / interval_s) + 1
            self.stage.agenda.at(turns * interval_s, self._check_memory)

    def _is_over_memory(self) -> bool:
        limit = self.limits.pause_fraction * self.worker_class.memory_bytes
        return self.memory_bytes > limit

    def _check_memory(self) -> None:
        self.is_memory_check_due = False
        is_over = self._is_over_memory()
        if not self.is_alive or is_over == self.is_paused:
            return
        self.is_paused = is_over
        status = Status.paused if is_over else Status.running
        stimulus_id = "worker-status-change"
        self.around.send_to_scheduler(
            self, {"op": stimulus_id, "status": status.name, "stimulus_id": stimulus_id}
        )
        event = PauseEvent if is_over else UnpauseEvent
        self.stimulus(event(stimulus_id=stimulus_id))

    def metrics(self) -> dict[str, Any]:
        """What a heartbeat tells, as far as the scheduler or a plugin of it reads that."""
        state = self.state
        bandwidth_workers, self.bandwidth_workers = self.bandwidth_workers, {}
        return {
            "task_counts": state.task_counter.current_count(by_prefix=False),
            "bandwidth": {
                "total": self.bandwidth,
                "workers": bandwidth_workers,
                "types": {},
            },
            "digests_total_since_heartbeat": {},
            "managed_bytes": state.nbytes,
            "spilled_bytes": {"memory": 0, "disk": 0},
            "transfer": {
                "incoming_bytes": state.transfer_incoming_bytes,
                "incoming_count": state.transfer_incoming_count,
                "incoming_count_total": state.transfer_incoming_count_total,
                "outgoing_count": self.n_outgoing,
            },
            "cpu": 100.0 * len(self.running),
            "memory": self.memory_bytes,
        }

    def heartbeat(self, scheduler: Any) -> None:
        """Tell the scheduler how it is, and look for data that went missing."""
        if self.state.missing_dep_flight:
            # `Worker.find_missing` has the same interval.
            self.stimulus(FindMissingEvent(stimulus_id="find-missing"))
        now_s = self.stage.clock.now_s
        is_changed = self.n_stimuli != self.n_stimuli_told
        if is_changed or now_s - self.told_s >= FULL_HEARTBEAT_S:
            self.n_stimuli_told, self.told_s = self.n_stimuli, now_s
            scheduler.heartbeat_worker(
                address=self.address,
                resolve_address=False,
                now=now_s,
                metrics=self.metrics(),
                executing={key: now_s - run.started_s for key, run in self.running.items()},
            )
        else:
            self._short_heartbeat(scheduler, now_s)

    def _short_heartbeat(self, scheduler: Any, now_s: float) -> None:
        """What `Scheduler.heartbeat_worker` makes of one that tells nothing new but the time."""
        share = 1 / len(scheduler.workers)
        scheduler.bandwidth = scheduler.bandwidth * (1 - share) + self.bandwidth * share
        ws = scheduler.workers[self.address]
        ws.last_seen = now_s
        ws.executing = executing = {}
        for key, run in self.running.items():
            ts = scheduler.tasks.get(key)
            if ts is not None:
                executing[ts] = now_s - run.started_s
                ts.prefix.add_exec_time(now_s - run.started_s)


class _SortedItems(defaultdict[str, Any]):
    """Peers in the order of their addresses: they are entered in the order of a set of texts."""

    def items(self) -> Any:
        return sorted(super().items(), key=lambda item: item[0])
