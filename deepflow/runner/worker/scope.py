"""The context of a flow run, rebuilt once in each worker process and entered cheaply.

`driver/capturing.py` says how it gets here, and why not as Prefect would send it; entering it for a
run sets a few context variables.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.context import (
    AssetContext,
    FlowRunContext,
    SettingsContext,
    SyncClientContext,
    TagsContext,
    TaskRunContext,
)
from prefect.context import _deployment_id as deployment_id_var
from prefect.context import _deployment_parameters as deployment_parameters_var
from prefect.logging.configuration import setup_logging
from prefect.results import default_cache
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_EXTRA_LOGGERS

from deepflow.intermediates.loading import Scope
from deepflow.intermediates.parcel import Parcel
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.captured import CapturedContext
from deepflow.runner.outgoing import clean_api_logs
from deepflow.runner.results.storage import DeepflowResultStore
from deepflow.runner.staged import in_transaction

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

_PLAIN = (int, float, str, bool, bytes, type(None))


def _set_up_logging() -> None:
    """Put the logging settings in force, also those that Prefect reads once in a process."""
    setup_logging()
    handlers = logging.getLogger("prefect.extra").handlers
    for name in PREFECT_LOGGING_EXTRA_LOGGERS.value():
        for handler in handlers:
            logging.getLogger(name).addHandler(handler)
    clean_api_logs()


class _Clients(threading.local):
    """One HTTP client per worker thread and API address (its TLS context alone costs 20 ms)."""

    def __init__(self) -> None:
        self.by_url: dict[str, SyncClientContext] = {}


_clients = _Clients()


def _apart(parameters: dict[str, Any] | None) -> Parcel | None:
    """The flow's parameters as each run is to have them; None where sharing them cannot be seen."""
    if not parameters or all(type(value) in _PLAIN for value in parameters.values()):
        return None
    try:
        return Parcel.of(parameters)
    except Exception:  # noqa: BLE001 - pickling runs the user's code
        fell_back(Fallback.FLOW_PARAMETERS_SHARED)
        return None


class RunScope:
    """A captured context, rebuilt in a worker process and entered around each run."""

    def __init__(self, captured: CapturedContext) -> None:
        self.captured = captured
        settings = captured.settings
        if not settings.api.url:
            # A driver with an ephemeral server has no address in its settings; without one here
            # every worker process would start a server of its own.
            settings = settings.copy_with_update(updates={PREFECT_API_URL: captured.api_url})
        self._settings = SettingsContext.model_construct(
            profile=captured.profile, settings=settings
        )
        self._lock = threading.Lock()
        self._flow_run: FlowRunContext | None = None
        self._parent: TaskRunContext | None = None
        self._parameters: Parcel | None = None
        self._is_logging_ready = False
        self._task_runner: TaskRunner[Any] | None = None

    @property
    def flow_run_id(self) -> UUID | None:
        """The flow run's id, where there is one."""
        ser = self.captured.flow_run
        return ser["flow_run"].get("id") if ser and isinstance(ser["flow_run"], dict) else None

    def _client(self) -> SyncClientContext:
        context = _clients.by_url.get(self.captured.api_url)
        if context is None:
            context = SyncClientContext()
            # Only the client is entered: entering the context would ask the server for its version,
            # and a thread that is new while the server is away could run nothing. The driver has
            # asked. And the variable, set for each run below, must not keep this thread's token.
            context.client.__enter__()
            context._context_stack = 1
            _clients.by_url[self.captured.api_url] = context
        return context

    def _build(self, client: SyncPrefectClient) -> None:
        """Rebuild the contexts once; needs the settings context to be set."""
        from prefect._internal.result_records import ResultRecordMetadata
        from prefect.flows import Flow
        from prefect.tasks import Task

        if not self._is_logging_ready:
            _set_up_logging()
            self._is_logging_ready = True
        types = {"Flow": Flow, "Task": Task, "ResultRecordMetadata": ResultRecordMetadata}
        FlowRunContext.model_rebuild(_types_namespace=types)
        TaskRunContext.model_rebuild(_types_namespace=types)
        if self.captured.flow_run is not None and self._flow_run is None:
            flow = self.captured.flow_run["flow"]
            runner = flow.task_runner
            # Ours submits through this worker's own Dask client; another kind knows no such thing.
            nested = getattr(runner, "nested", None)
            runner = runner.duplicate() if nested is None else nested(self.captured.events_topic)
            self._task_runner = runner.__enter__()
            self._flow_run = FlowRunContext(
                **self.captured.flow_run, client=client, task_runner=runner, detached=True
            )
            self._flow_run.result_store = DeepflowResultStore.of(self._flow_run.result_store)
            self._parameters = _apart(self._flow_run.parameters)
        if self.captured.parent_task_run is not None and self._parent is None:
            self._parent = TaskRunContext(**self.captured.parent_task_run, client=client)
            self._parent.result_store = DeepflowResultStore.of(self._parent.result_store)

    @property
    def settings(self) -> SettingsContext:
        """The settings of the flow run: they say where its server is."""
        return self._settings

    @contextmanager
    def entered(
        self, tags: tuple[str, ...], assets: dict[str, Any] | None, classes: Scope
    ) -> Generator[None, None, None]:
        """Set the context variables of the captured context for one run.

        `classes`: those that the run's values are made of.
        """
        undo: list[tuple[ContextVar[Any], Token[Any]]] = []

        def put(variable: ContextVar[Any], value: Any) -> None:
            undo.append((variable, variable.set(value)))

        try:
            put(SettingsContext.__var__, self._settings)
            put(in_transaction, self.captured.in_transaction)
            client = self._client()
            put(SyncClientContext.__var__, client)
            if (
                (self.captured.flow_run is not None and self._flow_run is None)
                or (self.captured.parent_task_run is not None and self._parent is None)
                or not self._is_logging_ready
            ):
                with self._lock:
                    self._build(client.client)
            if self._flow_run is not None:
                # What one run links to its results, reads from storage or does to the flow's
                # parameters must not be seen by, or kept for, the next.
                store = self._flow_run.result_store
                update: dict[str, Any] = {
                    "client": client.client,
                    "run_results": {},
                    "task_run_assets": {},
                    "task_run_dynamic_keys": {},
                    "result_store": store.model_copy(update={"cache": default_cache()}),
                }
                if self._parameters is not None:
                    update["parameters"] = self._parameters.open(classes)
                put(FlowRunContext.__var__, self._flow_run.model_copy(update=update))
            if self._parent is not None:
                store = self._parent.result_store
                fresh = store.model_copy(update={"cache": default_cache()})
                put(
                    TaskRunContext.__var__,
                    self._parent.model_copy(update={"result_store": fresh}),
                )
            put(TagsContext.__var__, TagsContext(current_tags=set(tags)))
            if assets:
                put(AssetContext.__var__, AssetContext(**assets))
            if self.captured.deployment_id:
                put(deployment_id_var, UUID(self.captured.deployment_id))
            if self.captured.deployment_parameters:
                put(deployment_parameters_var, self.captured.deployment_parameters)
            yield
        finally:
            for variable, token in reversed(undo):
                variable.reset(token)
