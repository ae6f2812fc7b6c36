"""Which events to send when, and which to send again: the recorder without its thread and sockets.

The server drops what comes faster than it records, so no more than a window of events is under way
at a time; and it may have dropped some all the same, so that at the end it is asked for the state
of every run, and the last event of each run that it does not have is sent again.

Time is the event loop's, so that tests need not wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.events import bare, renewed, with_note
from deepflow.runner.wire import EventRecord

if TYPE_CHECKING:
    import logging

FINAL_TYPES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
RERUN_NOTE = "Run again: its result was lost together with the worker that held it."
_PAGE = 200
_PROBE_EVERY_S = 0.1
_STALL_S = 4.0
_RETRY_AFTER_S = 0.5
_CLOSE_TIMEOUT_S = 5.0
_BREATHE_EVERY = 100
_IDLE_S = 1.0
_LAST_STEP_S = 0.1
_MAX_BROKEN = 3
_LASTED_S = 10.0
"""A connection that has lived for so long did not end over what was sent first."""
_OF_THE_RECORD = (TypeError, ValueError, LookupError, RecursionError)
"""What sending raises where the event is the trouble, and not the connection."""


class Server(Protocol):
    """What the recorder needs of Prefect's server; any call may raise while that is away."""

    async def connect(self) -> bool:
        """Make sure that there is a connection; whether one before it was lost."""

    async def send(self, record: EventRecord) -> None:
        """Send one event; it is under way when this returns, not recorded."""

    async def has(self, record: EventRecord) -> bool:
        """Whether the run's recorded state is as new as `record`, or newer."""

    async def count_final(self) -> int | None:
        """How many task runs of the flow run have a final state; None without a flow run."""

    async def states(self, run_ids: Iterable[UUID]) -> Mapping[UUID, tuple[str, str]]:
        """Type and name of the recorded state of each run that has one."""

    async def close(self) -> None:
        """Close the connection."""


class Window:
    """The events under way: sent, but not known to be recorded."""

    def __init__(self, n_events: int) -> None:
        self._n_events = n_events
        self._n_sent = 0
        self._n_recorded = 0
        self._under_way: deque[tuple[int, EventRecord]] = deque()

    @property
    def n_sent(self) -> int:
        """How many events were sent so far."""
        return self._n_sent

    @property
    def is_full(self) -> bool:
        """Whether the server has to catch up before more is sent."""
        return self._n_sent - self._n_recorded >= self._n_events

    def sent(self, record: EventRecord) -> None:
        """One more event is under way."""
        self._n_sent += 1
        self._under_way.append((self._n_sent, record))

    def under_way(self) -> list[EventRecord]:
        """The events not known to be recorded, oldest first."""
        return [record for _, record in self._under_way]

    def replace(self, by: Callable[[EventRecord], EventRecord]) -> None:
        """Let other records say the same as those under way."""
        self._under_way = deque((number, by(record)) for number, record in self._under_way)

    def marker(self) -> EventRecord | None:
        """The event half a window ago: the server records in order, or nearly."""
        target = self._n_sent - self._n_events // 2
        return next((record for number, record in self._under_way if number >= target), None)

    def half_recorded(self) -> None:
        """The marker is recorded, and with it what was sent before it."""
        self._n_recorded = max(self._n_recorded, self._n_sent - self._n_events // 2)
        while self._under_way and self._under_way[0][0] <= self._n_recorded:
            self._under_way.popleft()


class Settled:
    """The last event of each settled run, until the server is known to have it."""

    def __init__(self) -> None:
        self._last: dict[UUID, EventRecord | None] = {}

    def __len__(self) -> int:
        return len(self._last)

    def admit(self, record: EventRecord) -> EventRecord | None:
        """The event as it is to be sent; None for a transition of a run that is settled already.

        A settled run that runs again lost its result with a worker. Its way through Pending and
        Running is not shown, for should the flow end before it does, it would stay there.
        """
        is_settling = record.state_type in FINAL_TYPES or record.state_name == "NotReady"
        if record.run_id in self._last:
            if not is_settling:
                return None
            record = with_note(record, RERUN_NOTE)
        if is_settling:
            self._last[record.run_id] = record
        return record

    def open_runs(self) -> list[UUID]:
        """Runs whose last event the server is not known to have."""
        return [run_id for run_id, record in list(self._last.items()) if record]

    def last(self, run_id: UUID) -> EventRecord:
        """The last event of an open run."""
        record = self._last[run_id]
        assert record is not None
        return record

    def can_be_counted(self) -> bool:
        """Whether the number of final task runs says it all: none confirmed, none not final."""
        return all(r and r.state_type in FINAL_TYPES for r in list(self._last.values()))

    def confirm(self, run_ids: Iterable[UUID]) -> None:
        """The server has the last event of these runs."""
        for run_id in run_ids:
            self._last[run_id] = None

    def compare(self, run_ids: Iterable[UUID], found: Mapping[UUID, tuple[str, str]]) -> list[UUID]:
        """Those of these open runs whose recorded state is not their last; confirms the others."""
        missing = []
        for run_id in run_ids:
            record = self.last(run_id)
            if found.get(run_id) == (record.state_type, record.state_name):
                self.confirm([run_id])
            else:
                missing.append(run_id)
        return missing


class Recording:
    """Sends one flow run's events to a server. `put` is for the thread that holds its lock;
    all else is for the event loop that `run` runs on."""

    def __init__(
        self, window_events: int, logger: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self.queue: deque[EventRecord] = deque()
        self.settled = Settled()
        self.error: Exception | None = None
        """The latest trouble with the server; None once it is over."""
        self._window = Window(window_events)
        self._logger = logger
        self._wake = asyncio.Event()
        self._deadline_s: float | None = None
        self._patience: asyncio.Timeout | None = None
        self._is_done = False
        self._n_broken = 0
        """Connections lost in a row since the server has recorded anything."""
        self._connected_at_s = 0.0
        self._sent_again: set[UUID] = set()

    @property
    def is_over(self) -> bool:
        """Whether `run` has done all it can, or its time is up."""
        return self._is_done or self._is_expired()

    def put(self, records: Iterable[EventRecord]) -> None:
        """Queue events for sending."""
        for record in records:
            try:
                admitted = self.settled.admit(record)
            except Exception:  # noqa: BLE001 - what is odd in one record keeps no other back
                fell_back(Fallback.SERVICE_FAULT)
                admitted = record
            if admitted is not None:
                self.queue.append(admitted)

    def wake(self) -> None:
        """There is something new in the queue."""
        self._wake.set()

    def finish(self, wait_s: float) -> None:
        """Let `run` end once the server has all that was put, or in `wait_s` seconds."""
        self._deadline_s = self._now_s() + wait_s
        if self._patience is not None:
            self._patience.reschedule(self._patience_until_s())
        self._wake.set()

    async def run(self, server: Server) -> None:
        """Send what is put until `finish`, then compare with the server and send again."""
        try:
            while True:
                if self.queue:
                    await self._attempt(self._send(server, self.queue))
                elif self._deadline_s is not None:
                    break
                else:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), timeout=_IDLE_S)
                    self._wake.clear()
                if self._is_expired():
                    break
            while not self._is_expired():
                if await self._attempt(self._compare(server)):
                    break
            self._is_done = True
        finally:
            try:
                await asyncio.wait_for(server.close(), _CLOSE_TIMEOUT_S)
            except Exception as exc:  # noqa: BLE001 - costs nothing that is not counted already
                self.error = exc

    def _is_expired(self) -> bool:
        return self._deadline_s is not None and self._now_s() >= self._deadline_s

    def _patience_until_s(self) -> float | None:
        """When to break off a step; a last one is given a moment even where there is no time."""
        if self._deadline_s is None:
            return None
        return max(self._deadline_s, self._now_s() + _LAST_STEP_S)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _attempt(self, step: Coroutine[Any, Any, None]) -> bool:
        """Await a step that needs the server; on trouble note it, wait a little, return False."""
        try:
            await self._bounded(step)
        except Exception as exc:  # noqa: BLE001 - any trouble: kept, counted, tried again
            if self.error is None:
                self._logger.info(
                    "The Prefect server cannot be reached for events (%r); they are kept and sent "
                    "when it can.",
                    exc,
                )
            self.error = exc
            fell_back(Fallback.SERVER_UNREACHABLE)
            await asyncio.sleep(_RETRY_AFTER_S)
            return False
        self.error = None
        return True

    async def _bounded(self, step: Coroutine[Any, Any, None]) -> None:
        """Await a step, to the deadline at most, also where that is set meanwhile."""
        try:
            async with asyncio.timeout_at(self._patience_until_s()) as self._patience:
                await step
        finally:
            self._patience = None

    # -- sending -------------------------------------------------------------------------------

    async def _send(self, server: Server, queue: deque[EventRecord]) -> None:
        """Send the whole queue, pausing whenever the server is a window behind."""
        if await server.connect():
            self._note_broken()
            # What was under way when the connection broke may be lost; the server knows doubles.
            under_way = self._window.under_way()
            metrics.inc("deepflow_events_resent_total", len(under_way))
            for record in under_way:
                await self._deliver(server, record)
        while queue:
            if self._window.is_full:
                await self._catch_up(server)
            record = queue[0]
            await self._deliver(server, record)
            queue.popleft()
            self._window.sent(record)
            metrics.inc("deepflow_events_sent_total")
            if self._window.n_sent % _BREATHE_EVERY == 0:
                metrics.set_gauge("deepflow_events_backlog", len(queue))
                await asyncio.sleep(0)

    async def _deliver(self, server: Server, record: EventRecord) -> None:
        """Send one event; where it is the event that cannot be sent, say its state alone."""
        try:
            await server.send(record)
        except _OF_THE_RECORD as exc:
            fell_back(Fallback.BARE_EVENT)
            try:
                await server.send(bare(record))
            except _OF_THE_RECORD:
                self._logger.warning(
                    "The Prefect server cannot be told that task run %s is %s: %r",
                    record.run_id,
                    record.state_name,
                    exc,
                )

    def _note_broken(self) -> None:
        """A server ends the connection over an event that it does not take, and what was sent
        after it is lost: where that goes on, all that is under way is said in the barest form."""
        now_s = self._now_s()
        has_lasted = now_s - self._connected_at_s > _LASTED_S
        self._n_broken = 1 if has_lasted else self._n_broken + 1
        self._connected_at_s = now_s
        if self._n_broken > _MAX_BROKEN:
            fell_back(Fallback.BARE_EVENT)
            self._window.replace(bare)

    async def _catch_up(self, server: Server) -> None:
        """Wait until the server has recorded about half of what is under way."""
        marker = self._window.marker()
        started_s = self._now_s()
        while marker is not None and not await server.has(marker):
            if self._now_s() - started_s > 2 * _STALL_S:
                # This very event was dropped, or the server is very slow: the comparison at the
                # end finds what is missing, so go on rather than stand still.
                fell_back(Fallback.RECORDER_PROBE_EXPIRED)
                break
            await asyncio.sleep(_PROBE_EVERY_S)
        else:
            self._n_broken = 0
        self._window.half_recorded()

    # -- comparing -----------------------------------------------------------------------------

    async def _compare(self, server: Server) -> None:
        """Until the server has every settled run: count, find what is missing, send it again."""
        waiting_since_s, best = self._now_s(), -1
        while open_runs := self.settled.open_runs():
            n_recorded = await self._count_recorded(server, open_runs)
            if n_recorded >= len(open_runs):
                self.settled.confirm(open_runs)
            elif n_recorded > best:
                best, waiting_since_s = n_recorded, self._now_s()
            elif self._now_s() - waiting_since_s > _STALL_S:
                await self._send_missing(server, open_runs)
                waiting_since_s, best = self._now_s(), -1
            if n_recorded < len(open_runs):
                await asyncio.sleep(_PROBE_EVERY_S)

    async def _count_recorded(self, server: Server, open_runs: list[UUID]) -> int:
        """How many of the open runs the server has; one query where it can be."""
        if self.settled.can_be_counted():
            n_final = await server.count_final()
            if n_final is not None:
                return n_final
        return len(open_runs) - len(await self._missing(server, open_runs))

    async def _missing(self, server: Server, open_runs: list[UUID]) -> list[UUID]:
        """Those of `open_runs` whose recorded state is not the one they ended in."""
        missing: list[UUID] = []
        for start in range(0, len(open_runs), _PAGE):
            page = open_runs[start : start + _PAGE]
            missing += self.settled.compare(page, await server.states(page))
        return missing

    async def _send_missing(self, server: Server, open_runs: list[UUID]) -> None:
        missing = await self._missing(server, open_runs)
        again = deque(self._again(self.settled.last(run_id)) for run_id in missing)
        if again:
            metrics.inc("deepflow_events_resent_total", len(again))
            self._logger.info(
                "The Prefect server dropped the last event of %d task runs; sending them again.",
                len(again),
            )
            await self._send(server, again)

    def _again(self, record: EventRecord) -> EventRecord:
        """An event as it is sent again: bare, where the server has dropped it twice."""
        again = renewed(record)
        if record.run_id in self._sent_again:
            return bare(again)
        self._sent_again.add(record.run_id)
        return again
