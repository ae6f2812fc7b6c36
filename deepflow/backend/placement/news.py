"""What Dask tells of workers and tasks, taken into the table of workers and the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepflow.backend.placement.mirror import Known, Mirror
from deepflow.backend.placement.recalls import Recalls, is_recall
from deepflow.backend.placement.record import Record
from deepflow.decide.place.fleet import Needs
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState
    from distributed.scheduler import WorkerState as DaskWorker

__all__ = ["News", "resources_of"]


class News:
    """Keeps the mirror of one scheduler and its record up to date."""

    def __init__(
        self,
        scheduler: Scheduler,
        mirror: Mirror,
        recalls: Recalls,
        record: Record,
        now: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._mirror = mirror
        self._recalls = recalls
        self._record = record
        self._now = now

    # -- workers --------------------------------------------------------------------------------

    def worker_joined(self, dask_worker: DaskWorker) -> None:
        """A worker has come."""
        self._record.joined(self._now(), self._mirror.worker_joined(dask_worker))

    def worker_left(self, address: str) -> None:
        """A worker has gone."""
        fleet = self._mirror.fleet
        gone = fleet.workers.get(address)
        self._recalls.forget_worker(address)
        fleet.leave(address)
        self._record.left(self._now(), gone.name if gone else address)

    def sync_workers(self) -> None:
        """The table has the workers that Dask has, also where a hook came late or failed."""
        scheduler, fleet = self._scheduler, self._mirror.fleet
        if len(fleet) == len(scheduler.workers):
            return
        self._mirror.sync_running(scheduler)
        for address, dask_worker in scheduler.workers.items():
            if address not in fleet.workers:
                self.worker_joined(dask_worker)
                for state in dask_worker.processing:
                    self.is_with(state.key, address)

    # -- tasks ----------------------------------------------------------------------------------

    def submitted(self, states: list[TaskState]) -> None:
        """Tasks came to the scheduler."""
        now_s = self._now()
        for known in self._mirror.submitted(states, now_s):
            self._record.submitted(now_s, known, self._scheduler.tasks[known.key])

    def is_with(self, key: Any, address: str) -> None:
        """A worker has a task now; where Dask chose it, the table does not know yet."""
        known = self._mirror.known.get(key)
        if known is not None:
            known.worker_id = address
        fleet = self._mirror.fleet
        worker = fleet.workers.get(address)
        if worker is None or key in worker.assigned:
            return
        now_s = self._now()
        start_s = now_s + worker.free_in_s(now_s)
        expected_s = known.expected_s if known is not None else 0.5
        needs = resources_of(self._scheduler.tasks[key])
        fleet.assign(worker, key, start_s, start_s + expected_s, needs)
        self._record.placed_by_dask(now_s, key, worker.name, known.job.run if known else "")

    def is_back(
        self, key: Any, finish: str, stimulus_id: str, more: dict[str, Any]
    ) -> Known | None:
        """A worker no longer has a task: it has ended, or was taken away.

        What is known of the task, where it ended with a result.
        """
        known = self._mirror.known.get(key)
        if known is None:
            return None
        if known.is_on_gpu:
            # It can do without: where it is to run again there may be none.
            state = self._scheduler.tasks[key]
            restrictions = dict(state.resource_restrictions or {})
            restrictions.pop(GPU_RESOURCE, None)
            state.resource_restrictions = restrictions
        address = known.worker_id
        worker = self._mirror.fleet.workers.get(address)
        name = worker.name if worker is not None else address
        self._mirror.fleet.unassign(address, key)
        ahead = self._recalls.ahead
        if len(ahead):
            ahead.forget(key)
            if worker is not None:
                ahead.freed(worker)
        now_s = self._now()
        record, run = self._record, known.job.run
        if finish == "memory":
            spans = [s for s in more.get("startstops") or () if s["action"] == "compute"]
            started_s = spans[0]["start"] if spans else now_s
            stopped_s = spans[-1]["stop"] if spans else now_s
            n_bytes = int(more.get("nbytes") or 0)
            self._mirror.finished(known, stopped_s - started_s, n_bytes)
            record.finished(now_s, known, name, started_s, stopped_s, n_bytes)
        elif is_recall(stimulus_id):
            record.held(now_s, key, f"{name} could not begin with it", run)
        elif finish != "released":
            record.failed(now_s, key, name, finish, run)
        elif address not in self._scheduler.workers:
            record.failed(now_s, key, name, "its worker was lost", run)
        known.worker_id = ""
        return known if finish == "memory" else None


def resources_of(state: TaskState) -> Needs:
    """The resources that a task takes on its worker."""
    return tuple(sorted((state.resource_restrictions or {}).items()))
