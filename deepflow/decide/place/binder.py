"""One pass: which ready tasks go to which workers now, and which are held, and why.

*Late binding*: a task is given to a worker when the worker can begin with it, or will be able to
in so short a time that the gap would be felt (`pipeline_s`), and not before; until then it stays in
one queue, where what is learned meanwhile still counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from operator import attrgetter
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
_LEAST_SHARE: Final = 0.1
"""Of the input bytes, for a worker to be a candidate for holding them."""
_MAX_LOOKS: Final = 32
_MAX_REMEMBERED: Final = 256
_SOON_S: Final = 0.01
_LAPSE: Final = 0.25
"""The share of its gain, in seconds, after which a held task is looked at anew."""
_SHORTEST_S: Final = 1e-6
_MEMORY_LOOK_S: Final = 1.0
"""Nothing tells when memory becomes free: so often is it looked at for a task that waits for it."""
_MAX_NEAR: Final = 64
_INFINITE: Final = float("inf")
_NO_IDS: Final[frozenset[str]] = frozenset()
ALL_BUSY: Final = "every worker that fits is busy"
_ALL_BUSY_OR_FULL: Final = "every worker that fits is busy or has too little memory free"
_number = attrgetter("number")

_Head = tuple[Group, Worker, float, bool]
"""A group, a worker of it, seconds until that is free, whether the task would have a GPU."""


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
    scores: Sequence[float]
    chosen: int
    reason: str = ""


@dataclass(slots=True)
class Hold:
    """A task waits for a better worker although another is free: what was known then."""

    worker: Worker
    busy_s: float
    """How long the task will keep it."""
    due_s: float
    """When it should have begun there."""
    until_s: float
    """When to look again, if not for another reason earlier."""
    n_alike: int
    """How many tasks like it would be held with it."""
    free_groups: int
    free: frozenset[str]
    """Free workers close to its inputs."""
    n_releases: int
    n_changes: int


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
        self._heads: dict[tuple[Needs, float], list[_Head]] = {}
        self._next: dict[tuple[int, Needs], tuple[Worker, int]] = {}
        self.looking_at: Task | None = None
        """The task that is being decided on, or was last: where a policy fails, the one."""

    # -- a pass ---------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Iterator[Decision]:
        """Decisions one by one. The caller carries each out before it asks for the next:
        `Fleet.assign`, and `Ready.remove`.
        """
        self.look_again_s = _INFINITE
        if not len(self.ready) or not self._may_place(now_s):
            return
        self.fleet.drop_reservations()
        self._heads.clear()
        n_looks = n_remembered = 0
        for queue in self.ready.queues(now_s):
            if queue.by_holder and self.policy.near_first:
                yield from self._near_first(queue, now_s)
            # Where to look next in the tasks of each shape that is not known to find no worker.
            cursors = dict.fromkeys(queue.shapes, 0)
            while cursors:
                shape = _next_shape(queue, cursors)
                if shape is None:
                    break
                tasks = queue.shapes[shape]
                index = cursors[shape]
                task = tasks[index]
                hold = task.held
                if hold is not None and self._still_holds(task, hold, now_s):
                    n_remembered += 1
                    self.fleet.reserve(hold.worker, hold.busy_s)
                else:
                    decision, hold = self._look(task, now_s)
                    if decision is not None:
                        yield decision
                        if not self._may_place(now_s):
                            return
                        self._heads.clear()
                        if shape not in queue.shapes:
                            del cursors[shape]
                        continue
                    if hold is None:
                        del cursors[shape]
                        continue
                    n_looks += 1
                self.look_again_s = min(self.look_again_s, hold.due_s)
                if n_looks >= _MAX_LOOKS or n_remembered >= _MAX_REMEMBERED:
                    self.look_again_s = min(self.look_again_s, now_s + _SOON_S)
                    return
                cursors[shape] = index + 1 + self._skip(tasks, index, hold)

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
                    self._heads.clear()
        self.fleet.drop_reservations()
        self._heads.clear()

    def _may_place(self, now_s: float) -> bool:
        """Whether any worker can take a task now."""
        if self.fleet.free_ids:
            return True
        if self._is_shortlisting:
            soon_s = now_s + self.tuning.pipeline_s
            for group in self.fleet.groups.values():
                worker = group.next_free()
                if (
                    worker is not None
                    and worker.first_end_s <= soon_s
                    and self._may_pipeline(worker, now_s)
                ):
                    return True
        return False

    def _may_pipeline(self, worker: Worker, now_s: float) -> bool:
        """Whether a busy worker will be free so soon that it should have its next task by then."""
        ahead = worker.n_busy - worker.threads
        return (
            worker.is_running
            and ahead < max(1, worker.threads // 4)
            and worker.free_in_s(now_s) <= self.tuning.pipeline_s
        )

    def _still_holds(self, task: Task, hold: Hold, now_s: float) -> bool:
        """Whether another look at a held task would come to the same.

        So it is until a good part of the gain may have gone, a worker of a kind that was not free
        then gets free, or one that holds some of its data does.
        """
        fleet = self.fleet
        if now_s >= hold.until_s or fleet.free_groups & ~hold.free_groups:
            return False
        if hold.n_releases != fleet.n_releases and (task.needs or task.soft_gpu):
            return False
        if hold.n_changes != fleet.n_changes:
            return False
        close = task.close
        return not close or close.isdisjoint(fleet.free_ids) or close & fleet.free_ids <= hold.free

    def _skip(self, tasks: list[Task], index: int, hold: Hold) -> int:
        """How many of the tasks after a held one, all like it, would be held just so.

        So many may look forward to the faster workers before one that is idle is the better
        choice; looking at each of them would come to the same.
        """
        if hold.n_alike <= 1:
            return 0
        task = tasks[index]
        n_alike = min(hold.n_alike, len(tasks) - 1 - index)
        if not task.close:
            while n_alike and (tasks[index + n_alike].name != task.name):
                n_alike //= 2
            if n_alike and tasks[index + n_alike].close:
                return 0
        else:
            free_ids, name = self.fleet.free_ids, task.name
            for n in range(n_alike):
                other = tasks[index + 1 + n]
                if other.name != name or not other.close.isdisjoint(free_ids):
                    n_alike = n
                    break
        if n_alike:
            self.fleet.reserve(hold.worker, n_alike * hold.busy_s)
        return n_alike

    def _look(self, task: Task, now_s: float) -> tuple[Decision | None, Hold | None]:
        """Place one task (the decision), hold it for a better worker, or neither: none is free."""
        self.looking_at = task
        candidates = self.candidates(task, now_s)
        queue_s = candidates.queue_s
        if not queue_s:
            task.held_because = ALL_BUSY
            if task.memory_bytes:
                task.held_because = _ALL_BUSY_OR_FULL
                self.look_again_s = min(self.look_again_s, now_s + _MEMORY_LOOK_S)
            return None, None
        scores = self.policy.score(task, candidates, self.rng)
        if type(scores) is not list:
            scores = list(scores)
        if len(scores) != len(queue_s) or isnan(sum(scores)):
            raise ValueError(
                f"policy {self.policy.name!r} scored {len(queue_s)} candidates with {scores!r}; "
                "it must give a number for each"
            )
        best = scores.index(min(scores))
        reason = ""
        wait_s = queue_s[best]
        if wait_s > 0.0:
            if (
                wait_s <= self.tuning.pipeline_s
                and self._may_pipeline(candidates.workers[best], now_s)
                and _has_memory(candidates.workers[best], task)
            ):
                reason = "sent ahead: the worker will be free in a moment"
            else:
                free = [i for i, q in enumerate(queue_s) if q <= 0.0]
                if not free:
                    self.fleet.reserve(
                        candidates.workers[best],
                        candidates.transfer_s[best] + candidates.run_s[best],
                    )
                    self.look_again_s = min(self.look_again_s, now_s + wait_s)
                    task.held = None
                    task.held_because = ALL_BUSY
                    return None, None
                other = min(free, key=scores.__getitem__)
                gain_s = scores[other] - scores[best]
                if gain_s >= self.tuning.worth_holding_s:
                    return None, self._hold(task, candidates, best, now_s, gain_s)
                best = other
                reason = "waiting for a better worker would gain next to nothing"
        return Decision(
            task,
            candidates.workers[best],
            candidates.on_gpu[best],
            candidates,
            scores,
            best,
            reason,
        ), None

    def _hold(
        self, task: Task, candidates: Candidates, best: int, now_s: float, gain_s: float
    ) -> Hold:
        worker = candidates.workers[best]
        fleet, group = self.fleet, worker.group
        assert group is not None
        busy_s = candidates.transfer_s[best] + candidates.run_s[best]
        wait_s = candidates.queue_s[best]
        fleet.reserve(worker, busy_s)
        is_for_any = best < candidates.n_heads
        task.held_because = (
            f"a busy worker of class {worker.worker_class} is expected to end it earlier"
        )
        task.held = hold = Hold(
            worker,
            busy_s,
            now_s + wait_s,
            now_s + min(_LAPSE * gain_s, wait_s),
            int(gain_s * group.n_threads / busy_s) if is_for_any and busy_s > 0.0 else 0,
            fleet.free_groups,
            frozenset(task.close & fleet.free_ids) if task.close else _NO_IDS,
            fleet.n_releases,
            fleet.n_changes,
        )
        return hold

    # -- candidates -----------------------------------------------------------------------------

    def candidates(self, task: Task, now_s: float) -> Candidates:
        """The workers that the policy is shown; filters first. See `Policy.looks_at`."""
        found = Candidates()
        sources = None
        if task.local_bytes or task.near:
            sources = task.sources
            if sources is None or sources.n_changes != self.fleet.n_changes:
                sources = task.sources = Sources(task, self.fleet)
        if self._is_shortlisting:
            self._add_shortlist(found, task, sources, now_s)
        else:
            self._add_free(found, task, sources)
        return found

    def _add_free(self, found: Candidates, task: Task, sources: Sources | None) -> None:
        for group, members in self.fleet.fits(task.needs, task.only):
            if len(members) == len(group.members):
                members = sorted(group.free.values(), key=_number)
            for worker in members:
                if worker.is_free and worker.has_free(task.needs) and _has_memory(worker, task):
                    self._add(found, task, worker, 0.0, sources, _has_gpu_for(worker, task))

    def _add_shortlist(
        self, found: Candidates, task: Task, sources: Sources | None, now_s: float
    ) -> None:
        """The first of each group, and the holders of the task's data."""
        run_s_of = task.run_s
        runs: dict[str, float] = {}
        workers, queues, transfers = found.workers, found.queue_s, found.transfer_s
        soonest_s = _INFINITE
        for group, worker, wait_s, on_gpu in self._heads_for(task, now_s):
            if wait_s > 0.0 and group.reserved_s:
                wait_s += group.reserved_s / group.n_threads
            name = group.gpu_class if on_gpu else group.worker_class
            run_s = runs.get(name)
            if run_s is None:
                run_s = runs[name] = run_s_of(name)
            workers.append(worker)
            queues.append(wait_s)
            found.run_s.append(run_s)
            found.on_gpu.append(on_gpu)
            transfer_s = missing = 0.0
            if sources is not None:
                transfer_s, missing = sources.to(worker, self.links)
                if task.near and worker.id not in task.near:
                    transfer_s += task.away_s
            transfers.append(transfer_s)
            found.missing_share.append(missing)
            finish_s = wait_s + transfer_s + run_s
            if finish_s < soonest_s:
                soonest_s = finish_s
        found.n_heads = len(workers)
        if sources is not None:
            self._add_holders(found, task, sources, now_s, soonest_s)

    def _heads_for(self, task: Task, now_s: float) -> list[_Head]:
        """Of each group the worker to be looked at: one that is free, or the first that will be."""
        key = (task.needs, task.soft_gpu)
        is_common = task.only is None and not task.memory_bytes
        heads = self._heads.get(key) if is_common else None
        if heads is None:
            heads = []
            needs = task.needs
            for group, members in self.fleet.fits(needs, task.only):
                if task.soft_gpu and group.gpu_class:
                    both = (*needs, (GPU_RESOURCE, task.soft_gpu))
                    self._add_head(heads, task, group, members, both, now_s, True)
                self._add_head(heads, task, group, members, needs, now_s, False)
            if is_common:
                self._heads[key] = heads
        return heads

    def _add_head(
        self,
        heads: list[_Head],
        task: Task,
        group: Group,
        members: list[Worker],
        needs: Needs,
        now_s: float,
        on_gpu: bool,
    ) -> None:
        worker = first_free(group, members, needs)
        if worker is not None and task.memory_bytes and not _has_memory(worker, task):
            fitting = (w for w in members if w.is_free and w.has_free(needs))
            worker = next((w for w in fitting if _has_memory(w, task)), None)
        if worker is not None:
            heads.append((group, worker, 0.0, on_gpu))
            return
        if len(members) < len(group.members):
            worker = _first_to_be_free(members, needs, now_s)
        elif not needs:
            worker = group.next_free()
        else:
            known, version = self._next.get((group.number, needs), (None, 0))
            if known is not None and known.version == version and known.id in group.members:
                worker = known
            else:
                worker = _first_to_be_free(members, needs, now_s)
                if worker is not None:
                    self._next[group.number, needs] = (worker, worker.version)
        if worker is not None:
            heads.append((group, worker, max(worker.free_in_s(now_s, needs), _SHORTEST_S), on_gpu))

    def _add_holders(
        self, found: Candidates, task: Task, sources: Sources, now_s: float, soonest_s: float
    ) -> None:
        """The workers that hold most of the task's data, and those near its other inputs.

        Not those that are busy until another one is expected to have done it.
        """
        workers = self.fleet.workers
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
            if (needs and not worker.offers(needs)) or not _has_memory(worker, task):
                continue
            queue_s = 0.0
            if needs or worker.n_busy >= worker.threads:
                queue_s = worker.free_in_s(now_s, needs)
            if queue_s > 0.0 or worker.reserved_s > 0.0:
                queue_s = max(queue_s, _SHORTEST_S) + worker.reserved_s / worker.threads
            if queue_s < soonest_s:
                self._add(found, task, worker, queue_s, sources, _has_gpu_for(worker, task))

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
            transfer_s, missing_share = sources.to(worker, self.links)
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


def _first_to_be_free(members: list[Worker], needs: Needs, now_s: float) -> Worker | None:
    """The member that will have a thread and these resources first."""
    waits = [(w.free_in_s(now_s, needs), w.number, w) for w in members if w.is_running]
    return min(waits)[2] if waits else None


def _has_gpu_for(worker: Worker, task: Task) -> bool:
    """Whether the part of a GPU that the task can use is free there."""
    return (
        task.soft_gpu > 0 and worker.has_gpu and worker.has_free(((GPU_RESOURCE, task.soft_gpu),))
    )


def _has_memory(worker: Worker, task: Task) -> bool:
    """Whether what the task says it needs fits beside what the worker holds.

    On a worker with nothing to do it fits if it ever can: waiting would free no memory there.
    """
    if not task.memory_bytes or not worker.memory_limit_bytes:
        return True
    if not worker.assigned:
        return task.memory_bytes <= worker.memory_limit_bytes
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
    """Where a task's inputs lie: bytes by holder."""

    __slots__ = ("local", "main", "main_bytes", "n_changes", "total_bytes")

    def __init__(self, task: Task, fleet: Fleet) -> None:
        workers = fleet.workers
        self.local = task.local_bytes
        self.total_bytes = float(sum(n_bytes for n_bytes, _ in task.inputs))
        by_bytes = [(n, workers[i]) for i, n in task.local_bytes.items() if i in workers]
        if len(by_bytes) > 1:
            by_bytes.sort(key=_most_bytes_first)
        self.main = by_bytes[:_MAX_HOLDERS]
        """The few that hold most; what is missing is taken to come from them."""
        self.main_bytes = sum(n for n, _ in self.main)
        self.n_changes = fleet.n_changes
        """Of the fleet, as it was."""

    def to(self, worker: Worker, links: Links) -> tuple[float, float]:
        """Seconds until all that `worker` does not hold has come to it, one after the other, and
        the share of the bytes that it does not hold."""
        total = self.total_bytes
        if not total:
            return 0.0, 0.0
        missing = total - self.local.get(worker.id, 0.0)
        if missing <= 0:
            return 0.0, 0.0
        held = self.main_bytes
        for n_bytes, source in self.main:
            if source is worker:
                held -= n_bytes
        if held <= 0:
            return 0.0, missing / total
        # Inputs held in several places are counted at each of them: shares of what is missing.
        part = missing / held
        seconds = 0.0
        known = links.lines_to(worker)
        for n_bytes, source in self.main:
            if source is not worker:
                latency_s, seconds_per_byte = known.get(source.id) or links.line(source, worker)
                seconds += latency_s + part * n_bytes * seconds_per_byte
        return seconds, missing / total


def _most_bytes_first(held: tuple[float, Worker]) -> tuple[float, int]:
    return -held[0], held[1].number


def _next_shape(
    queue: JobQueue, cursors: dict[tuple[object, ...], int]
) -> tuple[object, ...] | None:
    """The shape whose next task goes first; shapes that have no further task are dropped."""
    if len(cursors) == 1:
        (shape,) = cursors
        tasks = queue.shapes.get(shape)
        return shape if tasks is not None and cursors[shape] < len(tasks) else None
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
