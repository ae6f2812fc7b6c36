"""What the plugin saw and decided, run by run, until somebody asks for it.

Decisions are kept as they were made and told as events only when asked for: most are never read.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Final

from deepflow.decide.events import Candidate, Event, Held, Placed
from deepflow.decide.place.binder import Decision

__all__ = ["Record"]

_MAX_ENTRIES: Final = 400_000
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

    def note(self, event: Event, run: str = _OF_ALL) -> None:
        """Something happened to a task of `run`, or to a worker."""
        self._put(run, event)

    def decided(self, at_s: float, decision: Decision) -> None:
        """A task was placed; if it was held before, also why."""
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
