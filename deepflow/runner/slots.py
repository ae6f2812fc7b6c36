"""Leaving a worker slot while waiting, so that waiting never starves what is waited for.

A task that waits for another one's result inside a Dask worker would hold the slot that the other
one may need. While it waits it leaves the thread pool (`distributed.secede`); before it goes on it
takes a slot again (`rejoin`). Both must be called by the pool's own thread, so a task with a
timeout, which runs in a thread beside it, asks that thread to do it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from distributed import secede
from distributed.threadpoolexecutor import rejoin


class Slot:
    """The worker slot that the current job holds."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_waiting = 0
        self._n_callbacks = 0
        self._is_away = False

    def _perform(self, action: Callable[[], None]) -> None:
        if threading.get_ident() == self._owner:
            action()
            return
        done = threading.Event()

        def on_behalf() -> None:
            try:
                action()
            finally:
                done.set()

        self._requests.put(on_behalf)
        done.wait()

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Leave the slot for the time of the block."""
        with self._lock:
            self._n_waiting += 1
            first = self._n_waiting == 1
        if first:
            self._perform(secede)
        try:
            yield
        finally:
            with self._lock:
                self._n_waiting -= 1
                last = self._n_waiting == 0
            if last:
                self._perform(rejoin)

    def leave_for_callback(self) -> None:
        """Leave the slot because somebody asks to be called back: how it waits cannot be seen."""
        with self._lock:
            self._n_callbacks += 1
            if self._is_away:
                return
            self._is_away = True
            self._n_waiting += 1
            first = self._n_waiting == 1
        if first:
            self._perform(secede)

    def called_back(self) -> None:
        """One of those callbacks was made (any thread may say so)."""
        with self._lock:
            self._n_callbacks -= 1

    def come_back(self) -> None:
        """Take a slot again once all callbacks were made; else nothing."""
        with self._lock:
            if not self._is_away or self._n_callbacks > 0:
                return
            self._is_away = False
            self._n_waiting -= 1
            last = self._n_waiting == 0
        if last:
            self._perform(rejoin)

    def serve(self, timeout_s: float) -> bool:
        """The owner waits for `finished`, doing what others ask; False if the time is up."""
        import time

        deadline_s = time.monotonic() + timeout_s
        while True:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return False
            try:
                action = self._requests.get(timeout=remaining_s)
            except queue.Empty:
                return False
            if action is None:
                return True
            action()

    def finished(self) -> None:
        """End `serve`."""
        self._requests.put(None)


current_slot: ContextVar[Slot | None] = ContextVar("deepflow_slot", default=None)


@contextmanager
def slot_left() -> Generator[None, None, None]:
    """Leave the worker slot of the current job, if there is one, for the time of the block."""
    slot = current_slot.get()
    if slot is None:
        yield
    else:
        with slot.left():
            yield
