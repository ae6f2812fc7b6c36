"""Cancelling a flow run through Prefect's API, where no Prefect worker is there to do it.

Somebody who cancels the flow run of a plain script (in the UI, or with `set_flow_run_state`)
changes a record in the server; the script is not told. A Prefect worker would kill the process.
Here the driver asks the server every few seconds: one small request in a thread of its own.
When the run, or a run that called it as a subflow, is being cancelled, its task runs are stopped,
nothing more may be submitted, and at its end the flow run is `Cancelled` in the server. What the
flow's own code computes meanwhile is not interrupted: it meets the cancellation in the next
`submit`, or in the result of a cancelled run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deepflow.observe.fallbacks import Fallback, SaidOnce, fell_back

if TYPE_CHECKING:
    import logging

EVERY_S = 3.0
_AFTER_A_FAULT_S = 30.0
_CANCELLED = frozenset({"CANCELLING", "CANCELLED"})
CANCELLED_MESSAGE = "Flow run was cancelled."


class CancellationWatch:
    """Calls `on_cancelled`, once, when one of the states that `read` gives says so."""

    def __init__(
        self,
        read: Callable[[], list[str]],
        on_cancelled: Callable[[], None],
        logger: logging.Logger | logging.LoggerAdapter[Any],
        *,
        every_s: float | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_cancelled = False
        self._read = read
        self._on_cancelled = on_cancelled
        self._logger = logger
        self._every_s = EVERY_S if every_s is None else every_s
        self._on_end = on_end
        self._closing = threading.Event()
        self._once = SaidOnce()
        # In the context of the flow run: its settings say where the server is.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="deepflow-cancellation", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ask no more. Waits for no answer: the server may be away."""
        self._closing.set()

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            self._on_end()

    def _watch(self) -> None:
        wait_s = self._every_s
        while not self._closing.wait(wait_s):
            wait_s = self._every_s
            try:
                states = self._read()
            except Exception as exc:  # noqa: BLE001 - whatever the server says, the flow goes on
                fell_back(
                    Fallback.CANCELLATION_UNKNOWN,
                    self._logger,
                    "The server does not say whether this flow run is cancelled: %r",
                    exc,
                    once=self._once,
                )
                wait_s = max(_AFTER_A_FAULT_S, self._every_s)
                continue
            if not self._closing.is_set() and _CANCELLED.intersection(states):
                self.is_cancelled = True
                self._on_cancelled()
                return


class FlowRunStates:
    """Reads the states of a flow run and of those that called it, one request at a time."""

    def __init__(self, flow_run_id: UUID) -> None:
        self._ids = [flow_run_id]
        self._has_parents = False
        self._client: Any = None

    def __call__(self) -> list[str]:
        """Types of the states, the run's own first."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        if self._client is None:
            self._client = get_client(sync_client=True)
            self._client.__enter__()
        if not self._has_parents:
            self._find_parents()
        runs = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=self._ids))
        )
        return [run.state.type.value for run in runs if run.state is not None]

    def close(self) -> None:
        """Ask no more."""
        if self._client is not None:
            self._client.__exit__(None, None, None)
            self._client = None

    def _find_parents(self) -> None:
        ids = self._ids[:1]
        while (parent := self._client.read_flow_run(ids[-1]).parent_task_run_id) is not None:
            caller = self._client.read_task_run(parent).flow_run_id
            if caller is None or caller in ids:
                break
            ids.append(caller)
        self._ids, self._has_parents = ids, True


def end_cancelled(flow_run: Any) -> None:
    """Make `Cancelled` the state of a flow run that was cancelled, in the server and here."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    state: Any = Cancelled(message=CANCELLED_MESSAGE)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)
    state.state_details.flow_run_id = flow_run.id
    flow_run.state = state
