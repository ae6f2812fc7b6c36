"""One pass: which ready tasks go to which workers now, and which are held, and why.

*Late binding*: a task is given to a worker when the worker can begin with it, or will be able to
in so short a time that the gap would be felt (`pipeline_s`), and not before; until then it stays in
one queue, where what is learned meanwhile still counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import TYPE_CHECKING, Final

from deepflow.decide.place.candidates import Candidates
from deepflow.decide.place.decision import DEFAULT_TUNING, Decision, Tuning
from deepflow.decide.place.feasible import has_memory
from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.front import Front
from deepflow.decide.place.hold import Hold
from deepflow.decide.place.links import Links
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.ready import JobQueue, Ready
from deepflow.decide.place.run_times import RunTimes
from deepflow.decide.place.shortlist import Shortlist
from deepflow.decide.place.task import Task

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["ALL_BUSY", "Binder"]

_MAX_LOOKS: Final = 8
"""Looks at held tasks between two decisions; more are made in the next pass."""
_MAX_REMEMBERED: Final = 64
_SOON_S: Final = 0.05
_REST: Final = 0.25
"""The share of `pipeline_s` for which a pass that found nothing to send ahead holds good."""
_LONGEST_REST_S: Final = 0.05
"""And no longer than this, for tasks come meanwhile."""
_LASTING_S: Final = 0.05
"""Holds that lapse sooner are looked at one by one."""
_LAPSE: Final = 0.25
"""The share of its gain, in seconds, after which a held task is looked at anew."""
_MEMORY_LOOK_S: Final = 1.0
"""Nothing tells when memory becomes free: so often is it looked at for a task that waits for it."""
_MAX_NEAR: Final = 64
_FEW_BYTES: Final = 65_536
"""Inputs that take no longer to move than a message takes anyway."""
_SHORTEST_S: Final = 1e-6
_SHORT: Final = "shorter than ranking the workers would take"
_INFINITE: Final = float("inf")
_NO_IDS: Final[frozenset[str]] = frozenset()
ALL_BUSY: Final = "every worker that fits is busy"
_ALL_BUSY_OR_FULL: Final = "every worker that fits is busy or has too little memory free"


class Binder:
    """Binds ready tasks to workers; see the top of this file."""

    def __init__(
        self,
        fleet: Fleet,
        ready: Ready,
        links: Links,
        policy: Policy,
        rng: Generator,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        self.fleet = fleet
        self.ready = ready
        self.policy = policy
        self.rng = rng
        self.tuning = tuning
        self.look_again_s = _INFINITE
        """After a pass: when to make the next one if nothing happens before, in absolute time."""
        self._is_shortlisting = policy.looks_at == "shortlist"
        self.shortlist = Shortlist(fleet, links, is_shortlisting=self._is_shortlisting)
        self._rest_s = min(_REST * self.tuning.pipeline_s, _LONGEST_REST_S)
        self._rest_until_s = -_INFINITE
        self._because: dict[str, str] = {}
        """What is said of a task that waits for a worker of each class."""
        self.looking_at: Task | None = None
        """The task that is being decided on, or was last: where a policy fails, the one."""

    # -- a pass ---------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Iterator[Decision]:
        """Decisions one by one. The caller carries each out before it asks for the next:
        `Fleet.assign`, and `Ready.remove`.
        """
        self.look_again_s = _INFINITE
        if not len(self.ready) or not self._may_place(now_s) or self._rests(now_s):
            return
        self.fleet.drop_reservations()
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
                index = cursors[shape]
                front = queue.fronts.get(shape)
                if not index and front is not None and front.stands(self.fleet, now_s):
                    front.reserve(self.fleet)
                    self._again(front.again_s, now_s)
                    for task in front.called(self.fleet):
                        if self.ready.get(task.key) is not task:
                            continue
                        decision, hold = self._look(task, now_s)
                        if decision is not None:
                            yield decision
                            if not self._may_place(now_s) or self._rests(now_s):
                                return
                        elif hold is not None:
                            front.watch(task, hold.watched)
                    cursors[shape] = front.n
                    continue
                tasks = queue.shapes[shape]
                task = tasks[index]
                takes_some = bool(task.needs or task.soft_gpu)
                hold = task.held
                if hold is not None and hold.stands(self.fleet, now_s, takes_some):
                    n_remembered += 1
                    self.fleet.reserve(hold.worker, hold.busy_s)
                else:
                    decision, hold = self._look(task, now_s)
                    if decision is not None:
                        yield decision
                        if not self._may_place(now_s) or self._rests(now_s):
                            return
                        n_looks = n_remembered = 0
                        if shape not in queue.shapes:
                            del cursors[shape]
                        continue
                    if hold is None:
                        del cursors[shape]
                        continue
                    n_looks += 1
                self._again(hold.again_s, now_s)
                if n_looks >= _MAX_LOOKS or n_remembered >= _MAX_REMEMBERED:
                    self.look_again_s = min(self.look_again_s, now_s + _SOON_S)
                    return
                n_more = self._skip(tasks, index, hold)
                cursors[shape] = index + 1 + n_more
                if not index:
                    front = queue.fronts[shape] = Front(takes_some)
                if front is not None and front.n == index and hold.until_s >= now_s + _LASTING_S:
                    front.extend(hold, n_more)
                    front.watch(task, hold.watched)
                    if task.close:
                        for other in tasks[index + 1 : index + 1 + n_more]:
                            front.watch(other, other.close)

        if not self.fleet.free_ids:
            self._rest_until_s = now_s + self._rest_s
            self.fleet.hungry_s = _INFINITE

    def _again(self, again_s: float, now_s: float) -> None:
        """Look again at a hold that stands now: when it may be overdue, or soon if it is."""
        if again_s <= now_s:
            again_s = now_s + _LASTING_S
        if again_s < self.look_again_s:
            self.look_again_s = again_s

    def _rests(self, now_s: float) -> bool:
        """Whether no worker is free, and it was found a moment ago that none should be sent ahead.

        Another look comes so soon that a worker which is to be sent something has it in time.
        """
        if self.fleet.free_ids:
            return False
        until_s = min(self._rest_until_s, self.fleet.hungry_s - self._rest_s)
        if now_s >= until_s:
            return False
        self.look_again_s = min(self.look_again_s, until_s)
        return True

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
                    task = tasks[0]
                    if task.priority < priority:
                        break
                    hold = task.held
                    if hold is not None and hold.stands(
                        self.fleet, now_s, bool(task.needs or task.soft_gpu)
                    ):
                        break
                    decision, _ = self._look(task, now_s)
                    if decision is None or decision.worker is not worker:
                        break
                    yield decision
                    self.fleet.drop_reservations()

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
        if self._is_shortlisting and self._is_short(task):
            first = self.shortlist.first(task)
            if first is not None:
                return self._hand_out(task, now_s, *first), None
        candidates = self.shortlist.candidates(task, now_s)
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
                and has_memory(candidates.workers[best], task)
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
                    return None, self._hold(task, candidates, scores, best, now_s, gain_s)
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

    def _is_short(self, task: Task) -> bool:
        """Whether the task takes no longer than a decision, wherever it runs."""
        times = task.run_s
        return (
            isinstance(times, RunTimes)
            and times.mean_s() < self.tuning.worth_ranking_s
            and task.input_bytes <= _FEW_BYTES
            and not task.near
            and not task.memory_bytes
        )

    def _hand_out(
        self, task: Task, now_s: float, worker: Worker, is_free: bool, on_gpu: bool
    ) -> Decision | None:
        """A short task goes to the first worker that is free, or else will be in a moment."""
        wait_s = 0.0
        if not is_free:
            wait_s = max(worker.free_in_s(now_s, task.needs), _SHORTEST_S)
            if not self._may_pipeline(worker, now_s):
                self.look_again_s = min(self.look_again_s, now_s + wait_s)
                task.held = None
                task.held_because = ALL_BUSY
                return None
        group = worker.group
        assert group is not None
        candidates = Candidates()
        run_s = task.run_s(group.gpu_class if on_gpu else group.worker_class)
        candidates.add(worker, wait_s, 0.0, run_s, on_gpu)
        candidates.n_heads = 1
        return Decision(task, worker, on_gpu, candidates, [wait_s + run_s], 0, _SHORT)

    def _hold(
        self,
        task: Task,
        candidates: Candidates,
        scores: Sequence[float],
        best: int,
        now_s: float,
        gain_s: float,
    ) -> Hold:
        worker = candidates.workers[best]
        fleet, group = self.fleet, worker.group
        assert group is not None
        busy_s = candidates.transfer_s[best] + candidates.run_s[best]
        wait_s = candidates.queue_s[best]
        fleet.reserve(worker, busy_s)
        is_for_any = best < candidates.n_heads
        because = self._because.get(worker.worker_class)
        if because is None:
            because = f"a busy worker of class {worker.worker_class} is expected to end it earlier"
            self._because[worker.worker_class] = because
        task.held_because = because
        against = fleet.free_groups
        least = scores[best] + gain_s
        for i in range(candidates.n_heads):
            of_head = candidates.workers[i].group
            if of_head is not None and scores[i] - candidates.queue_s[i] >= least:
                against |= 1 << of_head.number
        slack_s = _LAPSE * gain_s
        limit_s, lapse_s = _INFINITE, min(slack_s, wait_s)
        if is_for_any and not task.needs and not candidates.on_gpu[best]:
            limit_s, lapse_s = wait_s + slack_s, gain_s
        task.held = hold = Hold(
            worker,
            busy_s,
            limit_s,
            now_s + lapse_s,
            now_s + max(slack_s, wait_s),
            int(gain_s * group.n_threads / busy_s) if is_for_any and busy_s > 0.0 else 0,
            against,
            task.close - fleet.free_ids if task.close else _NO_IDS,
            fleet.n_releases,
            fleet.n_changes,
        )
        return hold


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
