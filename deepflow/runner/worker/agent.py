"""The worker's half of the book-keeping: one agent per Dask worker.

It caches what was shipped once (contexts, task code), knows which runs are in progress (so they
can be cancelled, and so that the runs behind a straggler go back to the driver), collects events
and sends reports. Reports go over Dask's own streams (`Worker.log_event`) to the client that
submitted; nothing here opens a connection. What belongs to a driver is forgotten when it leaves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from distributed.utils import sync

from deepflow.errors import ContextMissingError
from deepflow.intermediates.loading import HOME, loads
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.events import state_event
from deepflow.runner.lru import LruCache
from deepflow.runner.wire import (
    Batch,
    BlobRef,
    EventRecord,
    ItemSpec,
    Message,
    OutcomeReport,
    pack,
)
from deepflow.runner.worker.scope import RunScope

if TYPE_CHECKING:
    from distributed import Worker
    from prefect.client.schemas import TaskRun
    from prefect.client.schemas.objects import State

    from deepflow.runner.worker.engine import Seat

_log = logging.getLogger(__name__)

_TICK_S = 0.05
_EVENTS_EVERY_S = 0.25
_FETCH_TIMEOUT_S = 5.0
# Of pickles; in memory a context weighs about fifty times as much. These bound what is left of
# drivers that died, and of tasks' code, which is of use to the next flow run as well.
_CONTEXTS_BYTES = 512 * 1024
_CODES_BYTES = 16 * 1024 * 1024
_MAX_DEPARTED = 1_000


class _Driver:
    """What a worker keeps for one driver while its flow run goes on.

    Events on their way to it, transitions held back until they are due, and what it has cancelled.
    """

    def __init__(self) -> None:
        self.cancelled: set[UUID] = set()
        self.n_sent = 0
        """Messages sent to its own topic."""
        self.records: list[EventRecord] = []
        self.held: dict[UUID, list[tuple[TaskRun, State[Any] | None, State[Any]]]] = {}
        self.coalesced = 0
        self.sent_last: dict[UUID, tuple[UUID, Any]] = {}


class RunningBatch:
    """A batch being executed: what is done, what is running, what has not begun."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.lock = threading.Lock()
        self.waiting: deque[ItemSpec] = deque(batch.items)
        self.seat: Seat | None = None
        self.reports: list[OutcomeReport] = []
        self.returned: list[UUID] = []

    def next_item(self) -> ItemSpec | None:
        """Take the next run that has not begun; None when there is none left here."""
        with self.lock:
            return self.waiting.popleft() if self.waiting else None

    def give_back(self) -> list[UUID]:
        """Take away all runs that have not begun; returns their ids."""
        with self.lock:
            ids = [spec.run_id for spec in self.waiting]
            self.waiting.clear()
            self.returned.extend(ids)
            return ids


class Agent:
    """See the top of this file. Methods may be called from any thread."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._lock = threading.Lock()
        self._fetch_lock = threading.Lock()
        self._contexts: LruCache[RunScope] = LruCache(_CONTEXTS_BYTES)
        self._codes: LruCache[bytes] = LruCache(_CODES_BYTES)
        self._drivers: dict[str, _Driver] = {}
        """By the topic of its events."""
        self._departed: OrderedDict[str, None] = OrderedDict()
        self._batches: set[RunningBatch] = set()
        self._wake = threading.Condition(self._lock)
        self._is_closed = False
        self._thread: threading.Thread | None = None

    # -- what was shipped once ---------------------------------------------------------------

    def context(self, ref: BlobRef) -> RunScope:
        """The context under `ref`, fetched on first use."""
        scope = self._contexts.get(ref.digest)
        if scope is None:
            with self._fetch_lock:
                scope = self._contexts.get(ref.digest)
                if scope is None:
                    blob = self._fetch(ref)
                    scope = RunScope(loads(blob, HOME))
                    self._contexts.put(ref.digest, scope, len(blob))
        return scope

    def code(self, on_the_way: bytes | BlobRef) -> bytes:
        """The pickled Prefect task, fetched on first use. It is unpickled anew for each run."""
        if isinstance(on_the_way, bytes):
            return on_the_way
        blob = self._codes.get(on_the_way.digest)
        if blob is None:
            with self._fetch_lock:
                blob = self._codes.get(on_the_way.digest)
                if blob is None:
                    blob = self._fetch(on_the_way)
                    self._codes.put(on_the_way.digest, blob, len(blob))
        return blob

    def _fetch(self, ref: BlobRef) -> bytes:
        try:
            record = sync(
                self.worker.loop,
                self.worker.scheduler.variable_get,
                name=ref.name,
                client="deepflow",
                timeout=_FETCH_TIMEOUT_S,
            )
        except TimeoutError as exc:
            raise ContextMissingError(
                f"the scheduler does not know {ref.name!r}: it was restarted, or the driver that "
                "put it there has ended; the driver sends it again when it retries"
            ) from exc
        metrics.inc("deepflow_context_fetches_total")
        value: bytes = record["value"]
        return value

    # -- runs in progress --------------------------------------------------------------------

    def begin(self, batch: RunningBatch) -> None:
        """Note that a batch is being executed, and watch it."""
        with self._wake:
            self._batches.add(batch)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._watch, name="deepflow-agent", daemon=True
                )
                self._thread.start()
            self._wake.notify()

    def end(self, batch: RunningBatch) -> None:
        """Report a batch's outcomes and events; call before its result is handed to Dask."""
        with self._lock:
            self._batches.discard(batch)
        self._report(batch)

    def cancel(self, events_topic: str, run_ids: Iterable[UUID]) -> None:
        """Stop these runs of one driver: what runs is interrupted, what is to come never begins."""
        with self._lock:
            driver = self._driver(events_topic)
            if driver is None:
                return
            driver.cancelled.update(run_ids)
            seats = [batch.seat for batch in self._batches if batch.seat is not None]
            hit = [seat for seat in seats if seat.run_id in driver.cancelled]
        for seat in hit:
            seat.cancel()

    def cancel_driver(self, events_topic: str) -> None:
        """Stop all runs of one driver, which is no more."""
        with self._lock:
            batches = [batch for batch in self._batches if batch.batch.events_topic == events_topic]
        run_ids = [spec.run_id for batch in batches for spec in batch.batch.items]
        self.cancel(events_topic, run_ids)

    def context_of(self, events_topic: str) -> RunScope | None:
        """A context of this driver's; None where no run of it was executed here of late."""
        return self._contexts.find(lambda scope: scope.captured.events_topic == events_topic)

    def is_cancelled(self, events_topic: str, run_id: UUID) -> bool:
        """Whether `cancel` named this run."""
        driver = self._drivers.get(events_topic)
        return driver is not None and run_id in driver.cancelled

    def announce(self, batch: Batch, run_id: UUID) -> None:
        """Tell the driver that a run begins; returns when the scheduler has the message.

        Done for runs that may have been the death of a worker before, so that the driver can tell
        them from those that were only near. About 1 ms.
        """
        report = OutcomeReport(run_id, "begun", None, "", 0.0)
        message = self._message(batch.results_topic, batch.events_topic, (report,), [], 0)
        if message is not None:
            sync(
                self.worker.loop,
                self.worker.scheduler.log_event,
                topic=batch.results_topic,
                msg=message,
            )

    # -- events and reports ------------------------------------------------------------------

    def emit(
        self,
        batch: Batch,
        task_run: TaskRun,
        initial: State[Any] | None,
        validated: State[Any],
        *,
        persisted: bool,
    ) -> None:
        """Send a state change to the driver, soon.

        Where the batch's options say so, a transition that is followed by the run's final state
        within the flush interval is not sent: the final event carries the whole record.
        """
        is_last = validated.is_final() or validated.name == "NotReady"
        run_id = task_run.id
        with self._lock:
            outbox = self._driver(batch.events_topic)
            if outbox is None:
                return
            if batch.options.coalesce and not is_last:
                held = outbox.held.setdefault(run_id, [])
                held.append((task_run.model_copy(), initial, validated))
                return
            superseded = outbox.held.pop(run_id, None)
            if superseded:
                outbox.coalesced += len(superseded)
            follows = outbox.sent_last.pop(run_id, None)
            record = state_event(task_run, initial, validated, follows, persisted=persisted)
            outbox.records.append(record)
            if not is_last:
                outbox.sent_last[run_id] = (validated.id, validated.timestamp)

    def _driver(self, events_topic: str) -> _Driver | None:
        """What is kept for a driver; None for one that has departed, which hears nothing more."""
        if events_topic in self._departed:
            return None
        return self._drivers.setdefault(events_topic, _Driver())

    def flush(self) -> None:
        """Send all reports and events that are waiting."""
        with self._lock:
            batches = list(self._batches)
        for batch in batches:
            self._report(batch)
        self._send_events()

    def _due_events(self, topic: str, *, include_held: bool) -> tuple[list[EventRecord], int]:
        with self._lock:
            outbox = self._drivers.get(topic)
            if outbox is None:
                return [], 0
            if include_held:
                for run_id, held in outbox.held.items():
                    for task_run, initial, validated in held:
                        follows = outbox.sent_last.get(run_id)
                        outbox.records.append(state_event(task_run, initial, validated, follows))
                        outbox.sent_last[run_id] = (validated.id, validated.timestamp)
                outbox.held.clear()
            records, outbox.records = outbox.records, []
            coalesced, outbox.coalesced = outbox.coalesced, 0
            return records, coalesced

    def _report(self, batch: RunningBatch) -> None:
        with batch.lock:
            reports, batch.reports = batch.reports, []
            returned, batch.returned = batch.returned, []
        outcomes = (
            *reports,
            *(OutcomeReport(run_id, "returned", None, "", 0.0) for run_id in returned),
        )
        topic, driver = batch.batch.results_topic, batch.batch.events_topic
        is_sent = True
        if topic == driver:
            records, coalesced = self._due_events(driver, include_held=False)
            if outcomes or records:
                is_sent = self._send(topic, driver, outcomes, records, coalesced)
        elif outcomes:
            is_sent = self._send(topic, driver, outcomes, [], 0)
        if not is_sent:
            with batch.lock:
                batch.reports[:0], batch.returned[:0] = reports, returned

    def _send_events(self) -> None:
        for topic in list(self._drivers):
            records, coalesced = self._due_events(topic, include_held=True)
            if records or coalesced:
                self._send(topic, topic, (), records, coalesced)

    def _send(
        self,
        topic: str,
        driver: str,
        outcomes: tuple[OutcomeReport, ...],
        events: list[EventRecord],
        coalesced: int,
    ) -> bool:
        """Whether it was sent, or nobody listens any more. Events that were not sent are kept."""
        message = None
        try:
            message = self._message(topic, driver, outcomes, events, coalesced)
            if message is not None:
                self.worker.log_event(topic, message)
        except Exception as exc:  # noqa: BLE001 - a run has ended as it has
            _note_fault("a report could not be sent and is sent later", exc)
            with self._lock:
                kept = self._driver(driver)
                if kept is not None:
                    kept.records[:0] = events
                    kept.coalesced += coalesced
                    kept.n_sent -= message is not None and topic == driver
            return False
        return True

    def _message(
        self,
        topic: str,
        driver: str,
        outcomes: tuple[OutcomeReport, ...],
        events: list[EventRecord],
        coalesced: int,
    ) -> bytes | None:
        """What to send, counted as sent; None where the flow run is over and nobody listens."""
        message = pack(Message(self.worker.address, driver, outcomes, tuple(events), coalesced))
        with self._lock:
            kept = self._driver(driver)
            if kept is None:
                return None
            if topic == driver:
                kept.n_sent += 1
        return message

    def depart(self, topic: str) -> int:
        """A driver's flow run is over: forget what belongs to it.

        Returns how many messages were sent to it; from now on none is.
        """
        with self._lock:
            self._departed[topic] = None
            while len(self._departed) > _MAX_DEPARTED:
                self._departed.popitem(last=False)
            driver = self._drivers.pop(topic, None)
        self._contexts.drop_where(lambda scope: scope.captured.events_topic == topic)
        return driver.n_sent if driver is not None else 0

    def _watch(self) -> None:
        """`_watch_on`, begun anew after whatever ends it."""
        while not self._is_closed:
            try:
                self._watch_on()
            except BaseException as exc:  # noqa: BLE001 - without this thread runs stay open
                _note_fault("the agent met a fault and goes on", exc)
                time.sleep(_TICK_S)

    def _watch_on(self) -> None:
        """Give back what waits behind a straggler; send events in good time."""
        events_due_s = time.monotonic() + _EVENTS_EVERY_S
        while True:
            with self._wake:
                while not (self._batches or self._has_events()) and not self._is_closed:
                    self._wake.wait()
                if self._is_closed:
                    return
                batches = list(self._batches)
            now_s = time.monotonic()
            for batch in batches:
                seat = batch.seat
                if (
                    seat is not None
                    and (batch.waiting or batch.reports)
                    and now_s - seat.started_monotonic_s > batch.batch.options.split_after_s
                ):
                    if batch.give_back():
                        metrics.inc("deepflow_batch_splits_total")
                    self._report(batch)
            if now_s >= events_due_s:
                self._send_events()
                events_due_s = now_s + _EVENTS_EVERY_S
            time.sleep(_TICK_S)

    def _has_events(self) -> bool:
        return any(box.records or box.held or box.coalesced for box in list(self._drivers.values()))

    def close(self) -> None:
        """Send what is left and stop the watcher."""
        self.flush()
        with self._wake:
            self._is_closed = True
            self._wake.notify()


def _note_fault(what: str, exc: BaseException) -> None:
    """Count what must not end a thread of the agent's; logged once for each kind."""
    fell_back(Fallback.SERVICE_FAULT, _log, "On a worker %s", what, cause=what, error=exc)


_agents: dict[str, Agent] = {}
_agents_lock = threading.Lock()


def agent_of(worker: Worker) -> Agent:
    """The agent of a worker; made on first use."""
    agent = _agents.get(worker.address)
    if agent is None or agent.worker is not worker:
        with _agents_lock:
            agent = _agents.get(worker.address)
            if agent is None or agent.worker is not worker:
                agent = _agents[worker.address] = Agent(worker)
    return agent


def forget_agent(worker: Worker) -> None:
    """Close and drop a worker's agent, where it has one."""
    with _agents_lock:
        agent = _agents.pop(worker.address, None)
    if agent is not None:
        agent.close()
