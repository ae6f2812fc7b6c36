"""What a dispatcher knows of its runs, and the one lock under which that changes.

Lock discipline: an item, its batch and everything on the board change only inside a turn
(`with board.turn():`). Turns exclude each other and may be nested. What users have asked to be
called for items that are finished in a turn is put in line when the outermost turn has ended, and
called by threads of its own (`calling.py`), for it may submit, wait, cancel or block. What waits
for the network is done outside turns.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.exceptions import CancelledRun

from deepflow.decide.batching import RunTime
from deepflow.observe.fallbacks import Fallback, SaidOnce, fell_back
from deepflow.runner.calling import CallingThreads
from deepflow.runner.driver.items import Item

if TYPE_CHECKING:
    import logging


class Board:
    """See the top of this file. Methods may be called from any thread, except as they say."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self.logger = logger
        self.flow_run_id: UUID | None = None
        """The flow run whose tasks these are; part of every Dask key."""
        self.is_closing = False
        self.is_cancelled = False
        """The flow run was cancelled: nothing more is to run."""
        self._open: dict[UUID, Item] = {}
        self._known: weakref.WeakValueDictionary[UUID, Item] = weakref.WeakValueDictionary()
        self._run_times: dict[str, RunTime] = {}
        self.once = SaidOnce()
        """What this flow run was told of and is not told again."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._depth = 0
        self._finished: list[Item] = []
        self._n_unlined = 0
        """Finished items whose callbacks are not in line yet."""
        self._callbacks_lock = threading.Lock()
        self.calling = CallingThreads(logger)

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """The right to change things; see the lock discipline above."""
        finished: list[Item] = []
        try:
            with self._lock:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    if self._depth == 0:
                        finished, self._finished = self._finished, []
        finally:
            for item in finished:
                self._call_back(item)
            if finished:
                with self._lock:
                    self._n_unlined -= len(finished)
                    self._changed.notify_all()

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Whether `holds()` came true within `timeout_s` seconds; not in a turn.

        It is asked after each `notify` and when the last open item is done.
        """
        with self._lock:
            return self._changed.wait_for(holds, timeout=timeout_s)

    def notify(self) -> None:
        """What somebody waits for may hold now (in a turn)."""
        self._changed.notify_all()

    # -- items ---------------------------------------------------------------------------------

    def admit(self, item: Item) -> None:
        """Take over an item (in a turn).

        Raises:
            RuntimeError: the task runner has been left.
            CancelledRun: the flow run was cancelled.
        """
        if self.is_cancelled:
            raise CancelledRun("The flow run was cancelled: no further task run is submitted.")
        if self.is_closing:
            raise RuntimeError("The task runner must be started before submitting work.")
        self._open[item.run_id] = item
        self._known[item.run_id] = item

    def find(self, run_id: UUID) -> Item | None:
        """The item of a run submitted here, while somebody holds its future."""
        return self._known.get(run_id)

    def find_open(self, run_id: UUID) -> Item | None:
        """The item of a run that is not done."""
        return self._open.get(run_id)

    def open_items(self) -> list[Item]:
        """Items that are not done."""
        with self._lock:
            return list(self._open.values())

    @property
    def n_open(self) -> int:
        """How many items are not done."""
        return len(self._open)

    def finished(self, item: Item) -> None:
        """`item` has reached its final state: what waits for that is called after this turn."""
        self._open.pop(item.run_id, None)
        self._finished.append(item)
        self._n_unlined += 1
        if not self._open:
            self._changed.notify_all()

    # -- calling back --------------------------------------------------------------------------

    def when_done(self, item: Item, callback: Callable[[], None]) -> bool:
        """Have `callback` called once `item` is done, after those that were added before.

        False where that is so now: it is for the caller to call it.
        """
        with self._callbacks_lock:
            if item.is_done and not item.callbacks:
                return False
            item.callbacks.append(callback)
            is_late = item.is_called_back
        if is_late:
            self.calling.put(item.run_id, partial(self._call_next, item))
        return True

    def wait_called(self, timeout_s: float) -> bool:
        """Whether the callbacks of all finished items have returned within `timeout_s` seconds.

        Not in a turn.
        """
        deadline_s = time.monotonic() + timeout_s
        if not self.wait_until(lambda: self._n_unlined == 0, timeout_s):
            return False
        return self.calling.wait_idle(max(0.0, deadline_s - time.monotonic()))

    def _call_back(self, item: Item) -> None:
        with self._callbacks_lock:
            item.is_called_back = True
            n_callbacks = len(item.callbacks)
        for _ in range(n_callbacks):
            self.calling.put(item.run_id, partial(self._call_next, item))

    def _call_next(self, item: Item) -> None:
        with self._callbacks_lock:
            callback = item.callbacks.pop(0)
        callback()

    # -- what was seen -------------------------------------------------------------------------

    def run_time(self, task_digest: str) -> RunTime:
        """What is known of a task's run time."""
        return self._run_times.get(task_digest, RunTime())

    def learn(self, task_digest: str, run_s: float) -> None:
        """A run of a task took `run_s` seconds (in a turn)."""
        self._run_times[task_digest] = self.run_time(task_digest).seen(run_s)

    def log_once(self, kind: str, message: str) -> None:
        """Log a warning of this kind, the first time only."""
        if self.once.is_new(kind):
            self.logger.warning(message)

    def fell_back(self, kind: Fallback, message: str) -> None:
        """Count a fallback; tell the flow run the first time."""
        fell_back(kind, self.logger, "%s", message, once=self.once)
