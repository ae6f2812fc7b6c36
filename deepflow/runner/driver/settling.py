"""How runs end, or wait for their next attempt, on the driver.

A worker gives most runs their final state; the driver gives one to those for which no worker will
(cancelled in the queue, lost with their workers), and tells Prefect's server of it.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from prefect.states import Cancelled, Completed

from deepflow.errors import InfrastructureError
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.events import state_event
from deepflow.runner.runs import advance

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas import TaskRun
    from prefect.client.schemas.objects import State

    from deepflow.runner.wire import EventRecord


class Settling:
    """Gives items their end, or their next attempt. Use in a turn."""

    def __init__(
        self, board: Board, gate: Gate, reactor: Reactor, put_event: Callable[[EventRecord], None]
    ) -> None:
        self._board = board
        self._gate = gate
        self._reactor = reactor
        self._put_event = put_event

    def finish(self, item: Item, blob: bytes | None, state_type: str) -> None:
        """An item reached its final state; `blob` is that state, or None if a worker keeps it."""
        if item.is_done:
            return
        item.settle(blob, state_type)
        self._board.finished(item)
        if blob is not None and item.job is not None:
            item.job.let_go(item)
        self._gate.leave_plan(item)
        self._gate.release_dependents(item)

    def settle_here(self, item: Item, state: State[Any], task_run: TaskRun | None = None) -> None:
        """Give a run its final state on the driver, for no worker will."""
        if item.is_done:
            return
        if task_run is None:
            task_run = item.task_run(self._board.flow_run_id)
        if state.is_crashed():
            state.data = InfrastructureError(state.message or "")
        self._emit(task_run, state)
        outcome = "crashed" if state.is_crashed() else "cancelled"
        metrics.inc("deepflow_tasks_total", outcome=outcome)
        self.finish(item, Parcel.of(state).to_bytes(), state.type.value)

    def tell_rolled_back(self, record: bytes) -> None:
        """Tell the server that a run was rolled back; `record`: its pickled task run."""
        state: State[Any] = Completed(
            name="RolledBack", message="Task rolled back as part of transaction"
        )
        self._emit(pickle.loads(record), state)

    def overrule(self, item: Item, state: State[Any], record: bytes) -> None:
        """Give a run that is done another end, which the server hears of as well."""
        task_run = pickle.loads(record) if record else item.task_run(self._board.flow_run_id)
        self._emit(task_run, state)
        item.settle(Parcel.of(state).to_bytes(), state.type.value)
        if item.job is not None:
            item.job.let_go(item)

    def cancel_unbegun(self, item: Item) -> None:
        """Give a run that is not to begin any more the state Cancelled."""
        self.settle_here(item, Cancelled(message="Cancelled before it began."))

    def retry_later(self, item: Item, blob: bytes) -> None:
        """Hold an item until its retry is due; `blob` is the pickled resume record."""
        _, _, ready_at_s = pickle.loads(blob)
        item.resume = blob
        self._gate.leave_plan(item)
        if item.job is not None:
            item.job.let_go(item)
            item.job = None
        item.is_waiting = True

        def again() -> None:
            with self._board.turn():
                item.is_waiting = False
                if not item.is_done:
                    self._gate.send_when_ready(item)

        self._reactor.at(ready_at_s, again)

    def retry_after_crash(
        self, item: Item, task_run: TaskRun, retries: int, state: State[Any]
    ) -> None:
        """Hold an item that the infrastructure broke until `state`, an AwaitingRetry, is due."""
        due = state.state_details.scheduled_time
        assert due is not None
        self._emit(task_run, state)
        self.retry_later(item, pickle.dumps((task_run, retries, due.timestamp()), protocol=5))

    def _emit(self, task_run: TaskRun, state: State[Any]) -> None:
        before = advance(task_run, state)
        try:
            self._put_event(state_event(task_run, before, state))
        except Exception:
            # A state that cannot be told is no reason to leave the run open.
            metrics.inc("deepflow_fallbacks_total", kind="service_fault")
            self._board.logger.exception("The state of task run %s could not be told", task_run.id)
