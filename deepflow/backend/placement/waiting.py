"""The tasks of one scheduler that wait to be placed, in Dask's own `queued` state.

Most wait in the order of the policy. A task that could not be decided on waits for Dask to place it
in the next pass. A task that a pass has decided on waits for its transition, which follows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deepflow.backend.placement.guard import Guard
from deepflow.backend.placement.mirror import Known, Mirror
from deepflow.backend.placement.news import News
from deepflow.backend.placement.record import Record
from deepflow.decide.place.binder import Binder
from deepflow.decide.place.decision import Tuning
from deepflow.decide.place.feasible import unplaceable
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.task import Task

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

    from deepflow.decide.place.fleet import Worker

__all__ = ["UNPLACEABLE_TOPIC", "Waiting"]

UNPLACEABLE_TOPIC: Final = "deepflow-unplaceable"
"""The topic of messages that no worker can ever take a task as things are: task, run, reasons."""


class Waiting:
    """The waiting tasks of one scheduler; see the top of this file."""

    def __init__(
        self,
        scheduler: Scheduler,
        mirror: Mirror,
        news: News,
        guard: Guard,
        record: Record,
        policy: Policy,
        *,
        tuning: Tuning,
        seed: int,
        now: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._mirror = mirror
        self._news = news
        self._guard = guard
        self._record = record
        self._now = now
        self.ready = Ready(policy)
        self.binder = Binder(
            mirror.fleet, self.ready, mirror.links, policy, np.random.default_rng(seed), tuning
        )
        self.for_dask: dict[Any, None] = {}
        """Keys of queued tasks that Dask is to place, since deciding on them failed."""
        self.chosen: dict[Any, Worker] = {}
        """The workers of tasks that were decided on and are about to be processed."""
        self.is_dirty = False
        """Whether a task has begun to wait since the last pass began."""
        self._made: Task | None = None
        """The task made by the transition just before the one that queues it."""

    def make(self, state: TaskState) -> Task:
        """The task as policies see it, kept for the `enqueue` that follows."""
        task = self._made = self._mirror.ready_task(state, self._now())
        return task

    def enqueue(self, state: TaskState) -> None:
        """A task is in Dask's `queued` state: it waits for the next pass."""
        self.is_dirty = True
        with self._guard("enqueue"):
            known = self._mirror.known.get(state.key)
            if known is not None and known.is_on_gpu:
                known.is_on_gpu = False
            task, self._made = self._made, None
            if task is None or task.key != state.key:
                task = self._mirror.ready_task(state, self._now())
            self.ready.add(task)
            return
        self.for_dask[state.key] = None

    def remove(self, key: Any) -> None:
        """A task is no longer in Dask's `queued` state."""
        self.ready.remove(key)
        self.for_dask.pop(key, None)

    def clear(self) -> None:
        """Nothing is to be handed out from here any more."""
        self.chosen.clear()
        self.for_dask.clear()

    def has_fit(self, task: Task) -> bool:
        """Whether some worker could take the task, were it free."""
        # Dask tells of a lost worker only after its tasks are ready again.
        self._news.sync_workers()
        fleet = self._mirror.fleet
        if not fleet.fits(task.needs, task.only):
            return False
        return not task.memory_bytes or unplaceable(fleet, task) is None

    def say_unplaceable(self, task: Task) -> None:
        """Tell subscribers and the record why no worker can take a task."""
        fleet = self._mirror.fleet
        reasons = unplaceable(fleet, task)
        if reasons is not None and fleet.workers:
            self._record.held(self._now(), task.key, f"unplaceable: {reasons}", task.job.run)
            said = {"task": task.name, "run": task.job.run, "reasons": str(reasons)}
            self._scheduler.log_event(UNPLACEABLE_TOPIC, said)

    def look_for_unplaceable(self) -> None:
        """A worker has gone: say it of every task that only that one could have taken."""
        for task in self.ready:
            if not self.has_fit(task):
                self.say_unplaceable(task)

    def renew(self, known: Known) -> None:
        """A task has ended: where its job has learned enough, its waiting tasks rank anew."""
        if not self._mirror.learned_enough(known):
            return
        renewed = self._mirror.renew(self._scheduler, known.job)
        self.ready.rerank({one.key: one.rank_s for one in renewed})
