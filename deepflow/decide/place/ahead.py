"""Tasks that were given to a busy worker a moment ahead, and whether to ask for them back.

The run time by which a worker was expected to be free may have been wrong. A task that waits there
past its time while another worker is idle is asked for: the worker gives it up unless it has
begun. So is every task of a worker that was paused, which begins none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deepflow.decide.place.fleet import Fleet, Needs

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

    def __len__(self) -> int:
        return len(self._sent)

    def sent(
        self, key: object, worker_id: str, begin_s: float, needs: Needs, only: frozenset[str] | None
    ) -> None:
        """A task was given to a busy worker, which should begin with it at `begin_s`."""
        self._sent[key] = _Sent(worker_id, begin_s + _LATE_S, needs, only)

    def forget(self, key: object) -> None:
        """The task has ended, or is no longer there."""
        self._sent.pop(key, None)

    def next_s(self) -> float:
        """When the next of them will be late; infinite if none can be."""
        return min(
            (one.due_s for one in self._sent.values() if not one.is_asked), default=_INFINITE
        )

    def late(self, fleet: Fleet, now_s: float) -> Iterator[tuple[object, str]]:
        """The tasks to ask for now, and the workers that have them; each is named once."""
        for key, one in list(self._sent.items()):
            worker = fleet.workers.get(one.worker_id)
            if worker is None or key not in worker.assigned or worker.n_busy <= worker.threads:
                # It has gone from there, or there is a thread for it by now.
                del self._sent[key]
            elif not one.is_asked and now_s >= one.due_s:
                if any(
                    other.is_free and other is not worker and other.has_free(one.needs)
                    for _, members in fleet.fits(one.needs, one.only)
                    for other in members
                ):
                    one.is_asked = True
                    yield key, one.worker_id
                else:
                    one.due_s = now_s + _LATE_S
