"""What was known when a task was held for a better worker, and whether that still stands."""

from __future__ import annotations

from dataclasses import dataclass

from deepflow.decide.place.fleet import Fleet, Worker

__all__ = ["Hold"]


@dataclass(slots=True)
class Hold:
    """A task waits for a better worker although another is free: what was known then."""

    worker: Worker
    busy_s: float
    """How long the task will keep it."""
    limit_s: float
    """The longest wait for a worker of its group for which the task should still be held; infinite
    where the task waits for this very worker."""
    until_s: float
    """When the hold lapses, if not for another reason earlier."""
    again_s: float
    """When a pass must be made for it, if no event makes one."""
    n_alike: int
    """How many tasks like it would be held with it."""
    against: int
    """Groups that the task would rather wait than go to a free worker of, as bits."""
    watched: frozenset[str]
    """Workers close to its inputs that were not free."""
    n_releases: int
    n_changes: int

    def stands(self, fleet: Fleet, now_s: float, takes_some: bool) -> bool:
        """Whether another look at the held task would come to the same.

        So it is until it would have to wait longer than was worth it, a worker gets free of a group
        that was not found to be worse, or one does that is close to its inputs. `takes_some`: the
        task takes resources beside a thread.
        """
        if now_s >= self.until_s or fleet.free_groups & ~self.against:
            return False
        if self.n_changes != fleet.n_changes or not self.watched.isdisjoint(fleet.free_ids):
            return False
        if takes_some and self.n_releases != fleet.n_releases:
            return False
        group = self.worker.group
        return group is not None and group.wait_s(now_s) <= self.limit_s
