"""Ready tasks, by job and in order within a job."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from deepflow.decide.place.policy import Policy
from deepflow.decide.place.task import Job, Task

__all__ = ["JobQueue", "Ready"]

_sort_key = attrgetter("sort_key")


class JobQueue:
    """The ready tasks of one job. Those of one *shape* can go to the same workers: if one of them
    finds no worker free, none does."""

    __slots__ = ("by_holder", "job", "shapes")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.shapes: dict[tuple[object, ...], list[Task]] = {}
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
        self.remove(task.key)
        queue = self._queues.get(task.job.run)
        if queue is None:
            queue = self._queues[task.job.run] = JobQueue(task.job)
        self._numbers += 1
        task.sort_key = (-task.priority, *self._policy.task_order(task), self._numbers)
        insort(queue.shapes.setdefault(task.shape, []), task, key=_sort_key)
        if task.main_holder:
            insort(queue.by_holder.setdefault(task.main_holder, []), task, key=_sort_key)
        self._tasks[task.key] = task

    def remove(self, key: object) -> Task | None:
        """A task was placed, or is no longer wanted."""
        task = self._tasks.pop(key, None)
        if task is None:
            return None
        queue = self._queues[task.job.run]
        tasks = queue.shapes[task.shape]
        del tasks[bisect_left(tasks, task.sort_key, key=_sort_key)]
        if task.main_holder:
            near = queue.by_holder[task.main_holder]
            del near[bisect_left(near, task.sort_key, key=_sort_key)]
            if not near:
                del queue.by_holder[task.main_holder]
        if not tasks:
            del queue.shapes[task.shape]
            if not queue.shapes:
                del self._queues[task.job.run]
        return task

    def raise_rank(self, key: object, rank_s: float) -> None:
        """More depends on a task than was known when it became ready."""
        task = self._tasks.get(key)
        if task is not None and rank_s > task.rank_s:
            self.remove(key)
            task.rank_s = rank_s
            self.add(task)

    def queues(self, now_s: float) -> list[JobQueue]:
        """The jobs in order: the highest priority among their ready tasks, then the policy's."""
        if len(self._queues) <= 1:
            return list(self._queues.values())
        order = self._policy.job_order
        return sorted(
            self._queues.values(),
            key=lambda queue: (
                -queue.first_priority,
                order(queue.job, now_s),
                queue.job.arrived_s,
                queue.job.run,
            ),
        )
