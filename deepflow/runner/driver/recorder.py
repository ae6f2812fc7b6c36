"""How events reach Prefect's server, and how it is made sure that they arrived.

The server keeps at most 10,000 messages in memory and throws away what comes on top, so a fast
runner loses task runs from the UI. One recorder per flow run sends all its events over one
connection, never more than a window ahead of what the server has recorded; it keeps the final
event of every run until the server is seen to have it, and sends again what is missing.

Here is the thread that it runs in; what it does there is `recording.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.recording import Recording
from deepflow.runner.driver.server_link import ServerLink
from deepflow.runner.wire import EventRecord

if TYPE_CHECKING:
    import logging

_JOIN_MARGIN_S = 15.0
_RESTART_AFTER_S = 0.5


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
        self._recording = Recording(window_events, logger)
        self._logger = logger
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_loop = threading.Event()
        self._has_failed = False
        flow_run = FlowRunContext.get()
        self._flow_run_id = flow_run.flow_run.id if flow_run and flow_run.flow_run else None
        self._context = copy_context()

    def put(self, records: Iterable[EventRecord]) -> None:
        """Queue events for sending."""
        with self._lock:
            self._recording.put(records)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._context.run,
                    args=(self._run,),
                    name="deepflow-recorder",
                    daemon=True,
                )
                self._thread.start()
        self._tell(self._recording.wake)

    def finish(self, wait_s: float) -> int:
        """Send what is left, compare with the server, send again; returns the runs still missing.

        Blocks until the server has recorded every settled run, or for `wait_s` seconds.
        """
        if self._thread is None:
            return 0
        self._has_loop.wait(_JOIN_MARGIN_S)
        self._tell(self._recording.finish, wait_s)
        self._thread.join(wait_s + _JOIN_MARGIN_S)
        settled, error = self._recording.settled, self._recording.error
        n_missing = len(settled.open_runs())
        metrics.set_gauge("deepflow_events_missing", n_missing)
        metrics.set_gauge("deepflow_events_backlog", len(self._recording.queue))
        if n_missing:
            self._logger.warning(
                "The Prefect server has not recorded %d of %d task runs %g s after the end of the "
                "flow; they ran, but the UI will not show their last state%s. Raise "
                "DEEPFLOW_RECORD_WAIT_S, or give the server the recorder settings of "
                "deployments/profiles.",
                n_missing,
                len(settled),
                wait_s,
                f" (last error: {error!r})" if error else "",
            )
        return n_missing

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        """Call `what` on the recorder's thread, where that is running."""
        if self._loop is not None:
            with suppress(RuntimeError):  # its loop is closed: the flow run is over
                self._loop.call_soon_threadsafe(what, *arguments)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_loop.set()
        while not self._recording.is_over:
            try:
                async with get_client() as api:
                    await self._recording.run(ServerLink(api, self._flow_run_id))
            except Exception as exc:
                # What is queued is still to be said.
                self._recording.error = exc
                fell_back(Fallback.SERVICE_FAULT)
                if not self._has_failed:
                    self._has_failed = True
                    with suppress(Exception):  # a log handler's trouble
                        self._logger.error("The recorder met a fault and goes on", exc_info=exc)
                await asyncio.sleep(_RESTART_AFTER_S)
