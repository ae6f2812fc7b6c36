"""What was known when a task was held for a better worker, and whether that still stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepflow.decide.place.fleet import Fleet, Worker

__all__ = ["Hold"]


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

    def stands(self, fleet: Fleet, now_s: float, close: frozenset[str], takes_some: bool) -> bool:
        """Whether another look at the held task would come to the same.

        So it is until a good part of the gain may have gone, a worker of a kind that was not free
        then gets free, or one does that is close to its inputs. `takes_some`: the task takes
        resources beside a thread.
        """
        if now_s >= self.until_s or fleet.free_groups & ~self.free_groups:
            return False
        if self.n_releases != fleet.n_releases and takes_some:
            return False
        if self.n_changes != fleet.n_changes:
            return False
        return not close or close.isdisjoint(fleet.free_ids) or close & fleet.free_ids <= self.free
