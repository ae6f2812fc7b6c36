"""The future of a submitted task run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from distributed import Future
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect.client.schemas.objects import State, StateDetails
from prefect.futures import PrefectFuture, PrefectFutureList, PrefectWrappedFuture
from prefect.states import Crashed, Failed, Pending, Running

from deepflow.backend.fetch import fetch
from deepflow.errors import InfrastructureError, UnpicklableResultError
from deepflow.intermediates.loading import HOME
from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.observe import metrics
from deepflow.runner.driver.items import Item, ReleasedFuture
from deepflow.runner.options import transfer_options
from deepflow.runner.slots import current_slot, slot_left
from deepflow.runner.wire import Outcomes

if TYPE_CHECKING:
    from deepflow.runner.driver.dispatch import Dispatcher

R = TypeVar("R")

_POLL_SUSPENSION_S = 1.0


class DeepflowFuture(PrefectWrappedFuture[R, Any], Generic[R]):
    """The future of a task run. It takes the place of `PrefectDaskFuture`, and can be cancelled.

    `wait()` does not download the value. `result()` has small values at hand already and fetches
    large ones straight from the worker that holds them.
    """

    def __init__(self, item: Item, dispatcher: Dispatcher) -> None:
        # The base's constructor would store a wrapped future; here it changes over time.
        self._task_run_id = item.run_id
        self._final_state: State[R] | None = None
        self._item = item
        self._dispatcher = dispatcher

    @property
    def _wrapped_future(self) -> Any:
        return self.wrapped_future

    @property
    def wrapped_future(self) -> Any:
        """The Dask future of the task that runs this run, maybe together with others.

        Its result is the run's state. Where the driver has the result already this is a stand-in
        with the same key, so that the cluster need not keep the result. None while the run is held
        by the driver.
        """
        batch = self._item.batch
        if batch is not None and batch.future is None:
            self._dispatcher.flush()
        if batch is not None and batch.future is not None:
            return RunFuture(batch.future, self)
        if self._item.released_key is not None:
            return ReleasedFuture(self._item.released_key, lambda: self.state)
        return None

    @property
    def state(self) -> State[R]:
        """The run's state: the final one with its value once it is done."""
        if self._final_state is not None:
            return self._final_state
        if self._item.is_done:
            return self._load(None)
        details = StateDetails(
            task_run_id=self._item.run_id, flow_run_id=self._dispatcher.flow_run_id
        )
        make = Running if self._item.batch is not None else Pending
        return make(state_details=details)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the run is done, or for `timeout` seconds. The value stays where it is."""
        self._wait(timeout)
        raise_if_flow_run_suspension_requested()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """The run's return value; waits for it.

        Raises:
            TimeoutError: the run is not done after `timeout` seconds.
            Exception: what the task raised, unless `raise_on_failure` is False.
        """
        started_s = time.monotonic()
        if self._final_state is None and not self._wait(timeout):
            raise_if_flow_run_suspension_requested()
            raise TimeoutError(
                f"Task run {self.task_run_id} did not complete within {timeout} seconds"
            )
        raise_if_flow_run_suspension_requested()
        remaining_s = None
        if timeout is not None:
            remaining_s = max(0.1, timeout - (time.monotonic() - started_s))
        state = self._load(remaining_s)
        value: R = state.result(raise_on_failure=raise_on_failure, _sync=True)  # type: ignore[call-overload]
        return value

    def done(self) -> bool:
        """Whether the run has its final state."""
        return self._item.is_done

    def cancel(self) -> bool:
        """Stop the run: at once if it has not begun, else at the next chance.

        Returns False if it was done already. The run's state becomes `Cancelled`.
        """
        if self._item.is_done:
            return False
        self._dispatcher.cancel([self._item])
        return True

    def add_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        """Call `fn` with this future once the run is done: here and now, if it is.

        Else it is called in a thread for such functions, in the present context; it may wait,
        submit and block. The functions of a future are called in the order in which they were
        added. What one raises is logged.
        """
        slot = current_slot.get() if not self._item.is_done else None
        if slot is not None:
            # In a task: `as_completed` waits for the call, and must not hold the slot meanwhile.
            slot.leave_for_callback()
        context = copy_context()
        context.run(current_slot.set, None)  # the thread that calls it holds no slot

        def call() -> None:
            if slot is not None:
                slot.called_back()
            context.run(fn, self)

        if not self._dispatcher.when_done(self._item, call):
            if slot is not None:
                slot.called_back()
            self._dispatcher.call_now(lambda: fn(self))

    def _wait(self, timeout_s: float | None) -> bool:
        item = self._item
        if item.is_done:
            if (slot := current_slot.get()) is not None:
                slot.come_back()
            return True
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with slot_left():
            while True:
                step_s = _POLL_SUSPENSION_S
                if deadline_s is not None:
                    step_s = min(step_s, deadline_s - time.monotonic())
                    if step_s <= 0:
                        return item.is_done
                if item.wait(step_s):
                    return True
                raise_if_flow_run_suspension_requested()

    def _load(self, timeout_s: float | None) -> State[R]:
        """The final state with its value."""
        if self._final_state is None:
            self._final_state = load_states([self], timeout_s)[0]
        return self._final_state

    def _opened(self, fetched: dict[int, Outcomes]) -> State[R]:
        """The final state, from what the driver has of it or has just fetched."""
        if self._final_state is not None:
            return self._final_state
        item = self._item
        content: Parcel | Stuck | bytes | None
        if item.blob is not None:
            content = Parcel.from_bytes(item.blob)
        else:
            entry = fetched[id(item.batch)].find(item.run_id)
            assert entry is not None, "a worker has reported this run as done"
            content = entry.content
            if isinstance(content, Parcel):
                n_bytes = content.n_bytes
                metrics.inc("deepflow_result_moved_bytes_total", n_bytes, path="direct")
        self._final_state = self._open(content)
        return self._final_state

    def _open(self, content: Parcel | Stuck | bytes | None) -> State[R]:
        item = self._item
        if isinstance(content, Stuck):
            if content.is_here:
                here: State[R] = content.value[0]
                return here
            return self._overruled(content.why, content.record)
        assert isinstance(content, Parcel)
        # What has come from another process belongs to nobody else.
        scheduler = self._dispatcher.client.scheduler
        is_own = scheduler is not None and not str(scheduler.address).startswith("inproc")
        try:
            state: State[R] = content.take(HOME) if is_own else content.open(HOME)
        except Exception as exc:  # noqa: BLE001 - unpickling runs the user's code
            return self._overruled(
                f"the result of task {item.template.name!r} (run {item.name!r}) cannot be "
                f"unpickled here ({type(exc).__name__}: {exc}); the flow needs the modules that "
                "the worker has, in the same versions, and classes that come out of their pickle",
                b"",
            )
        return state

    def _overruled(self, why: str, record: bytes) -> State[R]:
        """The run ended well on its worker, but its value cannot be had: it has failed."""
        state: State[R] = Failed(message=why, data=UnpicklableResultError(why))
        self._dispatcher.overrule(self._item, state, record)
        return state

    def __repr__(self) -> str:
        return f"<DeepflowFuture {self._item.name!r} {self._item.state_type or 'not done'}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a DeepflowFuture cannot be pickled: pass it as a task's parameter, itself or in "
            "lists, tuples, sets, dicts, dataclasses or pydantic models; the task gets its value"
        )


def load_states(futures: list[DeepflowFuture[Any]], timeout_s: float | None) -> list[State[Any]]:
    """Final states of runs that are done, with values; large values are gathered in one go."""
    remote = {
        id(future._item.batch): future._item.batch
        for future in futures
        if future._final_state is None and future._item.blob is None and future._item.batch
    }
    fetched: dict[int, Outcomes] = {}
    if remote:
        dispatcher = futures[0]._dispatcher
        travel = transfer_options(dispatcher.settings)
        batches = list(remote.values())
        with slot_left():
            try:
                wanted = [batch.future for batch in batches if batch.future]
                values = fetch(dispatcher.client, wanted, timeout_s, travel)
                fetched = {id(batch): value for batch, value in zip(batches, values, strict=True)}
            except TimeoutError:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever Dask says, it becomes a state
                if len(futures) > 1:
                    # One lost result must not hide the others.
                    return [load_states([future], timeout_s)[0] for future in futures]
                message = f"The result was lost and could not be computed again: {exc}"
                error = InfrastructureError(message)
                error.__cause__ = exc
                return [Crashed(message=message, data=error)]
    return [future._opened(fetched) for future in futures]


class RunFuture(Future[Any]):
    """Dask's future of the task that a run is in; its result is the run's final state."""

    def __init__(self, future: Future[Any], run: DeepflowFuture[Any]) -> None:
        # Dask's constructor is not annotated.
        super().__init__(future.key, client=future.client)
        self._run = run

    def result(self, timeout: Any = None) -> Any:
        """The run's state; waits for it. Raises `TimeoutError`."""
        if not self._run._wait(timeout):
            raise TimeoutError(f"task run {self._run.task_run_id} is not done after {timeout} s")
        return self._run.state


class DeepflowFutureList(PrefectFutureList[R]):
    """The futures of a `map`; their results are gathered in one go."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """All return values, in order; see `DeepflowFuture.result`."""
        started_s = time.monotonic()
        futures = cast("list[DeepflowFuture[R]]", list(self))  # the runner puts in no others
        for future in futures:
            remaining_s = None if timeout is None else timeout - (time.monotonic() - started_s)
            if not future._wait(remaining_s):
                raise TimeoutError(
                    f"Timed out waiting for all futures to complete after {timeout} s"
                )
        load_states(futures, None)
        return [future.result(raise_on_failure=raise_on_failure) for future in futures]
