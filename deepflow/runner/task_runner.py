"""`DeepflowTaskRunner`: what Prefect calls.

It turns a call of `task.submit` or `task.map` into items for the dispatcher. Its life: made
(anywhere, for free), duplicated and entered by the flow engine, connected on first use, left at
the end of the flow. On a worker it exists once more, nested: there it submits through the worker's
own Dask client, and what it has to say about task runs goes to the driver of the flow run.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import dask
import distributed
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect._internal.uuid7 import uuid7
from prefect.client.schemas.objects import RunInput, State
from prefect.context import AssetContext, FlowRunContext, TagsContext, TaskRunContext
from prefect.exceptions import MappingLengthMismatch, MappingMissingIterable
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner
from prefect.tasks import Task, _infer_parent_task_runs
from prefect.utilities.annotations import allow_failure, opaque, quote, unmapped
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import (
    collapse_variadic_parameters,
    explode_variadic_parameter,
    get_parameter_defaults,
)
from prefect.utilities.collections import isiterable
from prefect.utilities.engine import collect_task_run_inputs_sync, resolve_inputs_sync
from prefect.utilities.importtools import to_qualified_name

from deepflow.backend.clusters.local import local_cluster
from deepflow.decide.model import WorkerClass, WorkerOffer
from deepflow.decide.offers import impossible, soft_gpu
from deepflow.errors import ClusterUnreachableError, GeneratorTaskError, UnplaceableError
from deepflow.hints import Hints, current_hints
from deepflow.intermediates import registration
from deepflow.observe import metrics
from deepflow.runner.client import DeepflowClient
from deepflow.runner.config import RunnerConfig
from deepflow.runner.context import capture, to_blob
from deepflow.runner.dispatch import Dispatcher
from deepflow.runner.future import DeepflowFuture, DeepflowFutureList
from deepflow.runner.items import Item, SharedArgument, Template
from deepflow.runner.recorder import Recorder
from deepflow.runner.shared import SharedArguments, large_size
from deepflow.runner.wire import BlobRef, Outcomes, dumps, dumps_plain, is_plain
from deepflow.runner.worker_plugin import DeepflowWorkerPlugin, flush_worker, this_process
from deepflow.settings import Settings, load_settings

if TYPE_CHECKING:
    from distributed.deploy.cluster import Cluster

R = TypeVar("R")

_OFFERS_EVERY_S = 5.0


class _Live:
    """Running objects, shared between a runner and its duplicates."""

    def __init__(self) -> None:
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class DeepflowTaskRunner(TaskRunner[DeepflowFuture[Any]]):
    """A Prefect task runner backed by Dask; takes the place of `prefect_dask.DaskTaskRunner`.

    Args:
        cluster: A running Dask cluster object to use. It is not closed at the end.
        address: Address of a running Dask scheduler. `DEEPFLOW_ADDRESS` gives a default.
        cluster_class: Class of the cluster to make for the flow run, or its qualified name.
        cluster_kwargs: Arguments for the cluster class; without one, for the embedded cluster.
        adapt_kwargs: Arguments for the cluster's `adapt`; it scales only if they are given.
        client_kwargs: Arguments for the Dask client.
        performance_report_path: Where to save Dask's performance report.
        local: Worker classes of an embedded cluster of unlike workers, e.g.
            `[WorkerClass("cpu", count=2), WorkerClass("gpu", gpu=1, labels={"rack": "b"})]`.

    Without arguments the runner starts an embedded cluster made for this machine.

    Raises:
        ConfigurationError: (a `ValueError`) for arguments that exclude each other.

    Example:
        >>> @flow(task_runner=DeepflowTaskRunner())
        ... def my_flow():
        ...     return my_task.map(range(1000)).result()
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        address: str | None = None,
        cluster_class: str | Callable[..., Cluster] | None = None,
        cluster_kwargs: dict[str, Any] | None = None,
        adapt_kwargs: dict[str, Any] | None = None,
        client_kwargs: dict[str, Any] | None = None,
        performance_report_path: str | None = None,
        *,
        local: Sequence[WorkerClass] | None = None,
    ) -> None:
        self._begin(
            RunnerConfig.of(
                cluster=cluster,
                address=address,
                cluster_class=cluster_class,
                cluster_kwargs=cluster_kwargs,
                adapt_kwargs=adapt_kwargs,
                client_kwargs=client_kwargs,
                performance_report_path=performance_report_path,
                local=local,
            ),
            _Live(),
        )

    def _begin(self, config: RunnerConfig, live: _Live, events_topic: str | None = None) -> None:
        super().__init__()
        self.config = config
        self._live = live
        self._events_topic = events_topic
        self._session: Session | None = None
        self._session_lock = threading.Lock()

    @classmethod
    def _of(
        cls, config: RunnerConfig, live: _Live, events_topic: str | None = None
    ) -> DeepflowTaskRunner:
        runner = cls.__new__(cls)
        runner._begin(config, live, events_topic)
        return runner

    def duplicate(self) -> DeepflowTaskRunner:
        """A runner of the same configuration that shares what is running."""
        return self._of(self.config, self._live, self._events_topic)

    def nested(self, events_topic: str) -> DeepflowTaskRunner:
        """The runner as it is inside a task on a worker."""
        return self._of(self.config, _Live(), events_topic)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeepflowTaskRunner):
            return NotImplemented
        return self.config == other.config

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _restore, (type(self), self.config.portable())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config})"

    # -- what DaskTaskRunner has as attributes -------------------------------------------------

    @property
    def address(self) -> str | None:
        """Address of the scheduler, as given."""
        return self.config.address

    @property
    def cluster_class(self) -> str | Callable[..., Any] | None:
        """Cluster class, as given."""
        return self.config.cluster_class

    @property
    def resolved_cluster_class(self) -> Callable[..., Any] | None:
        """Cluster class, where a name was given the class it names."""
        return self.config.resolved_cluster_class()

    @property
    def cluster_kwargs(self) -> dict[str, Any]:
        """Arguments for the cluster class."""
        return self.config.cluster_kwargs

    @property
    def adapt_kwargs(self) -> dict[str, Any]:
        """Arguments for `adapt`."""
        return self.config.adapt_kwargs

    @property
    def client_kwargs(self) -> dict[str, Any]:
        """Arguments for the client."""
        return self.config.client_kwargs

    @property
    def performance_report_path(self) -> str | None:
        """Where Dask's performance report goes."""
        return self.config.performance_report_path

    @property
    def _cluster(self) -> Cluster | None:
        return self._session.cluster if self._session is not None else self.config.cluster

    @property
    def _client(self) -> Any:
        return self._session.client if self._session is not None else None

    @property
    def client(self) -> Any:
        """The Dask client; the first use connects, or starts the cluster.

        Raises:
            ClusterUnreachableError: (a `ConnectionError`) nothing answers at the address.
        """
        return self._connected().client

    # -- life ----------------------------------------------------------------------------------

    def __enter__(self) -> DeepflowTaskRunner:
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        session, self._session = self._session, None
        try:
            if session is not None and self._events_topic is None:
                session.close(failed=exc_type is not None)
        finally:
            super().__exit__(exc_type, exc_value, traceback)

    def _connected(self) -> Session:
        session = self._session
        if session is None:
            with self._session_lock:
                session = self._session
                if session is None:
                    session = self._connect()
                    self._session = session
                    self._live.sessions.add(session)
        return session

    def _connect(self) -> Session:
        try:
            worker = distributed.get_worker()
        except ValueError:
            worker = None
        if worker is not None and self._events_topic is not None:
            return nested_session(self.config, self._events_topic, self.logger)
        return Session(self.config, self.logger)

    def cancel_all(self) -> None:
        """Cancel everything submitted through this runner or a duplicate of it."""
        for session in list(self._live.sessions):
            session.dispatcher.cancel_all()

    # -- submitting ----------------------------------------------------------------------------

    def submit(  # type: ignore[override]
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> DeepflowFuture[Any]:
        """Submit one run of `task`.

        Raises:
            HintError: its hints ask for what no worker offers.
            GeneratorTaskError: the task is a generator, whose values could not be streamed back.
        """
        self._check_may_submit(task)
        call = _Call(self._connected(), task)
        future = call.future(parameters, wait_for, dependencies)
        call.session.dispatcher.submit_item(future._item)
        return future

    def map(  # type: ignore[override]
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
    ) -> DeepflowFutureList[Any]:
        """Submit one run of `task` for each element of its iterable parameters.

        Same meaning as Prefect's; what all runs have in common is sent once, and tiny runs share
        Dask tasks (`hints(batch=False)` turns that off).

        Raises:
            MappingMissingIterable: there is nothing to map over.
            MappingLengthMismatch: the iterables differ in length.
        """
        self._check_may_submit(task)
        call = _Call(self._connected(), task, is_map=True)
        futures = call.mapped(parameters, wait_for)
        call.session.dispatcher.submit_map([future._item for future in futures])
        return DeepflowFutureList(futures)

    def _check_may_submit(self, task: Task[Any, Any]) -> None:
        if not self._started:
            raise RuntimeError("The task runner must be started before submitting work.")
        raise_if_flow_run_suspension_requested()
        if task.isgenerator:
            raise GeneratorTaskError(
                f"task {task.name!r} is a generator: its values cannot be streamed from a worker. "
                "Return a list, or call the task directly instead of submitting it"
            )


def _restore(cls: type[DeepflowTaskRunner], config: RunnerConfig) -> DeepflowTaskRunner:
    return cls._of(config, _Live())


class Session:
    """A connection to a cluster, and what belongs to it while a runner is entered."""

    def __init__(
        self,
        config: RunnerConfig,
        logger: Any,
        *,
        nested_client: Any = None,
        events_topic: str | None = None,
    ) -> None:
        self.config = config
        self.logger = logger
        self.settings: Settings = load_settings()
        self.cluster: Any = None
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._blobs: dict[str, BlobRef] = {}
        self._contexts: dict[Any, tuple[BlobRef, Any]] = {}
        self._tasks: dict[int, tuple[weakref.ref[Any], BlobRef]] = {}
        self._counters: dict[str, int] = {}
        self._offers: tuple[WorkerOffer, ...] = ()
        self._offers_due_s = 0.0
        self.salt = uuid.uuid4().hex
        self.shared = SharedArguments()
        registration.register(Outcomes)
        self.is_nested = nested_client is not None
        if nested_client is not None:
            self.client: Any = nested_client
        else:
            try:
                self._connect()
            except BaseException:
                self._stack.close()
                raise
        self.topic = self.client.id
        self.recorder: Recorder | None = None
        if not self.is_nested:
            self.recorder = Recorder(
                window_events=self.settings.record_window_events, logger=logger
            )
            if self.settings.metrics_port is not None:
                metrics.serve(self.settings.metrics_port)
        self.dispatcher = Dispatcher(
            self.client,
            self.settings,
            results_topic=self.topic,
            events_topic=events_topic or self.topic,
            recorder=self.recorder,
            logger=logger,
            is_adaptive=bool(config.adapt_kwargs),
        )
        self.client.subscribe_topic(self.topic, self.dispatcher.on_message)

    # -- connecting ----------------------------------------------------------------------------

    def _connect(self) -> None:
        config, logger = self.config, self.logger
        connect_to: Any
        if config.cluster is not None:
            logger.info(f"Connecting to existing Dask cluster {config.cluster}")
            connect_to = self.cluster = config.cluster
            self._adapt()
        else:
            address = config.address or (
                None
                if config.cluster_class or config.cluster_kwargs or config.local
                else self.settings.address or _ambient_address()
            )
            if address:
                logger.info(f"Connecting to an existing Dask cluster at {address}")
                connect_to = address
            else:
                connect_to = self.cluster = self._make_cluster()
                self._adapt()
        try:
            client = DeepflowClient(connect_to, **config.client_kwargs)
        except OSError as exc:
            raise ClusterUnreachableError(
                f"no Dask scheduler answers at {connect_to}: {exc}. Start one there "
                "(`dask scheduler`), or correct `address=` or DEEPFLOW_ADDRESS",
                address=str(connect_to),
            ) from exc
        self.client = self._stack.enter_context(client)
        self.client.register_plugin(DeepflowWorkerPlugin(this_process()))
        if config.performance_report_path:
            self._stack.enter_context(distributed.Client.as_current(self.client))
            self._stack.enter_context(
                distributed.performance_report(config.performance_report_path)
            )
        if self.client.dashboard_link:
            logger.info(f"The Dask dashboard is available at {self.client.dashboard_link}")

    def _make_cluster(self) -> Any:
        config = self.config
        make = config.resolved_cluster_class()
        if make is None:
            self.logger.info("Starting an embedded Dask cluster")
            return self._stack.enter_context(local_cluster(config.local, **config.cluster_kwargs))
        name = to_qualified_name(make)
        self.logger.info(f"Creating a new Dask cluster with `{name}`")
        try:
            return self._stack.enter_context(make(**config.cluster_kwargs))
        except Exception:
            self.logger.error(f"Failed to create {name} cluster: ", exc_info=True)
            raise

    def _adapt(self) -> None:
        if self.config.adapt_kwargs:
            maybe_coroutine = self.cluster.adapt(**self.config.adapt_kwargs)
            if asyncio.iscoroutine(maybe_coroutine):
                run_coro_as_sync(maybe_coroutine)

    # -- what is shipped once ------------------------------------------------------------------

    def ship(self, digest: str, blob: bytes) -> BlobRef:
        """Put a blob on the scheduler under a name of this session's, once."""
        with self._lock:
            ref = self._blobs.get(digest)
            if ref is not None:
                return ref
        ref = BlobRef(f"deepflow-{self.salt}-{digest}", digest)
        self._put(ref, blob)
        with self._lock:
            self._blobs[digest] = ref
        return ref

    def _put(self, ref: BlobRef, blob: bytes) -> None:
        self.client.sync(
            self.client.scheduler.variable_set, name=ref.name, data=blob, client=self.client.id
        )

    def context(self) -> BlobRef:
        """The current Prefect context as it was shipped; captured when it is a new one."""
        flow_run, parent = FlowRunContext.get(), TaskRunContext.get()
        from prefect.context import SettingsContext

        settings = SettingsContext.get()
        key = (
            flow_run.flow_run.id if flow_run and flow_run.flow_run else None,
            parent.task_run.id if parent else None,
            id(settings),
        )
        with self._lock:
            known = self._contexts.get(key)
        if known is not None:
            return known[0]
        captured = capture(_api_url(flow_run), self.topic, self.dispatcher.events_topic, b"")
        digest, blob = to_blob(captured)
        ref = self.ship(digest, blob)
        with self._lock:
            if self.is_nested and len(self._contexts) > 256:
                self._contexts.clear()
            # The settings are kept alive with the entry: its key holds their address.
            self._contexts[key] = (ref, (settings, blob))
        return ref

    def task(self, task: Task[Any, Any]) -> BlobRef:
        """The task's code as it was shipped."""
        known = self._tasks.get(id(task))
        if known is not None and known[0]() is task:
            return known[1]
        digest, blob = to_blob(task)
        ref = self.ship(digest, blob)
        self._tasks[id(task)] = (weakref.ref(task), ref)
        return ref

    def ship_again(self, task: Task[Any, Any], context: BlobRef) -> None:
        """Put back what the scheduler has lost."""
        digest, blob = to_blob(task)
        self._put(BlobRef(f"deepflow-{self.salt}-{digest}", digest), blob)
        for ref, (_, context_blob) in list(self._contexts.values()):
            if ref == context:
                self._put(ref, context_blob)

    def next_number(self, name: str) -> int:
        """How many runs of the task so named were submitted before."""
        with self._lock:
            number = self._counters.get(name, 0)
            self._counters[name] = number + 1
            return number

    # -- what workers offer --------------------------------------------------------------------

    def offers(self) -> tuple[WorkerOffer, ...]:
        """What the workers offer; asked for again after a few seconds."""
        import time

        now_s = time.monotonic()
        if now_s >= self._offers_due_s:
            info = self.client.sync(self.client.scheduler.identity, n_workers=-1)
            self._offers = tuple(
                WorkerOffer(
                    name=str(worker.get("name", address)),
                    resources=tuple(sorted((worker.get("resources") or {}).items())),
                    threads=int(worker.get("nthreads") or 1),
                    memory_bytes=int(worker.get("memory_limit") or 0),
                )
                for address, worker in info["workers"].items()
            )
            self._offers_due_s = now_s + _OFFERS_EVERY_S
        return self._offers

    # -- the end -------------------------------------------------------------------------------

    def close(self, *, failed: bool) -> None:
        """Settle every run, let the server catch up, disconnect. Takes a bounded time.

        After a failure (an exception in the flow, Ctrl-C) everything open is cancelled. After a
        flow that ended well, what has not begun is cancelled, and what runs gets `shutdown_s`
        seconds to finish.
        """
        dispatcher, settings = self.dispatcher, self.settings
        try:
            open_items = dispatcher.open_items()
            if open_items:
                self._settle(open_items, failed)
            if self.client.status == "running":
                try:
                    sent = self.client.run(
                        flush_worker, this_process(), self.topic, on_error="ignore"
                    )
                    dispatcher.drain(sent, settings.shutdown_s)
                except Exception as exc:
                    self.logger.warning("The workers' last logs could not be fetched: %r", exc)
            if self.recorder is not None:
                self.recorder.finish(settings.record_wait_s)
        finally:
            dispatcher.close()
            if self.client.status == "running":
                for ref in self._blobs.values():
                    self.client._send_to_scheduler({"op": "variable_delete", "name": ref.name})
                self.client.unsubscribe_topic(self.topic)
            self._stack.close()

    def _settle(self, open_items: list[Item], failed: bool) -> None:
        dispatcher, settings = self.dispatcher, self.settings
        if not failed:
            self.logger.warning(
                "%d task runs were not done when the flow returned: those that have not begun are "
                "cancelled, the others get %g s. Wait for futures (`.result()`, `.wait()`) that "
                "the flow needs, or return them.",
                len(open_items),
                settings.shutdown_s,
            )
            dispatcher.cancel(dispatcher.not_begun())
            if dispatcher.wait_idle(settings.shutdown_s):
                return
        dispatcher.cancel_all()
        if not dispatcher.wait_idle(settings.shutdown_s):
            dispatcher.abandon("The flow run ended before this run could be stopped.")


_nested_sessions: weakref.WeakKeyDictionary[Any, dict[str, Session]] = weakref.WeakKeyDictionary()
_nested_lock = threading.Lock()


def nested_session(config: RunnerConfig, events_topic: str, logger: Any) -> Session:
    """The session for submitting from inside tasks, one per worker client and driver."""
    client = distributed.get_client()
    with _nested_lock:
        sessions = _nested_sessions.setdefault(client, {})
        session = sessions.get(events_topic)
        if session is None:
            session = sessions[events_topic] = Session(
                config, logger, nested_client=client, events_topic=events_topic
            )
    return session


def _ambient_address() -> str | None:
    """The scheduler of a Dask client that the user has set as the current one."""
    try:
        client = distributed.get_client()
    except ValueError:
        return None
    address: str | None = client.scheduler.address if client.scheduler is not None else None
    return address


def _api_url(flow_run: FlowRunContext | None) -> str:
    """The API that this process speaks to, also where Prefect started an ephemeral one."""
    url = PREFECT_API_URL.value()
    if url:
        return str(url)
    if flow_run is not None and flow_run.client is not None:
        return str(flow_run.client.api_url)
    from prefect.client.orchestration import get_client

    return str(get_client(sync_client=True).api_url)


class _Call:
    """One call of `submit` or `map` on its way to items."""

    def __init__(self, session: Session, task: Task[Any, Any], *, is_map: bool = False) -> None:
        self.session = session
        self.task = task
        self.hints = current_hints(task)
        flow_run = FlowRunContext.get()
        self.flow_run_id = flow_run.flow_run.id if flow_run and flow_run.flow_run else None
        session.dispatcher.set_flow_run(self.flow_run_id)
        context = session.context()
        tags = TagsContext.get().current_tags
        annotations, resources, priority = self._placement()
        workers = self._near()
        self.template = Template(
            name=task.name,
            salt=session.salt[:8],
            prefect_task=task,
            task=session.task(task),
            context=context,
            tags=tuple(sorted(tags)),
            hints=self.hints,
            annotations=annotations,
            resources=resources,
            workers=workers,
            allow_other_workers=bool(workers) and not self.hints.strict,
            priority=priority,
            may_batch=is_map and self.hints.batch is not False and not self.hints.isolate,
            ship_again=lambda: session.ship_again(task, context),
        )

    def _placement(self) -> tuple[dict[str, Any], dict[str, float], int]:
        """Dask annotations, resources and priority from the user's annotations and hints."""
        annotations = dict(dask.get_annotations())
        hints = self.hints
        resources: dict[str, float] = {}
        if hints:
            offers = self.session.offers()
            if offers and not self.session.config.adapt_kwargs:
                refusal = impossible(hints, offers)
                if refusal is not None:
                    raise UnplaceableError(f"task {self.task.name!r}: {refusal.reason}")
            soft = soft_gpu(offers) if hints.gpu == "soft" else 0.0
            resources = hints.dask_resources(soft_gpu=soft)
        if resources:
            resources = {**annotations.pop("resources", {}), **resources}
        priority = hints.priority
        if priority:
            annotations.pop("priority", None)
        return annotations, resources, priority

    def _near(self) -> list[str]:
        """The workers that hold the futures in `near`; waits for those that are not done.

        Hosts, paths and storage URLs are carried along with the hints; they do not place yet.
        """
        workers: list[str] = []
        for near in self.hints.near:
            if near.kind != "future" or not isinstance(near.value, DeepflowFuture):
                continue
            near.value.wait()
            worker = near.value._item.worker
            if worker is not None and worker not in workers:
                workers.append(worker)
        if workers:
            alive = set(self.session.client.nthreads())
            workers = [worker for worker in workers if worker in alive]
        return workers

    # -- one run -------------------------------------------------------------------------------

    def future(
        self,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None,
        dependencies: dict[str, set[RunInput]] | None,
    ) -> DeepflowFuture[Any]:
        """An item for one run, and its future."""
        references = _References(self.session)
        waits = list(wait_for) if wait_for else None
        if waits is None and all(is_plain(v) for v in parameters.values()):
            call = dumps_plain((parameters, None))
        else:
            call = dumps((parameters, waits), references.find)
        run_id = uuid7()
        inputs = self._inputs(parameters, waits, dependencies, references)
        number = self.session.next_number(self.task.task_key)
        item = Item(
            run_id=run_id,
            template=self.template,
            name=f"{self.task.name}-{number}",
            dynamic_key=f"{number}-{self.session.salt[:12]}",
            call=call,
            references=tuple(references.found),
            inputs=pickle.dumps(inputs) if inputs else None,
            assets=self._assets(run_id, inputs),
        )
        return DeepflowFuture(item, self.session.dispatcher)

    def _inputs(
        self,
        parameters: dict[str, Any],
        wait_for: list[Any] | None,
        dependencies: dict[str, set[RunInput]] | None,
        references: _References,
    ) -> dict[str, set[Any]]:
        """The upstream runs of each parameter, as the UI's graph shows them."""
        flow_run = FlowRunContext.get()
        links = bool(flow_run and flow_run.run_results)
        inputs: dict[str, set[Any]] = {}
        for name, value in parameters.items():
            if links or not is_plain(value):
                inputs[name] = collect_task_run_inputs_sync(value)
            else:
                inputs[name] = set()
        parent = TaskRunContext.get()
        if parent is not None or links:
            parents = _infer_parent_task_runs(flow_run, parent, parameters)
            if parents:
                inputs["__parents__"] = set(parents)
        if wait_for:
            inputs["wait_for"] = collect_task_run_inputs_sync(wait_for)
        for name, extra in (dependencies or {}).items():
            inputs[name] = inputs.get(name, set()) | extra
        return inputs

    def _assets(self, run_id: Any, inputs: dict[str, set[Any]]) -> bytes | None:
        """The asset context, where the task has assets or something upstream has."""
        flow_run = FlowRunContext.get()
        task = self.task
        if not (
            task.asset_deps
            or getattr(task, "assets", None)
            or (flow_run and flow_run.task_run_assets)
        ):
            return None
        context = AssetContext.from_task_and_inputs(
            task=task, task_run_id=run_id, task_inputs=inputs, copy_to_child_ctx=True
        )
        return pickle.dumps(context.serialize())

    # -- many runs -----------------------------------------------------------------------------

    def mapped(
        self,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None,
    ) -> list[DeepflowFuture[Any]]:
        """The futures of a map, in order."""
        fn = self.task.fn
        links = {k: collect_task_run_inputs_sync(v, max_depth=0) for k, v in parameters.items()}
        parameters = resolve_inputs_sync(parameters, max_depth=0)
        parameters = explode_variadic_parameter(fn, parameters)
        iterables: dict[str, list[Any]] = {}
        static: dict[str, Any] = {}
        annotated: dict[str, Any] = {}
        for name, value in parameters.items():
            if isinstance(value, (allow_failure, opaque, quote)):
                annotated[name] = value
                value = value.unwrap()
            if isinstance(value, unmapped):
                static[name] = value.value
            elif isiterable(value):
                iterables[name] = list(value)
            else:
                static[name] = value
        if not iterables:
            raise MappingMissingIterable(
                "No iterable parameters were received. Parameters for map must "
                f"include at least one iterable. Parameters: {parameters}"
            )
        lengths = {name: len(values) for name, values in iterables.items()}
        if len(set(lengths.values())) > 1:
            raise MappingLengthMismatch(
                "Received iterable parameters with different lengths. Parameters for map"
                f" must all be the same length. Got lengths: {lengths}"
            )
        for name, default in get_parameter_defaults(fn).items():
            if name not in iterables:
                static.setdefault(name, default)
        names = set(iterables) | set(static)
        waits = list(wait_for) if wait_for else None
        plain = not annotated and set(collapse_variadic_parameters(fn, dict.fromkeys(names))) == names
        if plain and waits is None:
            return self._mapped_apart(iterables, static, links)
        futures = []
        for index in range(next(iter(lengths.values()))):
            call = {name: values[index] for name, values in iterables.items()} | static
            for name, annotation in annotated.items():
                call[name] = annotation.rewrap(call[name])
            call = collapse_variadic_parameters(fn, call)
            futures.append(self.future(call, waits, links))
        return futures

    def _mapped_apart(
        self, iterables: dict[str, list[Any]], static: dict[str, Any], links: dict[str, set[Any]]
    ) -> list[DeepflowFuture[Any]]:
        """A map's runs, with what they have in common pickled once."""
        if static:
            references = _References(self.session)
            self.template.static = dumps(static, references.find)
            self.template.static_references = tuple(references.found)
            static_inputs = self._inputs(static, None, None, references)
            links = {k: links.get(k, set()) | static_inputs.get(k, set()) for k in (*links, *static)}
        names = list(iterables)
        return [
            self.future(dict(zip(names, values, strict=True)), None, links)
            for values in zip(*iterables.values(), strict=True)
        ]


class _References:
    """Numbers the futures and large arguments that a pickle meets."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self.found: list[Item | SharedArgument | bytes] = []

    def find(self, value: Any) -> int | None:
        """The reference's number for what is not to be pickled; None for all else."""
        if isinstance(value, PrefectFuture):
            return self._number(value, self._of_future)
        n_bytes = large_size(value, self._session.settings.share_argument_bytes)
        if n_bytes:
            return self._number(value, lambda v: self._session.shared.of(v, n_bytes, self._session.client))
        return None

    def _number(self, value: Any, make: Callable[[Any], Item | SharedArgument | bytes]) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            self.found.append(make(value))
            number = self._numbers[id(value)] = len(self.found) - 1
            self._alive.append(value)
        return number

    def _of_future(self, future: PrefectFuture[Any]) -> Item | bytes:
        if (
            isinstance(future, DeepflowFuture)
            and future._dispatcher is self._session.dispatcher
        ):
            return future._item
        # Another runner's future: its value has to come through here.
        future.wait()
        state: State[Any] = future.state
        return pickle_state(state)


def pickle_state(state: State[Any]) -> bytes:
    """A state with its value, for a call that needs it as an input."""
    import cloudpickle

    blob: bytes = cloudpickle.dumps(state, protocol=5)
    return blob

