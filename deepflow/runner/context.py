"""The context of a flow run, shipped once and entered cheaply.

Prefect's `serialize_context` dumps every setting for every task, and `hydrated_context` validates
them again on the worker: 13-70 ms and 23 ms a task. Here the context is captured once per flow
run (and once per parent task that submits from a worker), put on the scheduler under a name, and
fetched by each worker process once; entering it for a run sets a few context variables.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import cloudpickle
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
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_EXTRA_LOGGERS, Settings

from deepflow.intermediates.loading import Scope
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.runner.outgoing import clean_api_logs
from deepflow.runner.transactions import in_transaction, open_transaction

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

_PLAIN = (int, float, str, bool, bytes, type(None))


class CapturedContext(NamedTuple):
    """A context as it travels: all but what varies from call to call (tags, assets)."""

    settings: Settings
    profile: Any
    api_url: str
    flow_run: dict[str, Any] | None
    parent_task_run: dict[str, Any] | None
    deployment_id: str | None
    deployment_parameters: dict[str, Any] | None
    results_topic: str
    events_topic: str
    in_transaction: bool
    """Whether the flow has a transaction open that runs are to be part of."""
    runner: bytes
    """The pickled configuration for runs that submit from inside a run."""


def capture(api_url: str, results_topic: str, events_topic: str, runner: bytes) -> CapturedContext:
    """The current Prefect context. Takes milliseconds; do it once per flow run."""
    settings = SettingsContext.get()
    assert settings is not None, "Prefect enters a settings context when it is imported"
    flow_run, parent = FlowRunContext.get(), TaskRunContext.get()
    deployment_id = deployment_id_var.get()
    return CapturedContext(
        settings=settings.settings,
        profile=settings.profile,
        api_url=api_url,
        flow_run=flow_run.serialize() if flow_run else None,
        parent_task_run=parent.serialize() if parent else None,
        deployment_id=str(deployment_id) if deployment_id else None,
        deployment_parameters=deployment_parameters_var.get(),
        results_topic=results_topic,
        events_topic=events_topic,
        in_transaction=open_transaction() is not None,
        runner=runner,
    )


def persist_as_deepflow(captured: CapturedContext) -> None:
    """Persist with the serializer `deepflow` where neither task nor flow names one."""
    run = captured.flow_run
    if run is not None and run["flow"].result_serializer is None:
        for context in filter(None, (run, captured.parent_task_run)):
            context.setdefault("result_store", {})["serializer"] = {"type": "deepflow"}


def to_blob(value: Any) -> tuple[str, bytes]:
    """`(digest, cloudpickle)` of a value that is to be shipped once."""
    blob = cloudpickle.dumps(value, protocol=5)
    return hashlib.blake2b(blob, digest_size=16).hexdigest(), blob


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
        metrics.inc("deepflow_fallbacks_total", kind="flow_parameters_shared")
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

        from deepflow.runner.storage import DeepflowResultStore
        from deepflow.runner.task_runner import DeepflowTaskRunner

        if not self._is_logging_ready:
            _set_up_logging()
            self._is_logging_ready = True
        types = {"Flow": Flow, "Task": Task, "ResultRecordMetadata": ResultRecordMetadata}
        FlowRunContext.model_rebuild(_types_namespace=types)
        TaskRunContext.model_rebuild(_types_namespace=types)
        if self.captured.flow_run is not None and self._flow_run is None:
            flow = self.captured.flow_run["flow"]
            runner = flow.task_runner
            if isinstance(runner, DeepflowTaskRunner):
                runner = runner.nested(self.captured.events_topic)
            else:
                runner = runner.duplicate()
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
