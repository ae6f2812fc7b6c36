"""What became of the runs that were sent: as workers report it, and as Dask does.

A worker's report says it first, with the state itself where it is small. Dask's own word on a job
counts only for what no report has settled: then the result is read, or the job was lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.states import Crashed

from deepflow.observe import metrics
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, SentJob
from deepflow.runner.driver.losses import Losses
from deepflow.runner.driver.naming import RunNames
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.readiness import Gate
from deepflow.runner.driver.recorder import Recorder
from deepflow.runner.driver.sending import Sender
from deepflow.runner.driver.settling import Settling
from deepflow.runner.wire import Message, OutcomeReport, Outcomes, unpack

if TYPE_CHECKING:
    from distributed import Client


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
                    self._note_recomputed(report)
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
            metrics.inc("deepflow_fallbacks_total", kind="service_fault")
            self._board.logger.exception("A worker's report could not be taken in")
            why = f"What its worker reported could not be taken in: {type(exc).__name__}"
            self._settling.settle_here(item, Crashed(message=why))

    def _note_recomputed(self, report: OutcomeReport) -> None:
        if report.kind != "done" or self._board.is_closing:
            return
        metrics.inc("deepflow_recomputed_total")
        self._board.log_once(
            "recomputed",
            "A finished task was run again because the worker that held its result was lost; "
            "mark it hints(durable=True) to have its result read back instead.",
        )

    def _apply(self, item: Item, report: OutcomeReport) -> None:
        if report.kind == "done":
            self._learn(item, report.run_s)
            self._settling.finish(item, report.blob, report.state_type)
        elif item.is_cancelling and report.kind in ("retry", "returned", "deferred"):
            # It came back while its cancellation was on the way: it does not go again.
            if report.kind == "retry":
                item.resume = report.blob
            self._settling.cancel_unbegun(item)
        elif report.kind == "retry":
            assert report.blob is not None
            self._settling.retry_later(item, report.blob)
        elif report.kind == "returned":
            self._take_back(item)
        elif report.kind == "begun":
            if item.job is not None:
                item.job.last_begun = item
        elif report.kind == "deferred":
            self._gate.leave_plan(item)
            self._gate.send_once_settled(item)

    def _learn(self, item: Item, run_s: float) -> None:
        self._board.learn(item.template.learned_as, run_s)
        if item.sent_at_s:
            waited_s = time.time() - item.sent_at_s - run_s
            metrics.observe("deepflow_queue_wait_seconds", max(0.0, waited_s))

    def _take_back(self, item: Item) -> None:
        """A worker gave back an item that had not begun: send it elsewhere, in smaller groups."""
        job = item.job
        if job is None:
            return
        job.returned.append(item)
        item.job = None
        self._gate.leave_plan(item)
        if len(job.returned) == 1:
            self._reactor.soon(partial(self._send_returned, job))

    def _send_returned(self, job: SentJob) -> None:
        with self._board.turn():
            items, job.returned = job.returned, []
            items = [i for i in items if i.job is None and not i.is_done]
            size = max(1, len(job.items) // 4)
            self._gate.send([items[i : i + size] for i in range(0, len(items), size)])

    # -- what Dask says ------------------------------------------------------------------------

    def on_end(self, job: SentJob, status: str | None, error: BaseException | None) -> None:
        """Dask's future of a job has this status now."""
        with self._board.turn():
            if not job.open_items():
                return
        if status == "finished":
            self._read_outcomes(job)
        elif status in ("lost", "pending"):
            if job.future is not None:
                self._sender.watch(job, job.future)
        else:
            self._losses.lost(job, error)

    def _read_outcomes(self, job: SentJob) -> None:
        """Dask has a job's result but its report did not come: read the result itself."""
        metrics.inc("deepflow_fallbacks_total", kind="report_missing")
        self._board.log_once(
            "report", "A worker's report was lost; reading the results themselves."
        )
        try:
            outcomes: Outcomes = self._client.gather(job.future)
        except Exception as exc:  # noqa: BLE001 - whatever Dask says, it is the runs' end
            self._losses.lost(job, exc)
            return
        with self._board.turn():
            for item in job.open_items():
                entry = outcomes.find(item.run_id)
                if entry is None:
                    self._take_back(item)
                    continue
                blob = entry.content if isinstance(entry.content, bytes) else None
                report = OutcomeReport(item.run_id, entry.kind, blob, entry.state_type, entry.run_s)
                self._apply(item, report)
