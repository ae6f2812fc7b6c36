"""What the parts of a simulation share: virtual time, what is to happen, and what has happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepflow.decide.events import Event
from deepflow.sim._clock import Action, Agenda, Clock

__all__ = ["Stage"]


class Stage:
    """Time, agenda and journal of one simulation.

    Args:
        clock: the time; `call_later` on it enters something in the agenda.
        latency_s: how long a message between scheduler and workers takes.
    """

    def __init__(self, clock: Clock, latency_s: float) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.agenda = Agenda()
        self.events: list[Event] = []
        self.last_progress_s = 0.0
        self.n_ahead = 0
        """Arrivals, starts, deaths, run times and transfers that are sure to end."""
        self.worker_names: dict[str, str] = {}
        """Names of all workers that ever were, by address."""
        clock.wake_by(self.agenda)

    def emit(self, event: Event) -> None:
        """Add an event to the journal."""
        self.events.append(event)

    def has_progressed(self) -> None:
        """Something has happened that more may follow from."""
        self.last_progress_s = self.clock.now_s

    def ahead(self, when_s: float, action: Action, *arguments: Any) -> None:
        """Enter something that is progress when it happens."""

        def happens() -> Any:
            self.n_ahead -= 1
            self.has_progressed()
            return action(*arguments)

        self.n_ahead += 1
        self.agenda.at(when_s, happens)

    def periodically(self, every_s: float, callback: Callable[[], object]) -> None:
        """Call `callback` now and every so often."""
        callback()
        self.later(every_s, self.periodically, every_s, callback)

    def later(self, after_s: float, action: Action, *arguments: Any) -> None:
        """Call `action` after a while."""
        self.agenda.at(self.clock.now_s + after_s, action, *arguments)

    def arrive(self, action: Action, *arguments: Any) -> None:
        """Call `action` after a message's way."""
        self.later(self.latency_s, action, *arguments)

    def answer(self, action: Action, *arguments: Any) -> None:
        """Call `action` after a message's way there and back."""
        self.later(2 * self.latency_s, action, *arguments)
