"""The driver's half: from a submitted call to a finished run.

A dispatcher belongs to one entered task runner. It turns calls into items, sends items to Dask
(alone, or grouped into a job), hears from the workers what became of them, and makes sure that
every item ends: also where a worker, the scheduler or the driver's own flow does not go on.

An item is *held* (it waits for an input, for its retry, or for the pilot of its map), *sent* or
*done*. All of that changes under one lock, in the submitting thread or in the dispatcher's own,
which is the only one that reacts to reports, to Dask and to the clock.
"""

from __future__ import annotations

import heapq
import itertools
import pickle
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dask._expr import LLGExpr
from dask._task_spec import Task as DaskTask
from dask._task_spec import TaskRef
from dask.base import annotate
from distributed import KilledWorker
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelled, Crashed

from deepflow.backend.scheduler_plugin import OURS
from deepflow.decide.batching import RunTime, next_wave, split_after_s
from deepflow.errors import ContextMissingError, InfrastructureError
from deepflow.observe import metrics
from deepflow.runner.engine import advance
from deepflow.runner.events import state_event
from deepflow.runner.items import Item, MapPlan, SentJob, SharedArgument, Template
from deepflow.runner.job import run_job
from deepflow.runner.recorder import Recorder
from deepflow.runner.wire import (
    Inline,
    ItemSpec,
    Job,
    JobOptions,
    Message,
    OutcomeReport,
    Outcomes,
    Remote,
    Shared,
    Source,
    unpack,
)

if TYPE_CHECKING:
    import logging

    from distributed import Client, Future

    from deepflow.settings import Settings

_PATIENCE_S = 0.5
_SLOTS_EVERY_S = 5.0
_CANCEL_GRACE_S = 5.0
_MAX_SPARED = 10


class Dispatcher:
    """See the top of this file. `submit_items` and `cancel` may be called from any thread."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        *,
        results_topic: str,
        events_topic: str,
        recorder: Recorder | None,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        is_adaptive: bool = False,
    ) -> None:
        self.client = client
        self.is_adaptive = is_adaptive
        self.settings = settings
        self.results_topic = results_topic
        self.events_topic = events_topic
        self.recorder = recorder
        self.logger = logger
        self._lock = threading.RLock()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._active: dict[UUID, Item] = {}
        self._known: weakref.WeakValueDictionary[UUID, Item] = weakref.WeakValueDictionary()
        self._settled_count = 0
        self._run_times: dict[str, RunTime] = {}
        self._logged: set[str] = set()
        self._n_taken: dict[str, int] = {}
        self._n_slots = 1
        self._slots_due_s = 0.0
        self._outgoing: list[SentJob] = []
        self._to_release: deque[Item] = deque()
        self._is_releasing = False
        self._is_flush_due = False
        self._is_closing = False
        self.deaths_are_reported = True
        """Whether the scheduler has `ReportDeaths`, so that one death is one error."""
        self._is_idle = threading.Condition(self._lock)
        self._flow_run_id: UUID | None = None
        # In the context of the flow run: its settings say where this thread's log lines go.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="deepflow-dispatcher", daemon=True
        )
        self._thread.start()

    # -- submitting --------------------------------------------------------------------------

    def submit_item(self, item: Item) -> None:
        """Take over one item: send it now if its inputs allow, else as soon as they do."""
        with self._lock:
            self._admit(item)
            self._send_when_ready(item)

    def submit_map(self, items: list[Item]) -> None:
        """Take over the items of one `map`: in one graph where how to group them is known."""
        if not items:
            return
        template = items[0].template
        self._refresh_slots()
        with self._lock:
            for item in items:
                self._admit(item)
            if not template.may_batch:
                self._send_ready(items)
                return
            ready = [item for item in items if self._is_ready(item)]
            for item in items:
                if not self._is_ready(item):
                    self._send_when_ready(item)
            plan = MapPlan(template.task.digest, deque(ready))
            self._advance_plan(plan)
            if plan.waiting:
                self._at(time.time() + _PATIENCE_S, partial(self._lose_patience, plan))

    def _admit(self, item: Item) -> None:
        if self._is_closing:
            raise RuntimeError("The task runner must be started before submitting work.")
        self._active[item.run_id] = item
        self._known[item.run_id] = item

    def find(self, run_id: UUID) -> Item | None:
        """The item of a run submitted here, while somebody holds its future."""
        return self._known.get(run_id)

    # -- readiness ---------------------------------------------------------------------------

    def _is_ready(self, item: Item) -> bool:
        """Whether every input is done, or at work in a Dask task that can be depended on."""
        return self._blocker(item) is None

    def _blocker(self, item: Item) -> Item | None:
        """The first input that `item` has to wait for; None if it can be sent.

        Inputs that were found done are not looked at again, so that an item with thousands of
        them, asked each time one of them is done, costs thousands of looks and not millions.
        """
        upstreams = item.upstreams
        n_done = item.n_done_upstreams
        while n_done < len(upstreams) and upstreams[n_done].is_done:
            n_done += 1
        item.n_done_upstreams = n_done
        for upstream in islice(upstreams, n_done, None):
            if upstream.is_done:
                continue
            job = upstream.job
            if item.needs_done or job is None or len(job.items) != 1:
                return upstream
        return None

    def _send_when_ready(self, item: Item) -> None:
        """Send `item`, or wait for the first of its inputs that is in the way."""
        blocker = self._blocker(item)
        if blocker is not None:
            # With one input at a time: an item that waited with each of them would be asked, and
            # would wait again with all the others, each time one of them is done.
            blocker.dependents.append(item)
        elif item.job is None and not item.is_done:
            self._queue_jobs([[item]])

    def _send_ready(self, items: list[Item]) -> None:
        """Send the ready ones of `items` alone but in one graph; hold the others."""
        ready = [item for item in items if self._is_ready(item)]
        self._queue_jobs([[item] for item in ready])
        for item in items:
            if item.job is None:
                self._send_when_ready(item)

    def _advance_plan(self, plan: MapPlan) -> None:
        """Send what is due of a map's waiting items."""
        if not plan.waiting:
            return
        wave = next_wave(
            len(plan.waiting),
            plan.n_outstanding,
            self._n_slots,
            self._run_times.get(plan.task_digest, RunTime()),
            target_s=self.settings.batch_target_s,
            max_items=self.settings.batch_max_items,
        )
        items = plan.take(wave.n_items)
        size = wave.group_size
        self._queue_jobs([items[i : i + size] for i in range(0, len(items), size)])

    def _leave_plan(self, item: Item) -> None:
        """`item` is no longer with a worker for the first time: its map may go on."""
        plan, item.plan = item.plan, None
        if plan is not None:
            plan.n_outstanding -= 1
            self._advance_plan(plan)

    def _lose_patience(self, plan: MapPlan) -> None:
        """Nothing is known of a map's runs yet: they are long, or the workers are cold.

        Where the cluster scales with its load, it has to see all of it now.
        """
        with self._lock:
            if not self.is_adaptive or self._run_times.get(plan.task_digest) is not None:
                return
            self._queue_jobs([[item] for item in plan.take(len(plan.waiting))])

    # -- sending -----------------------------------------------------------------------------

    def _queue_jobs(self, groups: list[list[Item]]) -> None:
        """Make each group one Dask task of the next graph.

        Graphs are sent by the dispatcher's thread, which takes all that has come together by
        then: to the scheduler a graph of many tasks costs little more than a graph of one.
        """
        for items in groups:
            job = SentJob(self._key(items[0].template), items)
            for item in items:
                item.job = job
            self._outgoing.append(job)
            if len(items) > 1:
                metrics.inc("deepflow_batches_total")
                metrics.observe("deepflow_batch_items", len(items))
        for items in groups:
            for item in items:
                self._release_dependents(item)
        if self._outgoing and not self._is_flush_due:
            self._is_flush_due = True
            self._inbox.put(self.flush)

    def flush(self) -> None:
        """Send what is queued: consecutive jobs of the same placement as one graph."""
        with self._lock:
            self._is_flush_due = False
            outgoing, self._outgoing = self._outgoing, []
            graph: list[SentJob] = []
            for job in outgoing:
                job.items = [item for item in job.items if item.job is job and not item.is_done]
                if not job.items:
                    continue
                if (
                    graph
                    and graph[0].items[0].template.placement != job.items[0].template.placement
                ):
                    self._send_graph(graph)
                    graph = []
                graph.append(job)
            if graph:
                self._send_graph(graph)

    def _send_graph(self, jobs: list[SentJob]) -> None:
        template = jobs[0].items[0].template
        try:
            graph = {}
            for job in jobs:
                job.is_announced = self._is_announced(job.items)
                blob, dependencies = self._job_blob(job.items, job.is_announced)
                graph[job.key] = DaskTask(
                    job.key, run_job, blob, *(TaskRef(key) for key in dependencies)
                )
            # In an empty context: the annotations of the thread that happens to be here, or of
            # the one that made this dispatcher, are not those of these runs.
            futures = Context().run(self._put_graph, graph, template)
        except Exception as exc:  # noqa: BLE001 - it becomes the runs' end, see below
            # Nobody waits for this thread: an error here is an error of these runs.
            for job in jobs:
                self._inbox.put(partial(self._lost, job, list(job.items), exc))
            return
        now_s = time.time()
        for job, future in zip(jobs, futures, strict=True):
            job.future = future
            for item in job.items:
                item.sent_at_s = now_s
            future.add_done_callback(self._on_dask_done(job))

    def _put_graph(self, graph: dict[str, DaskTask], template: Template) -> list[Any]:
        """Hand a graph to Dask with its template's annotations; returns a future per task."""
        with annotate(**{**template.annotations, OURS: True}):
            futures: list[Any] = self.client.get(
                # The token spares Dask from hashing every call.
                LLGExpr(graph, _determ_token=next(iter(graph))),
                list(graph),
                sync=False,
                workers=template.workers or None,
                allow_other_workers=template.allow_other_workers or None,
                resources=template.resources or None,
                priority=template.priority,
            )
        return futures

    def _release_dependents(self, item: Item) -> None:
        """Something changed for `item`: dependents that waited for it may go now.

        What they set free in turn is worked off here as well, not by recursion: chains are long.
        """
        self._to_release.extend(item.dependents)
        item.dependents = []
        if self._is_releasing:
            return
        self._is_releasing = True
        try:
            while self._to_release:
                dependent = self._to_release.popleft()
                if not dependent.is_done and dependent.job is None and not dependent.is_waiting:
                    self._send_when_ready(dependent)
        finally:
            self._is_releasing = False

    def _key(self, template: Template) -> str:
        flow_run = f"-{self._flow_run_id.hex}" if self._flow_run_id else ""
        return f"{template.name}-{next(self._numbers)}{flow_run}-{template.salt}"

    def set_flow_run(self, flow_run_id: UUID | None) -> None:
        """The flow run whose tasks these are; part of every Dask key."""
        self._flow_run_id = flow_run_id

    def _job_blob(self, items: list[Item], is_announced: bool) -> tuple[bytes, list[str]]:
        """The pickled job, and the keys of the Dask tasks it depends on."""
        template = items[0].template
        dependencies: dict[str, int] = {}
        specs: list[ItemSpec] = []
        for item in items:
            sources = tuple(self._source(ref, dependencies) for ref in item.references)
            specs.append(item.spec(sources))
        static_sources = tuple(self._source(r, dependencies) for r in template.static_references)
        run_time = self._run_times.get(template.task.digest, RunTime())
        options = JobOptions(
            coalesce=self.settings.events == "coalesce"
            and len(self._active) > self.settings.coalesce_after,
            inline_bytes=self.settings.inline_result_bytes,
            split_after_s=split_after_s(run_time, self.settings.batch_target_s),
            durable=template.hints.durable,
            isolate=template.hints.isolate,
            announce=is_announced,
        )
        job = Job(
            results_topic=self.results_topic,
            events_topic=self.events_topic,
            context=template.context,
            task=template.task,
            tags=template.tags,
            static=template.static,
            static_sources=static_sources,
            items=tuple(specs),
            options=options,
        )
        return pickle.dumps(job, protocol=5), list(dependencies)

    def _source(self, reference: object, dependencies: dict[str, int]) -> Source:
        if isinstance(reference, bytes):
            return Inline(reference)
        if isinstance(reference, SharedArgument):
            key = str(reference.future(self.client).key)
            return Shared(dependencies.setdefault(key, len(dependencies)))
        assert isinstance(reference, Item)
        if reference.is_done and reference.blob is not None:
            return Inline(reference.blob)
        if reference.job is None:
            raise InfrastructureError(f"input {reference.name!r} is neither done nor at work")
        position = dependencies.setdefault(reference.job.key, len(dependencies))
        return Remote(position, reference.run_id)

    def _refresh_slots(self) -> None:
        """Ask how many threads the cluster has, now and then."""
        now_s = time.monotonic()
        if now_s < self._slots_due_s:
            return
        self._slots_due_s = now_s + _SLOTS_EVERY_S
        self._n_slots = max(1, sum(self.client.nthreads().values()))

    # -- what comes back ---------------------------------------------------------------------

    def on_message(self, event: Any) -> None:
        """A report from a worker (called on Dask's event loop; returns at once)."""
        _, blob = event
        # The scheduler logs what this client does under the same topic, as dicts. The topic is
        # the client's id because that one is emptied when the client goes.
        if isinstance(blob, bytes):
            self._inbox.put(lambda: self._take(unpack(blob)))

    def _on_dask_done(self, job: SentJob) -> Callable[[Future[Any]], None]:
        def callback(future: Future[Any]) -> None:
            status = future.status
            assert future._state is not None  # it has a client, so it has a state
            error = future._state.exception if status in ("error", "cancelled") else None
            self._inbox.put(lambda: self._take_dask(job, status, error))

        return callback

    def _take(self, message: Message) -> None:
        finished: list[Item] = []
        with self._lock:
            for report in message.outcomes:
                item = self._active.get(report.run_id)
                if item is None:
                    self._note_recomputed(report)
                    continue
                item.worker = message.worker
                self._apply(item, report, finished)
        if message.coalesced:
            metrics.inc("deepflow_events_coalesced_total", message.coalesced)
        if message.events and self.recorder is not None:
            self.recorder.put(message.events)
        for item in finished:
            item.call_back()
        with self._lock:
            self._n_taken[message.worker] = self._n_taken.get(message.worker, 0) + 1
            self._is_idle.notify_all()

    def _note_recomputed(self, report: OutcomeReport) -> None:
        if report.kind != "done" or self._is_closing:
            return
        metrics.inc("deepflow_recomputed_total")
        self._log_once(
            "recomputed",
            "A finished task was run again because the worker that held its result was lost; "
            "mark it hints(durable=True) to have its result read back instead.",
        )

    def _apply(self, item: Item, report: OutcomeReport, finished: list[Item]) -> None:
        if report.kind == "done":
            self._learn(item, report.run_s)
            self._finish(item, report.blob, report.state_type, finished)
        elif item.is_cancelling and report.kind in ("retry", "returned", "deferred"):
            # It came back while its cancellation was on the way: it does not go again.
            if report.kind == "retry":
                item.resume = report.blob
            self._settle_here(item, Cancelled(message="Cancelled before it began."), finished)
        elif report.kind == "retry":
            assert report.blob is not None
            self._wait_for_retry(item, report.blob)
        elif report.kind == "returned":
            self._take_back(item)
        elif report.kind == "begun":
            if item.job is not None:
                item.job.last_begun = item
        elif report.kind == "deferred":
            self._leave_plan(item)
            item.job = None
            item.needs_done = True
            self._send_when_ready(item)

    def _learn(self, item: Item, run_s: float) -> None:
        digest = item.template.task.digest
        self._run_times[digest] = self._run_times.get(digest, RunTime()).seen(run_s)
        if item.sent_at_s:
            metrics.observe(
                "deepflow_queue_wait_seconds", max(0.0, time.time() - item.sent_at_s - run_s)
            )

    def _finish(
        self, item: Item, blob: bytes | None, state_type: str, finished: list[Item]
    ) -> None:
        """An item reached its final state; `blob` is that state, or None if a worker keeps it."""
        if item.is_done:
            return
        self._active.pop(item.run_id, None)
        item.settle(blob, state_type)
        if blob is not None and item.job is not None:
            item.job.let_go(item)
        finished.append(item)
        self._leave_plan(item)
        self._release_dependents(item)
        if not self._active:
            self._is_idle.notify_all()

    def _wait_for_retry(self, item: Item, blob: bytes) -> None:
        _, _, ready_at_s = pickle.loads(blob)
        item.resume = blob
        self._leave_plan(item)
        if item.job is not None:
            item.job.let_go(item)
            item.job = None
        item.is_waiting = True

        def again() -> None:
            with self._lock:
                item.is_waiting = False
                if not item.is_done:
                    self._send_when_ready(item)

        self._at(ready_at_s, again)

    def _take_back(self, item: Item) -> None:
        """A worker gave back an item that had not begun: send it elsewhere, in smaller groups."""
        job = item.job
        if job is None:
            return
        job.returned.append(item)
        item.job = None
        self._leave_plan(item)
        if len(job.returned) == 1:
            self._inbox.put(lambda: self._send_returned(job))

    def _send_returned(self, job: SentJob) -> None:
        with self._lock:
            items, job.returned = job.returned, []
            items = [i for i in items if i.job is None and not i.is_done]
            size = max(1, len(job.items) // 4)
            self._queue_jobs([items[i : i + size] for i in range(0, len(items), size)])

    # -- what Dask says ----------------------------------------------------------------------

    def _take_dask(self, job: SentJob, status: str | None, error: BaseException | None) -> None:
        with self._lock:
            open_items = [i for i in job.items if i.job is job and not i.is_done]
            if not open_items:
                return
        if status == "finished":
            self._read_outcomes(job, open_items)
        elif status in ("lost", "pending"):
            if job.future is not None:
                job.future.add_done_callback(self._on_dask_done(job))
        else:
            self._lost(job, open_items, error)

    def _read_outcomes(self, job: SentJob, open_items: list[Item]) -> None:
        """Dask has a job's result but its report did not come: read the result itself."""
        metrics.inc("deepflow_fallbacks_total", kind="report_missing")
        self._log_once("report", "A worker's report was lost; reading the results themselves.")
        try:
            outcomes: Outcomes = self.client.gather(job.future)
        except Exception as exc:  # noqa: BLE001 - whatever Dask says, it is the runs' end
            self._lost(job, open_items, exc)
            return
        finished: list[Item] = []
        with self._lock:
            for item in open_items:
                entry = outcomes.find(item.run_id)
                if entry is None:
                    self._take_back(item)
                    continue
                blob = pickle.dumps(entry.state, protocol=5) if entry.kind == "retry" else None
                state_type = entry.state.type.value if entry.kind == "done" else ""
                report = OutcomeReport(item.run_id, entry.kind, blob, state_type, entry.run_s)
                self._apply(item, report, finished)
        for item in finished:
            item.call_back()

    def _lost(self, job: SentJob, items: list[Item], error: BaseException | None) -> None:
        """The infrastructure broke a job: send it again, or give its runs a Crashed state."""
        finished: list[Item] = []
        with self._lock:
            for item in items:
                if any(not upstream.is_done for upstream in item.upstreams):
                    # Its input was lost before it; it goes again when the input is settled.
                    item.job = None
                    item.needs_done = True
                    self._send_when_ready(item)
                    continue
                if item.is_cancelling or self._is_closing:
                    self._settle_here(
                        item, Cancelled(message="Cancelled before it began."), finished
                    )
                    continue
                if isinstance(error, KilledWorker) and error.task != job.key:
                    self._input_lost(item, error, finished)
                    continue
                if self._is_innocent(item, job, error):
                    item.n_spared += 1
                    self._send_again(item, _in_words(error, 1))
                    continue
                item.failures += self._n_failures(error)
                cause = _in_words(error, item.failures)
                # Which one of a group broke its worker is not known: each is tried alone.
                may_retry = item.failures <= self.settings.infra_retries
                if may_retry and not self._is_hopeless(error):
                    self._send_again(item, cause)
                else:
                    self._crash(item, cause, finished)
        for item in finished:
            item.call_back()

    def _is_announced(self, items: list[Item]) -> bool:
        """Whether workers are to say when these runs begin: they may be the death of them."""
        if self.settings.infra_retries == 0:
            return True
        return any(item.failures or item.n_spared for item in items)

    def _is_innocent(self, item: Item, job: SentJob, error: BaseException | None) -> bool:
        """Whether a run was only near when its worker died: it had not begun, or had ended.

        Bounded, for a worker may also die of what comes before a run's beginning.
        """
        return (
            isinstance(error, KilledWorker)
            and job.is_announced
            and job.last_begun is not item
            and item.n_spared < _MAX_SPARED
        )

    def _n_failures(self, error: BaseException | None) -> int:
        """How many failures Dask stands for when it reports `error`."""
        if isinstance(error, KilledWorker) and not self.deaths_are_reported:
            return int(error.allowed_failures) + 1
        return 1

    def _input_lost(self, item: Item, error: KilledWorker, finished: list[Item]) -> None:
        """A Dask task that `item` depends on was the death of its workers."""
        gone = [
            up.name
            for up in item.upstreams
            if up.blob is None and up.job is not None and up.job.key == error.task
        ]
        if gone:
            message = (
                f"its input {gone[0]!r} was lost with its worker and could not be computed again: "
                f"{_in_words(error, error.allowed_failures + 1).partition(': ')[2]}"
            )
            self._crash(item, f"input_lost: {message}", finished)
            return
        item.job = None
        item.needs_done = True
        self._send_when_ready(item)

    def _is_hopeless(self, error: BaseException | None) -> bool:
        """Whether trying again cannot help: no scheduler to try, or code that will not load."""
        if self.client.status in ("closed", "closing"):
            return True
        return isinstance(error, (ImportError, AttributeError, TypeError, pickle.UnpicklingError))

    def _send_again(self, item: Item, cause: str) -> None:
        metrics.inc("deepflow_infra_retries_total", cause=cause.partition(":")[0])
        if cause.startswith("context_missing"):
            item.template.ship_again()
        item.job = None
        item.rerun = f"Started again: {cause.partition(': ')[2]}"
        self._log_once("again", f"Task run {item.name!r} is started again: {cause}")
        self._send_when_ready(item)

    def _crash(self, item: Item, cause: str, finished: list[Item]) -> None:
        """Prefect's `retries` apply to what the infrastructure broke for good, too."""
        task = item.template.prefect_task
        message = cause.partition(": ")[2]
        task_run, retries, _ = (
            pickle.loads(item.resume)
            if item.resume is not None
            else (item.task_run(self._flow_run_id), 0, 0.0)
        )
        if retries < task.retries and self.client.status == "running":
            delay_s = _retry_delay_s(task.retry_delay_seconds, retries)
            from datetime import timedelta

            import prefect.types._datetime as prefect_datetime

            due = prefect_datetime.now("UTC") + timedelta(seconds=delay_s)
            state: State[Any] = AwaitingRetry(scheduled_time=due, message=message)
            self._emit(task_run, state)
            item.failures = item.n_spared = 0
            self._wait_for_retry(
                item, pickle.dumps((task_run, retries + 1, due.timestamp()), protocol=5)
            )
            return
        self.logger.error("Task run %r crashed: %s", item.name, message)
        self._settle_here(item, Crashed(message=message), finished, task_run)

    def _settle_here(
        self,
        item: Item,
        state: State[Any],
        finished: list[Item],
        task_run: Any = None,
    ) -> None:
        """Give a run its final state on the driver, for no worker will."""
        if item.is_done:
            return
        if task_run is None:
            task_run = item.task_run(self._flow_run_id)
        if state.is_crashed():
            state.data = InfrastructureError(state.message or "")
        self._emit(task_run, state)
        outcome = "crashed" if state.is_crashed() else "cancelled"
        metrics.inc("deepflow_tasks_total", outcome=outcome)
        self._finish(item, pickle.dumps(state, protocol=5), state.type.value, finished)

    def _emit(self, task_run: Any, state: State[Any]) -> None:
        before = advance(task_run, state)
        record = state_event(task_run, before, state)
        if self.recorder is not None:
            self.recorder.put([record])
        else:
            from deepflow.runner.wire import pack

            self.client.log_event(self.events_topic, pack(Message("", (), (record,), 0)))

    # -- cancelling --------------------------------------------------------------------------

    def cancel(self, items: Iterable[Item]) -> None:
        """Stop these runs: what is queued at once, what runs at the next chance."""
        finished: list[Item] = []
        sent: list[Item] = []
        with self._lock:
            for item in items:
                if item.is_done:
                    continue
                item.is_cancelling = True
                if item.job is None or item.job.future is None:
                    self._settle_here(
                        item, Cancelled(message="Cancelled before it began."), finished
                    )
                else:
                    sent.append(item)
        for item in finished:
            item.call_back()
        if not sent:
            return
        self._tell_workers([item.run_id for item in sent])
        whole = {
            item.job.key: item.job.future
            for item in sent
            if item.job is not None and all(i.is_cancelling or i.is_done for i in item.job.items)
        }
        self._inbox.put(lambda: self._cancel_queued(list(whole.values())))
        self._at(time.time() + _CANCEL_GRACE_S, lambda: self._give_up(sent))

    def _tell_workers(self, run_ids: list[UUID]) -> None:
        from deepflow.runner.worker_plugin import cancel_runs

        try:
            self.client.run(cancel_runs, run_ids, wait=False, on_error="ignore")
        except Exception as exc:  # noqa: BLE001 - runs that go on are given up after a while
            metrics.inc("deepflow_fallbacks_total", kind="cancel_not_delivered")
            self._log_once("cancel", f"The workers could not be told of a cancellation: {exc!r}")

    def _cancel_queued(self, futures: list[Any]) -> None:
        """Take what no worker has begun out of Dask's hands.

        A job that runs is left to its worker, which has been told: were its key cancelled, Dask
        would drop the report's context but let the thread run on.
        """
        futures = [f for f in futures if f is not None and f.status == "pending"]
        if not futures:
            return
        running = self._processing()
        queued = [f for f in futures if f.key not in running]
        if queued:
            self.client.cancel(queued, force=True)

    def _give_up(self, items: list[Item]) -> None:
        """Runs that did not stop in time get their state here; their threads cannot be killed."""
        finished: list[Item] = []
        futures: list[Any] = []
        with self._lock:
            for item in items:
                if item.is_done:
                    continue
                if item.job is not None and item.job.future is not None:
                    futures.append(item.job.future)
                self._settle_here(
                    item,
                    Cancelled(message="Cancelled; it did not stop in time and was abandoned."),
                    finished,
                )
        if futures and self.client.status == "running":
            self.client.cancel(futures, force=True)
        for item in finished:
            item.call_back()

    def cancel_all(self) -> None:
        """Cancel everything that is not done."""
        with self._lock:
            items = list(self._active.values())
        self.cancel(items)

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether everything was done within `timeout_s` seconds."""
        with self._lock:
            return self._is_idle.wait_for(lambda: not self._active, timeout=timeout_s)

    def not_begun(self) -> list[Item]:
        """Open items that no worker has begun, as far as Dask can tell."""
        running = self._processing()
        with self._lock:
            return [i for i in self._active.values() if i.job is None or i.job.key not in running]

    def _processing(self) -> set[Any]:
        """Keys that are at workers; none where Dask cannot be asked."""
        try:
            return {key for keys in self.client.processing().values() for key in keys}
        except Exception as exc:  # noqa: BLE001 - a client that is going raises many things
            metrics.inc("deepflow_fallbacks_total", kind="processing_unknown")
            self._log_once("processing", f"Dask does not say what its workers do: {exc!r}")
            return set()

    def drain(self, sent: dict[str, int], timeout_s: float) -> None:
        """Wait until as many reports were taken in from each worker as it says it has sent."""
        with self._lock:
            complete = self._is_idle.wait_for(
                lambda: all(self._n_taken.get(w, 0) >= n for w, n in sent.items()),
                timeout=timeout_s,
            )
        if not complete:
            metrics.inc("deepflow_fallbacks_total", kind="report_missing")
            self._log_once("drain", "Some workers' last reports did not arrive in time.")

    def open_items(self) -> list[Item]:
        """Items that are not done."""
        with self._lock:
            return list(self._active.values())

    def abandon(self, reason: str) -> None:
        """Give every open item a Crashed state: nothing will be heard of them any more."""
        finished: list[Item] = []
        with self._lock:
            for item in list(self._active.values()):
                self._settle_here(item, Crashed(message=reason), finished)
        for item in finished:
            item.call_back()

    def close(self) -> None:
        """Stop reacting. Items must be settled first (`cancel_all`, `wait_idle`, `abandon`)."""
        self._is_closing = True
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    # -- the dispatcher's thread -------------------------------------------------------------

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        with self._lock:
            heapq.heappush(self._timers, (when_s, next(self._numbers), action))
        self._inbox.put(lambda: None)

    def _run(self) -> None:
        while True:
            with self._lock:
                timeout_s = None
                if self._timers:
                    timeout_s = max(0.0, self._timers[0][0] - time.time())
            try:
                action = self._inbox.get(timeout=timeout_s)
                if action is None:
                    return
                self._perform(action)
            except queue.Empty:
                pass
            while True:
                with self._lock:
                    if not self._timers or self._timers[0][0] > time.time():
                        break
                    _, _, due = heapq.heappop(self._timers)
                self._perform(due)

    def _perform(self, action: Callable[[], None]) -> None:
        """One reaction; a fault in it must not end the thread on which every run depends."""
        try:
            action()
        except Exception:
            metrics.inc("deepflow_fallbacks_total", kind="dispatcher_fault")
            self.logger.exception("deepflow's dispatcher met a fault and goes on")

    def _log_once(self, kind: str, message: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            self.logger.warning(message)


def _in_words(error: BaseException | None, failures: int) -> str:
    """`cause: sentence` for what broke a run."""
    if isinstance(error, KilledWorker):
        return (
            f"worker_lost: {failures} worker{'s' if failures > 1 else ''} died while running it, "
            f"the last one at {error.last_worker.address}. It may need more memory than a worker "
            "has, or crash the interpreter; look at the workers' logs"
        )
    if isinstance(error, ContextMissingError):
        return f"context_missing: {error}"
    if error is None:
        return "unknown: Dask reported neither a result nor a cause"
    name = type(error).__name__
    if "Cancelled" in name:
        return (
            f"connection_lost: Dask gave it up ({error}); the scheduler was lost or restarted, "
            "or data it needed is gone"
        )
    return f"worker_error: {name}: {error}"


def _retry_delay_s(delays: Any, retries: int) -> float:
    if not delays:
        return 0.0
    if isinstance(delays, (int, float)):
        return float(delays)
    return float(delays[min(retries, len(delays) - 1)])
