"""Execute a batch's task runs on a worker: contexts, inputs, engine, outcome.

Whatever happens to a run, it ends in a state: what a user's code raises is Prefect's business
(the engine), what keeps a run from starting becomes a failed state here.
"""

from __future__ import annotations

import pickle
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dask.sizeof import sizeof
from distributed import get_worker
from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
from prefect._internal.result_records import ResultRecord
from prefect._internal.states import exception_to_failed_state_sync
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State
from prefect.exceptions import UpstreamTaskError
from prefect.results import should_persist_result
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.annotations import allow_failure
from prefect.utilities.engine import resolve_to_final_result

from deepflow.backend.tiers import tiers_of
from deepflow.backend.transfer.install import transfer_of
from deepflow.errors import UnpicklableResultError
from deepflow.intermediates.loading import Scope, loads
from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.runs import advance, new_task_run
from deepflow.runner.slots import Slot, current_slot
from deepflow.runner.wire import (
    Awaited,
    Batch,
    Ended,
    Entry,
    Foreign,
    Inline,
    ItemSpec,
    OutcomeReport,
    Outcomes,
    Remote,
    Shared,
    Source,
    Wait,
)
from deepflow.runner.worker.agent import Agent, RunningBatch, agent_of
from deepflow.runner.worker.durable import DurableRecord, Restored, result_store_of
from deepflow.runner.worker.engine import AsyncEngine, Seat, SyncEngine
from deepflow.runner.worker.loops import loops
from deepflow.runner.worker.packing import let_travel, packed

if TYPE_CHECKING:
    from prefect.tasks import Task

    from deepflow.runner.worker.scope import RunScope

NOT_BEGUN_MESSAGE = "Cancelled before it began."
_ADMITTED_FROM_BYTES = 1 << 18
_ENVELOPE_BYTES = 2048
"""A state without its value, pickled, is smaller than this."""
READ_BACK_MESSAGE = "Read back from result storage; it was not run again."

_OUTCOMES = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CRASHED": "crashed",
    "CANCELLED": "cancelled",
}


class _NotReady(Exception):
    """An input has no final state yet: the driver sends the run again when it has."""


def execute_batch(blob: bytes, dependencies: tuple[Any, ...]) -> Outcomes:
    """Run a batch's items in order; returns one entry for each that was not given back.

    Raises:
        ContextMissingError: what was shipped once is not to be found; the driver sends it again.
    """
    batch: Batch = pickle.loads(blob)
    agent = agent_of(get_worker())
    running = RunningBatch(batch)
    outcomes = Outcomes()
    scope = agent.context(batch.context)
    load = partial(_load_task, agent.code(batch.code), batch, dependencies)
    classes = Scope()
    task: Task[Any, Any] | None = load(classes)
    agent.begin(running)
    current_slot.set(Slot())
    try:
        while (spec := running.next_item()) is not None:
            seat = running.seat = Seat(spec.run_id)
            if agent.is_cancelled(batch.events_topic, spec.run_id):
                seat.cancel()
            if batch.options.announce:
                agent.announce(batch, spec.run_id)
            if task is None:
                # Globals, closures and defaults are each run's own.
                classes = Scope()
                task = load(classes)
            try:
                run = _Run(agent, batch, task, spec, seat, classes)
                entry = run.execute(scope, dependencies)
            finally:
                task = None
                classes.release()
            running.seat = None
            outcomes.entries.append(entry)
            report = _report(entry, batch)
            with running.lock:
                running.reports.append(report)
    finally:
        agent.end(running)
    return _settled(outcomes)


def _load_task(
    code: bytes, batch: Batch, dependencies: tuple[Any, ...], classes: Scope
) -> Task[Any, Any]:
    task: Task[Any, Any] = loads(
        code, classes, find=_Values(batch.code_sources, dependencies, classes).find
    )
    return task


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


class _Values:
    """What the references in a pickle stand for, each made once: what was one object stays one.

    Every run gets values of its own. What cannot be copied is shared, which is counted.
    """

    def __init__(
        self, sources: tuple[Source, ...], dependencies: tuple[Any, ...], classes: Scope
    ) -> None:
        self._sources, self._dependencies, self._classes = sources, dependencies, classes
        self._made: dict[int, Any] = {}
        self.left_behind: Stuck | None = None
        """The input that could not come here, if there is one."""

    def find(self, pid: tuple[int, bool]) -> Any:
        """The value of a reference.

        Raises:
            _NotReady: the upstream run has no final state yet.
            UpstreamTaskError: it did not end well.
        """
        number, may_fail = pid
        if number not in self._made:
            self._made[number] = self._value(self._sources[number], may_fail)
        return self._made[number]

    def _value(self, source: Source, may_fail: bool) -> Any:
        if isinstance(source, Shared):
            parcel: Parcel = self._dependencies[source.dep]
            return parcel.open(self._classes)
        if isinstance(source, Foreign):
            return self._apart(self._dependencies[source.dep])
        state = self._state(source)
        return resolve_to_final_result(
            state, {"annotation": allow_failure(state)} if may_fail else {}
        )

    def _state(self, source: Inline | Remote) -> State[Any]:
        if isinstance(source, Inline):
            state: State[Any] = Parcel.from_bytes(source.blob).open(self._classes)
            return state
        content = _entry(source, self._dependencies).content
        if isinstance(content, Stuck):
            if not content.is_here:
                self.left_behind = content
                raise UnpicklableResultError(content.why)
            fell_back(Fallback.INPUT_SHARED)
            state = content.value[0]
        else:
            assert isinstance(content, Parcel)
            state = content.open(self._classes)
        return state

    def _apart(self, value: Any) -> Any:
        try:
            return Parcel.of(value).open(self._classes)
        except Exception:  # noqa: BLE001 - pickling runs the user's code
            fell_back(Fallback.INPUT_SHARED)
            return value


def _entry(source: Remote | Awaited, dependencies: tuple[Any, ...]) -> Entry:
    entry: Entry | None = dependencies[source.dep].find(source.run_id)
    if entry is None or entry.kind != "done":
        raise _NotReady
    return entry


def _check_waits(waits: tuple[Wait, ...], dependencies: tuple[Any, ...]) -> None:
    """Raises:
    _NotReady: a run that is waited for has no final state yet.
    UpstreamTaskError: it did not end well.
    """
    for wait in waits:
        state_type = (
            wait.state_type if isinstance(wait, Ended) else _entry(wait, dependencies).state_type
        )
        may_go = state_type == "COMPLETED" or (
            wait.may_fail and state_type in ("FAILED", "PENDING")
        )
        if not may_go:
            raise UpstreamTaskError(
                f"Upstream task run '{wait.run_id}' did not reach a 'COMPLETED' state."
            )


def _report(entry: Entry, batch: Batch) -> OutcomeReport:
    """What the driver is told at once: the state itself where it is small."""
    content = entry.content
    blob: bytes | None = None
    if isinstance(content, bytes):
        blob = content
    elif (
        isinstance(content, Parcel)
        and content.n_bytes <= batch.options.inline_bytes + _ENVELOPE_BYTES
    ):
        blob = content.to_bytes()
        metrics.inc("deepflow_result_moved_bytes_total", len(blob), path="inline")
    return OutcomeReport(entry.run_id, entry.kind, blob, entry.state_type, entry.run_s)


def _outcome(state: State[Any]) -> str:
    if state.name == "TimedOut":
        return "timedout"
    if state.name == "Cached":
        return "cached"
    return _OUTCOMES.get(state.type.value, "other")


class _Run:
    """One task run on its way through the engine."""

    def __init__(
        self,
        agent: Agent,
        batch: Batch,
        task: Task[Any, Any],
        spec: ItemSpec,
        seat: Seat,
        classes: Scope,
    ) -> None:
        self.agent, self.batch, self.task, self.spec, self.seat = agent, batch, task, spec, seat
        self.classes = classes
        self._started_s = time.perf_counter()

    def execute(self, scope: RunScope, dependencies: tuple[Any, ...]) -> Entry:
        """Run to a final state, to a delayed retry, or to an input that is not ready."""
        spec = self.spec
        assets = pickle.loads(spec.assets) if spec.assets else None
        with scope.entered(self.batch.tags, assets, self.classes):
            if self.seat.cancelled:
                task_run, _, _ = self._record(scope.flow_run_id)
                self._settle(task_run, Cancelled(message=NOT_BEGUN_MESSAGE))
                return self._done(task_run)
            parameters: dict[str, Any] = {}
            trouble: Exception | None = None
            try:
                parameters = self._parameters(dependencies)
            except _NotReady:
                return Entry(spec.run_id, "deferred")
            except Exception as exc:  # noqa: BLE001 - unpickling runs the user's code
                trouble = exc
            task_run, retries, resuming = self._record(scope.flow_run_id)
            durable: DurableRecord | None = None
            try:
                durable = self._durable(scope.flow_run_id)
                # Before anything is said of the run: what comes after its end would hide that.
                if durable is not None and (restored := durable.read()) is not None:
                    self._restore(restored, task_run)
                    return self._done(task_run)
                if not resuming:
                    self._emit(task_run, None, task_run.state)
                if trouble is not None and not isinstance(trouble, UpstreamTaskError):
                    raise trouble
            except Exception as exc:  # noqa: BLE001 - unpickling runs the user's code
                self._could_not_start(task_run, exc)
                return self._done(task_run)
            engine_type = AsyncEngine if self.task.isasync else SyncEngine
            engine = engine_type(
                task=self.task,
                parameters=parameters,
                wait_for=None,
                task_run=task_run,
                retries=retries,
                seat=self.seat,
                emit=self._emit,
                upstream_error=trouble,
                durable=durable,
                isolate=self.batch.options.isolate,
                resuming=resuming,
            )
            try:
                if isinstance(engine, AsyncEngine):
                    loops.run(_drive_async(engine))
                else:
                    _drive(engine)
            except BaseException as exc:  # noqa: BLE001 - a worker goes on, see below
                # The engine has given the run a state for all that the user's code can raise,
                # and raises on only so that a process may end; a worker must not.
                assert task_run.state is not None
                if not _is_settled(task_run.state):
                    if self.seat.cancelled:
                        self._settle(task_run, Cancelled(message=NOT_BEGUN_MESSAGE))
                    else:
                        self._could_not_start(task_run, exc)
            retry_at = engine.retry_at()
            if retry_at is not None:
                record = pickle.dumps((task_run, engine.retries, retry_at), protocol=5)
                return Entry(spec.run_id, "retry", record, run_s=self._run_s())
            return self._done(task_run)

    def _parameters(self, dependencies: tuple[Any, ...]) -> dict[str, Any]:
        """The run's own arguments, with the values of what they refer to."""
        batch, spec = self.batch, self.spec
        _check_waits(spec.waits, dependencies)
        static = _Values(batch.static_sources, dependencies, self.classes)
        own = _Values(spec.sources, dependencies, self.classes)
        try:
            parameters: dict[str, Any] = {}
            if batch.static is not None:
                parameters.update(loads(batch.static, self.classes, find=static.find))
            parameters.update(loads(spec.call, self.classes, find=own.find))
        except UnpicklableResultError:
            self._fail_producer(static.left_behind or own.left_behind)
            raise
        return parameters

    def _fail_producer(self, left_behind: Stuck | None) -> None:
        """Say of the run whose result could not come here that it has failed, and why."""
        if left_behind is None or not left_behind.record:
            return
        producer: TaskRun = pickle.loads(left_behind.record)
        state: State[Any] = Failed(message=left_behind.why)
        before = advance(producer, state)
        self.agent.emit(self.batch, producer, before, state, persisted=False)

    def _done(self, task_run: TaskRun) -> Entry:
        """The run's final state, packed so that it can leave the run."""
        state = task_run.state
        assert state is not None
        metrics.inc("deepflow_tasks_total", outcome=_outcome(state))
        run_s = self._run_s()
        metrics.observe("deepflow_task_run_seconds", run_s)
        content = packed(state, task_run, self.task.name)
        return Entry(self.spec.run_id, "done", content, state.type.value, run_s)

    def _run_s(self) -> float:
        return time.perf_counter() - self._started_s

    def _could_not_start(self, task_run: TaskRun, exc: BaseException) -> None:
        state = exception_to_failed_state_sync(exc, message="The run could not be started:")
        self._settle(task_run, state)

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
            tags=self.batch.tags,
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
        if self.batch.options.durable or persisted_without_key:
            return DurableRecord(task, flow_run_id, self.spec.run_id)
        return None

    def _restore(self, restored: Restored, task_run: TaskRun) -> None:
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

    def _settle(self, task_run: TaskRun, state: State[Any]) -> None:
        before = advance(task_run, state)
        self._emit(task_run, before, state)

    def _emit(
        self, task_run: TaskRun, initial: State[Any] | None, state: State[Any] | None
    ) -> None:
        assert state is not None
        if self.spec.rerun is not None and state.is_running() and not state.message:
            state.message = self.spec.rerun
        if state.is_failed() or state.is_crashed():
            let_travel(state, self.task.name, self.classes)
        persisted = (
            state.is_completed()
            and isinstance(state.data, ResultRecord)
            and should_persist_result()
        )
        self.agent.emit(self.batch, task_run, initial, state, persisted=persisted)


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
