"""What the plugin saw and decided, run by run, until somebody asks for it.

Decisions are kept as they were made and told as events only when asked for: most are never read.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from deepflow.decide.events import (
    Candidate,
    Event,
    Failed,
    Finished,
    Held,
    Placed,
    Submitted,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.decide.place.decision import Decision
from deepflow.decide.place.fleet import Worker

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

    from deepflow.backend.placement.mirror import Known

__all__ = ["Record"]

_MAX_ENTRIES: Final = 400_000
_MAX_TIMED: Final = 100_000
_SHOWN: Final = 4
_OF_ALL: Final = ""
"""The run under which workers' events are kept."""

Entry = Event | tuple[float, Decision]


class Record:
    """Bounded: when it is full, the run that began first is forgotten."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._runs: OrderedDict[str, list[tuple[int, Entry]]] = OrderedDict({_OF_ALL: []})
        self._numbers = count()
        self._n_entries = 0
        self.n_decisions = 0
        self.n_fallbacks = 0
        """Tasks for which Dask chose the worker, since deciding on them had failed."""
        self.decision_s: deque[float] = deque(maxlen=_MAX_TIMED)
        """Seconds that each of the latest decisions took."""

    # -- what happened to workers ---------------------------------------------------------------

    def joined(self, at_s: float, worker: Worker) -> None:
        """A worker has come."""
        self._put(
            _OF_ALL,
            WorkerJoined(
                at_s,
                worker.name,
                worker.worker_class,
                worker.threads,
                worker.memory_limit_bytes,
                worker.host,
                worker.rack,
                worker.zone,
                worker.tier,
                tuple(sorted(worker.resources.items())),
            ),
        )

    def left(self, at_s: float, worker_name: str) -> None:
        """A worker has gone."""
        self._put(_OF_ALL, WorkerLeft(at_s, worker_name))

    # -- what happened to tasks -----------------------------------------------------------------

    def submitted(self, at_s: float, known: Known, state: TaskState) -> None:
        """A task came to the scheduler."""
        self._put(
            known.job.run,
            Submitted(
                at_s,
                str(known.key),
                known.name,
                known.job.flow,
                known.job.run,
                tuple(str(dts.key) for dts in state.dependencies),
                int(known.note.get("input_bytes", 0)),
                tuple(sorted((state.resource_restrictions or {}).items())),
                float(known.note.get("soft_gpu", 0.0)),
                -int(state.priority[0]) if state.priority else 0,
                known.n_runs,
            ),
        )

    def finished(
        self,
        at_s: float,
        known: Known,
        worker_name: str,
        started_s: float,
        stopped_s: float,
        n_bytes: int,
    ) -> None:
        """A task has ended with a result."""
        self._put(
            known.job.run,
            Finished(
                at_s, str(known.key), worker_name, started_s, stopped_s, n_bytes, known.is_on_gpu
            ),
        )

    def failed(self, at_s: float, key: Any, worker_name: str, why: str, run: str) -> None:
        """A task has ended without a result."""
        self._put(run, Failed(at_s, str(key), worker_name, why))

    def held(self, at_s: float, key: Any, why: str, run: str) -> None:
        """A task is kept back."""
        self._put(run, Held(at_s, str(key), why))

    def placed_by_dask(self, at_s: float, key: Any, worker_name: str, run: str) -> None:
        """Dask chose the worker of a task."""
        self._put(run, Placed(at_s, str(key), worker_name, "stock"))

    def decided(self, at_s: float, decision: Decision, took_s: float) -> None:
        """A task was placed, by a decision that took so long; if it was held before, also why."""
        self.n_decisions += 1
        self.decision_s.append(took_s)
        task = decision.task
        if task.held_because:
            self._put(task.job.run, Held(task.ready_s, str(task.key), task.held_because))
        self._put(task.job.run, (at_s, decision))

    def _put(self, run: str, entry: Entry) -> None:
        entries = self._runs.get(run)
        if entries is None:
            entries = self._runs[run] = []
        entries.append((next(self._numbers), entry))
        self._n_entries += 1
        if self._n_entries > _MAX_ENTRIES:
            oldest = next((name for name in self._runs if name != _OF_ALL), _OF_ALL)
            self._n_entries -= len(self._runs.pop(oldest))
            self._runs.setdefault(_OF_ALL, [])

    # -- what is told of it ---------------------------------------------------------------------

    def of_run(self, run: str) -> list[Event]:
        """The events of one run, and those of all workers; the run's are forgotten here."""
        entries = self._runs.pop(run, [])
        self._n_entries -= len(entries)
        return self._told([*self._runs[_OF_ALL], *entries])

    def drain(self) -> list[Event]:
        """All events since the last call, and forgotten here with it."""
        entries = [entry for of_run in self._runs.values() for entry in of_run]
        self._runs = OrderedDict({_OF_ALL: []})
        self._n_entries = 0
        return self._told(entries)

    def _told(self, entries: list[tuple[int, Entry]]) -> list[Event]:
        entries.sort(key=lambda numbered: numbered[0])
        return [
            _placed(self._policy, *entry) if isinstance(entry, tuple) else entry
            for _, entry in entries
        ]


def _placed(policy: str, at_s: float, decision: Decision) -> Placed:
    """The event of a decision, with its best few candidates, the chosen one first."""
    candidates, scores = decision.candidates, decision.scores
    order = sorted(range(len(scores)), key=lambda i: (i != decision.chosen, scores[i]))[:_SHOWN]
    return Placed(
        at_s,
        str(decision.task.key),
        decision.worker.name,
        policy,
        tuple(
            Candidate(
                candidates.workers[i].name,
                candidates.queue_s[i],
                candidates.transfer_s[i],
                candidates.run_s[i],
                float(scores[i]),
            )
            for i in order
        ),
        decision.reason,
    )
