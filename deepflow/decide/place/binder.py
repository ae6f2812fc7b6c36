"""One pass: which ready tasks go to which workers now, and which are held, and why.

*Late binding*: a task is given to a worker when the worker can begin with it, or will be able to
in so short a time that the gap would be felt (`pipeline_s`), and not before; until then it stays in
one queue, where what is learned meanwhile still counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deepflow.decide.place.fleet import Fleet, Group, Needs, Worker, first_free
from deepflow.decide.place.links import Links
from deepflow.decide.place.policy import Candidates, Policy
from deepflow.decide.place.ready import JobQueue, Ready
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from numpy.random import Generator

    from deepflow.decide.place.task import Task

__all__ = ["Binder", "Decision", "Tuning", "Unplaceable"]

_MAX_HOLDERS: Final = 4
_MAX_LOOKS: Final = 256
_SOON_S: Final = 0.1
_MAX_NEAR: Final = 64
_INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a pass behaves; chosen by the judge (`tests/benchmarks/placement.py`)."""

    pipeline_s: float = 0.2
    """A worker whose queue is shorter than this, in expected seconds, may be given a next task."""
    worth_holding_s: float = 0.05
    """A task is not held for a busy worker to gain less than this."""


@dataclass(slots=True)
class Decision:
    """A task goes to a worker: what was known when it was decided."""

    task: Task
    worker: Worker
    on_gpu: bool
    candidates: Candidates
    scores: list[float]
    chosen: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """No worker of the cluster can ever take the task; one reason for each."""

    reasons: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.reasons:
            return "there is no worker"
        by_reason: dict[str, list[str]] = {}
        for worker, reason in self.reasons:
            by_reason.setdefault(reason, []).append(worker)
        return "; ".join(
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {r}"
            for r, names in by_reason.items()
        )


class Binder:
    """Binds ready tasks to workers; see the top of this file."""

    def __init__(
        self,
        fleet: Fleet,
        ready: Ready,
        links: Links,
        policy: Policy,
        rng: Generator,
        tuning: Tuning = Tuning(),
    ) -> None:
        self.fleet = fleet
        self.ready = ready
        self.links = links
        self.policy = policy
        self.rng = rng
        self.tuning = tuning
        self.look_again_s = _INFINITE
        """After a pass: when to make the next one if nothing happens before, in absolute time."""
        self._is_shortlisting = policy.looks_at == "shortlist"
        self._blocked: set[tuple[int, Needs]] = set()
        self._next: dict[tuple[int, Needs], tuple[Worker, float] | None] = {}
        self.looking_at: Task | None = None
        """The task that is being decided on, or was last: where a policy fails, the one."""
        self._held_for: Worker
        self._held_gain_s = 0.0
        self._held_run_s = 0.0
        self._held_threads = 1

    # -- a pass ---------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Iterator[Decision]:
        """Decisions one by one. The caller carries each out before it asks for the next:
        `Fleet.assign`, and `Ready.remove`.
        """
        self.look_again_s = _INFINITE
        fleet = self.fleet
        if not len(self.ready) or not self._may_place(now_s):
            return
        fleet.drop_reservations()
        self._blocked.clear()
        self._next.clear()
        n_looks = 0
        for queue in self.ready.queues(now_s):
            if queue.by_holder and self.policy.near_first:
                yield from self._near_first(queue, now_s)
            # Where to look next in the tasks of each shape that is not known to find no worker.
            cursors = dict.fromkeys(queue.shapes, 0)
            while cursors:
                if not self._may_place(now_s):
                    return
                shape = _next_shape(queue, cursors)
                if shape is None:
                    break
                tasks = queue.shapes[shape]
                index = cursors[shape]
                decision, has_choice = self._look(tasks[index], now_s)
                if decision is not None:
                    yield decision
                    self._next.clear()
                    if shape not in queue.shapes:
                        del cursors[shape]
                    continue
                if not has_choice:
                    del cursors[shape]
                    continue
                n_looks += 1
                if n_looks >= _MAX_LOOKS:
                    self.look_again_s = min(self.look_again_s, now_s + _SOON_S)
                    return
                cursors[shape] = index + 1 + self._skip(tasks, index)

    def _near_first(self, queue: JobQueue, now_s: float) -> Iterator[Decision]:
        """Tasks to free workers that hold their inputs; see `Policy.near_first`."""
        if self.fleet.n_free > _MAX_NEAR:
            return
        priority = queue.first_priority
        least_rank_s = self.policy.near_first * max(t[0].rank_s for t in queue.shapes.values())
        for group in list(self.fleet.groups.values()):
            for worker in list(group.free.values()):
                while worker.is_free:
                    tasks = queue.by_holder.get(worker.id)
                    if not tasks or tasks[0].rank_s < least_rank_s:
                        break
                    if tasks[0].priority < priority:
                        break
                    decision, _ = self._look(tasks[0], now_s)
                    if decision is None or decision.worker is not worker:
                        break
                    yield decision
                    self._next.clear()
        self.fleet.drop_reservations()
        self._blocked.clear()
        self._next.clear()

    def _may_place(self, now_s: float) -> bool:
        """Whether any worker can take a task now."""
        if self.fleet.n_free > 0:
            return True
        return self._is_shortlisting and any(
            self._may_pipeline(worker, now_s)
            for group in self.fleet.groups.values()
            if (worker := group.next_free()) is not None
        )

    def _may_pipeline(self, worker: Worker, now_s: float) -> bool:
        """Whether a busy worker will be free so soon that it should have its next task by then."""
        ahead = worker.n_busy - worker.threads
        return (
            worker.is_running
            and ahead < max(1, worker.threads // 4)
            and worker.free_in_s(now_s) <= self.tuning.pipeline_s
        )

    def _skip(self, tasks: list[Task], index: int) -> int:
        """How many of the tasks after a held one, all like it, would be held just so.

        So many may look forward to the faster workers before one that is idle is the better
        choice; looking at each of them would come to the same.
        """
        task = tasks[index]
        if task.inputs or self._held_run_s <= 0.0:
            return 0
        n_alike = int(self._held_gain_s * self._held_threads / self._held_run_s)
        if n_alike <= 1 or index + n_alike >= len(tasks):
            return 0
        last = tasks[index + n_alike]
        if last.name != task.name or last.inputs:
            return 0
        self.fleet.reserve(self._held_for, n_alike * self._held_run_s)
        return n_alike

    def _look(self, task: Task, now_s: float) -> tuple[Decision | None, bool]:
        """Place one task (the decision) or hold it (None, and whether it had the choice)."""
        self.looking_at = task
        candidates = self.candidates(task, now_s)
        queue_s = candidates.queue_s
        if not queue_s:
            task.held_because = "every worker that fits is busy"
            return None, False
        scores = list(self.policy.score(task, candidates, self.rng))
        best = scores.index(min(scores))
        reason = ""
        wait_s = queue_s[best]
        if wait_s > 0.0 and not (
            wait_s <= self.tuning.pipeline_s and self._may_pipeline(candidates.workers[best], now_s)
        ):
            free = [i for i, q in enumerate(queue_s) if q <= 0.0]
            other = min(free, key=scores.__getitem__, default=None)
            gain_s = _INFINITE if other is None else scores[other] - scores[best]
            if other is None or gain_s >= self.tuning.worth_holding_s:
                self._hold(task, candidates, best, now_s, gain_s)
                return None, other is not None
            best = other
            reason = "waiting for a better worker would gain next to nothing"
        elif wait_s > 0.0:
            reason = "sent ahead: the worker will be free in a moment"
        worker = candidates.workers[best]
        return Decision(
            task, worker, candidates.on_gpu[best], candidates, scores, best, reason
        ), True

    def _hold(
        self, task: Task, candidates: Candidates, best: int, now_s: float, gain_s: float
    ) -> None:
        worker = candidates.workers[best]
        busy_s = candidates.transfer_s[best] + candidates.run_s[best]
        self.fleet.reserve(worker, busy_s)
        self.look_again_s = min(self.look_again_s, now_s + candidates.queue_s[best])
        if gain_s == _INFINITE:
            task.held_because = "every worker that fits is busy"
            return
        assert worker.group is not None
        task.held_because = (
            f"a busy worker of class {worker.worker_class} is expected to end it earlier"
        )
        self._held_for = worker
        self._held_gain_s = gain_s
        self._held_run_s = busy_s
        self._held_threads = worker.group.n_threads

    # -- candidates -----------------------------------------------------------------------------

    def candidates(self, task: Task, now_s: float) -> Candidates:
        """The workers that the policy is shown; filters first. See `Policy.looks_at`."""
        found = Candidates()
        sources = Sources(task.inputs, self.fleet.workers) if task.inputs else _NOWHERE
        groups = self.fleet.fits(task.needs, task.only)
        add = self._add_shortlist if self._is_shortlisting else self._add_free
        for group, members in groups:
            add(found, task, group, members, sources, now_s)
        if self._is_shortlisting:
            self._add_holders(found, task, sources, now_s)
        return found

    def _add_free(
        self,
        found: Candidates,
        task: Task,
        group: Group,
        members: list[Worker],
        sources: Sources,
        now_s: float,
    ) -> None:
        for worker in members:
            if worker.is_free and worker.has_free(task.needs) and _has_memory(worker, task):
                on_gpu = (
                    task.soft_gpu > 0
                    and worker.has_gpu
                    and worker.has_free(((GPU_RESOURCE, task.soft_gpu),))
                )
                self._add(found, task, worker, 0.0, sources, on_gpu)

    def _add_shortlist(
        self,
        found: Candidates,
        task: Task,
        group: Group,
        members: list[Worker],
        sources: Sources,
        now_s: float,
    ) -> None:
        if task.soft_gpu and group.gpu_class:
            needs = (*task.needs, (GPU_RESOURCE, task.soft_gpu))
            self._add_first(found, task, group, members, needs, sources, now_s, on_gpu=True)
        self._add_first(found, task, group, members, task.needs, sources, now_s)

    def _add_first(
        self,
        found: Candidates,
        task: Task,
        group: Group,
        members: list[Worker],
        needs: Needs,
        sources: Sources,
        now_s: float,
        on_gpu: bool = False,
    ) -> None:
        """The member that is free, or else the one that will be first."""
        which = (group.number, needs)
        worker = None
        if which not in self._blocked:
            worker = first_free(group, members, needs)
            if worker is None:
                if task.only is None:
                    self._blocked.add(which)
            elif not _has_memory(worker, task):
                fitting = (w for w in members if w.is_free and w.has_free(needs))
                worker = next((w for w in fitting if _has_memory(w, task)), None)
        if worker is not None:
            self._add(found, task, worker, 0.0, sources, on_gpu)
            return
        if not needs and len(members) == len(group.members):
            worker = group.next_free()
            if worker is None:
                return
            wait_s = worker.free_in_s(now_s)
        else:
            if task.only is not None:
                next_one = _first_to_be_free(members, needs, now_s)
            elif which in self._next:
                next_one = self._next[which]
            else:
                next_one = self._next[which] = _first_to_be_free(members, needs, now_s)
            if next_one is None:
                return
            worker, wait_s = next_one
        queue_s = max(wait_s, 1e-6) + group.reserved_s / max(group.n_threads, 1)
        self._add(found, task, worker, queue_s, sources, on_gpu)

    def _add_holders(self, found: Candidates, task: Task, sources: Sources, now_s: float) -> None:
        """The workers that hold most of the task's data, and those near its other inputs."""
        holders = sources.by_bytes[:_MAX_HOLDERS]
        if not holders and not task.near:
            return
        shown = {worker.id for worker in found.workers}
        near = (self.fleet.workers[i] for i in sorted(task.near) if i in self.fleet.workers)
        for worker in (*(w for _, w in holders), *near):
            if worker.id in shown or not worker.is_running:
                continue
            if task.only is not None and worker.id not in task.only:
                continue
            if not worker.offers(task.needs) or not _has_memory(worker, task):
                continue
            shown.add(worker.id)
            group = worker.group
            assert group is not None
            queue_s = worker.free_in_s(now_s, task.needs)
            if queue_s > 0.0 or worker.reserved_s > 0.0:
                queue_s = max(queue_s, 1e-6) + worker.reserved_s / worker.threads
            on_gpu = (
                task.soft_gpu > 0
                and bool(group.gpu_class)
                and worker.has_free(((GPU_RESOURCE, task.soft_gpu),))
            )
            self._add(found, task, worker, queue_s, sources, on_gpu)

    def _add(
        self,
        found: Candidates,
        task: Task,
        worker: Worker,
        queue_s: float,
        sources: Sources,
        on_gpu: bool,
    ) -> None:
        group = worker.group
        assert group is not None
        transfer_s = missing_share = 0.0
        if sources.by_bytes:
            transfer_s = sources.seconds_to(worker, self.links)
            if sources.total_bytes:
                missing_share = 1.0 - sources.local.get(worker.id, 0.0) / sources.total_bytes
        if task.near and worker.id not in task.near:
            transfer_s += task.away_s
        name = group.gpu_class if on_gpu else group.worker_class
        found.add(worker, queue_s, transfer_s, task.run_s(name), on_gpu, missing_share)

    # -- why not --------------------------------------------------------------------------------

    def unplaceable(self, task: Task) -> Unplaceable | None:
        """None if some worker could take the task once it is free; else a reason for each."""
        reasons = []
        for worker in self.fleet:
            reason = _why_never(worker, task)
            if reason is None:
                return None
            reasons.append((worker.name, reason))
        return Unplaceable(tuple(reasons))


def _first_to_be_free(
    members: list[Worker], needs: Needs, now_s: float
) -> tuple[Worker, float] | None:
    """The member that will have a thread and these resources first, and in how many seconds."""
    waits = [(w.free_in_s(now_s, needs), w.number, w) for w in members if w.is_running]
    if not waits:
        return None
    wait_s, _, worker = min(waits)
    return worker, wait_s


def _has_memory(worker: Worker, task: Task) -> bool:
    """Whether what the task says it needs fits beside what the worker holds."""
    if not task.memory_bytes or not worker.memory_limit_bytes:
        return True
    return worker.memory_used_bytes + task.memory_bytes <= worker.memory_limit_bytes


def _why_never(worker: Worker, task: Task) -> str | None:
    if task.only is not None and worker.id not in task.only:
        return "is none of the workers that the task is confined to"
    for name, amount in task.needs:
        offered = worker.resources.get(name, 0.0)
        if offered < amount:
            return f"offers {offered:g} of {name}, the task needs {amount:g}"
    if task.memory_bytes and 0 < worker.memory_limit_bytes < task.memory_bytes:
        return (
            f"may use {worker.memory_limit_bytes} bytes of memory, "
            f"the task needs {task.memory_bytes}"
        )
    return None


class Sources:
    """Where a task's inputs lie: bytes by holder, the largest first."""

    __slots__ = ("by_bytes", "local", "total_bytes")

    def __init__(
        self, inputs: Sequence[tuple[int, Sequence[str]]], workers: dict[str, Worker]
    ) -> None:
        local: dict[str, float] = {}
        total = 0.0
        for n_bytes, holders in inputs:
            total += n_bytes
            for holder in holders:
                if holder in workers:
                    local[holder] = local.get(holder, 0.0) + n_bytes
        self.local = local
        self.total_bytes = total
        self.by_bytes = sorted(
            ((n, workers[w]) for w, n in local.items()), key=lambda x: (-x[0], x[1].number)
        )

    def seconds_to(self, worker: Worker, links: Links) -> float:
        """Seconds until all that `worker` does not hold has come to it, one after the other."""
        missing = self.total_bytes - self.local.get(worker.id, 0.0)
        if missing <= 0:
            return 0.0
        # Inputs held in several places are counted at each of them: shares of what is missing.
        sources = [
            (n, source) for n, source in self.by_bytes[:_MAX_HOLDERS] if source is not worker
        ]
        held = sum(n for n, _ in sources)
        if not held:
            return 0.0
        return sum(links.seconds(source, worker, missing * n / held) for n, source in sources)


_NOWHERE: Final = Sources((), {})


def _next_shape(
    queue: JobQueue, cursors: dict[tuple[object, ...], int]
) -> tuple[object, ...] | None:
    """The shape whose next task goes first; shapes that have no further task are dropped."""
    first = None
    first_key = None
    for shape in list(cursors):
        tasks = queue.shapes.get(shape)
        index = cursors[shape]
        if tasks is None or index >= len(tasks):
            del cursors[shape]
            continue
        key = tasks[index].sort_key
        if first_key is None or key < first_key:
            first, first_key = shape, key
    return first
