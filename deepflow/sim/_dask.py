"""Dask in virtual time: its modules, the real scheduler (never started), and its graphs.

Dask reads the time from module globals and orders sets by hash; while a simulation runs, both are
replaced, so that the same seed gives the same decisions in every process.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import dask
import distributed.active_memory_manager
import distributed.scheduler
import distributed.stealing
import distributed.worker_state_machine
from dask._task_spec import GraphNode
from dask.order import order
from distributed.active_memory_manager import ActiveMemoryManagerExtension
from distributed.core import Status
from distributed.scheduler import Scheduler
from distributed.stealing import WorkStealing

from deepflow.backend.contract import JUDGE, may_use
from deepflow.errors import DeepflowError
from deepflow.sim._clock import Clock, StableHash
from deepflow.sim.workload import SimJob, SimTask

__all__ = [
    "Mailbox",
    "dask_in_virtual_time",
    "ordered",
    "periodic_callbacks",
    "quiet_config",
    "silent_scheduler",
    "step",
    "task_keys",
]

# Here, since the other modules cannot even be imported where Dask has other names.
may_use(JUDGE)

QUIET_CONFIG = {
    "distributed.admin.low-level-log-length": 0,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
}
"""What costs time or starts threads and changes no decision."""

_SERVER_CALLBACKS = frozenset(
    {
        "shift_counters",
        "monitor",
        "tick",
        "ticks",
        "worker-ttl",
        "idle-timeout",
        "no-workers-timeout",
    }
)
"""What a server does for itself every so often; of no meaning in virtual time."""


class Mailbox:
    """Stands in for a `BatchedSend`: keeps messages until it is connected, then hands them on."""

    def __init__(self, **_: object) -> None:
        self._kept: list[dict[str, Any]] = []
        self._deliver: Callable[[tuple[dict[str, Any], ...]], None] | None = None

    def send(self, *messages: dict[str, Any]) -> None:
        """Send messages, in this order."""
        if self._deliver is None:
            self._kept.extend(messages)
        elif messages:
            self._deliver(messages)

    def connect(self, deliver: Callable[[tuple[dict[str, Any], ...]], None]) -> None:
        """From now on hand messages to `deliver`; first those that were kept."""
        self._deliver = deliver
        if self._kept:
            deliver(tuple(self._kept))
            self._kept.clear()


class _SilentScheduler(Scheduler):
    """The scheduler without its web server, its log handler and its socket to each worker."""

    def start_http_server(self, *args: object, **kwargs: object) -> None:
        """No server."""

    def _setup_logging(self, *args: object) -> None:
        """No handler."""

    async def handle_worker(self, comm: object, worker: str) -> None:
        """No stream: the engine hands over what a worker says."""


def silent_scheduler(*, stealing: bool, validate: bool) -> Scheduler:
    """A scheduler as it is before `start`, with Dask's own extensions that place or move data.

    To be called in a coroutine, in virtual time: Dask wants an event loop to construct.
    """
    extensions: dict[str, Any] = {"amm": ActiveMemoryManagerExtension}
    if stealing:
        extensions["stealing"] = WorkStealing
    scheduler = _SilentScheduler(
        dashboard=False, validate=validate, extensions=extensions, needs_workdir=False
    )
    if scheduler._updated_sys_path:
        sys.path.remove(scheduler.local_directory)
    scheduler.status = Status.running
    return scheduler


async def periodic_callbacks(scheduler: Scheduler) -> dict[str, tuple[float, Callable[[], object]]]:
    """What the scheduler, its extensions and plugins do every so often: name → seconds, callback.

    Their timers are stopped: the caller keeps the time.
    """
    if "stealing" in scheduler.extensions:
        await scheduler.extensions["stealing"].start()
    found: dict[str, tuple[float, Callable[[], object]]] = {}
    for name, callback in scheduler.periodic_callbacks.items():
        callback.stop()
        if name not in _SERVER_CALLBACKS:
            found[name] = (callback.callback_time / 1e3, callback.callback)
    return found


class _Step(GraphNode):
    """A task of a graph that is never called; its dependencies are in the order of the job."""

    __slots__ = ()

    def __init__(self, key: str, dependencies: Any) -> None:
        self.key = key
        self._dependencies = dependencies


def step(key: str, dependencies: Iterable[str]) -> GraphNode:
    """A node of a graph for the scheduler."""
    return _Step(key, tuple(dict.fromkeys(dependencies)))


def task_keys(job: SimJob) -> dict[str, str]:
    """The Dask key of each of a job's tasks; the category comes first, as Dask takes it from there.

    A number follows it, as in the keys of real tasks: words without digits would be taken for a
    part of the category.
    """
    return {t.key: f"{t.task}-{n}-{job.run}-{t.key}" for n, t in enumerate(job.tasks)}


class _Name(str):
    """A text whose hash is the same in every process."""

    __slots__ = ("stable",)
    stable: int

    def __hash__(self) -> int:
        return self.stable


def ordered(
    tasks: Iterable[SimTask], keys: Mapping[str, str], stable_hash: StableHash
) -> dict[str, int]:
    """`dask.order` of a job: Dask key → place.

    Dask breaks ties as its sets happen to be ordered; here `stable_hash` decides.
    """
    names: dict[str, _Name] = {}
    for key in keys.values():
        names[key] = _Name(key)
        names[key].stable = stable_hash(key)
    graph: dict[Any, GraphNode] = {
        names[keys[t.key]]: _Step(
            names[keys[t.key]], frozenset(names[keys[d]] for d in t.depends_on)
        )
        for t in tasks
    }
    return {str(name): place for name, place in order(graph).items()}


def quiet_config(dask_config: Mapping[str, object] | None) -> Any:
    """The Dask configuration of a simulation, as a context manager."""
    return dask.config.set({**QUIET_CONFIG, **(dask_config or {})})


_running = threading.Lock()


@contextmanager
def dask_in_virtual_time(clock: Clock, stable_hash: StableHash) -> Iterator[list[BaseException]]:
    """Let Dask's scheduler, stealing and worker state machines run on `clock`, by `stable_hash`.

    Yields a list to which every exception is added that Dask would only log, such as one out of a
    plugin. Everything is put back in the end. Module globals are replaced, so that one simulation
    runs in a process at a time, and no live Dask scheduler or worker should be in that process.

    Raises :class:`DeepflowError` where one is running already.
    """
    if not _running.acquire(blocking=False):
        raise DeepflowError(
            "a simulation is running in this process already; run them one after the other, or "
            "each in a process of its own"
        )
    with ExitStack() as stack:
        stack.callback(_running.release)

        def put(owner: Any, name: str, value: object) -> None:
            if name in vars(owner):
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, value)

        for module in (
            distributed.scheduler,
            distributed.stealing,
            distributed.active_memory_manager,
            distributed.worker_state_machine,
        ):
            put(module, "time", clock)
        put(distributed.scheduler, "monotonic", clock)
        put(distributed.worker_state_machine, "monotonic", clock)
        put(distributed.scheduler, "hash", stable_hash)
        put(distributed.scheduler, "BatchedSend", Mailbox)
        put(distributed.scheduler, "setproctitle", lambda title: None)
        find = stable_hash.find

        def task_hash(ts: Any) -> int:
            number = find(ts.key)
            return id(ts) if number is None else number

        put(distributed.worker_state_machine.TaskState, "__hash__", task_hash)
        put(
            distributed.scheduler.SchedulerState,
            "valid_workers",
            _in_stable_order(distributed.scheduler.SchedulerState.valid_workers),
        )
        yield stack.enter_context(_exceptions_kept())


def _in_stable_order(valid_workers: Callable[..., Any]) -> Callable[..., Any]:
    """The method with a result whose order does not come from a set of texts."""

    def stable_valid_workers(self: Any, ts: Any) -> Any:
        found = valid_workers(self, ts)
        if not found or len(found) == 1:
            return found
        by_address = sorted(found, key=_address)
        return set(by_address)

    stable_valid_workers.__wrapped__ = valid_workers  # type: ignore[attr-defined]
    return stable_valid_workers


def _address(ws: Any) -> str:
    return str(ws.address)


@contextmanager
def _exceptions_kept() -> Iterator[list[BaseException]]:
    """Collects what Dask logs with an exception, and keeps the rest of its log quiet."""
    kept: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            kept.append(record.exc_info[1])
        return False

    names = ("scheduler", "stealing", "active_memory_manager", "worker.state_machine", "utils")
    loggers = [logging.getLogger(f"distributed.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(keep)
        logger.setLevel(logging.INFO)
    try:
        yield kept
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeFilter(keep)
            logger.setLevel(level)
