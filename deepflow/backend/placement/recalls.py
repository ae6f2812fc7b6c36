"""Asks workers to give tasks back that they have not begun, in the words of Dask's work stealing.

Work stealing itself is off where tasks are placed here, but workers answer its `steal-request`: one
that has not begun with a task lets go of it, and says so (`steal-response`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deepflow.decide.place.ahead import SentAhead

if TYPE_CHECKING:
    from distributed import Scheduler

    from deepflow.decide.place.fleet import Fleet

__all__ = ["Recalls", "is_recall"]

_NOT_BEGUN: Final = frozenset({"ready", "constrained", "waiting"})
"""States of a task on a worker from which it gives the task up when asked."""


_RECALL: Final = "deepflow-recall-"


def is_recall(stimulus_id: str) -> bool:
    """Whether something happens to a task because a worker gave it back when asked."""
    return stimulus_id.startswith(_RECALL)


class Recalls:
    """What was sent ahead on one scheduler, and what was asked for."""

    def __init__(self, scheduler: Scheduler, fleet: Fleet) -> None:
        self.ahead = SentAhead()
        self.n_recalled = 0
        """Tasks that workers gave back, since they could not begin with them in time."""
        self._scheduler = scheduler
        self._fleet = fleet
        self._asked: dict[str, tuple[Any, str]] = {}
        """Keys that workers were asked to give back, and the workers, by the request's stimulus."""
        self._n_asked = 0

    def ask_for_late_ones(self, now_s: float) -> None:
        """Ask for tasks whose worker should have begun with them, where another one could."""
        for key, address in self.ahead.late(self._fleet, now_s):
            self._ask(key, address)

    def ask_for_all(self, address: str) -> None:
        """A paused worker begins with nothing of what it was given."""
        worker = self._fleet.workers.get(address)
        for key in list(worker.assigned) if worker is not None else ():
            self._ask(key, address)

    def _ask(self, key: Any, address: str) -> None:
        self._n_asked += 1
        stimulus_id = f"{_RECALL}{self._n_asked}"
        self._asked[stimulus_id] = key, address
        self._scheduler.worker_send(
            address, {"op": "steal-request", "key": key, "stimulus_id": stimulus_id}
        )

    def answered(self, state: str | None, stimulus_id: str) -> bool:
        """A worker's answer: where it has let go of the task, that is ready again.

        False if the request was not one of these.
        """
        if stimulus_id not in self._asked:
            return False
        key, address = self._asked.pop(stimulus_id)
        task = self._scheduler.tasks.get(key)
        if (
            state in _NOT_BEGUN
            and task is not None
            and task.processing_on is not None
            and task.processing_on.address == address
        ):
            self.n_recalled += 1
            self._scheduler._reschedule(key, stimulus_id=stimulus_id)
        return True

    def forget_worker(self, address: str) -> None:
        """A worker has gone and answers no more."""
        self._asked = {s: asked for s, asked in self._asked.items() if asked[1] != address}
