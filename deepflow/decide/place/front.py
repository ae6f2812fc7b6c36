"""The tasks at the head of a queue that are all held, told as one: a pass goes on behind them."""

from __future__ import annotations

from deepflow.decide.place.fleet import Fleet, Group, Worker
from deepflow.decide.place.hold import Hold
from deepflow.decide.place.task import Task

__all__ = ["Front"]


class Front:
    """The first `n` tasks of one queue and shape, as long as what holds them stands.

    Args:
        takes_some: whether tasks of the shape take resources beside a thread.
    """

    __slots__ = (
        "again_s",
        "against",
        "limits",
        "n",
        "n_changes",
        "n_releases",
        "own_s",
        "reserved",
        "takes_some",
        "until_s",
        "watchers",
    )

    def __init__(self, takes_some: bool) -> None:
        self.takes_some = takes_some
        self.n = 0
        self.until_s = float("inf")
        """When the first of the holds lapses."""
        self.again_s = float("inf")
        """When a pass must be made for them, if no event makes one."""
        self.against = -1
        """Groups that each of the tasks would rather wait than go to, as bits."""
        self.watchers: dict[str, list[Task]] = {}
        """The tasks that are close to each worker that was not free, by its id."""
        self.reserved: dict[str, tuple[Worker, float]] = {}
        """Seconds that they have set aside, by worker."""
        self.limits: dict[int, tuple[Group, float]] = {}
        """The longest wait for each group, by number, that those who wait for it should have; what
        they have set aside themselves does not count."""
        self.own_s: dict[int, float] = {}
        """Seconds that were set aside when the latest of them was held, by number of the group."""
        self.n_releases = -1
        self.n_changes = -1

    def stands(self, fleet: Fleet, now_s: float) -> bool:
        """Whether a look at a task would come to the same, but for those that are `called`."""
        return (
            now_s < self.until_s
            and not fleet.free_groups & ~self.against
            and self.n_changes == fleet.n_changes
            and (not self.takes_some or self.n_releases == fleet.n_releases)
            and self._waits_are_short(now_s)
        )

    def _waits_are_short(self, now_s: float) -> bool:
        for group, limit_s in self.limits.values():  # noqa: SIM110 - compiled, a loop is quicker
            if group.wait_s(now_s) > limit_s:
                return False
        return True

    def called(self, fleet: Fleet) -> list[Task]:
        """The tasks to be looked at, since workers close to them are free now; each once."""
        found: list[Task] = []
        watchers = self.watchers
        if not watchers.keys().isdisjoint(fleet.free_ids):
            for worker_id in sorted(watchers.keys() & fleet.free_ids):
                found.extend(watchers.pop(worker_id))
        return found

    def watch(self, task: Task, worker_ids: frozenset[str]) -> None:
        """Call the task when one of these workers is free."""
        for worker_id in worker_ids:
            tasks = self.watchers.get(worker_id)
            if tasks is None:
                self.watchers[worker_id] = [task]
            else:
                tasks.append(task)

    def reserve(self, fleet: Fleet) -> None:
        """Set aside for a pass what the tasks look forward to."""
        for worker, seconds in self.reserved.values():
            fleet.reserve(worker, seconds)

    def extend(self, hold: Hold, n_more: int) -> None:
        """One more task is held, and `n_more` after it that are all like it; `watch` is due."""
        worker = hold.worker
        _, ahead_s = self.reserved.get(worker.id, (worker, 0.0))
        group = worker.group
        if group is not None:
            own_s = self.own_s.get(group.number, 0.0)
            self.own_s[group.number] = own_s + (1 + n_more) * hold.busy_s
            limit_s = hold.limit_s - own_s / group.n_threads
            limit = self.limits.get(group.number)
            if limit is None or limit_s < limit[1]:
                self.limits[group.number] = group, limit_s
        self.n += 1 + n_more
        self.until_s = min(self.until_s, hold.until_s)
        self.again_s = min(self.again_s, hold.again_s)
        self.against &= hold.against
        # The latest: a hold from before a change of the fleet would not have been extended by.
        self.n_releases = hold.n_releases
        self.n_changes = hold.n_changes
        self.reserved[worker.id] = worker, ahead_s + (1 + n_more) * hold.busy_s

    def drop(self, hold: Hold | None) -> None:
        """One of the tasks has gone."""
        self.n -= 1
        if hold is None:
            return
        known = self.reserved.get(hold.worker.id)
        if known is None:
            return
        worker, seconds = known
        seconds -= hold.busy_s
        if seconds > 0.0:
            self.reserved[worker.id] = worker, seconds
        else:
            del self.reserved[worker.id]
