"""The worker slot that a run's code holds: leaving it while waiting, and lending it to a thread.

A task that waits for another one's result inside a Dask worker would hold the slot that the other
one may need. While it waits it leaves the worker's thread pool (as `distributed.secede` does);
before it goes on it takes a slot again (as `distributed.rejoin` does).

Dask lets only the pool's own thread do that, and knows it by thread-local state. A run has further
threads: the one in which a call with a time-out runs (`engine.py`), and those that the user's code
starts (`asyncio.to_thread`). Here all of them act for the pool's thread, the slot's owner. The
thread of a timed call is *lent* the slot: whatever of Dask looks at its thread there (`secede`,
`rejoin`, `worker_client`, `dask.compute`, `Worker.get_current_task`) finds what it would find in
the owner. A closed slot cannot be left or taken any more, so code that was abandoned at its
deadline changes nothing in the pool, whatever it does later.

`backend/contract.py` lists the private parts of Dask's thread pool that are used. Where one is not
as expected, a slot does nothing: a task that waits keeps its thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

# Modules, not names: what they lack is known only when `may_use` was asked.
from distributed import threadpoolexecutor, utils, worker_state_machine

from deepflow.backend.contract import SLOTS, may_use
from deepflow.runner.calling import waiting

_LENT = ("start_time", "execution_state", "key")
"""What Dask keeps of a task in the thread that runs it."""


class Slot:
    """The place in the worker's thread pool that a batch's thread holds.

    Make it in that thread. In one that belongs to no pool of Dask's it does nothing. Methods may
    be called from any thread, except as they say.
    """

    def __init__(self) -> None:
        self._owner = threading.current_thread()
        self._is_real = may_use(SLOTS)
        self._pool: Any = None
        self._lock = threading.Lock()
        self._n_waiting = 0
        self._n_callbacks = 0
        self._waits_for_callback = False
        self._is_away = False
        self._coming: threading.Event | None = None
        self._is_closed = False
        self._state: dict[str, Any] = {}
        if self._is_real:
            self._pool = getattr(threadpoolexecutor.thread_state, "executor", None)
            # Dask does not export it by `__all__`.
            state = vars(utils.thread_state)  # type: ignore[attr-defined]
            self._state = {name: state[name] for name in _LENT if name in state}
        execution = self._state.get("execution_state")
        self._worker: Any = execution["worker"] if execution else None
        self._borrower: int | None = None

    # -- the pool ------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether the owner counts among the pool's threads."""
        return self._pool is not None and self._owner in self._pool._threads

    def _leave_pool(self) -> bool:
        """Make room for another thread in the pool; False where the owner held no place in it."""
        if self._pool is None:
            return False
        with threadpoolexecutor.threads_lock:
            if self._is_closed or not self.is_held:
                return False
            self._pool._threads.remove(self._owner)
            self._pool._adjust_thread_count()
        self._note_proceeding()
        if self._worker is not None:
            event = worker_state_machine.SecedeEvent(
                key=self._state["key"],
                compute_duration=time.time() - self._state["start_time"],
                stimulus_id=f"deepflow-secede-{time.time()}",
            )
            self._worker.loop.add_callback(self._worker.handle_stimulus, event)
        return True

    def _ask_for_place(self) -> threading.Event:
        """Queue for a place in the pool; the event is set once the owner has it."""
        event = threading.Event()
        with self._pool._rejoin_lock:
            if self._is_closed:
                event.set()
                return event
            self._pool._rejoin_list.append((self._owner, event))
        try:
            self._pool.submit(_nothing)  # wakes a thread, which gives its place away
        except RuntimeError:  # the worker is closing: its pool takes nothing more
            self._withdraw(event)
        return event

    def _withdraw(self, event: threading.Event) -> bool:
        """Stop queueing; False if the place was given already."""
        with self._pool._rejoin_lock:
            entry = (self._owner, event)
            if entry not in self._pool._rejoin_list:
                return False
            self._pool._rejoin_list.remove(entry)
        event.set()
        return True

    def _note_proceeding(self) -> None:
        """In the owner: whether its thread goes on in the pool once the batch is done."""
        if self._pool is None:
            return
        state = threadpoolexecutor.thread_state
        if threading.current_thread() is self._owner and hasattr(state, "proceed"):
            state.proceed = self.is_held

    # -- leaving it ----------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        """One more waits (under the lock)."""
        self._n_waiting += 1
        if self._n_waiting > 1:
            return
        coming, self._coming = self._coming, None
        if coming is not None:
            if self._withdraw(coming):
                return  # it had not come back yet
            self._is_away = False
        self._is_away = self._leave_pool()

    def _end_waiting(self) -> threading.Event | None:
        """One fewer waits (under the lock); the event to wait for where the slot is taken again."""
        self._n_waiting -= 1
        if self._n_waiting == 0 and self._is_away:
            self._coming = self._ask_for_place()
            return self._coming
        return None

    def _come(self, coming: threading.Event | None) -> None:
        """Wait for the place that was asked for."""
        if coming is None:
            return
        coming.wait()
        with self._lock:
            if self._coming is coming:  # else another thread waits, and has left the slot again
                self._coming, self._is_away = None, False
        self._note_proceeding()

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Leave the slot for the time of the block, unless it was left already."""
        with self._lock:
            self._begin_waiting()
        try:
            yield
        finally:
            with self._lock:
                coming = self._end_waiting()
            self._come(coming)

    def leave_for_callback(self) -> None:
        """Leave the slot because somebody asks to be called back: how it waits cannot be seen."""
        with self._lock:
            self._n_callbacks += 1
            if self._waits_for_callback:
                return
            self._waits_for_callback = True
            self._begin_waiting()

    def called_back(self) -> None:
        """One of those callbacks was made."""
        with self._lock:
            self._n_callbacks -= 1

    def come_back(self) -> None:
        """Take a slot again once all callbacks were made; else nothing."""
        with self._lock:
            if not self._waits_for_callback or self._n_callbacks > 0:
                return
            self._waits_for_callback = False
            coming = self._end_waiting()
        self._come(coming)

    # -- one call in it ------------------------------------------------------------------------

    def enter(self) -> None:
        """In the owner, before a call: take a place where the call before it left without one."""
        if self._pool is not None and not self.is_held:
            self._ask_for_place().wait()
            self._note_proceeding()

    def close(self) -> None:
        """In the owner, after a call: what the call's other threads still do, they do outside.

        The owner keeps the place that it has; without one, its thread ends with the batch, as
        Dask's threads do.
        """
        if self._pool is None:
            self._is_closed = True
        else:
            with threadpoolexecutor.threads_lock, self._pool._rejoin_lock:
                self._is_closed = True
                queued = self._pool._rejoin_list
                mine = [entry for entry in queued if entry[0] is self._owner]
                for entry in mine:
                    queued.remove(entry)
            for _, event in mine:
                event.set()
        if self._borrower is not None:
            self._show_in(self._owner.ident, instead_of=self._borrower)
        self._note_proceeding()

    @contextmanager
    def lent(self) -> Generator[None, None, None]:
        """In another thread: what of Dask looks at the thread finds the owner's task there."""
        if not self._is_real:
            yield
            return
        self._borrower = ident = threading.get_ident()
        if self._pool is not None:
            state = threadpoolexecutor.thread_state
            state.proceed, state.executor = True, _Deputy(self)
        self._show_in(ident, instead_of=self._owner.ident)
        try:
            with utils.set_thread_state(**self._state):
                yield
        finally:
            self._show_in(None, instead_of=ident)

    def _show_in(self, ident: int | None, *, instead_of: int | None) -> None:
        """Say to the worker, for its profile, in which thread the task runs."""
        if self._worker is None:
            return
        with self._worker.active_threads_lock:
            self._worker.active_threads.pop(instead_of, None)
            if ident == self._owner.ident or (ident is not None and not self._is_closed):
                self._worker.active_threads[ident] = self._state["key"]


class _Deputy:
    """Stands where Dask looks for a thread's pool, and does for the owner what is asked of it.

    `distributed.secede` and `rejoin` use it as pool, as its set of threads and as its list of
    those that want to come back.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._threads = self._rejoin_list = self
        self._rejoin_lock = slot._pool._rejoin_lock

    def remove(self, _thread: threading.Thread) -> None:
        """Take the owner out of the pool (under Dask's `threads_lock`).

        Raises:
            KeyError: it has left already, as Dask's set of threads says it.
        """
        if self._slot._is_closed:
            raise KeyError(_thread)
        self._slot._pool._threads.remove(self._slot._owner)

    def append(self, entry: tuple[threading.Thread, threading.Event]) -> None:
        """Queue for the owner's return (under the pool's `_rejoin_lock`)."""
        _, event = entry
        if self._slot._is_closed:
            event.set()
        else:
            self._slot._pool._rejoin_list.append((self._slot._owner, event))

    def submit(self, fn: Callable[[], None]) -> None:
        """Wake a thread of the pool."""
        if not self._slot._is_closed:
            self._slot._pool.submit(fn)

    def _adjust_thread_count(self) -> None:
        self._slot._pool._adjust_thread_count()


def _nothing() -> None:
    """What wakes a thread of the pool."""


current_slot: ContextVar[Slot | None] = ContextVar("deepflow_slot", default=None)


@contextmanager
def slot_of_call() -> Generator[Slot, None, None]:
    """The slot as the code of one run knows it; closed when the run's code has returned."""
    slot = Slot()
    slot.enter()
    token = current_slot.set(slot)
    try:
        yield slot
    finally:
        current_slot.reset(token)
        slot.close()


@contextmanager
def slot_left() -> Generator[None, None, None]:
    """Leave the worker slot of the current batch, if there is one, for the time of the block.

    A thread that calls what users have asked to be called holds no slot, but others up.
    """
    slot = current_slot.get()
    with waiting(), slot.left() if slot is not None else nullcontext():
        yield
