"""What stands in for the methods of a scheduler while tasks are placed here: Dask's transitions.

A ready task goes to Dask's own `queued` state rather than to a worker. From there it goes to the
worker that a pass chose for it. Whatever goes wrong in this for one task, Dask places that task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from deepflow.backend.placement.guard import Guard
from deepflow.backend.placement.mirror import Mirror
from deepflow.backend.placement.news import News
from deepflow.backend.placement.passes import STIMULUS, Passes
from deepflow.backend.placement.recalls import Recalls
from deepflow.backend.placement.record import Record
from deepflow.backend.placement.stand_ins import Recs, StandIns
from deepflow.backend.placement.waiting import Waiting

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

__all__ = ["Takeover"]

_NOTHING: Final[Recs] = ({}, {}, {})


class Takeover:
    """Placing on one scheduler, from the moment this is made until `undo`.

    Args:
        plugin_name: the plugin by whose removal placing ends.
        on_removed: is called when it has been removed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        mirror: Mirror,
        waiting: Waiting,
        passes: Passes,
        news: News,
        recalls: Recalls,
        guard: Guard,
        record: Record,
        *,
        plugin_name: str,
        on_removed: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._mirror = mirror
        self._waiting = waiting
        self._passes = passes
        self._news = news
        self._recalls = recalls
        self._guard = guard
        self._record = record
        self._plugin_name = plugin_name
        self._on_removed = on_removed
        self._stock_transitions = scheduler.transitions
        self._stock_slots = scheduler.stimulus_queue_slots_maybe_opened
        self._stock_long_running = scheduler.stream_handlers["long-running"]
        self._stock_status_changed = scheduler.handle_worker_status_change
        self._stock_remove_plugin = scheduler.remove_plugin
        self._stock_steal_response = scheduler.stream_handlers.get("steal-response")
        passes.is_placing = True
        self._stand_ins = StandIns(
            scheduler,
            transitions={
                ("waiting", "processing"): self.waiting_processing,
                ("waiting", "queued"): self.waiting_queued,
                ("queued", "processing"): self.queued_processing,
                ("no-worker", "processing"): self.no_worker_processing,
            },
            methods={
                "transitions": self._transitions,
                "stimulus_queue_slots_maybe_opened": self._slots,
                "validate_queued": self._validate_queued,
                "handle_worker_status_change": self._status_changed,
                "remove_plugin": self._remove_plugin,
            },
            stream_handlers={
                "long-running": self._long_running,
                "worker-status-change": self._status_changed,
                "steal-response": self._steal_response,
            },
        )

    def take_over(self) -> None:
        """Place the tasks that were there before."""
        for state in self._scheduler.tasks.values():
            self._mirror.submitted([state], self._passes.now())
            if state.state == "queued":
                self._waiting.enqueue(state)
            elif state.state == "processing" and state.processing_on is not None:
                self._news.is_with(state.key, state.processing_on.address)
        self._passes.run(STIMULUS)

    def undo(self) -> None:
        """Put everything back, and hand over to Dask what was held."""
        self._passes.is_placing = False
        self._stand_ins.undo()
        self._waiting.clear()
        scheduler = self._scheduler
        moves: Any = {}
        for state in list(scheduler.queued):
            scheduler.queued.discard(state)
            state.state = "waiting"
            moves[state.key] = "processing"
        if moves:
            scheduler.transitions(moves, STIMULUS)

    # -- transitions of one task ----------------------------------------------------------------

    def _stock(self, start: str, finish: str, scheduler: Any, key: Any, stimulus: str) -> Recs:
        return self._stand_ins.stock[start, finish](scheduler, key, stimulus)

    def waiting_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """All inputs are there: queue it, or say that no worker will ever do."""
        state = scheduler.tasks[key]
        if not self._passes.is_placing or state.actor:
            return self._stock("waiting", "processing", scheduler, key, stimulus_id)
        with self._guard("ready_task"):
            task = self._waiting.make(state)
            if not self._waiting.has_fit(task):
                self._waiting.say_unplaceable(task)
                return {key: "no-worker"}, {}, {}
            return {key: "queued"}, {}, {}
        return self._by_dask(state, stimulus_id)

    def waiting_queued(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """It is queued, as some worker can take it."""
        state = scheduler.tasks[key]
        if not self._passes.is_placing:
            return self._stock("waiting", "queued", scheduler, key, stimulus_id)
        return self._queue(state)

    def no_worker_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """A worker has come that may do."""
        state = scheduler.tasks[key]
        if not self._passes.is_placing or state.actor:
            return self._stock("no-worker", "processing", scheduler, key, stimulus_id)
        with self._guard("ready_task"):
            if not self._waiting.has_fit(self._mirror.ready_task(state, self._passes.now())):
                return _NOTHING
            scheduler.unrunnable.pop(state, None)
            return self._queue(state)
        return self._stock("no-worker", "processing", scheduler, key, stimulus_id)

    def _queue(self, state: TaskState) -> Recs:
        state.state = "queued"
        self._scheduler.queued.add(state)
        self._waiting.enqueue(state)
        return _NOTHING

    def queued_processing(self, scheduler: Scheduler, key: Any, stimulus_id: str) -> Recs:
        """It goes to the worker that a pass has chosen; without one it waits on."""
        worker = self._waiting.chosen.pop(key, None)
        state = scheduler.tasks[key]
        if worker is None:
            if not self._passes.is_placing:
                return self._stock("queued", "processing", scheduler, key, stimulus_id)
            return _NOTHING
        dask_worker = scheduler.workers.get(worker.id)
        if dask_worker is None or dask_worker not in scheduler.running:
            self._mirror.fleet.unassign(worker.id, key)
            self._waiting.enqueue(state)
            return _NOTHING
        scheduler.queued.discard(state)
        return scheduler._add_to_processing(state, dask_worker, stimulus_id=stimulus_id)

    def _by_dask(self, state: TaskState, stimulus_id: str) -> Recs:
        """Dask's own choice for one task, whatever state of readiness it is in."""
        scheduler = self._scheduler
        self._record.n_fallbacks += 1
        scheduler.queued.discard(state)
        dask_worker = scheduler.decide_worker_non_rootish(state)
        if dask_worker is None:
            if state.state == "queued":
                state.state = "waiting"
            return {state.key: "no-worker"}, {}, {}
        return scheduler._add_to_processing(state, dask_worker, stimulus_id=stimulus_id)

    # -- methods --------------------------------------------------------------------------------

    def _transitions(self, recommendations: Any, stimulus_id: str) -> None:
        self._stock_transitions(recommendations, stimulus_id)
        if self._waiting.is_dirty:
            self._passes.run(stimulus_id)

    def _slots(self, *, stimulus_id: str) -> None:
        self._passes.run(stimulus_id)
        if not self._passes.is_placing:
            self._stock_slots(stimulus_id=stimulus_id)

    def _validate_queued(self, key: Any) -> None:
        """As Dask's, where a queued task may also be confined to some workers."""
        scheduler = self._scheduler
        state = scheduler.tasks[key]
        assert state in scheduler.queued
        assert not state.waiting_on
        assert not state.who_has
        assert not state.processing_on
        for dependency in state.dependencies:
            assert dependency.who_has
            assert state in (dependency.waiters or ())

    def _remove_plugin(self, name: str | None = None) -> None:
        self._stock_remove_plugin(name)
        if name == self._plugin_name and self._passes.is_placing:
            self._on_removed()

    def _status_changed(self, status: Any, worker: Any, stimulus_id: str) -> None:
        with self._guard("status_changed"):
            address = worker if isinstance(worker, str) else worker.address
            name = status if isinstance(status, str) else status.name
            self._mirror.fleet.set_running(address, name == "running")
            if name == "paused":
                self._recalls.ask_for_all(address)
        self._stock_status_changed(status, worker, stimulus_id)

    # -- messages of workers --------------------------------------------------------------------

    def _long_running(self, key: Any, worker: str, **more: Any) -> None:
        with self._guard("long_running"):
            self._mirror.fleet.secede(worker, key)
        self._stock_long_running(key=key, worker=worker, **more)

    def _steal_response(self, *, key: Any, state: str, stimulus_id: str, **more: Any) -> None:
        if self._recalls.answered(state, stimulus_id):
            return
        if self._stock_steal_response is not None:
            self._stock_steal_response(key=key, state=state, stimulus_id=stimulus_id, **more)
