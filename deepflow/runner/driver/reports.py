"""What became of the runs that were sent: as workers report it, and as Dask does.

A worker's report says it first, with the state itself where it is small. Dask's own word on a batch
counts only for what no report has settled: then the result is read, or the batch was lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from prefect.states import Crashed

from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, SentBatch
from deepflow.runner.driver.lifecycle import Event
from deepflow.runner.driver.losses import Losses
from deepflow.runner.driver.naming import RunNames
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.driver.recorder import Recorder
from deepflow.runner.driver.sending import Sender
from deepflow.runner.driver.settling import Said, Settling
from deepflow.runner.wire import Kind, Message, OutcomeReport, Outcomes, unpack

if TYPE_CHECKING:
    from distributed import Client


_EVENTS: Final[Mapping[Kind, Event]] = {
    "begun": Event.BEGUN,
    "done": Event.ENDED,
    "retry": Event.RETRY,
    "returned": Event.HANDED_BACK,
    "deferred": Event.DEFERRED,
}


class Reports:
    """Takes in what is heard of runs. Its methods run on the reactor, except as said."""

    def __init__(
        self,
        client: Client,
        board: Board,
        reactor: Reactor,
        sender: Sender,
        gate: Gate,
        settling: Settling,
        losses: Losses,
        recorder: Recorder | None,
        names: RunNames,
        *,
        events_topic: str,
    ) -> None:
        self._client = client
        self._board = board
        self._reactor = reactor
        self._sender = sender
        self._gate = gate
        self._settling = settling
        self._losses = losses
        self._recorder = recorder
        self._names = names
        self._events_topic = events_topic
        self._n_taken: dict[str, int] = {}

    # -- what workers say ----------------------------------------------------------------------

    def on_message(self, event: Any) -> None:
        """A report from a worker (called on Dask's event loop; returns at once)."""
        _, blob = event
        # The scheduler logs what this client does under the same topic, as dicts. The topic is
        # the client's id because that one is emptied when the client goes.
        if isinstance(blob, bytes):
            self._reactor.soon(lambda: self._take(unpack(blob)))

    def wait_for(self, n_sent: Mapping[str, int], timeout_s: float) -> bool:
        """Whether as many reports were taken in from each worker as it says it has sent.

        Waits for up to `timeout_s` seconds; not to be called on the reactor.
        """
        return self._board.wait_until(
            lambda: all(self._n_taken.get(w, 0) >= n for w, n in n_sent.items()), timeout_s
        )

    def _take(self, message: Message) -> None:
        if message.driver != self._events_topic:
            return  # for another session on this worker
        with self._board.turn():
            for report in message.outcomes:
                item = self._board.find_open(report.run_id)
                if item is None:
                    if report.kind == "done":
                        self._settling.note_recomputed()
                    continue
                item.worker = message.worker
                self._take_one(item, report)
            if message.coalesced:
                metrics.inc("deepflow_events_coalesced_total", message.coalesced)
            if message.events and self._recorder is not None:
                self._recorder.put(message.events)
                self._names.heard(message.events)
        # In a turn of its own: by then, what is to be called for these runs is in line.
        with self._board.turn():
            self._n_taken[message.worker] = self._n_taken.get(message.worker, 0) + 1
            self._board.notify()

    def _take_one(self, item: Item, report: OutcomeReport) -> None:
        """One report; what is odd in it keeps no other back, and the run gets its end."""
        try:
            self._apply(item, report)
        except Exception as exc:
            fell_back(Fallback.SERVICE_FAULT)
            self._board.logger.exception("A worker's report could not be taken in")
            why = f"What its worker reported could not be taken in: {type(exc).__name__}"
            self._settling.handle(item, Event.ABANDON, Said(state=Crashed(message=why)))

    def _apply(self, item: Item, report: OutcomeReport) -> None:
        event = _EVENTS[report.kind]
        if event is Event.ENDED:
            self._learn(item, report.run_s)
        elif event is Event.BEGUN and item.batch is not None:
            item.batch.last_begun = item
        self._settling.handle(item, event, Said(blob=report.blob, state_type=report.state_type))

    def _learn(self, item: Item, run_s: float) -> None:
        self._board.learn(item.template.learned_as, run_s)
        if item.sent_at_s:
            waited_s = time.time() - item.sent_at_s - run_s
            metrics.observe("deepflow_queue_wait_seconds", max(0.0, waited_s))

    # -- what Dask says ------------------------------------------------------------------------

    def on_end(self, batch: SentBatch, status: str | None, error: BaseException | None) -> None:
        """Dask's future of a batch has this status now."""
        with self._board.turn():
            if not batch.open_items():
                return
        try:
            if status == "finished":
                self._read_outcomes(batch)
            elif status in ("lost", "pending"):
                if batch.future is not None:
                    self._sender.watch(batch, batch.future)
            else:
                self._losses.lost(batch, error)
        except Exception as exc:
            # Nothing more is heard of this batch, so nobody else would end its runs.
            fell_back(Fallback.SERVICE_FAULT)
            self._board.logger.exception("What became of a Dask task could not be taken in")
            why = f"What became of its Dask task could not be taken in: {type(exc).__name__}: {exc}"
            with self._board.turn():
                for item in batch.open_items():
                    self._settling.handle(item, Event.ABANDON, Said(state=Crashed(message=why)))

    def _read_outcomes(self, batch: SentBatch) -> None:
        """Dask has a batch's result but its report did not come: read the result itself."""
        self._board.fell_back(
            Fallback.REPORT_MISSING, "A worker's report was lost; reading the results themselves."
        )
        try:
            outcomes: Outcomes = self._client.gather(batch.future)
        except Exception as exc:  # noqa: BLE001 - whatever Dask says, it is the runs' end
            self._losses.lost(batch, exc)
            return
        with self._board.turn():
            for item in batch.open_items():
                entry = outcomes.find(item.run_id)
                if entry is None:
                    self._settling.handle(item, Event.HANDED_BACK)
                    continue
                blob = entry.content if isinstance(entry.content, bytes) else None
                report = OutcomeReport(item.run_id, entry.kind, blob, entry.state_type, entry.run_s)
                self._apply(item, report)
