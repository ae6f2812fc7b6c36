"""Prefect's task engines as they run on a worker.

They are Prefect's own engines; what differs is at the edges:

- a state change is handed to the worker's outbox instead of to Prefect's event worker;
- a delayed retry ends the attempt instead of sleeping in a worker slot (`retry_at`), and a later
  engine continues the same task run;
- `timeout_seconds` is kept for sync tasks on worker threads, and a running task can be
  interrupted: between two bytecodes of a thread, at the next `await` of a coroutine, or by
  killing the process of an isolated task.

A sync call with a time-out runs in a thread beside the worker's, for only a thread that waits can
stop waiting: at the deadline the call is asked to stop and, where it blocks in C, left behind. It
is lent the worker's slot (`slots.py`), so Dask can be used in it as in any task. The price: a
thread is started for each such call, and what the user's code keeps in `threading.local` does not
last from one timed call to the next. An async task is stopped at an `await`, as by Prefect: one
that blocks its event loop is timed out when it comes back to it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any
from uuid import UUID

from prefect._internal.result_records import ResultRecord
from prefect.cache_policies import DEFAULT
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.results import should_persist_result
from prefect.states import Cancelled
from prefect.task_engine import (
    AsyncTaskRunEngine,
    BaseTaskRunEngine,
    SyncTaskRunEngine,
    TaskRunTimeoutError,
)
from prefect.transactions import IsolationLevel, get_transaction
from prefect.utilities.callables import call_with_parameters

from deepflow.intermediates.sizes import measure
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.runs import advance
from deepflow.runner.slots import Slot, slot_of_call
from deepflow.runner.staged import StagedRecord, in_transaction, staged
from deepflow.runner.worker.durable import DurableRecord
from deepflow.runner.worker.isolated import call_isolated
from deepflow.runner.worker.locking import lock_for_the_cluster

Emit = Callable[[TaskRun, State[Any] | None, State[Any]], None]

_LARGE_INPUT_BYTES = 1 << 20
CHILDREN_REMEDY = (
    "This code runs in a Dask worker, which is a daemonic process and may start no processes by "
    "`multiprocessing`, so no Dask cluster of worker processes and no process pool either. Submit "
    "tasks to the runner's own cluster instead (`task.submit`, `distributed.worker_client`), make "
    "the cluster with `processes=False`, or mark the task `hints(isolate=True)`, which runs it in "
    "a process that may."
)
_UNWIND_S = 0.25
"""How long a call that was asked to stop may take for its `finally` blocks."""
CANCELLED_MESSAGE = "Cancelled while it was running."


class Interrupted(BaseException):
    """Raised inside a running task when its cancellation is asked for."""


class Seat:
    """One running task run as the worker sees it: who can interrupt it, and whether it was.

    The lock makes an interruption hit the user's function or nothing: an exception that is still
    pending when the function has returned is taken back.
    """

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id
        self.started_monotonic_s = time.monotonic()
        self.cancelled = False
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._take_back: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ask the run to stop at the next chance."""
        with self._lock:
            self.cancelled = True
            if self._stop is not None:
                self._stop()

    @contextmanager
    def interruptible(
        self, stop: Callable[[], None], take_back: Callable[[], None] | None = None
    ) -> Generator[None, None, None]:
        """While entered, `cancel` calls `stop`; on leaving, `take_back` undoes a late one."""
        with self._lock:
            if self.cancelled:
                raise Interrupted(CANCELLED_MESSAGE)
            self._stop, self._take_back = stop, take_back
        try:
            yield
        finally:
            with self._lock:
                self._stop = None
                if self.cancelled and take_back is not None:
                    take_back()


@contextmanager
def explained() -> Generator[None, None, None]:
    """Add a remedy to an error of the user's code that is due to running on a worker."""
    try:
        yield
    except Exception as exc:
        if _is_of_a_daemon(exc):
            exc.add_note(CHILDREN_REMEDY)
            get_run_logger().error(CHILDREN_REMEDY)
        raise


def _is_of_a_daemon(exc: BaseException) -> bool:
    """Whether this, or what caused it, is `multiprocessing` refusing a daemon a child."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if "daemonic processes are not allowed to have children" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _raise_in_thread(ident: int, exception: type[BaseException] | None) -> None:
    """Raise `exception` in another thread at its next bytecode; None takes a pending one back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(exception) if exception else None
    )


class _Edges(BaseTaskRunEngine[Any, Any]):
    """What the sync and the async engine have in common of the edges."""

    def __init__(
        self,
        *,
        seat: Seat,
        emit: Emit,
        upstream_error: Exception | None = None,
        durable: DurableRecord | None = None,
        isolate: bool = False,
        resuming: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        lock_for_the_cluster(self.task)
        self.seat = seat
        self._emit = emit
        self._upstream_error = upstream_error
        self._durable = durable
        self._isolate = isolate
        self._resuming = resuming

    def is_cancelled(self) -> bool:
        return self.seat.cancelled

    def retry_at(self) -> float | None:
        """Wall-clock seconds at which the next attempt may start; None unless it has to wait."""
        due = self.state.state_details.scheduled_time
        if self.state.name != "AwaitingRetry" or due is None:
            return None
        return float(due.timestamp())

    def _resolve_parameters(self) -> None:
        """Prefect's, but an upstream that did not end well was met before the engine was made."""
        if self._upstream_error is not None:
            raise self._upstream_error
        super()._resolve_parameters()  # type: ignore[no-untyped-call]  # Prefect's is not annotated

    def log_finished_message(self) -> None:
        if self.task_run is not None and self.retry_at() is None:
            super().log_finished_message()

    def compute_transaction_key(self) -> str | None:
        """Prefect's key, but for a large input under the default policy when nothing is persisted.

        Such a key holds the flow run's id, so there is no record to find and none is written;
        hashing 100 MB for it takes as long as many a task.
        """
        if (
            self.task.cache_policy == DEFAULT
            and not should_persist_result()
            and measure(self.parameters or {}) >= _LARGE_INPUT_BYTES
        ):
            return None
        return super().compute_transaction_key()

    def _stages(self) -> bool:
        """Whether the flow's transaction is to commit this run, or to roll it back."""
        policy = self.task.cache_policy
        level = getattr(policy, "isolation_level", None)
        return in_transaction.get() and level != IsolationLevel.SERIALIZABLE

    def _staged(self, state: State[Any]) -> State[Any]:
        """A completed run's state, with what its transaction holds where that goes to the flow."""
        transaction = get_transaction()
        if (
            state.is_completed()
            and self._stages()
            and transaction is not None
            and transaction.is_staged()
            and isinstance(state.data, ResultRecord)
        ):
            state.data = StagedRecord.of(state.data, transaction)
        return state

    def _advance(self, state: State[Any]) -> State[Any]:
        assert self.task_run is not None
        state = self._staged(state)
        last = advance(self.task_run, state)
        self._emit(self.task_run, last, state)
        self._telemetry.update_state(state)
        return state

    def _keep(self, result: Any) -> None:
        """Write a durable task's result before its completion is reported."""
        if self._durable is not None:
            assert self.task_run is not None
            self._durable.write(result, self.task_run)


class SyncEngine(_Edges, SyncTaskRunEngine[Any, Any]):
    """Prefect's sync engine with the edges described at the top of this file."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        return self._advance(state)

    def begin_run(self) -> None:
        if self._resuming:
            self.wait_until_ready()
        else:
            super().begin_run()

    def handle_crash(self, exc: BaseException) -> None:
        if self.seat.cancelled:
            self.set_state(Cancelled(message=CANCELLED_MESSAGE), force=True)
            self._raised = exc
        else:
            super().handle_crash(exc)

    @contextmanager
    def run_context(self) -> Generator[SyncEngine, None, None]:
        # As Prefect's, without its timeout: that one cannot interrupt a worker thread.
        with self.setup_run_context():
            try:
                if self.is_cancelled():
                    raise Interrupted(CANCELLED_MESSAGE)
                yield self
            except TimeoutError as exc:
                self.handle_timeout(exc)
            except Exception as exc:  # noqa: BLE001 - a user's task may raise anything
                self.handle_exception(exc)

    @contextmanager
    def transaction_context(self) -> Generator[Any, None, None]:
        with staged() if self._stages() else nullcontext(), super().transaction_context() as txn:
            yield txn

    def call_task_fn(self, transaction: Any) -> Any:
        if transaction.is_committed():
            result = transaction.read()
        else:
            result = self._call_user_fn()
            self._keep(result)
        self.handle_success(result, transaction=transaction)
        return result

    def _call_user_fn(self) -> Any:
        parameters = self.parameters or {}
        timeout_s = self.task.timeout_seconds
        if self._isolate:
            return call_isolated(self.task, parameters, timeout_s, self.seat)
        with slot_of_call() as slot, explained():
            if timeout_s is not None:
                call = TimedCall(lambda: call_with_parameters(self.task.fn, parameters), slot)
                return call.outcome(timeout_s, self.seat)
            ident = threading.get_ident()
            with self.seat.interruptible(
                lambda: _raise_in_thread(ident, Interrupted), lambda: _raise_in_thread(ident, None)
            ):
                return call_with_parameters(self.task.fn, parameters)


class TimedCall:
    """A call in a thread of its own, for which nobody waits beyond a deadline.

    A thread cannot be killed: it is asked to stop, once, by an exception at its next bytecode, and
    gets a moment for its `finally` blocks. Whatever it does afterwards, its outcome is not looked
    at, and its slot is closed to it.
    """

    def __init__(self, call: Callable[[], Any], slot: Slot) -> None:
        self._call = call
        self._slot = slot
        self._context = contextvars.copy_context()
        self._outcome: tuple[bool, Any] | None = None
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._has_returned = False
        self._is_stopped = False
        self._ended = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"{threading.current_thread().name}-timed-call", daemon=True
        )

    def outcome(self, timeout_s: float, seat: Seat) -> Any:
        """Make the call; its value.

        Raises:
            TaskRunTimeoutError: the call had not returned after `timeout_s` seconds.
            Interrupted: the run was cancelled.
            BaseException: what the call raised.
        """
        with seat.interruptible(self._stop):
            self._thread.start()
            self._woken.wait(timeout_s)
        self._stop()
        if self._is_stopped and not self._ended.wait(_UNWIND_S):
            fell_back(Fallback.THREAD_ABANDONED)
        if self._is_stopped or self._outcome is None:
            if seat.cancelled:
                raise Interrupted(CANCELLED_MESSAGE)
            raise TaskRunTimeoutError(f"no result after {timeout_s} second(s)")
        (ok, value), self._outcome = self._outcome, None
        if ok:
            return value
        raise value

    def _stop(self) -> None:
        """Ask the call to stop, unless it has returned."""
        with self._lock:
            if not self._has_returned and not self._is_stopped:
                self._is_stopped = True
                if self._ident is not None:
                    # It is alive as long as the lock is held, so no other thread has its number.
                    _raise_in_thread(self._ident, Interrupted)
        self._woken.set()

    def _run(self) -> None:
        try:
            with self._slot.lent():
                with self._lock:
                    if self._is_stopped:
                        return  # before it had begun
                    self._ident = threading.get_ident()
                self._make()
        except Interrupted:
            pass  # it came when the call had returned
        finally:
            self._ended.set()
            self._woken.set()

    def _make(self) -> None:
        try:
            outcome = (True, self._context.run(self._call))
        except BaseException as exc:  # noqa: BLE001 - raised again in the waiting thread
            outcome = (False, exc)
        with self._lock:
            self._has_returned = True
            self._outcome = outcome


def _stop_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    loop.call_soon_threadsafe(task.cancel)


class AsyncEngine(_Edges, AsyncTaskRunEngine[Any, Any]):
    """Prefect's async engine with the edges described at the top of this file."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        return self._advance(state)

    async def begin_run(self) -> None:
        if self._resuming:
            # Prefect's two are not annotated.
            self._resolve_parameters()
            self._set_custom_task_run_name()  # type: ignore[no-untyped-call]
            await self.wait_until_ready()
        else:
            await super().begin_run()

    async def handle_crash(self, exc: BaseException) -> None:
        if self.seat.cancelled:
            await self.set_state(Cancelled(message=CANCELLED_MESSAGE), force=True)
            self._raised = exc
        else:
            await super().handle_crash(exc)

    @asynccontextmanager
    async def transaction_context(self) -> AsyncGenerator[Any, None]:
        with staged() if self._stages() else nullcontext():
            async with super().transaction_context() as txn:
                yield txn

    async def call_task_fn(self, transaction: Any) -> Any:
        if transaction.is_committed():
            result = await transaction.read()
        else:
            result = await self._call_user_fn()
            self._keep(result)
        await self.handle_success(result, transaction=transaction)
        return result

    async def _call_user_fn(self) -> Any:
        parameters = self.parameters or {}
        if self._isolate:
            return await asyncio.to_thread(
                call_isolated, self.task, parameters, self.task.timeout_seconds, self.seat
            )
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None
        with (
            slot_of_call(),
            explained(),
            self.seat.interruptible(lambda: _stop_task(loop, current)),
        ):
            awaitable: Any = call_with_parameters(self.task.fn, parameters)
            return await awaitable
