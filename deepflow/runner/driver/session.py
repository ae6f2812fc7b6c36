"""A connection to a cluster, and what belongs to it while a runner is entered.

Connecting, what is shipped once (contexts, task code, large arguments), what workers offer, and
the end: every run settled, the server up to date, nothing left on the scheduler.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import pickle
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import Any

import dask
import distributed
from dask.utils import parse_timedelta
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_HOME
from prefect.tasks import Task
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.importtools import to_qualified_name

from deepflow.backend.clusters.guard import refuse_unguarded_script
from deepflow.backend.clusters.local import is_local, local_cluster
from deepflow.backend.dask_logs import are_dask_logs_wanted
from deepflow.backend.scheduler_plugin import INTRODUCE, ReportDeaths
from deepflow.backend.tls import security_of
from deepflow.backend.transport import is_auto, pick_now, reach_now
from deepflow.decide.events import Moved, TasksNamed
from deepflow.decide.location import nearest_workers
from deepflow.decide.model import WorkerOffer
from deepflow.decide.place.registry import STOCK
from deepflow.errors import ClusterUnreachableError
from deepflow.hints import Near, parse_label_resource
from deepflow.intermediates import registration
from deepflow.intermediates.parcel import Parcel
from deepflow.locate.locator import Locator
from deepflow.observe import metrics
from deepflow.runner.console import are_successes_wanted
from deepflow.runner.driver.capturing import capture, persist_as_deepflow, to_blob
from deepflow.runner.driver.checks import check_cluster, check_free_port
from deepflow.runner.driver.client import DeepflowClient
from deepflow.runner.driver.config import RunnerConfig
from deepflow.runner.driver.dispatch import Dispatcher
from deepflow.runner.driver.items import Code, Item
from deepflow.runner.driver.left_behind import Note, clean_up
from deepflow.runner.driver.placing import Placing
from deepflow.runner.driver.recorder import Recorder
from deepflow.runner.driver.references import References
from deepflow.runner.driver.shared import SharedArguments
from deepflow.runner.driver.transactions import open_transaction
from deepflow.runner.driver.watching import CancellationWatch, FlowRunStates, end_cancelled
from deepflow.runner.lru import LruCache
from deepflow.runner.nested import nested_session
from deepflow.runner.options import (
    FLUSH_TIMEOUT_S,
    this_process,
    tier_options,
    transfer_options,
)
from deepflow.runner.outgoing import clean_api_logs, clean_requests
from deepflow.runner.wire import BlobRef, Outcomes, dumps
from deepflow.runner.worker_side import WorkerSide
from deepflow.settings import Settings, load_settings

_OFFERS_EVERY_S = 5.0
_INLINE_CODE_BYTES = 4096
_RECENT_CODE_BYTES = 16 << 20
_CAPTURED_WARN_BYTES = 1_000_000
_MAX_ROUNDS = 3
"""How often at the end what done-callbacks have submitted is waited for."""


class Session:
    """A connection to a cluster, and what belongs to it while a runner is entered."""

    def __init__(
        self,
        config: RunnerConfig,
        logger: Any,
        worker_side: WorkerSide,
        *,
        nested_client: Any = None,
        events_topic: str | None = None,
    ) -> None:
        self.config = config
        self.logger = logger
        self._worker_side = worker_side
        self.settings: Settings = load_settings()
        self.cluster: Any = None
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._blobs: dict[str, BlobRef] = {}
        self._contexts: dict[Any, tuple[BlobRef, Any]] = {}
        self._codes: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()
        self._recent_codes: LruCache[Code] = LruCache(_RECENT_CODE_BYTES)
        self._has_warned_of_captured = False
        self._counters: dict[str, int] = {}
        self._offers: tuple[WorkerOffer, ...] = ()
        self._offers_due_s = 0.0
        self.salt = uuid.uuid4().hex
        self.shared = SharedArguments()
        registration.register(Outcomes, Parcel)
        self.is_nested = nested_client is not None
        self._let_odd_text_pass()
        self.placing: Placing | None = None
        self._locator: Locator | None = None
        if nested_client is not None:
            self.client: Any = nested_client
        else:
            self._serve_metrics()
            try:
                self._connect()
            except BaseException:
                self._stack.close()
                raise
        self.topic = self.client.id
        self.recorder: Recorder | None = None
        if not self.is_nested:
            self.recorder = Recorder(
                window_events=self.settings.record_window_events, logger=self._run_logger()
            )
        self.dispatcher = Dispatcher(
            self.client,
            self.settings,
            worker_side,
            results_topic=self.topic,
            events_topic=events_topic or self.topic,
            recorder=self.recorder,
            logger=self._run_logger(),
            is_adaptive=bool(config.adapt_kwargs),
        )
        self._watch: CancellationWatch | None = None
        self._note: Note | None = None
        self._introduce()
        if not self.is_nested:
            self.client.subscribe_topic(self.topic, self.on_message)
            self._watch = self._watch_for_cancellation()

    def _serve_metrics(self) -> None:
        """Start the exporter, where one is wanted.

        A taken port is said and counted, for the flow can do without: most often another flow run
        on this machine has it.

        Raises:
            MetricError: the host is none of this machine, or the port may not be used.
        """
        port, host = self.settings.metrics_port, self.settings.metrics_host
        if port is None:
            return
        try:
            metrics.serve(port, host)
        except metrics.MetricError as exc:
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EADDRINUSE:
                raise
            metrics.inc("deepflow_fallbacks_total", kind="metrics_port_taken")
            self.logger.warning("This flow run's metrics are not exported: %s", exc)

    def _let_odd_text_pass(self) -> None:
        clean_api_logs()
        flow_run = FlowRunContext.get()
        if flow_run is not None and not self.is_nested:
            clean_requests(flow_run.client)

    def _run_logger(self) -> Any:
        """The flow run's own logger, whose lines the UI shows; else the task runner's."""
        flow_run = FlowRunContext.get()
        if self.is_nested or flow_run is None or flow_run.flow_run is None:
            return self.logger
        return flow_run_logger(flow_run.flow_run, flow=flow_run.flow)

    def _introduce(self) -> None:
        """Say to the scheduler what is to be done should this process be killed, and leave a note.

        A session inside a task puts things on the scheduler, too, but its runs are the driver's.
        """
        context = FlowRunContext.get()
        flow_run = None if self.is_nested or context is None else context.flow_run
        will: dict[str, bytes] = {}
        if not self.is_nested:
            topic = pickle.dumps((self.topic,))
            will["for_all"] = pickle.dumps((pickle.dumps(self._worker_side.stop_runs), topic))
            will["at_last"] = pickle.dumps((pickle.dumps(self._worker_side.forget_driver), topic))
        if flow_run is not None:
            arguments = pickle.dumps((self.topic, flow_run.id))
            will["for_one"] = pickle.dumps(
                (pickle.dumps(self._worker_side.record_on_worker), arguments)
            )
            server = PREFECT_API_URL.value() or f"ephemeral in {PREFECT_HOME.value()}"
            folder = self.settings.state_dir.expanduser() / "running"
            try:
                clean_up(folder, server, self.dispatcher.logger)
                self._note = Note(folder, flow_run.id, server)
            except OSError as exc:
                metrics.inc("deepflow_fallbacks_total", kind="no_note_of_driver")
                self.logger.warning(
                    "Should this process be killed, its open runs stay Running, since no note of "
                    "it can be left in %s (%s); make room there or allow writing, or name another "
                    "folder with DEEPFLOW_STATE_DIR",
                    folder,
                    exc,
                )
        self._prefix = f"deepflow-{self.salt}-"
        self.client._send_to_scheduler({"op": INTRODUCE, "prefix": self._prefix, **will})

    def _watch_for_cancellation(self) -> CancellationWatch | None:
        """Ask the server whether somebody cancels the flow run, where there is one."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return None
        self._flow_run = context.flow_run
        states = FlowRunStates(context.flow_run.id)
        return CancellationWatch(
            states, self._on_cancelled, self.dispatcher.logger, on_end=states.close
        )

    def _on_cancelled(self) -> None:
        self.dispatcher.logger.info("The flow run is being cancelled: its task runs are stopped.")
        metrics.inc("deepflow_flow_runs_cancelled_total")
        self.dispatcher.cancel_for_good()

    # -- connecting ----------------------------------------------------------------------------

    def _connect(self) -> None:
        config, logger = self.config, self.logger
        connect_to: Any
        client_kwargs = config.client_kwargs
        if config.cluster is not None:
            logger.info(f"Connecting to existing Dask cluster {config.cluster}")
            check_cluster(config.cluster)
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
                security = security_of(self.settings.tls, address=address)
                if security is not None:
                    client_kwargs = {"security": security, **client_kwargs}
                if is_auto(address):
                    choice = pick_now(address, client_kwargs.get("security"))
                    connect_to = choice.address
                    client_kwargs = {**client_kwargs, "auto": address, "choice": choice}
                    self._run_logger().info("Connected by %s", choice.in_words())
            else:
                connect_to = self.cluster = self._make_cluster()
                self._adapt()
        if isinstance(connect_to, str):
            reach_now(connect_to, client_kwargs.get("security"), _patience_s(client_kwargs))
        try:
            client = DeepflowClient(connect_to, **client_kwargs)
        except OSError as exc:
            # The chain behind it has a link for each of Dask's attempts, and this says the last.
            raise ClusterUnreachableError(
                f"no Dask scheduler answers at {connect_to}: {exc}. Start one there "
                "(`dask scheduler`), or correct `address=` or DEEPFLOW_ADDRESS",
                address=str(connect_to),
            ) from None
        self.client = self._stack.enter_context(client)
        plugin = self._worker_side.plugin(
            this_process(),
            transfer_options(self.settings),
            tier_options(self.settings),
            shows_successes=are_successes_wanted(self.cluster),
            is_quiet=is_local(self.cluster) and not are_dask_logs_wanted(),
        )
        self.client.register_plugin(plugin)
        self.client.register_plugin(ReportDeaths())
        self._place()
        if config.performance_report_path:
            self._stack.enter_context(distributed.Client.as_current(self.client))
            self._stack.enter_context(
                distributed.performance_report(config.performance_report_path)
            )
        if self.client.dashboard_link and self._has_dashboard():
            logger.info(f"The Dask dashboard is available at {self.client.dashboard_link}")

    def _has_dashboard(self) -> bool:
        """Whether a page is at the dashboard's address: Dask needs bokeh to draw it."""
        return not is_local(self.cluster) or find_spec("bokeh") is not None

    def _place(self) -> None:
        """Hand placement to the plugin, unless Dask is to do it."""
        policy = self.config.policy or self.settings.placement
        if policy == STOCK:
            return
        placing = Placing(self.client, self.settings, policy, self._run_logger())
        flow_run = FlowRunContext.get()
        placing.register(
            flow_run.flow.name if flow_run and flow_run.flow else None,
            flow_run.flow_run if flow_run else None,
        )
        self.placing = placing

    def _make_cluster(self) -> Any:
        config = self.config
        make = config.resolved_cluster_class()
        if make is None:
            self.logger.info("Starting an embedded Dask cluster")
            # Read by the scheduler when it is made. Dask's default is five minutes of silence.
            silence = {"distributed.scheduler.worker-ttl": f"{self.settings.worker_silence_s} s"}
            security = security_of(self.settings.tls)
            check_free_port(config.cluster_kwargs)
            encrypted = {} if security is None else {"security": security}
            with dask.config.set(silence):
                return self._stack.enter_context(
                    local_cluster(
                        config.local,
                        imported=self.settings.preloaded_modules,
                        **{**encrypted, **config.cluster_kwargs},
                    )
                )
        is_here = isinstance(make, type) and issubclass(make, distributed.LocalCluster)
        if is_here and config.cluster_kwargs.get("processes") is not False:
            refuse_unguarded_script()
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
            open_transaction() is not None,
        )
        with self._lock:
            known = self._contexts.get(key)
        if known is not None:
            return known[0]
        captured = capture(_api_url(flow_run), self.topic, self.dispatcher.events_topic)
        if self.settings.result_serializer == "deepflow":
            persist_as_deepflow(captured)
        digest, blob = to_blob(captured)
        ref = self.ship(digest, blob)
        with self._lock:
            if self.is_nested and len(self._contexts) > 256:
                self._contexts.clear()
            # The settings are kept alive with the entry: its key holds their address.
            self._contexts[key] = (ref, (settings, blob))
        return ref

    def code(self, task: Task[Any, Any]) -> tuple[Code, tuple[Any, ...]]:
        """The task's code as it is now, and the large values that it has captured.

        Globals, closures, defaults and what else cloudpickle finds are those of this moment.
        """
        references = References(self)
        blob = dumps(task, references.find)
        self._warn_of_captured(task, len(blob) + references.shared_bytes)
        if len(blob) <= _INLINE_CODE_BYTES:
            return Code(blob, None), tuple(references.found)
        digest = hashlib.blake2b(blob, digest_size=16).hexdigest()
        with self._lock:
            code = self._codes.get(digest)
        if code is None:
            ref = BlobRef(f"deepflow-{self.salt}-{digest}", digest)
            self._put(ref, blob)
            code = Code(blob, ref)
            with self._lock:
                self._codes[digest] = code
            weakref.finalize(code, _take_back, weakref.ref(self.client), ref.name).atexit = False
        with self._lock:
            # Kept even when no run needs it just now: a loop that submits and waits would
            # otherwise send it anew each time.
            self._recent_codes.put(digest, code, len(blob))
        return code, tuple(references.found)

    def _warn_of_captured(self, task: Task[Any, Any], n_bytes: int) -> None:
        if n_bytes <= _CAPTURED_WARN_BYTES or self._has_warned_of_captured:
            return
        self._has_warned_of_captured = True
        self.dispatcher.logger.warning(
            "The code of task %r has captured %.1f MB of data (in globals, closures or defaults), "
            "which is looked at at each submit. Pass it as an argument.",
            task.name,
            n_bytes / 1e6,
        )

    def ship_again(self, code: Code, context: BlobRef) -> None:
        """Put back what the scheduler has lost."""
        if code.ref is not None:
            self._put(code.ref, code.blob)
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

    def workers_near(self, nears: Sequence[Near], *, strict: bool) -> tuple[str, ...]:
        """Addresses of the workers closest to the first of these that is known to lie somewhere.

        `strict`: only those on its very host, or in its rack or zone where no more is known of it.
        Empty: nothing is known, or nobody is close.
        """
        if self._locator is None:
            self._locator = Locator(count=_count_fallback)
        info = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        places = [
            self._locator.place(address, _labels(worker.get("resources") or {}))
            for address, worker in info.items()
        ]
        for location in self._locator.locate_all(nears):
            if location:
                within = location.finest if strict else "zone"
                close = nearest_workers(location, places, within=within)
                if close:
                    return tuple(close)
        return ()

    def is_located(self, nears: Sequence[Near]) -> bool:
        """Whether any of these is known to lie somewhere (from what was just looked up)."""
        return self._locator is not None and any(self._locator.locate_all(nears))

    # -- the end -------------------------------------------------------------------------------

    def close(self, *, failed: bool) -> None:
        """Settle every run, let the server catch up, disconnect. Takes a bounded time.

        After a failure (an exception in the flow, Ctrl-C) everything open is cancelled. After a
        flow that ended well, what has not begun is cancelled, and what runs gets `shutdown_s`
        seconds to finish.
        """
        dispatcher, settings = self.dispatcher, self.settings
        run = "" if self.placing is None else self.placing.run
        moved: list[Moved] = []
        named: list[TasksNamed] = []
        try:
            if self._watch is not None:
                self._watch.close()
            self._settle_all(failed)
            if self.client.status == "running":
                try:
                    said: dict[str, tuple[int, list[Moved], list[TasksNamed]]] = self.client.run(
                        self._worker_side.take_leave,
                        this_process(),
                        self.topic,
                        run,
                        on_error="ignore",
                    )
                    sent = {worker: n_sent for worker, (n_sent, _, _) in said.items()}
                    moved = [one for _, of_worker, _ in said.values() for one in of_worker]
                    named = [one for _, _, of_worker in said.values() for one in of_worker]
                    dispatcher.drain(sent, settings.shutdown_s)
                except Exception as exc:  # noqa: BLE001 - only logs are lost, and it is said
                    self.logger.warning("The workers' last logs could not be fetched: %r", exc)
            if self.placing is not None:
                self.placing.finish([*moved, *dispatcher.names(named)], self._notes())
            if self.recorder is not None:
                self.recorder.finish(settings.record_wait_s)
            if self.placing is not None:
                self.placing.complete()
            if self._watch is not None and self._watch.is_cancelled:
                self._end_cancelled()
        finally:
            if self._note is not None:
                self._note.take_away()
            dispatcher.close()
            if self._locator is not None:
                self._locator.close()
            if self.client.status == "running":
                self._take_back_blobs()
                self.client.unsubscribe_topic(self.topic)
            self._stack.close()

    def _end_cancelled(self) -> None:
        """The engine has proposed what the flow's code made of it: `Failed`, mostly."""
        try:
            end_cancelled(self._flow_run)
        except Exception as exc:  # noqa: BLE001 - its runs are stopped, which is what counts
            metrics.inc("deepflow_fallbacks_total", kind="cancellation_not_recorded")
            self.logger.warning("The server could not be told that the flow run ended: %r", exc)

    def _notes(self) -> list[str]:
        choice = self.client.choice
        return [] if choice is None else [f"Connected by {choice.in_words()}."]

    def on_message(self, event: Any) -> None:
        """Take what a worker has sent to this session's topic."""
        self.dispatcher.on_message(event)

    def close_nested(self) -> list[TasksNamed]:
        """As `close`, of a session inside a task: the flow run is over, and its driver has gone.

        Returns what the runs are called that were submitted through it.
        """
        self.dispatcher.abandon("The flow run ended before this run did.")
        self._wait_called(min(self.settings.shutdown_s, FLUSH_TIMEOUT_S))
        self.dispatcher.close()
        if self.client.status == "running":
            self._take_back_blobs()
        return self.dispatcher.names()

    def _take_back_blobs(self) -> None:
        codes = [code.ref for code in self._codes.values() if code.ref is not None]
        for ref in (*self._blobs.values(), *codes):
            self.client._send_to_scheduler({"op": "variable_delete", "name": ref.name})
        self.client._send_to_scheduler({"op": INTRODUCE, "prefix": self._prefix, "is_over": True})

    def _settle_all(self, failed: bool) -> None:
        """Give every run its end, and have called what was to be called then.

        What that submits gets its end, too; what has not returned in time is left behind.
        """
        for _ in range(_MAX_ROUNDS):
            if open_items := self.dispatcher.open_items():
                self._settle(open_items, failed)
            if not self._wait_called(self.settings.shutdown_s):
                break
            if not self.dispatcher.open_items():
                return
        if open_items := self.dispatcher.open_items():
            self._settle(open_items, failed=True)

    def _wait_called(self, timeout_s: float) -> bool:
        if self.dispatcher.wait_called(timeout_s):
            return True
        metrics.inc("deepflow_fallbacks_total", kind="callback_left_behind")
        self.logger.warning(
            "Functions given to `add_done_callback` had not returned %.3g s after the last run had "
            "ended; the flow run ends without them.",
            timeout_s,
        )
        return False

    def _settle(self, open_items: list[Item], failed: bool) -> None:
        dispatcher, settings = self.dispatcher, self.settings
        if not failed:
            dispatcher.logger.warning(
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


def session_on_worker(
    config: RunnerConfig, events_topic: str, logger: Any, worker_side: WorkerSide
) -> Session:
    """The session for submitting from inside tasks, one per worker client and driver."""
    client = distributed.get_client()

    def make() -> Session:
        return Session(config, logger, worker_side, nested_client=client, events_topic=events_topic)

    return nested_session(client, events_topic, make)


def _take_back(client: weakref.ref[Any], name: str) -> None:
    """Let the scheduler forget code that no run needs any more. Called by the collector."""
    known = client()
    if known is not None and known.status == "running":
        with suppress(RuntimeError):  # the event loop is closed: the cluster goes as well
            known._send_to_scheduler({"op": "variable_delete", "name": name})


def _count_fallback(kind: str) -> None:
    metrics.inc("deepflow_fallbacks_total", kind=kind)


def _labels(resources: Mapping[str, float]) -> dict[str, str]:
    """A worker's labels, from the resources by which it offers them."""
    labels = (parse_label_resource(name) for name, amount in resources.items() if amount > 0)
    return dict(label for label in labels if label is not None)


def _patience_s(client_kwargs: Mapping[str, Any]) -> float:
    """Seconds that connecting may take: the client's, else Dask's own."""
    timeout = client_kwargs.get("timeout") or dask.config.get("distributed.comm.timeouts.connect")
    return float(parse_timedelta(timeout, default="s"))


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
