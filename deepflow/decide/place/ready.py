"""Ready tasks, by job and in order within a job."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from operator import attrgetter, itemgetter
from typing import Final

from deepflow.decide.place.front import Front
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.task import Job, Task

__all__ = ["JobQueue", "Ready"]

_ORDER_HOLDS_S: Final = 0.1

_sort_key = attrgetter("sort_key")


class JobQueue:
    """The ready tasks of one job. Those of one *shape* can go to the same workers: if one of them
    finds no worker free, none does."""

    __slots__ = ("by_holder", "fronts", "job", "ordered_priority", "shapes")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ordered_priority = 0
        """Its highest priority when the jobs were put in order."""
        self.shapes: dict[tuple[object, ...], list[Task]] = {}
        self.fronts: dict[tuple[object, ...], Front] = {}
        """The held tasks at the head of each shape that a pass need not look at again."""
        self.by_holder: dict[str, list[Task]] = {}
        """Those with inputs, by the worker that holds most of them."""

    @property
    def first_priority(self) -> int:
        """The highest priority among its tasks."""
        return max(tasks[0].priority for tasks in self.shapes.values())


class Ready:
    """All ready tasks that have no worker yet."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._queues: dict[str, JobQueue] = {}
        self._tasks: dict[object, Task] = {}
        self._numbers = 0
        self._order: list[JobQueue] | None = None
        self._ordered_s = 0.0

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: object) -> bool:
        return key in self._tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def get(self, key: object) -> Task | None:
        """The task with this key, if it is here."""
        return self._tasks.get(key)

    def add(self, task: Task) -> None:
        """A task became ready."""
        order = self._policy.task_order(task)
        self.remove(task.key)
        queue = self._queues.get(task.job.run)
        if queue is None:
            queue = self._queues[task.job.run] = JobQueue(task.job)
            self._order = None
        elif task.priority > queue.ordered_priority:
            self._order = None
        self._numbers += 1
        task.sort_key = (-task.priority, *order, self._numbers)
        shape = task.shape
        tasks = queue.shapes.get(shape)
        if tasks is None:
            queue.shapes[shape] = [task]
        else:
            place = bisect_right(tasks, task.sort_key, key=_sort_key)
            tasks.insert(place, task)
            front = queue.fronts.get(shape)
            if front is not None and place < front.n:
                del queue.fronts[shape]
        if task.main_holder:
            insort(queue.by_holder.setdefault(task.main_holder, []), task, key=_sort_key)
        self._tasks[task.key] = task

    def rerank(self, ranks_s: Mapping[object, float]) -> None:
        """Ranks of tasks have changed: each goes to its new place, in one sort of its job's."""
        jobs: dict[str, JobQueue] = {}
        for key, rank_s in ranks_s.items():
            task = self._tasks.get(key)
            if task is None or task.rank_s == rank_s:
                continue
            task.rank_s = rank_s
            order = self._policy.task_order(task)
            task.sort_key = (-task.priority, *order, task.sort_key[-1])
            jobs[task.job.run] = self._queues[task.job.run]
        for queue in jobs.values():
            queue.fronts.clear()
            for tasks in queue.shapes.values():
                tasks.sort(key=_sort_key)
            for tasks in queue.by_holder.values():
                tasks.sort(key=_sort_key)

    def remove(self, key: object) -> Task | None:
        """A task was placed, or is no longer wanted."""
        task = self._tasks.pop(key, None)
        if task is None:
            return None
        queue = self._queues[task.job.run]
        shape = task.shape
        tasks = queue.shapes[shape]
        place = _take_out(tasks, task)
        front = queue.fronts.get(shape)
        if front is not None and place < front.n:
            front.drop(task.held)
            if not front.n:
                del queue.fronts[shape]
        if task.main_holder:
            near = queue.by_holder[task.main_holder]
            _take_out(near, task)
            if not near:
                del queue.by_holder[task.main_holder]
        if not tasks:
            del queue.shapes[shape]
            if not queue.shapes:
                del self._queues[task.job.run]
                self._order = None
            elif task.priority:
                self._order = None
        return task

    def queues(self, now_s: float) -> list[JobQueue]:
        """The jobs in order: the highest priority among their ready tasks, then the policy's.

        The policy is asked anew when a job comes or goes, and every `_ORDER_HOLDS_S`.
        """
        if self._order is not None and now_s - self._ordered_s < _ORDER_HOLDS_S:
            return self._order
        order = self._policy.job_order
        keyed = []
        for queue in self._queues.values():
            queue.ordered_priority = queue.first_priority
            job = queue.job
            keyed.append(
                (-queue.ordered_priority, order(job, now_s), job.arrived_s, job.run, queue)
            )
        keyed.sort(key=itemgetter(0, 1, 2, 3))
        self._order = [entry[-1] for entry in keyed]
        self._ordered_s = now_s
        return self._order


def _take_out(tasks: list[Task], task: Task) -> int:
    """Where the task was in the list, which it is no longer."""
    place = bisect_left(tasks, task.sort_key, key=_sort_key)
    if place == len(tasks) or tasks[place] is not task:
        # An order of a user's policy that is none, such as by a number that is nan.
        place = tasks.index(task)
    del tasks[place]
    return place
