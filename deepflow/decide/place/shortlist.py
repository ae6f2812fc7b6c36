"""The workers that a policy is shown for a task; filters come before scores."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from deepflow.decide.place.candidates import Candidates
from deepflow.decide.place.feasible import has_gpu_for, has_memory
from deepflow.decide.place.fleet import Fleet, Group, Needs, Worker, first_free
from deepflow.decide.place.links import Links
from deepflow.decide.place.run_times import RunTimes
from deepflow.decide.place.sources import Sources
from deepflow.decide.place.task import Task
from deepflow.hints import GPU_RESOURCE

__all__ = ["Shortlist"]

_LEAST_SHARE: Final = 0.1
"""Share of the input bytes that a worker must hold to be a candidate for holding them."""
_SHORTEST_S: Final = 1e-6
_INFINITE: Final = float("inf")
_number = attrgetter("number")

_MAX_KEPT: Final = 256


class _Head:
    """The worker of a group that is looked at for tasks with these needs."""

    __slots__ = ("group", "is_free", "members", "needs", "on_gpu", "version", "worker")

    def __init__(self, group: Group, members: list[Worker], needs: Needs, on_gpu: bool) -> None:
        self.group = group
        self.members = members
        self.needs = needs
        self.on_gpu = on_gpu
        """Whether the task would have a GPU."""
        self.worker: Worker | None = None
        """One that is free, or the first that will be; None: there is none."""
        self.is_free = False
        self.version = -1
        """The group's when this was found."""


class Shortlist:
    """Finds the candidates for a task, by what a policy looks at (`Policy.looks_at`).

    The first worker of each group is found once and kept until something changes in the group.
    """

    def __init__(self, fleet: Fleet, links: Links, *, is_shortlisting: bool) -> None:
        self._fleet = fleet
        self._links = links
        self._is_shortlisting = is_shortlisting
        self._heads: dict[tuple[Needs, float], list[_Head]] = {}
        self._n_changes = -1
        """How often workers had come or gone when the heads were found."""
        self._next: dict[tuple[int, Needs], tuple[Worker, int]] = {}
        self._now_s = 0.0

    def candidates(self, task: Task, now_s: float) -> Candidates:
        """The workers that the policy is shown; filters first. See `Policy.looks_at`."""
        self._now_s = now_s
        found = Candidates()
        sources = None
        if task.local_bytes or task.near:
            sources = task.sources
            if sources is None or sources.n_changes != self._fleet.n_changes:
                sources = task.sources = Sources(task.inputs, task.local_bytes, self._fleet)
        if self._is_shortlisting:
            self._add_shortlist(found, task, sources, now_s)
        else:
            self._add_free(found, task, sources)
        return found

    def _add_free(self, found: Candidates, task: Task, sources: Sources | None) -> None:
        for group, members in self._fleet.fits(task.needs, task.only):
            if len(members) == len(group.members):
                members = sorted(group.free.values(), key=_number)
            for worker in members:
                if worker.is_free and worker.has_free(task.needs) and has_memory(worker, task):
                    self._add(found, task, worker, 0.0, sources, has_gpu_for(worker, task))

    def _add_shortlist(
        self, found: Candidates, task: Task, sources: Sources | None, now_s: float
    ) -> None:
        """The first of each group, and the holders of the task's data."""
        run_s_of = task.run_s
        runs: dict[str, float] = {}
        if isinstance(run_s_of, RunTimes):
            runs = run_s_of.by_class()
            run_s_of = run_s_of.ask
        links, near = self._links, task.near
        workers, queues, transfers = found.workers, found.queue_s, found.transfer_s
        run_times, on_gpus, shares = found.run_s, found.on_gpu, found.missing_share
        soonest_s = _INFINITE
        for head in self._heads_for(task):
            group = head.group
            if head.version != group.version:
                self._renew(head, task)
            worker = head.worker
            if worker is None:
                continue
            wait_s = 0.0
            if not head.is_free:
                if worker.first_end_s > now_s and not head.needs:
                    wait_s = worker.free_end_s - now_s
                else:
                    wait_s = worker.free_in_s(now_s, head.needs)
                if wait_s < _SHORTEST_S:
                    wait_s = _SHORTEST_S
                if group.reserved_s:
                    wait_s += group.reserved_s / group.n_threads
            name = group.gpu_class if head.on_gpu else group.worker_class
            run_s = runs.get(name)
            if run_s is None:
                run_s = runs[name] = run_s_of(name)
            transfer_s = missing = 0.0
            if sources is not None:
                transfer_s, missing = sources.to(worker, links)
                if near and worker.id not in near:
                    transfer_s += task.away_s
            workers.append(worker)
            queues.append(wait_s)
            run_times.append(run_s)
            on_gpus.append(head.on_gpu)
            transfers.append(transfer_s)
            shares.append(missing)
            finish_s = wait_s + transfer_s + run_s
            if finish_s < soonest_s:
                soonest_s = finish_s
        found.n_heads = len(workers)
        if sources is not None:
            self._add_holders(found, task, sources, now_s, soonest_s)

    def first(self, task: Task) -> tuple[Worker, bool, bool] | None:
        """A worker that is free, or else one that will be first in its group.

        With it: whether it is free, and whether the task would have a GPU.
        """
        busy: tuple[Worker, bool, bool] | None = None
        for head in self._heads_for(task):
            if head.version != head.group.version:
                self._renew(head, task)
            if head.worker is None:
                continue
            if head.is_free:
                return head.worker, True, head.on_gpu
            if busy is None or head.worker.free_end_s < busy[0].free_end_s:
                busy = head.worker, False, head.on_gpu
        return busy

    def _heads_for(self, task: Task) -> list[_Head]:
        """One head of each group that fits; two where the task can use a GPU but needs none."""
        if self._n_changes != self._fleet.n_changes or len(self._heads) > _MAX_KEPT:
            self._heads.clear()
            self._n_changes = self._fleet.n_changes
        key = (task.needs, task.soft_gpu)
        is_common = task.only is None and not task.memory_bytes
        heads = self._heads.get(key) if is_common else None
        if heads is None:
            heads = []
            needs = task.needs
            for group, members in self._fleet.fits(needs, task.only):
                if task.soft_gpu and group.gpu_class:
                    both = (*needs, (GPU_RESOURCE, task.soft_gpu))
                    heads.append(_Head(group, members, both, True))
                heads.append(_Head(group, members, needs, False))
            if is_common:
                self._heads[key] = heads
        return heads

    def _renew(self, head: _Head, task: Task) -> None:
        """Find the head's worker anew."""
        group, members, needs = head.group, head.members, head.needs
        head.version = group.version
        worker = first_free(group, members, needs)
        if worker is not None and task.memory_bytes and not has_memory(worker, task):
            fitting = (w for w in members if w.is_free and w.has_free(needs))
            worker = next((w for w in fitting if has_memory(w, task)), None)
        head.is_free = worker is not None
        if worker is None:
            worker = self._first_to_be_free(group, members, needs)
        head.worker = worker

    def _first_to_be_free(self, group: Group, members: list[Worker], needs: Needs) -> Worker | None:
        if len(members) < len(group.members):
            return _first_to_be_free(members, needs, self._now_s)
        if not needs:
            return group.next_free()
        known, version = self._next.get((group.number, needs), (None, 0))
        if known is not None and known.version == version and known.id in group.members:
            return known
        worker = _first_to_be_free(members, needs, self._now_s)
        if worker is not None:
            self._next[group.number, needs] = (worker, worker.version)
        return worker

    def _add_holders(
        self, found: Candidates, task: Task, sources: Sources, now_s: float, soonest_s: float
    ) -> None:
        """The workers that hold most of the task's data, and those near its other inputs.

        Not those that are busy until another one is expected to have done it.
        """
        workers = self._fleet.workers
        least = _LEAST_SHARE * sources.total_bytes
        holders = [worker for n_bytes, worker in sources.main if n_bytes >= least]
        if task.near:
            holders += [workers[i] for i in sorted(task.near) if i in workers]
        heads = found.workers
        for worker in holders:
            if worker in heads or not worker.is_running:
                continue
            if task.only is not None and worker.id not in task.only:
                continue
            needs = task.needs
            if (needs and not worker.offers(needs)) or not has_memory(worker, task):
                continue
            queue_s = 0.0
            if needs or worker.n_busy >= worker.threads:
                queue_s = worker.free_in_s(now_s, needs)
            if queue_s > 0.0 or worker.reserved_s > 0.0:
                queue_s = max(queue_s, _SHORTEST_S) + worker.reserved_s / worker.threads
            if queue_s < soonest_s:
                self._add(found, task, worker, queue_s, sources, has_gpu_for(worker, task))

    def _add(
        self,
        found: Candidates,
        task: Task,
        worker: Worker,
        queue_s: float,
        sources: Sources | None,
        on_gpu: bool,
    ) -> None:
        group = worker.group
        assert group is not None
        transfer_s = missing_share = 0.0
        if sources is not None:
            transfer_s, missing_share = sources.to(worker, self._links)
            if task.near and worker.id not in task.near:
                transfer_s += task.away_s
        name = group.gpu_class if on_gpu else group.worker_class
        found.add(worker, queue_s, transfer_s, task.run_s(name), on_gpu, missing_share)


def _first_to_be_free(members: list[Worker], needs: Needs, now_s: float) -> Worker | None:
    """The member that will have a thread and these resources first."""
    waits = [(w.free_in_s(now_s, needs), w.number, w) for w in members if w.is_running]
    return min(waits)[2] if waits else None
