"""How events reach Prefect's server, and how it is made sure that they arrived.

The server keeps at most 10,000 messages in memory and throws away what comes on top, so a fast
runner loses task runs from the UI. One recorder per flow run sends all its events over one
connection, never more than a window ahead of what the server has recorded; it keeps the final
event of every run until the server is seen to have it, and sends again what is missing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events.clients import get_events_client
from prefect.events.related import related_resources_from_run_context

from deepflow.observe import metrics
from deepflow.runner.events import complete_event, renewed, with_note
from deepflow.runner.wire import EventRecord

if TYPE_CHECKING:
    import logging

    from prefect.client.orchestration import PrefectClient

FINAL_TYPES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
RERUN_NOTE = "Run again: its result was lost together with the worker that held it."
_PAGE = 200
_PROBE_EVERY_S = 0.1
_STALL_S = 4.0
_BACKOFF_MAX_S = 5.0
_MARKER_EVERY = 100


class Recorder:
    """Sends the events of one flow run; see the top of this file.

    `put` may be called from any thread and never blocks. `finish` blocks, boundedly.
    """

    def __init__(
        self,
        *,
        window_events: int,
        logger: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._window_events = window_events
        self._logger = logger
        self._queue: deque[EventRecord] = deque()
        self._settled: dict[UUID, EventRecord | None] = {}
        """The last event of each settled run; None once the server is known to have it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._deadline_s: float | None = None
        self._is_stopping = False
        flow_run = FlowRunContext.get()
        self._flow_run_id = flow_run.flow_run.id if flow_run and flow_run.flow_run else None
        self._context = copy_context()
        self.error: Exception | None = None

    # -- any thread --------------------------------------------------------------------------

    def put(self, records: Iterable[EventRecord]) -> None:
        """Queue events for sending."""
        with self._lock:
            for record in records:
                kept = self._kept(record)
                if kept is not None:
                    self._queue.append(kept)
            self._idle.clear()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._context.run,
                    args=(self._run,),
                    name="deepflow-recorder",
                    daemon=True,
                )
                self._thread.start()
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def _kept(self, record: EventRecord) -> EventRecord | None:
        """The event as it is to be sent; None for a transition of a run that is settled already.

        A settled run that runs again lost its result with a worker. Its way through Pending and
        Running is not shown, for should the flow end before it does, it would stay there.
        """
        is_settling = record.state_type in FINAL_TYPES or record.state_name == "NotReady"
        if record.run_id in self._settled:
            if not is_settling:
                return None
            record = with_note(record, RERUN_NOTE)
        if is_settling:
            self._settled[record.run_id] = record
        return record

    def is_settled(self, run_id: UUID) -> bool:
        """Whether a final event of this run was seen."""
        return run_id in self._settled

    @property
    def backlog(self) -> int:
        """Events not sent yet."""
        return len(self._queue)

    def finish(self, wait_s: float) -> int:
        """Send what is left, compare with the server, send again; returns the runs still missing.

        Blocks until the server has recorded every settled run, or for `wait_s` seconds.
        """
        if self._thread is None:
            return 0
        self._deadline_s = time.monotonic() + wait_s
        self._is_stopping = True
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(wait_s + 15.0)
        missing = sum(record is not None for record in self._settled.values())
        metrics.set_gauge("deepflow_events_missing", missing)
        metrics.set_gauge("deepflow_events_backlog", len(self._queue))
        if missing:
            self._logger.warning(
                "The Prefect server has not recorded %d of %d task runs %g s after the end of the "
                "flow; they ran, but the UI will not show their last state%s. Raise "
                "DEEPFLOW_RECORD_WAIT_S, or give the server the recorder settings of "
                "deployments/profiles.",
                missing,
                len(self._settled),
                wait_s,
                f" (last error: {self.error!r})" if self.error else "",
            )
        return missing

    # -- the recorder's thread ---------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with get_client() as api:
            link = _Link(api, self._window_events, self)
            try:
                while True:
                    if self._queue:
                        if not await self._attempt(link.send(self._queue)):
                            continue
                    elif self._is_stopping:
                        break
                    else:
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._wake.wait(), timeout=1.0)
                        self._wake.clear()
                    if self._expired():
                        break
                while not self._expired():
                    if await self._attempt(self._compare(api, link)):
                        break
            finally:
                await link.close()

    def _expired(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    async def _attempt(self, step: Any) -> bool:
        """Await a step that needs the server; on trouble note it, wait a little, return False."""
        remaining_s = None
        if self._deadline_s is not None:
            remaining_s = max(0.1, self._deadline_s - time.monotonic())
        try:
            await asyncio.wait_for(step, remaining_s)
        except Exception as exc:  # noqa: BLE001 - any trouble: kept, counted, tried again
            if self.error is None:
                self._logger.info(
                    "The Prefect server cannot be reached for events (%r); they are kept and sent "
                    "when it can.",
                    exc,
                )
            self.error = exc
            metrics.inc("deepflow_fallbacks_total", kind="server_unreachable")
            await asyncio.sleep(0.5)
            return False
        self.error = None
        return True

    async def _compare(self, api: PrefectClient, link: _Link) -> None:
        """Until the server has every settled run: count, find what is missing, send it again."""
        waiting_since_s, best = time.monotonic(), -1
        while True:
            open_runs = [run_id for run_id, record in self._settled.items() if record is not None]
            if not open_runs:
                return
            recorded = await self._count_recorded(api, open_runs)
            if recorded >= len(open_runs):
                for run_id in open_runs:
                    self._settled[run_id] = None
                return
            if recorded > best:
                best, waiting_since_s = recorded, time.monotonic()
            elif time.monotonic() - waiting_since_s > _STALL_S:
                await self._send_missing(api, link, open_runs)
                waiting_since_s, best = time.monotonic(), -1
            await asyncio.sleep(_PROBE_EVERY_S)

    async def _count_recorded(self, api: PrefectClient, open_runs: list[UUID]) -> int:
        """How many of the settled runs the server has; one query where it can be."""
        n_final = sum(
            record is not None and record.state_type in FINAL_TYPES
            for record in self._settled.values()
        )
        if self._flow_run_id is not None and n_final == len(open_runs) == len(self._settled):
            body: dict[str, Any] = {
                "flow_runs": {"id": {"any_": [str(self._flow_run_id)]}},
                "task_runs": {"state": {"type": {"any_": list(FINAL_TYPES)}}},
            }
            response = await api._client.post("/task_runs/count", json=body)
            return min(int(response.json()), len(open_runs))
        return len(open_runs) - len(await self._missing(api, open_runs))

    async def _missing(self, api: PrefectClient, open_runs: list[UUID]) -> list[UUID]:
        """Those of `open_runs` whose recorded state is not the one they ended in."""
        missing: list[UUID] = []
        for start in range(0, len(open_runs), _PAGE):
            page = open_runs[start : start + _PAGE]
            response = await api._client.post(
                "/task_runs/filter",
                json={"task_runs": {"id": {"any_": [str(i) for i in page]}}, "limit": _PAGE},
            )
            found = {run["id"]: (run["state_type"], run["state_name"]) for run in response.json()}
            for run_id in page:
                record = self._settled[run_id]
                if record is None:
                    continue
                if found.get(str(run_id)) == (record.state_type, record.state_name):
                    self._settled[run_id] = None
                else:
                    missing.append(run_id)
        return missing

    async def _send_missing(self, api: PrefectClient, link: _Link, open_runs: list[UUID]) -> None:
        again: deque[EventRecord] = deque()
        for run_id in await self._missing(api, open_runs):
            record = self._settled[run_id]
            assert record is not None
            again.append(renewed(record))
        if again:
            metrics.inc("deepflow_events_resent_total", len(again))
            self._logger.info(
                "The Prefect server dropped the last event of %d task runs; sending them again.",
                len(again),
            )
            await link.send(again)


class _Link:
    """One connection to the server's event stream, with its window."""

    def __init__(self, api: PrefectClient, window_events: int, recorder: Recorder) -> None:
        self._api = api
        self._window_events = window_events
        self._recorder = recorder
        self._client: Any = None
        self._related: dict[tuple[str, ...], bytes] = {}
        self._base: list[dict[str, Any]] | None = None
        self._sent = 0
        self._recorded = 0
        self._unconfirmed: deque[tuple[int, EventRecord]] = deque()

    async def send(self, queue: deque[EventRecord]) -> None:
        """Send the whole queue, pausing whenever the server is a window behind."""
        if self._base is None:
            self._base = await self._flow_run_resources()
        await self._connect()
        while queue:
            if self._sent - self._recorded >= self._window_events:
                await self._catch_up()
            record = queue[0]
            await self._client._websocket.send(complete_event(record, self._related_of(record)))
            queue.popleft()
            self._sent += 1
            self._unconfirmed.append((self._sent, record))
            metrics.inc("deepflow_events_sent_total")
            if self._sent % _MARKER_EVERY == 0:
                metrics.set_gauge("deepflow_events_backlog", len(queue))
                await asyncio.sleep(0)
        if len(self._unconfirmed) > self._window_events:
            await self._catch_up()

    async def _connect(self) -> None:
        if self._client is None:
            self._client = get_events_client()
            await self._client.__aenter__()
            return
        websocket = self._client._websocket
        if websocket is not None and websocket.close_code is None:
            return
        await self._client._reconnect()
        # What was under way when the connection broke may be lost; the server knows doubles.
        metrics.inc("deepflow_events_resent_total", len(self._unconfirmed))
        for _, record in self._unconfirmed:
            await self._client._websocket.send(complete_event(record, self._related_of(record)))

    async def _catch_up(self) -> None:
        """Wait until the server has recorded about half of what is under way."""
        target = self._sent - self._window_events // 2
        marker = next((item for item in self._unconfirmed if item[0] >= target), None)
        started_s = time.monotonic()
        while marker is not None and not await self._is_recorded(marker[1]):
            if time.monotonic() - started_s > 2 * _STALL_S:
                # This very event was dropped, or the server is very slow: the comparison at the
                # end finds what is missing, so go on rather than stand still.
                metrics.inc("deepflow_fallbacks_total", kind="recorder_probe_expired")
                break
            await asyncio.sleep(_PROBE_EVERY_S)
        self._recorded = max(self._recorded, target)
        while self._unconfirmed and self._unconfirmed[0][0] <= self._recorded:
            self._unconfirmed.popleft()

    async def _is_recorded(self, record: EventRecord) -> bool:
        response = await self._api._client.post(
            "/task_runs/filter",
            json={"task_runs": {"id": {"any_": [str(record.run_id)]}}, "limit": 1},
        )
        runs = response.json()
        if not runs or not runs[0].get("state"):
            return False
        recorded_at = datetime.fromisoformat(runs[0]["state"]["timestamp"].replace("Z", "+00:00"))
        occurred = orjson.loads(record.body + b"}")["occurred"]
        return recorded_at >= datetime.fromisoformat(occurred)

    async def _flow_run_resources(self) -> list[dict[str, Any]]:
        """The related resources of the flow run: the run, its flow, deployment, tags."""
        related = await related_resources_from_run_context(self._api)
        return [resource.model_dump() for resource in related]

    def _related_of(self, record: EventRecord) -> bytes:
        related = self._related.get(record.tags)
        if related is None:
            base = self._base or []
            known = {resource.get("prefect.resource.id") for resource in base}
            tags = [
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
                for tag in record.tags
                if f"prefect.tag.{tag}" not in known
            ]
            related = self._related[record.tags] = orjson.dumps(tags + base)
        return related

    async def close(self) -> None:
        """Close the connection; trouble in doing so costs nothing that is not counted already."""
        if self._client is not None:
            try:
                await asyncio.wait_for(self._client.__aexit__(None, None, None), 5.0)
            except Exception as exc:  # noqa: BLE001 - kept as the recorder's error
                self._recorder.error = exc
