"""Execute a job's task runs on a worker: contexts, inputs, engine, outcome.

Whatever happens to a run, it ends in a state: what a user's code raises is Prefect's business
(the engine), what keeps a run from starting becomes a failed state here.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from dask.sizeof import sizeof
from distributed import get_worker
from distributed.protocol.pickle import dumps as pickle_result
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect._internal.result_records import ResultRecord
from prefect._internal.states import exception_to_failed_state_sync
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.context import AsyncClientContext
from prefect.results import should_persist_result
from prefect.states import Cancelled, Completed

from deepflow.backend.tiers import tiers_of
from deepflow.backend.transfer.install import transfer_of
from deepflow.observe import metrics
from deepflow.runner.agent import Agent, RunningJob, agent_of
from deepflow.runner.durable import DurableRecord, Restored, result_store_of
from deepflow.runner.engine import AsyncEngine, Seat, SyncEngine, advance
from deepflow.runner.runs import new_task_run
from deepflow.runner.slots import Slot, current_slot
from deepflow.runner.wire import (
    Entry,
    Inline,
    ItemSpec,
    Job,
    OutcomeReport,
    Outcomes,
    Remote,
    Source,
    loads,
)

if TYPE_CHECKING:
    from prefect.tasks import Task

NOT_BEGUN_MESSAGE = "Cancelled before it began."
_ADMITTED_FROM_BYTES = 1 << 18
READ_BACK_MESSAGE = "Read back from result storage; it was not run again."

_OUTCOMES = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CRASHED": "crashed",
    "CANCELLED": "cancelled",
}


class _NotReady(Exception):
    """An input has no final state yet: the driver sends the run again when it has."""


def execute_job(blob: bytes, dependencies: tuple[Any, ...]) -> Outcomes:
    """Run a job's items in order; returns one entry for each that was not given back.

    Raises:
        ContextMissingError: what was shipped once is not to be found; the driver sends it again.
    """
    job: Job = pickle.loads(blob)
    agent = agent_of(get_worker())
    running = RunningJob(job)
    outcomes = Outcomes()
    scope = agent.context(job.context)
    task = agent.task(job.task)
    static: dict[str, Any] = {}
    if job.static is not None:
        static = loads(job.static, [_value(s, dependencies) for s in job.static_sources])
    agent.begin(running)
    current_slot.set(Slot())
    try:
        while (spec := running.next_item()) is not None:
            seat = running.seat = Seat(spec.run_id)
            if agent.is_cancelled(job.events_topic, spec.run_id):
                seat.cancel()
            if job.options.announce:
                agent.announce(job, spec.run_id)
            entry = _Run(agent, job, task, spec, seat).execute(scope, static, dependencies)
            running.seat = None
            outcomes.entries.append(entry)
            report = _report(entry, job)
            with running.lock:
                running.reports.append(report)
    finally:
        agent.end(running)
    return _settled(outcomes)


def _settled(outcomes: Outcomes) -> Outcomes:
    """The outcomes as the worker keeps them: large ones where its neighbours can read them."""
    worker = get_worker()
    transfer, tiers = transfer_of(worker), tiers_of(worker)
    shares = transfer is not None and transfer.sender.has_neighbours
    fills = tiers is not None and tiers.store.is_filling
    if not (shares or fills):
        return outcomes
    n_bytes = sizeof(outcomes)
    settled = outcomes
    if transfer is not None and shares:
        settled = transfer.sender.settle(worker.get_current_task(), outcomes, n_bytes)
    if tiers is not None and fills and n_bytes >= _ADMITTED_FROM_BYTES:
        tiers.admit(n_bytes)  # the next task of this thread would only make it worse
    return settled


def _value(source: Source, dependencies: tuple[Any, ...]) -> Any:
    """What a reference in a call stands for: an upstream's state, or a shared argument."""
    if isinstance(source, Inline):
        return pickle.loads(source.blob)
    if isinstance(source, Remote):
        outcomes = dependencies[source.dep]
        entry = outcomes.find(source.run_id)
        if entry is None or entry.kind != "done":
            raise _NotReady
        return entry.state
    return _read_only(dependencies[source.dep])


def _read_only(value: Any) -> Any:
    """A shared array as a read-only view: writing to it would change it for every other run."""
    import numpy as np

    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    return value


def _report(entry: Entry, job: Job) -> OutcomeReport:
    """What the driver is told at once: the state itself where it is small."""
    state_type, blob = "", None
    if entry.kind == "retry":
        blob = pickle.dumps(entry.state, protocol=5)
    elif entry.kind == "done":
        state: State[Any] = entry.state
        state_type = state.type.value
        value = state.data.result if isinstance(state.data, ResultRecord) else state.data
        limit = job.options.inline_bytes
        if value is None or sizeof(value) <= limit:
            try:
                blob = pickle_result(state)
            except Exception:  # noqa: BLE001 - pickling runs the user's code
                # It cannot leave this process; whoever asks for the value is told why.
                metrics.inc("deepflow_fallbacks_total", kind="unpicklable_result")
            if blob is not None and len(blob) > limit + 8192:
                blob = None
        if blob is not None:
            metrics.inc("deepflow_result_moved_bytes_total", len(blob), path="inline")
        metrics.inc("deepflow_tasks_total", outcome=_outcome(state))
        metrics.observe("deepflow_task_run_seconds", entry.run_s)
    return OutcomeReport(entry.run_id, entry.kind, blob, state_type, entry.run_s)


def _outcome(state: State[Any]) -> str:
    if state.name == "TimedOut":
        return "timedout"
    if state.name == "Cached":
        return "cached"
    return _OUTCOMES.get(state.type.value, "other")


class _Run:
    """One task run on its way through the engine."""

    def __init__(
        self, agent: Agent, job: Job, task: Task[Any, Any], spec: ItemSpec, seat: Seat
    ) -> None:
        self.agent, self.job, self.task, self.spec, self.seat = agent, job, task, spec, seat
        self._is_persisted = False

    def execute(self, scope: Any, static: dict[str, Any], dependencies: tuple[Any, ...]) -> Entry:
        """Run to a final state, to a delayed retry, or to an input that is not ready."""
        started_s = time.perf_counter()
        spec = self.spec
        assets = pickle.loads(spec.assets) if spec.assets else None
        try:
            values = [_value(source, dependencies) for source in spec.sources]
        except _NotReady:
            return Entry(spec.run_id, "deferred")
        with scope.entered(self.job.tags, assets):
            task_run, retries, resuming = self._record(scope.flow_run_id)
            if self.seat.cancelled:
                state: State[Any] = Cancelled(message=NOT_BEGUN_MESSAGE)
                self._settle(task_run, state)
                return Entry(spec.run_id, "done", state)
            durable: DurableRecord | None = None
            try:
                durable = self._durable(scope.flow_run_id)
                # Before anything is said of the run: what comes after its end would hide that.
                if durable is not None and (restored := durable.read()) is not None:
                    return Entry(spec.run_id, "done", self._restore(restored, task_run))
                if not resuming:
                    self._emit(task_run, None, task_run.state)
                parameters, wait_for = loads(spec.call, values)
            except Exception as exc:  # noqa: BLE001 - unpickling runs the user's code
                state = exception_to_failed_state_sync(exc, message="The run could not be started:")
                self._settle(task_run, state)
                return Entry(spec.run_id, "done", state)
            engine_type = AsyncEngine if self.task.isasync else SyncEngine
            engine = engine_type(
                task=self.task,
                parameters={**static, **parameters},
                wait_for=wait_for,
                task_run=task_run,
                retries=retries,
                seat=self.seat,
                emit=self._emit,
                durable=durable,
                isolate=self.job.options.isolate,
                resuming=resuming,
            )
            try:
                if isinstance(engine, AsyncEngine):
                    _loops.run(_drive_async(engine))
                else:
                    _drive(engine)
            except BaseException as exc:  # noqa: BLE001 - a worker goes on, see below
                # The engine has given the run a state for all that the user's code can raise,
                # and raises on only so that a process may end; a worker must not.
                assert task_run.state is not None
                if not _is_settled(task_run.state):
                    failed = (
                        Cancelled(message=NOT_BEGUN_MESSAGE)
                        if self.seat.cancelled
                        else exception_to_failed_state_sync(
                            exc, message="The run could not be started:"
                        )
                    )
                    self._settle(task_run, failed)
            run_s = time.perf_counter() - started_s
            retry_at = engine.retry_at()
            if retry_at is not None:
                return Entry(spec.run_id, "retry", (task_run, engine.retries, retry_at), run_s)
            return Entry(spec.run_id, "done", task_run.state, run_s)

    def _record(self, flow_run_id: Any) -> tuple[TaskRun, int, bool]:
        if self.spec.resume is not None:
            task_run, retries, _ready_at = pickle.loads(self.spec.resume)
            return task_run, retries, True
        spec = self.spec
        task_run = new_task_run(
            self.task,
            run_id=spec.run_id,
            name=spec.name,
            dynamic_key=spec.dynamic_key,
            flow_run_id=flow_run_id,
            tags=self.job.tags,
            inputs=pickle.loads(spec.inputs) if spec.inputs else {},
        )
        if self.spec.rerun is not None:
            assert task_run.state is not None
            task_run.state.message = self.spec.rerun
        return task_run, 0, False

    def _durable(self, flow_run_id: Any) -> DurableRecord | None:
        task = self.task
        persisted_without_key = (
            task.persist_result is True
            and task.result_storage_key is None
            and (task.cache_policy is None or task.cache_policy == NO_CACHE)
        )
        if self.job.options.durable or persisted_without_key:
            return DurableRecord(task, flow_run_id, self.spec.run_id)
        return None

    def _restore(self, restored: Restored, task_run: TaskRun) -> State[Any]:
        metrics.inc("deepflow_durable_reads_total")
        data = result_store_of(self.task).create_result_record(restored.value)
        state: State[Any] = Completed(data=data, message=READ_BACK_MESSAGE)
        before = task_run.state
        for name in ("start_time", "run_count", "total_run_time", "name"):
            setattr(task_run, name, getattr(restored.task_run, name))
        advance(task_run, state)
        # As of when it finished: where the server has that on record already, this changes nothing.
        state.timestamp = restored.finished_at
        task_run.end_time = restored.finished_at  # type: ignore[assignment]
        if task_run.start_time is not None:
            task_run.total_run_time = restored.finished_at - task_run.start_time
        self._emit(task_run, before, state)
        return state

    def _settle(self, task_run: TaskRun, state: State[Any]) -> None:
        before = advance(task_run, state)
        self._emit(task_run, before, state)

    def _emit(
        self, task_run: TaskRun, initial: State[Any] | None, state: State[Any] | None
    ) -> None:
        assert state is not None
        if self.spec.rerun is not None and state.is_running() and not state.message:
            state.message = self.spec.rerun
        persisted = (
            state.is_completed()
            and isinstance(state.data, ResultRecord)
            and should_persist_result()
        )
        self.agent.emit(self.job, task_run, initial, state, persisted=persisted)


def _is_settled(state: State[Any]) -> bool:
    return state.is_final() or state.name in ("NotReady", "AwaitingRetry")


def _drive(engine: SyncEngine) -> None:
    """Prefect's run loop, but for a delayed retry: that ends this attempt."""
    with engine.start(task_run_id=engine.seat.run_id):
        while engine.is_running() and engine.retry_at() is None:
            engine.wait_until_ready()
            with (
                engine.asset_context(),
                engine.run_context(),
                engine.transaction_context() as transaction,
            ):
                engine.call_task_fn(transaction)
            raise_if_flow_run_suspension_requested()


async def _drive_async(engine: AsyncEngine) -> None:
    """As `_drive`, for async tasks."""
    async with engine.start(task_run_id=engine.seat.run_id):
        while engine.is_running() and engine.retry_at() is None:
            await engine.wait_until_ready()
            async with (
                engine.asset_context(),
                engine.run_context(),
                engine.transaction_context() as transaction,
            ):
                await engine.call_task_fn(transaction)
            raise_if_flow_run_suspension_requested()


class _Loops(threading.local):
    """One event loop, with one async HTTP client, per worker thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._clients: dict[str, AsyncClientContext] = {}

    def run(self, coroutine: Any) -> None:
        """Run a coroutine to its end in this thread, in the current contexts."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        self._runner.run(self._with_client(coroutine), context=copy_context())

    async def _with_client(self, coroutine: Any) -> None:
        from prefect.settings import PREFECT_API_URL

        url = str(PREFECT_API_URL.value())
        context = self._clients.get(url)
        if context is None:
            context = AsyncClientContext()
            # As in `context.RunScope`: the server is not asked for its version again.
            await context.client.__aenter__()
            context._context_stack = 1
            self._clients[url] = context
        AsyncClientContext.__var__.set(context)
        await coroutine


_loops = _Loops()
