"""What belongs to a task runner while it is entered, and how that ends.

Put together here: the connection (`connecting.py`), the dispatcher of runs (`dispatch.py`), what is
shipped once (`shipping.py`), what workers offer (`offering.py`), and the recorder of Prefect's
events. At the end every run is settled, the server is up to date, and nothing is left on the
scheduler.
"""

from __future__ import annotations

import errno
import threading
import uuid
from typing import Any

import distributed
from prefect.context import FlowRunContext
from prefect.logging.loggers import flow_run_logger
from prefect.tasks import Task

from deepflow.backend.contract import LAST_WILL, may_use
from deepflow.backend.scheduler_plugin import INTRODUCE
from deepflow.decide.events import Moved, TasksNamed
from deepflow.intermediates import registration
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.config import RunnerConfig
from deepflow.runner.driver.connecting import Connection
from deepflow.runner.driver.dispatch import Dispatcher
from deepflow.runner.driver.ending import Ending
from deepflow.runner.driver.items import Code
from deepflow.runner.driver.left_behind import leave_note, will_of
from deepflow.runner.driver.offering import Offering
from deepflow.runner.driver.placing import Placing
from deepflow.runner.driver.recorder import Recorder
from deepflow.runner.driver.references import References
from deepflow.runner.driver.shared import SharedArguments
from deepflow.runner.driver.shipping import Shipping
from deepflow.runner.driver.watching import CancellationWatch, FlowRunStates, end_cancelled
from deepflow.runner.nested import nested_session
from deepflow.runner.options import FLUSH_TIMEOUT_S, this_process
from deepflow.runner.outgoing import clean_api_logs, clean_requests
from deepflow.runner.wire import Outcomes
from deepflow.runner.worker_side import WorkerSide
from deepflow.settings import Settings, load_settings


class Session:
    """What belongs to a task runner while it is entered: in the flow, or (nested) inside a task."""

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
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self.salt = uuid.uuid4().hex
        self.shared = SharedArguments()
        registration.register(Outcomes, Parcel)
        self.is_nested = nested_client is not None
        self._let_odd_text_pass()
        self._connection: Connection | None = None
        if nested_client is not None:
            self.client: Any = nested_client
        else:
            self._serve_metrics()
            self._connection = Connection(
                config, self.settings, worker_side, logger, self._run_logger()
            )
            self.client = self._connection.client
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
        self.shipping = Shipping(
            self.client,
            self.dispatcher.logger,
            salt=self.salt,
            topic=self.topic,
            events_topic=self.dispatcher.events_topic,
            is_nested=self.is_nested,
            persists_as_deepflow=self.settings.result_serializer == "deepflow",
        )
        self.offering = Offering(self.client)
        self._ending = Ending(self.dispatcher, self.logger, self.settings.shutdown_s)
        self._introduce()
        self._watch: CancellationWatch | None = None
        if not self.is_nested:
            self.client.subscribe_topic(self.topic, self.on_message)
            self._watch = self._watch_for_cancellation()

    @property
    def cluster(self) -> Any:
        """The cluster object in use; None where only a scheduler's address is known."""
        return None if self._connection is None else self._connection.cluster

    @property
    def placing(self) -> Placing | None:
        """The driver's side of placement; None where Dask places, and inside tasks."""
        return None if self._connection is None else self._connection.placing

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
            fell_back(Fallback.METRICS_PORT_TAKEN)
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
            will = will_of(self.topic, None if flow_run is None else flow_run.id, self._worker_side)
        folder = self.settings.state_dir.expanduser() / "running"
        self._note = (
            None if flow_run is None else leave_note(folder, flow_run.id, self.dispatcher.logger)
        )
        self._prefix = f"deepflow-{self.salt}-"
        self._tell_scheduler(**will)

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

    # -- submitting ----------------------------------------------------------------------------

    def code(self, task: Task[Any, Any]) -> tuple[Code, tuple[Any, ...]]:
        """The task's code as it is now, and the large values that it has captured."""
        references = References(self)
        code = self.shipping.code(task, references)
        return code, tuple(references.found)

    def next_number(self, name: str) -> int:
        """How many runs of the task so named were submitted before."""
        with self._lock:
            number = self._counters.get(name, 0)
            self._counters[name] = number + 1
            return number

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
            self._ending.settle_all(failed)
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
            self.offering.close()
            if self.client.status == "running":
                self._take_back_blobs()
                self.client.unsubscribe_topic(self.topic)
            if self._connection is not None:
                self._connection.close()

    def _end_cancelled(self) -> None:
        """The engine has proposed what the flow's code made of it: `Failed`, mostly."""
        try:
            end_cancelled(self._flow_run)
        except Exception as exc:  # noqa: BLE001 - its runs are stopped, which is what counts
            fell_back(Fallback.CANCELLATION_NOT_RECORDED)
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
        self._ending.wait_called(min(self.settings.shutdown_s, FLUSH_TIMEOUT_S))
        self.dispatcher.close()
        if self.client.status == "running":
            self._take_back_blobs()
        return self.dispatcher.names()

    def _take_back_blobs(self) -> None:
        self.shipping.take_back()
        self._tell_scheduler(is_over=True)

    def _tell_scheduler(self, **said: Any) -> None:
        if may_use(LAST_WILL):
            message = {"op": INTRODUCE, "prefix": self._prefix, **said}
            self.client._send_to_scheduler(message)


def session_on_worker(
    config: RunnerConfig, events_topic: str, logger: Any, worker_side: WorkerSide
) -> Session:
    """The session for submitting from inside tasks, one per worker client and driver."""
    client = distributed.get_client()

    def make() -> Session:
        return Session(config, logger, worker_side, nested_client=client, events_topic=events_topic)

    return nested_session(client, events_topic, make)
