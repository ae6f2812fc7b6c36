"""Tasks that were given to a busy worker a moment ahead, and whether to ask for them back.

The run time by which a worker was expected to be free may have been wrong. A task that waits there
past its time while another worker is idle is asked for: the worker gives it up unless it has
begun. So is every task of a worker that was paused, which begins none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deepflow.decide.place.fleet import Fleet, Needs, Worker

__all__ = ["SentAhead"]

_LATE_S: Final = 0.1
"""So late a task may begin before it is asked for."""
_INFINITE: Final = float("inf")


@dataclass(slots=True)
class _Sent:
    worker_id: str
    due_s: float
    needs: Needs
    only: frozenset[str] | None
    is_asked: bool = False


class SentAhead:
    """The tasks that were sent to workers which were busy then."""

    def __init__(self) -> None:
        self._sent: dict[object, _Sent] = {}
        self._by_worker: dict[str, list[object]] = {}
        self._next_s = _INFINITE

    def __len__(self) -> int:
        return len(self._sent)

    def sent(
        self, key: object, worker_id: str, begin_s: float, needs: Needs, only: frozenset[str] | None
    ) -> None:
        """A task was given to a busy worker, which should begin with it at `begin_s`."""
        due_s = begin_s + _LATE_S
        self.forget(key)
        self._sent[key] = _Sent(worker_id, due_s, needs, only)
        self._by_worker.setdefault(worker_id, []).append(key)
        self._next_s = min(self._next_s, due_s)

    def forget(self, key: object) -> None:
        """The task has ended, or is no longer there."""
        one = self._sent.pop(key, None)
        if one is None:
            return
        keys = self._by_worker[one.worker_id]
        keys.remove(key)
        if not keys:
            del self._by_worker[one.worker_id]

    def freed(self, worker: Worker) -> None:
        """A task is no longer with a worker: if there is a thread for all others, they begin."""
        if worker.n_busy <= worker.threads:
            for key in self._by_worker.pop(worker.id, ()):
                del self._sent[key]

    def next_s(self) -> float:
        """When one of them may be late; infinite if none can be."""
        return self._next_s if self._sent else _INFINITE

    def late(self, fleet: Fleet, now_s: float) -> list[tuple[object, str]]:
        """The tasks to ask for now, and the workers that have them; each is named once."""
        found: list[tuple[object, str]] = []
        if now_s < self._next_s:
            return found
        next_s = _INFINITE
        for key, one in list(self._sent.items()):
            worker = fleet.workers.get(one.worker_id)
            if worker is None or key not in worker.assigned or worker.n_busy <= worker.threads:
                # It has gone from there, or there is a thread for it by now.
                self.forget(key)
                continue
            if one.is_asked:
                continue
            if now_s >= one.due_s:
                if _has_free(fleet, one, worker):
                    one.is_asked = True
                    found.append((key, one.worker_id))
                    continue
                one.due_s = now_s + _LATE_S
            next_s = min(next_s, one.due_s)
        self._next_s = next_s
        return found


def _has_free(fleet: Fleet, one: _Sent, worker: Worker) -> bool:
    """Whether another worker could begin with the task at once."""
    for _, members in fleet.fits(one.needs, one.only):
        for other in members:
            if other.is_free and other is not worker and other.has_free(one.needs):
                return True
    return False
