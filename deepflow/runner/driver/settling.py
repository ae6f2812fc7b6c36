"""What happens to a run on the driver: events in, the table's effects performed.

`lifecycle.py` says what an event does to a run; here it is done. A worker gives most runs their
final state. The driver gives one to those for which no worker will (cancelled in the queue, lost
with their workers), and tells Prefect's server of it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.states import Cancelled, Completed

from deepflow.errors import InfrastructureError
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, SentBatch
from deepflow.runner.driver.lifecycle import Effect, Event, RunState
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.events import state_event
from deepflow.runner.runs import advance

if TYPE_CHECKING:
    from prefect.client.schemas import TaskRun
    from prefect.client.schemas.objects import State

    from deepflow.runner.wire import EventRecord

__all__ = ["Said", "Settling", "cancelled_before_it_began"]


@dataclass(slots=True)
class Said:
    """What comes with an event."""

    blob: bytes | None = None
    """As its worker has sent it: the final state (None: the worker keeps it), or, where the run is
    to be retried, its record so far."""
    state_type: str = ""
    """The type of that state."""
    state: State[Any] | None = None
    """A state that the driver gives the run."""
    task_run: TaskRun | None = None
    """The run's record, where it is known better than from the run itself."""
    n_retries: int = 0
    """Of the task's own, this one included, where the driver has the run retried."""


def cancelled_before_it_began() -> Said:
    """The end of a run that no worker has begun."""
    return Said(state=Cancelled(message="Cancelled before it began."))


def _is_cancelled(state: State[Any] | None) -> bool:
    return state is not None and state.is_cancelled()


class Settling:
    """Takes events for items and does what the table says. Use in a turn."""

    def __init__(
        self, board: Board, gate: Gate, reactor: Reactor, put_event: Callable[[EventRecord], None]
    ) -> None:
        self._board = board
        self._gate = gate
        self._reactor = reactor
        self._put_event = put_event
        self._perform: dict[Effect, Callable[[Item, Said], None]] = {
            Effect.DETACH: self._detach,
            Effect.LET_GO: self._let_go,
            Effect.LEAVE_PLAN: lambda item, said: gate.leave_plan(item),
            Effect.TRY: lambda item, said: gate.send_when_ready(item),
            Effect.TRY_ONCE_DONE: lambda item, said: gate.send_once_done(item),
            Effect.WAKE: self._wake,
            Effect.SEND_ELSEWHERE: self._send_elsewhere,
            Effect.TELL_WORKER: lambda item, said: None,  # by who cancels, for all runs at once
            Effect.TELL_SERVER: self._tell_server,
            Effect.FINISH: self._finish,
            Effect.RELEASE: lambda item, said: gate.release_dependents(item),
            Effect.OVERRULE: self._overrule,
            Effect.NOTE_RECOMPUTED: lambda item, said: self.note_recomputed(),
        }

    def handle(self, item: Item, event: Event, said: Said | None = None) -> tuple[Effect, ...]:
        """An event happens to a run; returns what was done about it.

        Raises:
            IllegalMoveError: it makes no sense in the run's state; nothing has changed.
        """
        effects = item.life.handle(event)
        if effects:
            said = Said() if said is None else said
            if item.state is RunState.CANCELLED and not _is_cancelled(said.state):
                # It came back while its cancellation was on the way: it does not go again.
                if event is Event.RETRY:
                    item.resume = said.blob
                said = cancelled_before_it_began()
            for effect in effects:
                self._perform[effect](item, said)
        return effects

    def tell_rolled_back(self, record: bytes) -> None:
        """Tell the server that a run was rolled back; `record`: its pickled task run."""
        state: State[Any] = Completed(
            name="RolledBack", message="Task rolled back as part of transaction"
        )
        self._tell(state, partial(pickle.loads, record))

    def note_recomputed(self) -> None:
        """A run that was done has run again, since its result was lost."""
        if self._board.is_closing:
            return
        metrics.inc("deepflow_recomputed_total")
        self._board.log_once(
            "recomputed",
            "A finished task was run again because the worker that held its result was lost; "
            "mark it hints(durable=True) to have its result read back instead.",
        )

    # -- effects -------------------------------------------------------------------------------

    def _detach(self, item: Item, said: Said) -> None:
        item.batch = None

    def _let_go(self, item: Item, said: Said) -> None:
        # A value that its worker keeps is still to be had from its Dask task.
        is_kept = item.state is RunState.DONE and item.blob is None
        if item.batch is not None and not is_kept:
            item.batch.let_go(item)

    def _wake(self, item: Item, said: Said) -> None:
        """Hold an item until its retry is due; its record so far goes with the next attempt."""
        if said.blob is None:
            assert said.state is not None
            due = said.state.state_details.scheduled_time
            assert due is not None
            record = (said.task_run, said.n_retries, due.timestamp())
            said.blob = pickle.dumps(record, protocol=5)
        _, _, due_s = pickle.loads(said.blob)
        item.resume = said.blob  # only now: one that cannot be read must not be asked again
        self._reactor.at(due_s, partial(self._call_due, item))

    def _call_due(self, item: Item) -> None:
        with self._board.turn():
            self.handle(item, Event.DUE)

    def _send_elsewhere(self, item: Item, said: Said) -> None:
        """Its worker has not begun it: send it elsewhere, in a smaller group."""
        batch, item.batch = item.batch, None
        assert batch is not None, "what is in Dask is in a Dask task"
        batch.returned.append(item)
        if len(batch.returned) == 1:
            self._reactor.soon(partial(self._send_returned, batch))

    def _send_returned(self, batch: SentBatch) -> None:
        with self._board.turn():
            items, batch.returned = batch.returned, []
            items = [item for item in items if item.state is RunState.RETURNED]
            size = max(1, len(batch.items) // 4)
            self._gate.send([items[i : i + size] for i in range(0, len(items), size)])

    def _tell_server(self, item: Item, said: Said) -> None:
        state = said.state
        assert state is not None, "a state given here comes with its event"
        if state.is_crashed():
            state.data = InfrastructureError(state.message or "")
        known = said.task_run
        self._tell(state, lambda: known or item.task_run(self._board.flow_run_id))

    def _finish(self, item: Item, said: Said) -> None:
        if said.state is not None:
            outcome = "crashed" if said.state.is_crashed() else "cancelled"
            metrics.inc("deepflow_tasks_total", outcome=outcome)
            said.blob = Parcel.of(said.state).to_bytes()
            said.state_type = said.state.type.value
        item.settle(said.blob, said.state_type)
        self._board.finished(item)

    def _overrule(self, item: Item, said: Said) -> None:
        assert said.state is not None
        item.settle(Parcel.of(said.state).to_bytes(), said.state.type.value)

    def _tell(self, state: State[Any], record: Callable[[], TaskRun]) -> None:
        """Tell the server; a state that cannot be told is no reason to leave a run open."""
        try:
            task_run = record()
            before = advance(task_run, state)
            self._put_event(state_event(task_run, before, state))
        except Exception:
            fell_back(Fallback.SERVICE_FAULT)
            self._board.logger.exception("The state %s of a task run could not be told", state.name)
