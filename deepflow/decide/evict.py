"""Which values leave the heap when it fills, and where they go: a pure decision.

A value is evicted by what that costs for each byte that it frees:

    (chance of reuse × (seconds to read it back + risk × seconds to compute it again)) / bytes freed

the lowest first. The chance is 1 / (1 + rank of the first task that waits for it): what is wanted
last leaves first, as Belady's rule has it, as far as a worker knows what comes. The risk is that of
a stored copy that turns out lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Backoff", "Candidate", "Room", "cost_per_byte", "place_for", "victims"]

NO_USE_CHANCE: Final = 0.02
"""For what no task of this worker waits for: another worker or the driver may still ask."""
LOSS_RISK: Final = 0.01
WORTH_MEMORY_RATIO: Final = 1.5
"""Compressed in memory a value still takes memory: it has to shrink by a third."""


FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0


@dataclass(slots=True)
class Backoff:
    """When what has failed in passing is tried again: after a pause that doubles up to a limit."""

    n_failed: int = 0
    """Times that it failed since it last succeeded."""
    due_s: float = float("-inf")

    def is_due(self, now_s: float) -> bool:
        """Whether it may be tried."""
        return now_s >= self.due_s

    def failed(self, now_s: float) -> None:
        """It failed once more."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.n_failed, 60))
        self.n_failed += 1
        self.due_s = now_s + pause_s

    def sooner(self, at_s: float) -> None:
        """Something has changed in its favour: it is tried then, if not before."""
        self.due_s = min(self.due_s, at_s)

    def succeeded(self) -> None:
        """It succeeded: nothing is remembered."""
        self.n_failed, self.due_s = 0, float("-inf")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value that could leave where it is. Seconds and bytes."""

    key: Any
    freed_bytes: int
    read_s: float
    """To have it back from where it would go."""
    recompute_s: float
    next_use: int | None
    """How many tasks come before the first that wants it; None: none is known."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that fit into each tier below the heap; None: there is no such tier."""

    memory_bytes: int | None
    disk_bytes: int | None
    remote_bytes: int | None


def cost_per_byte(candidate: Candidate) -> float:
    """Expected seconds lost for each byte that evicting it frees."""
    if candidate.freed_bytes <= 0:
        return float("inf")
    chance = NO_USE_CHANCE if candidate.next_use is None else 1.0 / (1 + candidate.next_use)
    lost_s = chance * (candidate.read_s + LOSS_RISK * candidate.recompute_s)
    return lost_s / candidate.freed_bytes


def victims(candidates: Iterable[Candidate], wanted_bytes: int) -> list[Candidate]:
    """The cheapest that free as many bytes together; all that free any where they do not."""
    chosen, freed = [], 0
    for candidate in sorted(candidates, key=cost_per_byte):
        if freed >= wanted_bytes or candidate.freed_bytes <= 0:
            break
        chosen.append(candidate)
        freed += candidate.freed_bytes
    return chosen


def place_for(n_bytes: int, stored_bytes: int, room: Room) -> str | None:
    """``memory``, ``disk`` or ``remote`` for a value of `n_bytes` that takes `stored_bytes` coded;
    None where it fits nowhere."""
    shrinks = n_bytes >= WORTH_MEMORY_RATIO * stored_bytes
    if shrinks and room.memory_bytes is not None and stored_bytes <= room.memory_bytes:
        return "memory"
    if room.disk_bytes is not None and stored_bytes <= room.disk_bytes:
        return "disk"
    if room.remote_bytes is not None and stored_bytes <= room.remote_bytes:
        return "remote"
    return None
