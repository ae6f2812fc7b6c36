"""The scheduler plugin that places tasks: late binding and ranking in a live Dask scheduler.

A ready task waits in Dask's own `queued` state. After every event that could set something free, a
pass of `decide.place.binder` says which tasks go where now, and each goes through Dask's ordinary
`queued → processing`. Work stealing is off meanwhile: it knows no speeds, and undoes what was
placed well.

Nothing here may cost a run its result. Whatever goes wrong in deciding on one task, that task is
placed by Dask itself, and the fault is counted and logged once; after `MAX_FAULTS` of them, or
where Dask's methods are not the ones this was written for, Dask places everything, for good.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.metrics import time

from deepflow.backend.contract import PLACEMENT, differences, may_use
from deepflow.backend.placement.binding import Binding, Recs
from deepflow.backend.placement.mirror import Known, Mirror, gpu_needs
from deepflow.backend.placement.recalls import Recalls, is_recall
from deepflow.backend.placement.record import Record
from deepflow.decide.estimate import Estimates
from deepflow.decide.events import (
    Event,
    Failed,
    Finished,
    Held,
    Placed,
    Submitted,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.decide.experience import Experience
from deepflow.decide.place.binder import Binder, Decision, Tuning
from deepflow.decide.place.fleet import Needs, Worker
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.registry import DEFAULT_POLICY, policy_named
from deepflow.decide.place.task import Task
from deepflow.decide.rank import FlowShape
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

__all__ = ["MAX_FAULTS", "UNPLACEABLE_TOPIC", "Placement"]

logger = logging.getLogger("deepflow.placement")

MAX_FAULTS: Final = 10
UNPLACEABLE_TOPIC: Final = "deepflow-unplaceable"
"""Of the messages that no worker can ever take a task as things are: task, run, reasons."""
_MEASURE_EVERY_S: Final = 1.0
_SOONEST_LOOK_S: Final = 0.002
_STIMULUS: Final = "deepflow-placement"
_NOTHING: Final[Recs] = ({}, {}, {})


class Placement(SchedulerPlugin):
    """Places every task of one scheduler; see the top of this file.

    Args:
        policy: a name (`decide.place.registry`) or a policy object. `stock`: only watch.
        estimates: what is known of run times, from the history; learns further.
        shapes: what is known of flows.
        seed: for policies that draw lots.
        clock: seconds; virtual in a simulation.
        call_later: `(seconds, function)`; the scheduler's event loop unless given.
        is_checking: after every pass, assert that nothing waits that could run (tests, debugging).
    """

    name = "deepflow-placement"
    idempotent = True

    def __init__(
        self,
        policy: str | Policy = DEFAULT_POLICY,
        *,
        estimates: Estimates | None = None,
        shapes: FlowShape | None = None,
        tuning: Tuning | None = None,
        seed: int = 0,
        clock: Callable[[], float] | None = None,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
        is_checking: bool = False,
    ) -> None:
        self.policy = policy_named(policy)
        self.mirror = Mirror(estimates or Estimates(), shapes or FlowShape())
        self.tuning = tuning or Tuning()
        self.seed = seed
        self.is_checking = is_checking
        self._clock = clock
        self._call_later = call_later
        self.is_placing = False
        """Whether tasks are placed here; False: Dask places them."""
        self.faults: list[str] = []
        self.n_fallbacks = 0
        self.n_decisions = 0
        self.decision_s: deque[float] = deque(maxlen=100_000)
        """What each of the latest decisions took."""

    # -- beginning and end ----------------------------------------------------------------------

    async def start(self, scheduler: Scheduler) -> None:
        """Dask calls this when the plugin is registered."""
        self.bind(scheduler)
        stealing = scheduler.extensions.get("stealing")
        if self.is_placing and stealing is not None and "stealing" in scheduler.periodic_callbacks:
            await stealing.stop()

    def bind(self, scheduler: Scheduler) -> None:
        """Bind to a scheduler, unless it is one that this was not written for."""
        self.scheduler = scheduler
        clock = self._clock or time
        self._now: Callable[[], float] = clock
        self._record = Record(self.policy.name if self.policy is not None else "stock")
        self._chosen: dict[Any, Worker] = {}
        self._for_dask: dict[Any, None] = {}
        """Queued tasks that Dask is to place, since deciding on them failed."""
        self._made: Task | None = None
        """Made a moment ago, by the transition just before the one that queues it."""
        self._recalls = Recalls(scheduler, self.mirror.fleet)
        self._is_dirty = False
        self._is_passing = False
        self._measured_s = -1.0
        self._timer_s = float("inf")
        self._binding: Binding | None = None
        for dask_worker in scheduler.workers.values():
            self._joined(self.mirror.worker_joined(dask_worker))
        scheduler.handlers["deepflow_placement"] = self._report
        scheduler.handlers["deepflow_events"] = self._events_of
        scheduler.handlers["deepflow_teach"] = self._teach
        if self.policy is None:
            return
        self.ready = Ready(self.policy)
        self.binder = Binder(
            self.mirror.fleet,
            self.ready,
            self.mirror.links,
            self.policy,
            np.random.default_rng(self.seed),
            self.tuning,
        )
        if not may_use(PLACEMENT):
            self.faults.append(
                f"this version of Dask is not one that placement was written for "
                f"({'; '.join(differences(PLACEMENT))}); install the versions in constraints.txt"
            )
            return
        self._bind(scheduler)

    def _bind(self, scheduler: Scheduler) -> None:
        stock_transitions = scheduler.transitions
        stock_slots = scheduler.stimulus_queue_slots_maybe_opened
        stock_long_running = scheduler.stream_handlers["long-running"]
        stock_status_changed = scheduler.handle_worker_status_change
        stock_remove_plugin = scheduler.remove_plugin
        stock_steal_response = scheduler.stream_handlers.get("steal-response")

        def transitions(recommendations: Any, stimulus_id: str) -> None:
            stock_transitions(recommendations, stimulus_id)
            if self._is_dirty:
                self._pass(stimulus_id)

        def slots(*, stimulus_id: str) -> None:
            self._pass(stimulus_id)
            if not self.is_placing:
                stock_slots(stimulus_id=stimulus_id)

        def status_changed(status: Any, worker: Any, stimulus_id: str) -> None:
            try:
                address = worker if isinstance(worker, str) else worker.address
                name = status if isinstance(status, str) else status.name
                self.mirror.fleet.set_running(address, name == "running")
                if name == "paused":
                    self._recalls.ask_for_all(address)
            except Exception as exc:  # noqa: BLE001 - a guard rail
                self._fault("status_changed", exc)
            stock_status_changed(status, worker, stimulus_id)

        def steal_response(*, key: Any, state: str, stimulus_id: str, **more: Any) -> None:
            if not self._recalls.answered(state, stimulus_id) and stock_steal_response is not None:
                stock_steal_response(key=key, state=state, stimulus_id=stimulus_id, **more)

        def remove_plugin(name: str | None = None) -> None:
            stock_remove_plugin(name)
            if name == self.name and self.is_placing:
                self._leave_to_dask()

        def long_running(key: Any, worker: str, **more: Any) -> None:
            try:
                self.mirror.fleet.secede(worker, key)
            except Exception as exc:  # noqa: BLE001 - a guard rail
                self._fault("long_running", exc)
            stock_long_running(key=key, worker=worker, **more)

        self._stock_transitions = stock_transitions
        self.is_placing = True
        self._binding = Binding(
            scheduler,
            transitions={
                ("waiting", "processing"): self._waiting_processing,
                ("waiting", "queued"): self._waiting_queued,
                ("queued", "processing"): self._queued_processing,
                ("no-worker", "processing"): self._no_worker_processing,
            },
            methods={
                "transitions": transitions,
                "stimulus_queue_slots_maybe_opened": slots,
                "validate_queued": self._validate_queued,
                "handle_worker_status_change": status_changed,
                "remove_plugin": remove_plugin,
            },
            stream_handlers={
                "long-running": long_running,
                "worker-status-change": status_changed,
                "steal-response": steal_response,
            },
        )
        for state in scheduler.tasks.values():
            self._take_over(state)
        self._pass(_STIMULUS)

    def _take_over(self, state: TaskState) -> None:
        """A task that was there before the plugin."""
        now_s = self._now()
        self.mirror.submitted([state], now_s)
        if state.state == "queued":
            self._enqueue(state)
        elif state.state == "processing" and state.processing_on is not None:
            self._is_with(state.key, state.processing_on.address, now_s)

    async def close(self) -> None:
        """The scheduler closes, or the plugin is taken away."""
        if self.is_placing:
            self._leave_to_dask()

    # -- Dask's transitions, as they are here -----------------------------------------------------

    def _stock(self, start: str, finish: str, scheduler: Any, key: Any, stimulus: str) -> Recs:
        assert self._binding is not None
        return self._binding.stock[start, finish](scheduler, key, stimulus)

    def _waiting_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """All inputs are there: queue it, or say that no worker will ever do."""
        state = scheduler.tasks[key]
        if not self.is_placing or state.actor:
            return self._stock("waiting", "processing", scheduler, key, stimulus_id)
        try:
            task = self._made = self.mirror.ready_task(state, self._now())
            if not self._has_fit(task):
                self._say_unplaceable(task)
                return {key: "no-worker"}, {}, {}
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("ready_task", exc)
            return self._by_dask(state, stimulus_id)
        return {key: "queued"}, {}, {}

    def _waiting_queued(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        state = scheduler.tasks[key]
        if not self.is_placing:
            return self._stock("waiting", "queued", scheduler, key, stimulus_id)
        state.state = "queued"
        scheduler.queued.add(state)
        self._enqueue(state)
        return _NOTHING

    def _no_worker_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """A worker has come that may do."""
        state = scheduler.tasks[key]
        if not self.is_placing or state.actor:
            return self._stock("no-worker", "processing", scheduler, key, stimulus_id)
        try:
            if not self._has_fit(self.mirror.ready_task(state, self._now())):
                return _NOTHING
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("ready_task", exc)
            return self._stock("no-worker", "processing", scheduler, key, stimulus_id)
        scheduler.unrunnable.pop(state, None)
        state.state = "queued"
        scheduler.queued.add(state)
        self._enqueue(state)
        return _NOTHING

    def _queued_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        worker = self._chosen.pop(key, None)
        state = scheduler.tasks[key]
        if worker is None:
            if not self.is_placing:
                return self._stock("queued", "processing", scheduler, key, stimulus_id)
            return _NOTHING
        dask_worker = scheduler.workers.get(worker.id)
        if dask_worker is None or dask_worker not in scheduler.running:
            self.mirror.fleet.unassign(worker.id, key)
            self._enqueue(state)
            return _NOTHING
        scheduler.queued.discard(state)
        return scheduler._add_to_processing(state, dask_worker, stimulus_id=stimulus_id)

    def _by_dask(self, state: TaskState, stimulus_id: str) -> Recs:
        """Dask's own choice for one task, whatever state of readiness it is in."""
        scheduler = self.scheduler
        self.n_fallbacks += 1
        scheduler.queued.discard(state)
        dask_worker = scheduler.decide_worker_non_rootish(state)
        if dask_worker is None:
            if state.state == "queued":
                state.state = "waiting"
            return {state.key: "no-worker"}, {}, {}
        return scheduler._add_to_processing(state, dask_worker, stimulus_id=stimulus_id)

    # -- ready tasks ----------------------------------------------------------------------------

    def _enqueue(self, state: TaskState) -> None:
        self._is_dirty = True
        try:
            known = self.mirror.known.get(state.key)
            if known is not None and known.is_on_gpu:
                known.is_on_gpu = False
            task, self._made = self._made, None
            if task is None or task.key != state.key:
                task = self.mirror.ready_task(state, self._now())
            self.ready.add(task)
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._for_dask[state.key] = None
            self._fault("enqueue", exc)

    def _has_fit(self, task: Any) -> bool:
        """Whether some worker could take the task, were it free."""
        # Dask tells of a lost worker only after its tasks are ready again.
        self._sync_workers()
        fleet = self.mirror.fleet
        if not fleet.fits(task.needs, task.only):
            return False
        return not task.memory_bytes or self.binder.unplaceable(task) is None

    def _validate_queued(self, key: Any) -> None:
        """As Dask's, where a queued task may also be confined to some workers."""
        scheduler = self.scheduler
        state = scheduler.tasks[key]
        assert state in scheduler.queued
        assert not state.waiting_on
        assert not state.who_has
        assert not state.processing_on
        for dependency in state.dependencies:
            assert dependency.who_has
            assert state in (dependency.waiters or ())

    def _say_unplaceable(self, task: Any) -> None:
        reasons = self.binder.unplaceable(task)
        if reasons is not None and self.mirror.fleet.workers:
            self._note(Held(self._now(), str(task.key), f"unplaceable: {reasons}"), task.job.run)
            said = {"task": task.name, "run": task.job.run, "reasons": str(reasons)}
            self.scheduler.log_event(UNPLACEABLE_TOPIC, said)

    def _pass(self, stimulus_id: str) -> None:
        """Hand out what can be handed out."""
        if self._is_passing or not self.is_placing:
            return
        self._is_passing = True
        self._is_dirty = False
        now_s = self._now()
        moves: list[Any] = []
        try:
            self.binder.look_again_s = float("inf")
            for key in list(self._for_dask):
                self._dask_chooses(key, moves)
            self._refresh(now_s)
            if len(self._recalls.ahead):
                self._recalls.ask_for_late_ones(now_s)
            if len(self.ready):
                self._decide(now_s, moves)
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self.binder.look_again_s = now_s
            self._fault("pass", exc)
        finally:
            self._is_passing = False
        if moves:
            # Dask takes recommendations from the end.
            self._stock_transitions(dict.fromkeys(reversed(moves), "processing"), stimulus_id)
        if not self.is_placing:
            return
        if self.is_checking:
            self._check()
        self._set_timer(now_s)
        if self._is_dirty:
            self._pass(stimulus_id)

    def _refresh(self, now_s: float) -> None:
        self._sync_workers()
        if now_s - self._measured_s >= _MEASURE_EVERY_S:
            self.mirror.sync_running(self.scheduler)
            self._measured_s = now_s
            self.mirror.read_measurements(self.scheduler)

    def _sync_workers(self) -> None:
        """The table has the workers that Dask has, also where a hook came late or failed."""
        scheduler, fleet = self.scheduler, self.mirror.fleet
        if len(fleet) == len(scheduler.workers):
            return
        self.mirror.sync_running(scheduler)
        for address, dask_worker in scheduler.workers.items():
            if address not in fleet.workers:
                self._joined(self.mirror.worker_joined(dask_worker))
                for state in dask_worker.processing:
                    self._is_with(state.key, address, self._now())

    def _decide(self, now_s: float, moves: list[Any]) -> None:
        fleet, ready = self.mirror.fleet, self.ready
        decisions = self.binder.decide(now_s)
        while True:
            began = perf_counter()
            try:
                decision = next(decisions, None)
            except Exception as exc:  # noqa: BLE001 - a guard rail
                self._fault("policy", exc)
                if not self.is_placing:
                    return
                task = self.binder.looking_at
                if task is not None and ready.remove(task.key) is not None:
                    self._for_dask[task.key] = None
                    self._dask_chooses(task.key, moves)
                decisions = self.binder.decide(now_s)
                continue
            if decision is None:
                return
            task, worker, i = decision.task, decision.worker, decision.chosen
            candidates = decision.candidates
            needs = task.needs
            if decision.on_gpu:
                needs = (*needs, *gpu_needs(task.soft_gpu))
            start_s = now_s + candidates.queue_s[i] + candidates.transfer_s[i]
            fleet.assign(worker, task.key, start_s, start_s + candidates.run_s[i], needs)
            if candidates.queue_s[i] > 0.0:
                begin_s = now_s + candidates.queue_s[i]
                self._recalls.ahead.sent(task.key, worker.id, begin_s, needs, task.only)
            ready.remove(task.key)
            self._chosen[task.key] = worker
            self._prepare(task.key, decision)
            moves.append(task.key)
            self.n_decisions += 1
            self.decision_s.append(perf_counter() - began)
            self._record.decided(now_s, decision)

    def _prepare(self, key: Any, decision: Decision) -> None:
        known = self.mirror.known.get(key)
        if known is None:
            return
        known.is_on_gpu = decision.on_gpu
        state = self.scheduler.tasks[key]
        if decision.task.soft_gpu:
            # Dask holds the GPU for it as for one that needs it; also the worker does.
            restrictions = dict(state.resource_restrictions or {})
            restrictions.pop(GPU_RESOURCE, None)
            if decision.on_gpu:
                restrictions[GPU_RESOURCE] = decision.task.soft_gpu
            state.resource_restrictions = restrictions

    def _dask_chooses(self, key: Any, moves: list[Any]) -> None:
        """Put Dask's choice for a queued task where `queued → processing` finds it.

        Where Dask has none, as when all workers are paused, it is asked again in the next pass.
        """
        state = self.scheduler.tasks.get(key)
        if state is None or state.state != "queued":
            self._for_dask.pop(key, None)
            return
        dask_worker = self.scheduler.decide_worker_non_rootish(state)
        worker = self.mirror.fleet.workers.get(dask_worker.address) if dask_worker else None
        if worker is None:
            return
        self.n_fallbacks += 1
        self._for_dask.pop(key, None)
        self._chosen[key] = worker
        now_s = self._now()
        self.mirror.fleet.assign(worker, key, now_s, now_s + 0.5, _restrictions(state))
        moves.append(key)

    def _set_timer(self, now_s: float) -> None:
        """A held task must be looked at again when what it waits for is overdue."""
        due_s = self._recalls.ahead.next_s()
        if len(self.ready):
            due_s = min(due_s, self.binder.look_again_s)
        if self._for_dask:
            due_s = min(due_s, now_s + _MEASURE_EVERY_S)
        if due_s == float("inf"):
            return
        if self._timer_s > now_s and self._timer_s <= due_s:
            return
        delay_s = max(due_s - now_s, _SOONEST_LOOK_S)
        self._timer_s = now_s + delay_s
        call_later = self._call_later
        if call_later is None:
            call_later = asyncio.get_running_loop().call_later
        call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_s = float("inf")
        self._pass(_STIMULUS)

    def _check(self) -> None:
        """Nothing waits for no reason: a ready task has a cause, and somebody will look again."""
        fleet = self.mirror.fleet
        for state in self.scheduler.queued:
            if state.key in self._for_dask:
                continue
            task = self.ready.get(state.key)
            assert task is not None, f"{state.key} is queued and nobody knows of it"
            free = [
                worker
                for worker in fleet
                if worker.is_free
                and worker.has_free(task.needs)
                and (task.only is None or worker.id in task.only)
                and worker.offers(task.needs)
            ]
            if free and not task.memory_bytes:
                assert self.binder.look_again_s < float("inf"), (
                    f"{state.key} waits ({task.held_because!r}) though {free[0].name} is free, "
                    "and no look is due"
                )
        for worker in fleet:
            dask_worker = self.scheduler.workers[worker.id]
            assert set(worker.assigned) == {ts.key for ts in dask_worker.processing}, worker.name

    # -- what Dask tells ------------------------------------------------------------------------

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        """Tasks came to the scheduler."""
        try:
            now_s = self._now()
            states = [s for key in tasks if (s := scheduler.tasks.get(key)) is not None]
            for known in self.mirror.submitted(states, now_s):
                self._note_submitted(known, scheduler.tasks[known.key], now_s)
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("update_graph", exc)

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, stimulus_id: str, **more: Any
    ) -> None:
        """A task changed its state."""
        try:
            if finish == "processing":
                state = self.scheduler.tasks[key]
                if state.processing_on is not None:
                    self._is_with(key, state.processing_on.address, self._now())
            elif start == "processing":
                self._is_back(key, finish, stimulus_id, more)
            elif start == "queued" and self.is_placing:
                self.ready.remove(key)
                self._for_dask.pop(key, None)
            if finish == "forgotten":
                self.mirror.forget(key)
                self._chosen.pop(key, None)
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("transition", exc)

    def _is_with(self, key: Any, address: str, now_s: float) -> None:
        """A worker has a task now; where Dask chose it, the table does not know yet."""
        known = self.mirror.known.get(key)
        if known is not None:
            known.worker_id = address
        worker = self.mirror.fleet.workers.get(address)
        if worker is None or key in worker.assigned:
            return
        state = self.scheduler.tasks[key]
        needs = _restrictions(state)
        start_s = now_s + worker.free_in_s(now_s)
        expected_s = known.expected_s if known is not None else 0.5
        self.mirror.fleet.assign(worker, key, start_s, start_s + expected_s, needs)
        self._note(Placed(now_s, str(key), worker.name, "stock"), known.job.run if known else "")

    def _is_back(self, key: Any, finish: str, stimulus_id: str, more: dict[str, Any]) -> None:
        """A worker no longer has a task: it has ended, or was taken away."""
        known = self.mirror.known.get(key)
        if known is None:
            return
        if known.is_on_gpu:
            # It can do without: where it is to run again there may be none.
            state = self.scheduler.tasks[key]
            restrictions = dict(state.resource_restrictions or {})
            restrictions.pop(GPU_RESOURCE, None)
            state.resource_restrictions = restrictions
        worker = self.mirror.fleet.workers.get(known.worker_id)
        name = worker.name if worker is not None else known.worker_id
        self.mirror.fleet.unassign(known.worker_id, key)
        self._recalls.ahead.forget(key)
        now_s = self._now()
        if finish == "memory":
            spans = [s for s in more.get("startstops") or () if s["action"] == "compute"]
            started_s = spans[0]["start"] if spans else now_s
            stopped_s = spans[-1]["stop"] if spans else now_s
            n_bytes = int(more.get("nbytes") or 0)
            self.mirror.finished(known, stopped_s - started_s, n_bytes)
            self._note(
                Finished(now_s, str(key), name, started_s, stopped_s, n_bytes, known.is_on_gpu),
                known.job.run,
            )
            if self.is_placing and self.mirror.learned_enough(known):
                for open_one in self.mirror.renew(self.scheduler, known.job):
                    task = self.ready.get(open_one.key)
                    if task is not None and task.rank_s != open_one.rank_s:
                        self.ready.remove(task.key)
                        task.rank_s = open_one.rank_s
                        self.ready.add(task)
        elif is_recall(stimulus_id):
            self._note(Held(now_s, str(key), f"{name} could not begin with it"), known.job.run)
        elif finish != "released":
            self._note(Failed(now_s, str(key), name, finish), known.job.run)
        elif known.worker_id not in self.scheduler.workers:
            self._note(Failed(now_s, str(key), name, "its worker was lost"), known.job.run)
        known.worker_id = ""

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A worker has come."""
        try:
            self._joined(self.mirror.worker_joined(scheduler.workers[worker]))
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("add_worker", exc)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """A worker has gone."""
        try:
            gone = self.mirror.fleet.workers.get(worker)
            self._recalls.forget_worker(worker)
            self.mirror.fleet.leave(worker)
            self._note(WorkerLeft(self._now(), gone.name if gone else worker))
            if self.is_placing:
                for task in self.ready:
                    if not self._has_fit(task):
                        self._say_unplaceable(task)
        except Exception as exc:  # noqa: BLE001 - a guard rail
            self._fault("remove_worker", exc)

    # -- faults ---------------------------------------------------------------------------------

    def _fault(self, where: str, exc: Exception) -> None:
        """Something of ours failed: count it, say it once, and give up after too many."""
        if not any(fault.startswith(where) for fault in self.faults):
            logger.warning(
                "deepflow's placement met a fault in %s, and leaves the task to Dask",
                where,
                exc_info=exc,
            )
        self.faults.append(f"{where}: {exc!r}")
        if self.is_placing and len(self.faults) >= MAX_FAULTS:
            self._fall_back_for_good(f"{len(self.faults)} faults, the last in {where}: {exc!r}")

    def _fall_back_for_good(self, why: str) -> None:
        logger.error("deepflow leaves placement to Dask from now on: %s", why)
        if not self.faults:
            self.faults.append(why)
        if self.is_placing:
            self._leave_to_dask()

    def _leave_to_dask(self) -> None:
        """Put everything back, and hand over what was held."""
        self.is_placing = False
        assert self._binding is not None
        self._binding.undo()
        scheduler = self.scheduler
        moves: Any = {}
        self._chosen.clear()
        self._for_dask.clear()
        for state in list(scheduler.queued):
            scheduler.queued.discard(state)
            state.state = "waiting"
            moves[state.key] = "processing"
        stealing = scheduler.extensions.get("stealing")
        if stealing is not None and self._call_later is None:
            asyncio.ensure_future(stealing.start())  # noqa: RUF006 - it only sets a callback
        if moves:
            scheduler.transitions(moves, _STIMULUS)

    # -- the record -----------------------------------------------------------------------------

    def _note(self, event: Event, run: str = "") -> None:
        self._record.note(event, run)

    def _note_submitted(self, known: Known, state: TaskState, now_s: float) -> None:
        self._note(
            Submitted(
                now_s,
                str(known.key),
                known.name,
                known.job.flow,
                known.job.run,
                tuple(str(dts.key) for dts in state.dependencies),
                int(known.note.get("input_bytes", 0)),
                tuple(sorted((state.resource_restrictions or {}).items())),
                float(known.note.get("soft_gpu", 0.0)),
                -int(state.priority[0]) if state.priority else 0,
                known.n_runs,
            ),
            known.job.run,
        )

    def _joined(self, worker: Worker) -> None:
        self._note(
            WorkerJoined(
                self._now(),
                worker.name,
                worker.worker_class,
                worker.threads,
                worker.memory_limit_bytes,
                worker.host,
                worker.rack,
                worker.zone,
                worker.tier,
                tuple(sorted(worker.resources.items())),
            )
        )

    def events(self) -> list[Event]:
        """What was recorded since the last call, and forgotten here with it."""
        return self._record.drain()

    # -- what may be asked over the network ------------------------------------------------------

    def _events_of(self, comm: Any = None, *, run: str) -> bytes:
        """A run's events, pickled; they are forgotten here."""
        return pickle.dumps(self._record.of_run(run), protocol=5)

    def _teach(self, comm: Any = None, *, flow: str, experience: bytes) -> None:
        """What another driver knows of its flow, which may be unknown here."""
        known: Experience = pickle.loads(experience)
        self.mirror.teach(flow, known.estimates, known.shapes)

    def _report(self, comm: Any = None) -> dict[str, Any]:
        """How it goes (`client.scheduler.deepflow_placement()`)."""
        return {
            "is_placing": self.is_placing,
            "policy": self.policy.name if self.policy is not None else "stock",
            "n_decisions": self.n_decisions,
            "n_fallbacks": self.n_fallbacks,
            "n_recalled": self._recalls.n_recalled,
            "faults": self.faults[-MAX_FAULTS:],
            "n_held": len(self.ready) if self.policy is not None else 0,
        }


def _restrictions(state: TaskState) -> Needs:
    """The resources that a task takes on its worker."""
    return tuple(sorted((state.resource_restrictions or {}).items()))
