"""The future of a submitted task run."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, PrefectFutureList, PrefectWrappedFuture
from prefect.states import Crashed, Pending, Running

from deepflow.backend.fetch import fetch
from deepflow.errors import InfrastructureError
from deepflow.observe import metrics
from deepflow.runner.items import Item, ReleasedFuture
from deepflow.runner.slots import current_slot, slot_left
from deepflow.runner.worker_plugin import transfer_options

if TYPE_CHECKING:
    from deepflow.runner.dispatch import Dispatcher

R = TypeVar("R")

_POLL_SUSPENSION_S = 1.0


class DeepflowFuture(PrefectWrappedFuture[R, Any], Generic[R]):
    """Stands for a task run; as `PrefectDaskFuture`, and it can be cancelled.

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

        Where the driver has the result already this is a stand-in with the same key, so that the
        cluster need not keep the result. None while the run is held by the driver.
        """
        job = self._item.job
        if job is not None and job.future is None:
            self._dispatcher.flush()
        if job is not None and job.future is not None:
            return job.future
        if self._item.released_key is not None:
            return ReleasedFuture(self._item.released_key)
        return None

    @property
    def state(self) -> State[R]:
        """The run's state: the final one with its value once it is done."""
        if self._final_state is not None:
            return self._final_state
        if self._item.is_done:
            return self._load(None)
        return Running() if self._item.job is not None else Pending()

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
        """Call `fn` with this future once the run is done (at once, if it is)."""
        slot = current_slot.get()
        if slot is None or self._item.is_done:
            self._item.when_done(lambda: fn(self))
            return
        # Inside a task: `as_completed` waits for the call, and must not hold the slot meanwhile.
        slot.leave_for_callback()

        def call() -> None:
            slot.called_back()
            fn(self)

        self._item.when_done(call)

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

    def __repr__(self) -> str:
        return f"<DeepflowFuture {self._item.name!r} {self._item.state_type or 'not done'}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a DeepflowFuture cannot be pickled: pass it as a task's parameter (at any depth of "
            "lists, tuples, dicts and objects) and the task gets its value"
        )


def load_states(futures: list[DeepflowFuture[Any]], timeout_s: float | None) -> list[State[Any]]:
    """Final states of runs that are done, with values; large values are gathered in one go."""
    remote = {
        id(future._item.job): future._item.job
        for future in futures
        if future._final_state is None and future._item.blob is None and future._item.job
    }
    fetched: dict[int, Any] = {}
    if remote:
        dispatcher = futures[0]._dispatcher
        travel = transfer_options(dispatcher.settings)
        jobs = list(remote.values())
        with slot_left():
            try:
                wanted = [job.future for job in jobs if job.future]
                values = fetch(dispatcher.client, wanted, timeout_s, travel)
                fetched = {id(job): value for job, value in zip(jobs, values, strict=True)}
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
    states: list[State[Any]] = []
    for future in futures:
        item = future._item
        if future._final_state is not None:
            states.append(future._final_state)
        elif item.blob is not None:
            states.append(pickle.loads(item.blob))
        else:
            entry = fetched[id(item.job)].find(item.run_id)
            states.append(entry.state)
            metrics.inc("deepflow_result_moved_bytes_total", _size(entry.state), path="direct")
        future._final_state = states[-1]
    return states


def _size(state: State[Any]) -> int:
    from dask.sizeof import sizeof

    return int(sizeof(state))


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
