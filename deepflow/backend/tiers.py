"""Gives a Dask worker tiers for its data, in place of Dask's spilling on the event loop.

`WorkerMemoryManager.data` and `WorkerState.data` are one `SpillBuffer`, which is exchanged as a
whole. `WorkerState.ready`, `TaskState.dependents`, `.priority` and `.startstops` tell what is
wanted next and what a value costs. A lost value is released with a `FreeKeysEvent`, of which the
scheduler is told. `backend/contract.py` lists these parts. Where one is not as expected, Dask
spills. A worker whose data is something else keeps it, which is said once and counted.
"""

from __future__ import annotations

import bisect
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from distributed import spill, worker_state_machine
from distributed.metrics import time
from tornado.ioloop import PeriodicCallback

from deepflow.backend.contract import TIERS, may_use
from deepflow.intermediates.arena import Arena
from deepflow.intermediates.places import Disk, InMemory, Place, Remote
from deepflow.intermediates.tiers import Hooks, TieredStore, Use
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back

if TYPE_CHECKING:
    from distributed import Worker

__all__ = ["TierOptions", "Tiers", "install_tiers", "tiers_of"]

_MEMORY_SHARE: Final = 0.25
"""Of the target, for what is coded in memory."""
_LOOK_EVERY_S: Final = 0.1
_ADMIT_S: Final = 30.0
_UNKNOWN_S: Final = 1.0
_AHEAD: Final = 2
"""Tasks for each thread whose inputs are read before they begin."""
_OVER_SHARE: Final = 0.65
"""Of the memory limit: a larger process has to evict. Dask pauses at 0.8, a nanny kills at 0.95."""
_TIGHT_SHARE: Final = 0.5
"""Of the memory limit, from which on nothing more is laid in shared memory: that a page is mapped
twice counts twice for a nanny."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TierOptions:
    """As the settings of the same names; None: see there."""

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    url: str | None = None


class Tiers:
    """The tiers of one worker."""

    def __init__(self, worker: Worker, options: TierOptions, target_bytes: int) -> None:
        self.worker = worker
        self.forget: Callable[[Any], None] = lambda key: None
        """Called when a value has left the heap, on the event loop."""
        memory_bytes = options.memory_bytes
        if memory_bytes is None:
            memory_bytes = int(_MEMORY_SHARE * target_bytes)
        places: list[Place] = [InMemory(memory_bytes)] if memory_bytes else []
        if options.disk_bytes != 0:
            folder = Path(worker.local_directory) / "deepflow-tiers"
            places.append(Disk(folder, options.disk_bytes))
        if options.url is not None:
            places.append(Remote(options.url, f"deepflow-{uuid.uuid4().hex}", None))
        self.arena: Arena | None = None
        """The worker's shared memory, if it has any."""
        self._limit_bytes = int(worker.memory_manager.memory_limit or 0)
        hooks = Hooks(
            uses=self._uses,
            over_bytes=self._over_bytes,
            wanted=self._wanted,
            left=self._left,
            lost=self._lost,
            moved=_count_moved,
            waited=lambda seconds: metrics.inc("deepflow_tier_waited_seconds_total", seconds),
            fallback=fell_back,
        )
        self.store = TieredStore(places, target_bytes, hooks)
        self._looking = PeriodicCallback(self._look, _LOOK_EVERY_S * 1000)

    def start(self) -> None:
        """Take the worker's data over."""
        worker, store = self.worker, self.store
        before = worker.data
        for key in list(before):
            store[key] = before[key]
        worker.memory_manager.data = store
        worker.state.data = store
        for key in list(store):
            del before[key]
        self._looking.start()

    def close(self) -> None:
        """Remove every stored copy; what is in the heap stays."""
        self._looking.stop()
        self.store.close()

    def admit(self, n_bytes: int) -> None:
        """Hold a thread back until as many bytes more are no danger; for 30 seconds at the most."""
        if not self.store.admit(n_bytes, _ADMIT_S):
            fell_back(Fallback.MEMORY_PRESSURE)

    def _look(self) -> None:
        if self.arena is not None:
            self.arena.is_tight = self._process_bytes() > _TIGHT_SHARE * self._limit_bytes
        self.store.look()
        for tier, n_bytes in self.store.used_bytes().items():
            metrics.set_gauge("deepflow_tier_bytes", n_bytes, tier=tier)

    def _process_bytes(self) -> int:
        return int(self.worker.monitor.get_process_memory())

    # -- what the store asks, from its threads -------------------------------------------------

    def _over_bytes(self) -> int:
        return int(self._process_bytes() - _OVER_SHARE * self._limit_bytes)

    def _uses(self, keys: Iterable[Any]) -> dict[Any, Use]:
        tasks = self.worker.state.tasks
        ranks = sorted(task.priority for task in self._ready() if task.priority is not None)
        found = {}
        for key in keys:
            task = tasks.get(key)
            if task is None:
                continue
            computed = [s for s in task.startstops if s["action"] == "compute"]
            cost_s = computed[-1]["stop"] - computed[-1]["start"] if computed else _UNKNOWN_S
            found[key] = Use(cost_s, _next_use(_copied(task.dependents), ranks))
        return found

    def _ready(self) -> list[Any]:
        return [*_copied(self.worker.state.ready), *_copied(self.worker.state.constrained)]

    def _wanted(self) -> list[Any]:
        state = self.worker.state
        first = sorted(
            (task for task in self._ready() if task.priority is not None),
            key=lambda task: task.priority,
        )[: _AHEAD * max(1, state.nthreads)]
        return list(dict.fromkeys(d.key for task in first for d in _copied(task.dependencies)))

    def _left(self, key: Any) -> None:
        self.worker.loop.add_callback(self.forget, key)

    def _lost(self, key: Any) -> None:
        self.worker.loop.add_callback(self._release, key)

    def _release(self, key: Any) -> None:
        """Tell the state machine, and through it the scheduler, that a value is not here any more.

        At once, although a task may just be failing of it: so the scheduler knows before it hears
        of that failure, and has the value made anew, which costs the task none of its retries.
        Not while a task runs that has it, for the scheduler would let that one run again.
        """
        worker = self.worker
        task = worker.state.tasks.get(key)
        if task is None or task.state != "memory" or key in self.store:
            return
        if any(one.key in worker.active_keys for one in task.dependents):
            worker.loop.call_later(_LOOK_EVERY_S, self._release, key)
            return
        event = worker_state_machine.FreeKeysEvent(
            keys=[key], stimulus_id=f"deepflow-lost-{time()}"
        )
        worker.handle_stimulus(event)


def _next_use(dependents: list[Any], ranks: list[Any]) -> int | None:
    """How many ready tasks come before the first of these that has not run."""
    first = None
    for task in dependents:
        if task.state in ("executing", "long-running"):
            return 0
        if task.state in ("waiting", "ready", "constrained") and task.priority is not None:
            rank = bisect.bisect_left(ranks, task.priority)
            first = rank if first is None else min(first, rank)
    return first


def _copied(several: Iterable[Any]) -> list[Any]:
    """A copy, made while the event loop may change the original."""
    for _ in range(3):
        try:
            return list(several)
        except RuntimeError:  # it changed its size
            continue
    return []


def _count_moved(direction: str, tier: str, n_bytes: int) -> None:
    metrics.inc("deepflow_tier_moved_bytes_total", n_bytes, tier=tier, direction=direction)


_tiers: WeakKeyDictionary[Worker, Tiers] = WeakKeyDictionary()


def install_tiers(worker: Worker, options: TierOptions) -> Tiers | None:
    """Give a worker tiers; None where Dask's own way has to stay, or nothing is ever evicted."""
    if worker in _tiers:
        return _tiers[worker]
    if not may_use(TIERS):
        return None
    manager = worker.memory_manager
    target = manager.memory_target_fraction or manager.memory_spill_fraction
    if not manager.memory_limit or not target:
        return None  # no limit, or spilling is switched off in Dask's configuration
    if type(worker.data) is not spill.SpillBuffer or worker.data is not worker.state.data:
        fell_back(Fallback.FOREIGN_WORKER_DATA)
        _log.warning(
            "the worker keeps its data in a %s of its own: no tiers", type(worker.data).__name__
        )
        return None
    tiers = _tiers[worker] = Tiers(worker, options, int(target * manager.memory_limit))
    tiers.start()
    return tiers


def tiers_of(worker: Worker) -> Tiers | None:
    """What `install_tiers` put into a worker."""
    return _tiers.get(worker)
