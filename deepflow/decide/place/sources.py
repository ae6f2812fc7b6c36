"""Where a task's inputs lie, and how long they take to another worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deepflow.decide.place.fleet import Fleet, Worker
    from deepflow.decide.place.links import Links

__all__ = ["Sources"]

_MAX_HOLDERS: Final = 4


class Sources:
    """Where a task's inputs lie: bytes by holder.

    Args:
        inputs: bytes of each input, and the ids of the workers that hold it.
        local: bytes of the inputs by the id of each worker that holds some.
        fleet: the workers.
    """

    __slots__ = ("local", "main", "main_bytes", "n_changes", "total_bytes")

    def __init__(
        self, inputs: Sequence[tuple[int, Sequence[str]]], local: dict[str, int], fleet: Fleet
    ) -> None:
        workers = fleet.workers
        self.local = local
        self.total_bytes = float(sum(n_bytes for n_bytes, _ in inputs))
        by_bytes = [(n, workers[i]) for i, n in local.items() if i in workers]
        if len(by_bytes) > 1:
            by_bytes.sort(key=_most_bytes_first)
        self.main = by_bytes[:_MAX_HOLDERS]
        """The few that hold most; what is missing is taken to come from them."""
        self.main_bytes = sum(n for n, _ in self.main)
        self.n_changes = fleet.n_changes
        """How often workers had come or gone by then."""

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
