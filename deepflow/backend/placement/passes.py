"""The passes over waiting tasks in a live scheduler, and the timer that makes the next one.

A pass is made after every event that could set something free. Each decision of
`decide.place.binder` is carried out in the table at once; Dask's transitions follow together at the
end of the pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from deepflow.backend.placement.guard import Guard
from deepflow.backend.placement.mirror import Mirror, gpu_needs
from deepflow.backend.placement.news import News, resources_of
from deepflow.backend.placement.recalls import Recalls
from deepflow.backend.placement.record import Record
from deepflow.backend.placement.waiting import Waiting
from deepflow.decide.place.decision import Decision
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["STIMULUS", "CallLater", "Passes"]

CallLater = Callable[[float, Callable[[], None]], object]
"""Calls a function in so many seconds."""
STIMULUS: Final = "deepflow-placement"
"""Dask's name of what happens because of a pass that no event of Dask's caused."""
_MEASURE_EVERY_S: Final = 1.0
_SOONEST_LOOK_S: Final = 0.02


class Passes:
    """Hands out the waiting tasks of one scheduler; see the top of this file."""

    def __init__(
        self,
        scheduler: Scheduler,
        mirror: Mirror,
        waiting: Waiting,
        news: News,
        recalls: Recalls,
        guard: Guard,
        record: Record,
        *,
        now: Callable[[], float],
        call_later: CallLater | None,
        is_checking: bool,
    ) -> None:
        self._scheduler = scheduler
        self._mirror = mirror
        self._waiting = waiting
        self._news = news
        self._recalls = recalls
        self._guard = guard
        self._record = record
        self.now = now
        self.call_later = call_later
        self._is_checking = is_checking
        self._stock_transitions = scheduler.transitions
        self.is_placing = False
        """Whether tasks are placed by passes; False: Dask places them."""
        self._is_passing = False
        self._measured_s = -1.0
        self._timer_s = float("inf")

    def run(self, stimulus_id: str) -> None:
        """Hand out what can be handed out."""
        if self._is_passing or not self.is_placing:
            return
        waiting, recalls = self._waiting, self._recalls
        self._is_passing = True
        waiting.is_dirty = False
        now_s = self.now()
        moves: list[Any] = []
        is_whole = False
        try:
            with self._guard("pass"):
                waiting.binder.look_again_s = float("inf")
                for key in list(waiting.for_dask):
                    self._dask_chooses(key, moves)
                self._refresh(now_s)
                if len(recalls.ahead):
                    recalls.ask_for_late_ones(now_s)
                if len(waiting.ready):
                    self._decide(now_s, moves)
                is_whole = True
        finally:
            self._is_passing = False
        if not is_whole:
            waiting.binder.look_again_s = now_s
        if moves:
            # Dask takes recommendations from the end.
            self._stock_transitions(dict.fromkeys(reversed(moves), "processing"), stimulus_id)
        if not self.is_placing:
            return
        if self._is_checking:
            self._check()
        self._set_timer(now_s)
        if waiting.is_dirty:
            self.run(stimulus_id)

    def _refresh(self, now_s: float) -> None:
        self._news.sync_workers()
        if now_s - self._measured_s >= _MEASURE_EVERY_S:
            self._mirror.sync_running(self._scheduler)
            self._measured_s = now_s
            self._mirror.read_measurements(self._scheduler)

    # -- decisions ------------------------------------------------------------------------------

    def _decide(self, now_s: float, moves: list[Any]) -> None:
        waiting = self._waiting
        ready, binder = waiting.ready, waiting.binder
        decisions = binder.decide(now_s)
        while True:
            began_s = perf_counter()
            decision, is_sound = None, False
            with self._guard("policy"):
                decision = next(decisions, None)
                is_sound = True
            if not is_sound:
                if not self.is_placing:
                    return
                task = binder.looking_at
                if task is not None and ready.remove(task.key) is not None:
                    waiting.for_dask[task.key] = None
                    self._dask_chooses(task.key, moves)
                decisions = binder.decide(now_s)
                continue
            if decision is None:
                return
            self._carry_out(decision, now_s)
            moves.append(decision.task.key)
            self._record.decided(now_s, decision, perf_counter() - began_s)

    def _carry_out(self, decision: Decision, now_s: float) -> None:
        """Enter a decision in the table, for the transition that follows."""
        task, worker, i = decision.task, decision.worker, decision.chosen
        candidates = decision.candidates
        key: Any = task.key
        needs = task.needs
        if decision.on_gpu:
            needs = (*needs, *gpu_needs(task.soft_gpu))
        queue_s = candidates.queue_s[i]
        start_s = now_s + queue_s + candidates.transfer_s[i]
        self._mirror.fleet.assign(worker, key, start_s, start_s + candidates.run_s[i], needs)
        if queue_s > 0.0:
            self._recalls.ahead.sent(key, worker.id, now_s + queue_s, needs, task.only)
        self._waiting.ready.remove(key)
        self._waiting.chosen[key] = worker
        known = self._mirror.known.get(key)
        if known is None:
            return
        known.is_on_gpu = decision.on_gpu
        if task.soft_gpu:
            # Dask holds the GPU for it as for one that needs it; also the worker does.
            state: Any = self._scheduler.tasks[key]
            restrictions = dict(state.resource_restrictions or {})
            restrictions.pop(GPU_RESOURCE, None)
            if decision.on_gpu:
                restrictions[GPU_RESOURCE] = task.soft_gpu
            state.resource_restrictions = restrictions

    def _dask_chooses(self, key: Any, moves: list[Any]) -> None:
        """Put Dask's choice for a queued task where `queued → processing` finds it.

        Where Dask has none, as when all workers are paused, it is asked again in the next pass.
        """
        scheduler, waiting, fleet = self._scheduler, self._waiting, self._mirror.fleet
        state = scheduler.tasks.get(key)
        if state is None or state.state != "queued":
            waiting.for_dask.pop(key, None)
            return
        dask_worker = scheduler.decide_worker_non_rootish(state)
        worker = fleet.workers.get(dask_worker.address) if dask_worker else None
        if worker is None:
            return
        self._record.n_fallbacks += 1
        waiting.for_dask.pop(key, None)
        waiting.chosen[key] = worker
        now_s = self.now()
        fleet.assign(worker, key, now_s, now_s + 0.5, resources_of(state))
        moves.append(key)

    # -- the timer ------------------------------------------------------------------------------

    def _set_timer(self, now_s: float) -> None:
        """A held task must be looked at again when what it waits for is overdue."""
        waiting = self._waiting
        due_s = self._recalls.ahead.next_s()
        if len(waiting.ready):
            due_s = min(due_s, waiting.binder.look_again_s)
        if waiting.for_dask:
            due_s = min(due_s, now_s + _MEASURE_EVERY_S)
        if due_s == float("inf"):
            return
        if self._timer_s > now_s and self._timer_s <= due_s:
            return
        delay_s = max(due_s - now_s, _SOONEST_LOOK_S)
        self._timer_s = now_s + delay_s
        call_later = self.call_later
        if call_later is None:
            call_later = asyncio.get_running_loop().call_later
        call_later(delay_s, partial(self._on_timer, self._timer_s))

    def _on_timer(self, due_s: float) -> None:
        if due_s != self._timer_s:
            return  # An earlier one was set after it.
        self._timer_s = float("inf")
        self.run(STIMULUS)

    # -- checks ---------------------------------------------------------------------------------

    def _check(self) -> None:
        """Nothing waits for no reason: a ready task has a cause, and somebody will look again."""
        fleet, waiting = self._mirror.fleet, self._waiting
        for state in self._scheduler.queued:
            if state.key in waiting.for_dask:
                continue
            task = waiting.ready.get(state.key)
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
                assert waiting.binder.look_again_s < float("inf"), (
                    f"{state.key} waits ({task.held_because!r}) though {free[0].name} is free, "
                    "and no look is due"
                )
        for worker in fleet:
            dask_worker = self._scheduler.workers[worker.id]
            assert set(worker.assigned) == {ts.key for ts in dask_worker.processing}, worker.name
