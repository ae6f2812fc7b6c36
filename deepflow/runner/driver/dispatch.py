"""The driver's half: from a submitted call to a finished run.

A dispatcher belongs to one entered task runner. It turns calls into items, sends items to Dask
(alone, or grouped into a batch), hears from the workers what became of them, and makes sure that
every item ends: also where a worker, the scheduler or the driver's own flow does not go on. An item
is *held* (it waits for an input, for its retry, or for the pilot of its map), *sent* or *done*.

This is where the parts are put together; each knows only those before it:

- `board.py`: the open items, and the one lock under which anything changes (the discipline is
  stated there); `reactor.py`: the thread that reacts to reports, to Dask and to the clock
- `sending.py`: batches become Dask graphs; `readiness.py`: when an item may be sent
- `settling.py`: an item's end or next attempt; `losses.py`: what a broken batch means for its runs
- `reports.py`: what workers and Dask say; `cancelling.py`: stopping runs
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deepflow.decide.events import TasksNamed
from deepflow.observe.fallbacks import Fallback
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.cancelling import Cancelling
from deepflow.runner.driver.items import Item, SentBatch
from deepflow.runner.driver.lifecycle import Event
from deepflow.runner.driver.losses import Losses
from deepflow.runner.driver.naming import RunNames
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.driver.recorder import Recorder
from deepflow.runner.driver.reports import Reports
from deepflow.runner.driver.sending import Sender
from deepflow.runner.driver.settling import Said, Settling
from deepflow.runner.wire import EventRecord, Message, pack
from deepflow.runner.worker_side import WorkerSide

if TYPE_CHECKING:
    import logging

    from distributed import Client
    from prefect.client.schemas.objects import State

    from deepflow.settings import Settings


class Dispatcher:
    """See the top of this file. Methods may be called from any thread."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        worker_side: WorkerSide,
        *,
        results_topic: str,
        events_topic: str,
        recorder: Recorder | None,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        is_adaptive: bool = False,
        reactor: Reactor | None = None,
    ) -> None:
        self.client = client
        self.settings = settings
        self.events_topic = events_topic
        self.logger = logger
        self._recorder = recorder
        self._board = Board(logger)
        self._reactor = Reactor(logger) if reactor is None else reactor
        self._names = RunNames()
        self._sender = Sender(
            client,
            settings,
            self._board,
            self._reactor,
            worker_side,
            results_topic=results_topic,
            events_topic=events_topic,
            on_end=self._on_end,
            names=self._names,
        )
        self._gate = Gate(
            client, settings, self._board, self._reactor, self._sender, is_adaptive=is_adaptive
        )
        settling = Settling(self._board, self._gate, self._reactor, self._put_event)
        self._settling = settling
        losses = Losses(client, settings, self._board, settling)
        self._reports = Reports(
            client,
            self._board,
            self._reactor,
            self._sender,
            self._gate,
            settling,
            losses,
            recorder,
            self._names,
            events_topic=events_topic,
        )
        self._cancelling = Cancelling(
            client, self._board, self._reactor, settling, worker_side, events_topic=events_topic
        )

    def _on_end(self, batch: SentBatch, status: str | None, error: BaseException | None) -> None:
        self._reports.on_end(batch, status, error)

    def _put_event(self, record: EventRecord) -> None:
        """Tell Prefect's server of a state given here: nested, through the flow run's driver."""
        if self._recorder is not None:
            self._recorder.put([record])
        else:
            message = pack(Message("", self.events_topic, (), (record,), 0))
            # Not here: this may be a turn, and it waits for the network.
            self._reactor.soon(lambda: self.client.log_event(self.events_topic, message))

    # -- submitting ----------------------------------------------------------------------------

    def set_flow_run(self, flow_run_id: UUID | None) -> None:
        """The flow run whose tasks these are; part of every Dask key."""
        self._board.flow_run_id = flow_run_id

    @property
    def flow_run_id(self) -> UUID | None:
        """The flow run whose tasks these are."""
        return self._board.flow_run_id

    def submit_item(self, item: Item) -> None:
        """Take over one item: send it now if its inputs allow, else as soon as they do."""
        with self._board.turn():
            self._board.admit(item)
            self._gate.send_when_ready(item)

    def submit_map(self, items: list[Item]) -> None:
        """Take over the items of one `map`: in one graph where how to group them is known."""
        if not items:
            return
        self._gate.refresh_slots()
        with self._board.turn():
            for item in items:
                self._board.admit(item)
            self._gate.send_map(items)

    def flush(self) -> None:
        """Send now what is about to be sent."""
        self._sender.flush()

    def find(self, run_id: UUID) -> Item | None:
        """The item of a run submitted here, while somebody holds its future."""
        return self._board.find(run_id)

    def when_done(self, item: Item, callback: Callable[[], None]) -> bool:
        """Have `callback` called once `item` is done; False if it is, and nothing is called."""
        return self._board.when_done(item, callback)

    def call_now(self, callback: Callable[[], None]) -> None:
        """Call it; what it raises is logged and counted."""
        self._board.calling.call(callback)

    def open_items(self) -> list[Item]:
        """Items that are not done."""
        return self._board.open_items()

    # -- what comes back -----------------------------------------------------------------------

    def on_message(self, event: Any) -> None:
        """A report from a worker (called on Dask's event loop; returns at once)."""
        self._reports.on_message(event)

    def overrule(self, item: Item, state: State[Any], record: bytes) -> None:
        """Give a run that is done another end: its value turned out not to be had.

        `record`: its pickled task run as its worker had it; empty where that is not known.
        """
        with self._board.turn():
            task_run = pickle.loads(record) if record else None
            said = Said(state=state, task_run=task_run)
            self._settling.handle(item, Event.OVERRULE, said)

    def tell_rolled_back(self, record: bytes) -> None:
        """Tell the server that a run was rolled back; `record`: its pickled task run."""
        self._settling.tell_rolled_back(record)

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether everything was done within `timeout_s` seconds."""
        return self._board.wait_until(lambda: self._board.n_open == 0, timeout_s)

    def wait_called(self, timeout_s: float) -> bool:
        """Whether all that is to be called for finished runs has returned in time."""
        return self._board.wait_called(timeout_s)

    def drain(self, n_sent: Mapping[str, int], timeout_s: float) -> None:
        """Wait until as many reports were taken in from each worker as it says it has sent."""
        if not self._reports.wait_for(n_sent, timeout_s):
            self._board.fell_back(
                Fallback.REPORT_MISSING, "Some workers' last reports did not arrive in time."
            )

    def names(self, nested: Iterable[TasksNamed] = ()) -> list[TasksNamed]:
        """What people call the runs in each Dask task: those sent from here, and `nested` ones."""
        return [*self._names.events(), *self._names.corrected(nested)]

    # -- the end -------------------------------------------------------------------------------

    def cancel(self, items: Iterable[Item]) -> None:
        """Stop these runs: what is queued at once, what runs at the next chance."""
        self._cancelling.cancel(items)

    def cancel_all(self) -> None:
        """Cancel everything that is not done."""
        self._cancelling.cancel(self._board.open_items())

    def log_once(self, kind: str, message: str) -> None:
        """Log a warning of this kind, the first time only."""
        self._board.log_once(kind, message)

    def cancel_for_good(self) -> None:
        """Cancel everything that is not done, and let nothing more be submitted."""
        self._board.is_cancelled = True
        self.cancel_all()

    def not_begun(self) -> list[Item]:
        """Open items that no worker has begun, as far as Dask can tell."""
        return self._cancelling.not_begun()

    def abandon(self, reason: str) -> None:
        """Give every open item a Crashed state: nothing will be heard of them any more."""
        self._cancelling.abandon(reason)

    def close(self) -> None:
        """Stop reacting. Items must be settled first (`cancel_all`, `wait_idle`, `abandon`)."""
        self._board.is_closing = True
        self._reactor.close()
