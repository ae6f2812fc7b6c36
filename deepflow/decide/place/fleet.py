"""The table of workers, kept up to date event by event so that a decision need not build it.

Workers that are alike (same class, threads, memory and amounts of resources) form a *group*: for a
task without data any free one of a group is as good as another, so a decision looks at one worker
of each group and at those that hold the task's data, however many workers there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Final

from deepflow.hints import CLASS_LABEL, GPU_RESOURCE, parse_label_resource

__all__ = ["Assignment", "Fleet", "Group", "Needs", "Worker"]

Needs = tuple[tuple[str, float], ...]
_OVERDUE_SHARE: Final = 0.3
_SLACK: Final = 1e-9
_STALE: Final = 4
"""Entries for each worker before those that no longer hold are swept out."""


class Assignment:
    """One task that a worker was given and has not finished: expected times, resources taken."""

    __slots__ = ("end_s", "is_seceded", "needs", "start_s")

    def __init__(self, start_s: float, end_s: float, needs: Needs) -> None:
        self.start_s = start_s
        self.end_s = end_s
        self.needs = needs
        self.is_seceded = False


class Worker:
    """One worker: what it is, what it was given, when it expects to be free."""

    __slots__ = (
        "assigned",
        "first_end_s",
        "free_end_s",
        "group",
        "host",
        "id",
        "is_running",
        "labels",
        "memory_limit_bytes",
        "memory_used_bytes",
        "n_busy",
        "name",
        "number",
        "rack",
        "reserved_s",
        "resources",
        "threads",
        "tier",
        "used",
        "version",
        "worker_class",
        "zone",
    )

    def __init__(
        self,
        id: str,
        *,
        name: str = "",
        threads: int = 1,
        memory_limit_bytes: int = 0,
        resources: Mapping[str, float] | None = None,
        host: str = "",
        is_running: bool = True,
    ) -> None:
        self.id = id
        """What the backend knows it by: its address."""
        self.name = name or id
        self.threads = threads
        self.memory_limit_bytes = memory_limit_bytes
        self.memory_used_bytes = 0
        self.resources = dict(resources or {})
        self.used = dict.fromkeys(self.resources, 0.0)
        labels: dict[str, str] = {}
        for resource, amount in self.resources.items():
            label = parse_label_resource(resource)
            if label is not None and amount > 0:
                labels[label[0]] = label[1]
        self.labels = labels
        self.worker_class = labels.get(CLASS_LABEL) or ("gpu" if self.has_gpu else "default")
        self.host = labels.get("host") or host or id
        self.rack = labels.get("rack", "")
        self.zone = labels.get("zone", "")
        self.tier = labels.get("tier", "")
        self.is_running = is_running
        self.assigned: dict[object, Assignment] = {}
        self.n_busy = 0
        """Assignments that take a thread: all but those that have seceded."""
        self.first_end_s = 0.0
        """When the first of its assignments should end, as long as no thread is idle."""
        self.free_end_s = 0.0
        """When a thread should be idle then, if none is late."""
        self.reserved_s = 0.0
        """Seconds that held tasks have set aside during the pass under way."""
        self.version = 0
        self.number = 0
        self.group: Group | None = None

    @property
    def has_gpu(self) -> bool:
        """Whether it offers any part of a GPU."""
        return self.resources.get(GPU_RESOURCE, 0.0) > 0

    @property
    def is_free(self) -> bool:
        """Whether a thread is idle and the worker takes tasks."""
        return self.is_running and self.n_busy < self.threads

    def offers(self, needs: Needs) -> bool:
        """Whether it has these resources in all, in use or not."""
        resources = self.resources
        return all(resources.get(name, 0.0) >= amount for name, amount in needs)

    def has_free(self, needs: Needs) -> bool:
        """Whether these resources are free now."""
        resources, used = self.resources, self.used
        return all(
            resources.get(name, 0.0) - used.get(name, 0.0) >= amount - _SLACK
            for name, amount in needs
        )

    def free_in_s(self, now_s: float, needs: Needs = ()) -> float:
        """Expected seconds until a thread, and these resources, are free; 0 if they are now."""
        wait_s = 0.0
        n_over = self.n_busy - self.threads
        if n_over >= 0 and self.first_end_s > now_s:
            wait_s = self.free_end_s - now_s
        elif n_over >= 0:
            ends = []
            for assignment in self.assigned.values():
                if not assignment.is_seceded:
                    end_s = assignment.end_s
                    ends.append(end_s if end_s > now_s else _end_s(assignment, now_s))
            if n_over < len(ends):
                if len(ends) > 1:
                    ends.sort()
                wait_s = ends[n_over] - now_s
        if needs and not self.has_free(needs):
            wait_s = max(wait_s, self._resources_free_in_s(now_s, needs))
        return wait_s

    def _resources_free_in_s(self, now_s: float, needs: Needs) -> float:
        free = {n: self.resources.get(n, 0.0) - self.used.get(n, 0.0) for n, _ in needs}
        by_end = sorted(self.assigned.values(), key=lambda a: a.end_s)
        for assignment in by_end:
            for name, amount in assignment.needs:
                if name in free:
                    free[name] += amount
            if all(free[name] >= amount - _SLACK for name, amount in needs):
                return max(_end_s(assignment, now_s) - now_s, 0.0)
        return 0.0


def _end_s(assignment: Assignment, now_s: float) -> float:
    """When an assignment ends; one that should have ended takes a share of its time longer."""
    end_s = assignment.end_s
    if end_s > now_s:
        return end_s
    return now_s + max(_OVERDUE_SHARE * (now_s - assignment.start_s), 1e-3)


class Group:
    """Workers that are alike but for where they are and what they hold."""

    __slots__ = (
        "_by_end",
        "_wait_s",
        "_waits_at_s",
        "_waits_version",
        "free",
        "gpu_class",
        "members",
        "n_threads",
        "number",
        "reserved_s",
        "version",
        "worker_class",
    )

    def __init__(self, number: int, worker_class: str, has_gpu: bool) -> None:
        self.number = number
        self.worker_class = worker_class
        self.gpu_class = f"{worker_class}+gpu" if has_gpu else ""
        self.members: dict[str, Worker] = {}
        self.free: dict[str, Worker] = {}
        """Those with an idle thread, the one that has been idle longest first."""
        self.n_threads = 0
        self.reserved_s = 0.0
        """Seconds of held work that looks forward to workers of this group, in this pass."""
        self.version = 0
        """How often the load of a member has changed."""
        self._wait_s = 0.0
        self._waits_version = -1
        self._waits_at_s = 0.0
        self._by_end: list[tuple[float, int, int, Worker]] = []

    def note(self, worker: Worker) -> None:
        """A member's load has changed."""
        worker.version += 1
        self.version += 1
        n_over = worker.n_busy - worker.threads
        if not worker.is_running:
            self.free.pop(worker.id, None)
        elif n_over < 0:
            self.free.setdefault(worker.id, worker)
        else:
            self.free.pop(worker.id, None)
            ends = [a.end_s for a in worker.assigned.values() if not a.is_seceded]
            if len(ends) > 1:
                ends.sort()
            worker.first_end_s = ends[0]
            worker.free_end_s = ends[n_over]
            heap = self._by_end
            heapq.heappush(heap, (ends[n_over], worker.number, worker.version, worker))
            if len(heap) > _STALE * len(self.members) + 64:
                heap[:] = [entry for entry in heap if entry[2] == entry[3].version]
                heapq.heapify(heap)

    def wait_s(self, now_s: float) -> float:
        """Expected seconds until one more task could begin here, after those that are held for it.

        0 where a worker is free, infinite where none runs.
        """
        if self.free:
            return 0.0
        if self._waits_version != self.version or self._waits_at_s != now_s:
            worker = self.next_free()
            self._wait_s = worker.free_in_s(now_s) if worker is not None else float("inf")
            self._waits_version, self._waits_at_s = self.version, now_s
        return self._wait_s + self.reserved_s / self.n_threads

    def next_free(self) -> Worker | None:
        """The busy member that expects to have an idle thread first; None if all are idle."""
        heap = self._by_end
        while heap:
            _, _, version, worker = heap[0]
            if version == worker.version and worker.id in self.members and worker.is_running:
                return worker
            heapq.heappop(heap)
        return None


class Fleet:
    """All workers. The backend feeds it; policies read it."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.groups: dict[tuple[object, ...], Group] = {}
        self.free_ids: set[str] = set()
        """Of the workers with an idle thread."""
        self.free_groups = 0
        """Bit *n*: a worker of group *n* has an idle thread."""
        self.n_releases = 0
        """How often resources were given back."""
        self.n_changes = 0
        """How often workers came or went."""
        self.n_running = 0
        """Workers that take tasks."""
        self.n_threads = 0
        self.hungry_s = float("inf")
        """When the first worker will be idle of those whose load has changed so that they have
        nothing ahead; whoever has seen to them sets it back to infinite."""
        self._numbers = 0
        self._group_numbers = 0
        self._fits: dict[tuple[Needs, frozenset[str] | None], list[tuple[Group, list[Worker]]]] = {}
        self._reserved: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers.values())

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def n_free(self) -> int:
        """Workers with an idle thread."""
        return len(self.free_ids)

    # -- what the backend tells -----------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        """A worker has come."""
        capacity = tuple(
            sorted(
                (name, amount)
                for name, amount in worker.resources.items()
                if parse_label_resource(name) is None
            )
        )
        key = (worker.worker_class, worker.threads, worker.memory_limit_bytes, capacity)
        group = self.groups.get(key)
        if group is None:
            group = Group(self._group_numbers, worker.worker_class, worker.has_gpu)
            self._group_numbers += 1
            self.groups[key] = group
        self._numbers += 1
        worker.number = self._numbers
        worker.group = group
        self.workers[worker.id] = worker
        group.members[worker.id] = worker
        group.n_threads += worker.threads
        self.n_threads += worker.threads
        self.n_changes += 1
        self.n_running += worker.is_running
        self._fits.clear()
        self._note(worker)

    def leave(self, worker_id: str) -> None:
        """A worker has gone, with all it was given."""
        worker = self.workers.pop(worker_id, None)
        if worker is None or worker.group is None:
            return
        self.n_running -= worker.is_running
        worker.is_running = False
        self._note(worker)
        group = worker.group
        del group.members[worker_id]
        group.n_threads -= worker.threads
        self.n_threads -= worker.threads
        if not group.members:
            self.groups = {k: g for k, g in self.groups.items() if g is not group}
        self.n_changes += 1
        self._fits.clear()

    def set_running(self, worker_id: str, is_running: bool) -> None:
        """A worker was paused, or goes on."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.is_running != is_running:
            worker.is_running = is_running
            self.n_running += 1 if is_running else -1
            self._note(worker)

    def assign(
        self, worker: Worker, key: object, start_s: float, end_s: float, needs: Needs = ()
    ) -> None:
        """A worker was given a task."""
        if key in worker.assigned:
            self.unassign(worker.id, key)
        worker.assigned[key] = Assignment(start_s, end_s, needs)
        worker.n_busy += 1
        for name, amount in needs:
            worker.used[name] = worker.used.get(name, 0.0) + amount
        self._note(worker)

    def unassign(self, worker_id: str, key: object) -> None:
        """A worker no longer has a task: it ended there, or was taken away."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        assignment = worker.assigned.pop(key, None)
        if assignment is None:
            return
        if not assignment.is_seceded:
            worker.n_busy -= 1
        if assignment.needs:
            self.n_releases += 1
            for name, amount in assignment.needs:
                worker.used[name] = worker.used[name] - amount
            if not worker.assigned:
                # Exactly: sums of parts that are no powers of two leave a rest.
                worker.used = dict.fromkeys(worker.used, 0.0)
        self._note(worker)

    def secede(self, worker_id: str, key: object) -> None:
        """A task goes on without its thread (`distributed.secede`)."""
        worker = self.workers.get(worker_id)
        assignment = worker.assigned.get(key) if worker is not None else None
        if worker is not None and assignment is not None and not assignment.is_seceded:
            assignment.is_seceded = True
            worker.n_busy -= 1
            self._note(worker)

    def _note(self, worker: Worker) -> None:
        group = worker.group
        assert group is not None, "a worker joins before anything else happens to it"
        group.note(worker)
        if worker.id in group.free:
            self.free_ids.add(worker.id)
            self.free_groups |= 1 << group.number
        else:
            self.free_ids.discard(worker.id)
            if worker.n_busy == worker.threads and worker.free_end_s < self.hungry_s:
                self.hungry_s = worker.free_end_s
            if not group.free:
                self.free_groups &= ~(1 << group.number)

    # -- what policies ask ----------------------------------------------------------------------

    def fits(
        self, needs: Needs, only: frozenset[str] | None = None
    ) -> list[tuple[Group, list[Worker]]]:
        """The workers that offer these resources in all, by group; from a cache.

        Those with GPUs that the task has no need of come last, so that among equals they are left
        for the tasks that have. `only`: ids of the workers to choose from; None: all.
        """
        key = (needs, only)
        known = self._fits.get(key)
        if known is None:
            if len(self._fits) > 1000:
                self._fits.clear()
            known = []
            for group in self.groups.values():
                members = [
                    worker
                    for worker in group.members.values()
                    if (only is None or worker.id in only) and worker.offers(needs)
                ]
                if members:
                    known.append((group, members))
            if all(name != GPU_RESOURCE for name, _ in needs):
                known.sort(key=lambda of: bool(of[0].gpu_class))
            self._fits[key] = known
        return known

    def reserve(self, worker: Worker, seconds: float) -> None:
        """A held task looks forward to `worker`: who comes after it must reckon with that."""
        group = worker.group
        assert group is not None
        worker.reserved_s += seconds
        group.reserved_s += seconds
        self._reserved.append(worker)

    def drop_reservations(self) -> None:
        """At the beginning of a pass: nothing is set aside."""
        for worker in self._reserved:
            worker.reserved_s = 0.0
            if worker.group is not None:
                worker.group.reserved_s = 0.0
        self._reserved.clear()


def first_free(group: Group, members: list[Worker], needs: Needs) -> Worker | None:
    """A member with an idle thread and these resources free; the one idle longest."""
    if len(members) == len(group.members):
        if not needs:
            return next(iter(group.free.values()), None)
        return next((w for w in group.free.values() if w.has_free(needs)), None)
    return next((w for w in members if w.is_free and w.has_free(needs)), None)
