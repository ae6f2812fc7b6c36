"""One thread that performs what it is given, at once or at a time, one thing after the other.

The dispatcher's reactions to workers, to Dask and to the clock run here, so that none of them
runs on Dask's event loop or beside another one.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from deepflow.observe.fallbacks import Fallback, fell_back

if TYPE_CHECKING:
    import logging

Action = Callable[[], None]

_CLOSE_TIMEOUT_S = 5.0
_LONGEST_S = 3600.0


class Reactor:
    """See the top of this file. Methods may be called from any thread and do not block."""

    def __init__(
        self,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._inbox: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        # Only the reactor's own thread touches the timers, so they need no lock.
        self._timers: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        # In the context of the flow run: its settings say where this thread's log lines go.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="deepflow-dispatcher", daemon=True
        )
        self._thread.start()

    def soon(self, action: Action) -> None:
        """Perform `action` after what was given before."""
        self._inbox.put(action)

    def at(self, when_s: float, action: Action) -> None:
        """Perform `action` at `when_s` (on the clock: Unix time), or soon after."""
        self._inbox.put(lambda: heapq.heappush(self._timers, (when_s, next(self._numbers), action)))

    def close(self) -> None:
        """Perform what was given so far, but no timer any more; waits for it, boundedly."""
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            try:
                if self._step():
                    return
            except BaseException as exc:  # noqa: BLE001 - every run depends on this thread
                self._fault(exc)

    def _step(self) -> bool:
        """Perform what was given first and what is due; whether that was the end."""
        timeout_s = None
        if self._timers:
            timeout_s = min(_LONGEST_S, max(0.0, self._timers[0][0] - self._clock()))
        try:
            action = self._inbox.get(timeout=timeout_s)
            if action is None:
                return True
            self._perform(action)
        except queue.Empty:
            pass
        while self._timers and self._timers[0][0] <= self._clock():
            self._perform(heapq.heappop(self._timers)[2])
        return False

    def _perform(self, action: Action) -> None:
        """One reaction; a fault in it must not end the thread on which every run depends."""
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - unpickling may raise whatever it likes
            self._fault(exc)

    def _fault(self, exc: BaseException) -> None:
        fell_back(Fallback.DISPATCHER_FAULT)
        with suppress(Exception):  # a log handler's trouble
            self._logger.error("deepflow's dispatcher met a fault and goes on", exc_info=exc)
