"""Where a task's inputs lie, and how long they take to another worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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

    __slots__ = ("_far", "local", "main", "n_changes", "total_bytes")

    def __init__(
        self, inputs: Sequence[tuple[int, Sequence[str]]], local: dict[str, int], fleet: Fleet
    ) -> None:
        workers = fleet.workers
        self.local = local
        self.total_bytes = float(sum([n_bytes for n_bytes, _ in inputs]))
        by_bytes = [(n, workers[i]) for i, n in local.items() if i in workers]
        if len(by_bytes) > 1:
            by_bytes.sort(key=_most_bytes_first)
        self.main = by_bytes[:_MAX_HOLDERS]
        """The few that hold most; what is missing is taken to come from them."""
        self._far = self._shares(None, self.total_bytes)
        """What comes from each of them to a worker that holds nothing."""
        self.n_changes = fleet.n_changes
        """How often workers had come or gone by then."""

    def _shares(self, but: Worker | None, missing: float) -> list[tuple[str, Worker, float]]:
        """The bytes that come from each main holder `but` one, by its id."""
        others = [(n, source) for n, source in self.main if source is not but]
        held = sum([n for n, _ in others])
        if held <= 0:
            return []
        # Inputs held in several places are counted at each of them: shares of what is missing.
        part = missing / held
        return [(source.id, source, part * n) for n, source in others]

    def to(self, worker: Worker, links: Links) -> tuple[float, float]:
        """Seconds until all that `worker` does not hold has come to it, one after the other, and
        the share of the bytes that it does not hold."""
        total = self.total_bytes
        if not total:
            return 0.0, 0.0
        share = 1.0
        parts = self._far
        local = self.local.get(worker.id)
        if local is not None:
            missing = total - local
            if missing <= 0:
                return 0.0, 0.0
            share = missing / total
            parts = self._shares(worker, missing)
        known = links.lines_to(worker)
        seconds = 0.0
        for source_id, source, n_bytes in parts:
            line = known.get(source_id)
            if line is None:
                line = links.line(source, worker)
            seconds += line[0] + n_bytes * line[1]
        return seconds, share


def _most_bytes_first(held: tuple[float, Worker]) -> tuple[float, int]:
    return -held[0], held[1].number
