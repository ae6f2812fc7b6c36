"""Threads for the functions that users have asked to be called when a run is done.

Such a function may do anything: wait for another run, submit one, or block for good. So it never
runs on the dispatcher's thread, on Dask's event loop or under the board's lock, and there is no
upper bound on these threads, for functions may wait for each other. Few are started all the same:
one works through what is to be called, in order, and another one looks on. When the first does not
get on, or says that it is going to wait (`waiting`), the other one takes over, and a further one
looks on. Idle threads end after a while.

The functions of one run are called one after the other. Only where one of them waits for a run, or
has not returned after a second, the next one is called beside it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deepflow.observe.fallbacks import Fallback, fell_back

if TYPE_CHECKING:
    import logging

Call = Callable[[], None]

_STALL_S = 0.02
"""After this long without progress another thread takes over."""
_SAME_RUN_S = 1.0
"""After this long the next function of the same run is called beside the one before it."""
_IDLE_S = 5.0
"""A thread that has had nothing to do for this long ends."""


class _Here(threading.local):
    """What the current thread calls, and for whom."""

    threads: CallingThreads | None = None
    run: Hashable = None


_here = _Here()


class CallingThreads:
    """See the top of this file. Methods may be called from any thread."""

    def __init__(
        self,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        *,
        stall_s: float = _STALL_S,
        same_run_s: float = _SAME_RUN_S,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._logger = logger
        self._stall_s = stall_s
        self._same_run_s = same_run_s
        self._idle_s = idle_s
        self._queue: deque[tuple[Hashable, Call]] = deque()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._done = threading.Condition(lock)
        self._begun: dict[Hashable, tuple[float, threading.Thread]] = {}
        """When, and in which thread, the last function of each run began that is in the middle."""
        self._worker: threading.Thread | None = None
        """Who works through the queue; those that were taken over from do not count."""
        self._n_open = 0
        self._n_idle = 0
        self._n_taken = 0
        self.n_threads = 0
        """How many threads there are."""

    def put(self, run: Hashable, call: Call) -> None:
        """Have a function of `run` called soon, after those that were put before."""
        with self._changed:
            self._queue.append((run, call))
            self._n_open += 1
            if self._n_idle == 0:
                self._start_thread()
            elif self._worker is None or len(self._queue) == 1:
                self._changed.notify()

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether every function was called and has returned within `timeout_s` seconds."""
        with self._done:
            return self._done.wait_for(lambda: self._n_open == 0, timeout=timeout_s)

    def call(self, call: Call) -> None:
        """Call it here and now; what it raises is counted and logged, and hurts nobody else."""
        try:
            call()
        except Exception:
            fell_back(Fallback.CALLBACK_FAILED)
            self._logger.exception("A done-callback failed")

    # -- the threads ---------------------------------------------------------------------------

    def _start_thread(self) -> None:
        """One more thread (under the lock)."""
        self.n_threads += 1
        self._n_idle += 1
        threading.Thread(target=self._work, name="deepflow-callbacks", daemon=True).start()

    def _work(self) -> None:
        _here.threads = self
        while (taken := self._next()) is not None:
            _here.run, call = taken
            try:
                self.call(call)
            except BaseException:
                # `sys.exit()` in a callback ends neither the process nor what others wait for.
                fell_back(Fallback.CALLBACK_FAILED)
                self._logger.exception("A done-callback failed")
            finally:
                self._returned(_here.run)
            del taken, call

    def _returned(self, run: Hashable) -> None:
        with self._changed:
            self._stop_working(run)
            self._n_idle += 1
            self._n_open -= 1
            if self._n_open == 0:
                self._done.notify_all()

    def _next(self) -> tuple[Hashable, Call] | None:
        """What to call now; None where there was nothing to do for long."""
        with self._changed:
            is_stalled = False
            while True:
                if self._queue and (self._worker is None or is_stalled):
                    taken = self._take()
                    if taken is not None:
                        return taken
                n_taken = self._n_taken
                timeout_s = self._stall_s if self._queue else self._idle_s
                is_notified = self._changed.wait(timeout_s)
                if not self._queue:
                    if not is_notified and timeout_s == self._idle_s:
                        self._n_idle -= 1
                        self.n_threads -= 1
                        return None
                    is_stalled = False
                else:
                    is_stalled = not is_notified and n_taken == self._n_taken

    def _take(self) -> tuple[Hashable, Call] | None:
        """The first of the queue whose run is not in the middle of another function."""
        now_s = time.monotonic()
        for taken in self._queue:
            run = taken[0]
            if run not in self._begun or now_s - self._begun[run][0] >= self._same_run_s:
                break
        else:
            return None
        self._queue.remove(taken)
        self._worker = threading.current_thread()
        self._begun[run] = (now_s, self._worker)
        self._n_idle -= 1
        self._n_taken += 1
        if self._queue and self._n_idle == 0:
            self._start_thread()  # it looks on
        return taken

    def _stop_working(self, run: Hashable) -> None:
        """The current thread is no longer in the way of others (under the lock)."""
        here = threading.current_thread()
        if self._worker is here:
            self._worker = None
        if run in self._begun and self._begun[run][1] is here:
            del self._begun[run]

    def _hand_over(self, run: Hashable) -> None:
        """The current thread is going to wait: others go on."""
        with self._changed:
            self._stop_working(run)
            if not self._queue or self._worker is not None:
                return
            if self._n_idle == 0:
                self._start_thread()
            else:
                self._changed.notify()


@contextmanager
def waiting() -> Generator[None, None, None]:
    """For the time of the block this thread waits: what else is to be called does not."""
    if _here.threads is not None:
        _here.threads._hand_over(_here.run)
    yield
