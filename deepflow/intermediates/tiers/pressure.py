"""How full a store is, who waits for room in it, and when evicting makes sense."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from deepflow.intermediates.tiers.entries import Entry
from deepflow.intermediates.tiers.owner import Owner

__all__ = ["AHEAD_SHARE", "Pressure"]

AHEAD_SHARE: Final = 0.85
"""Of the target, from which on values are evicted in the background."""
_DOWN_TO_SHARE: Final = 0.75
_LEAST_HEAP_SHARE: Final = 0.1
"""Of the target: with less in the heap, a large process is none of its values' fault."""
_IDLE_S: Final = 0.5
_PATIENCE_S: Final = 5.0
"""Nobody waits for room once nothing has left the heap for so long, although something should."""


class Pressure:
    """The bytes of a store against its target, behind the store's one lock.

    `coded_bytes` says what lies coded in memory, `is_served` whether there is a thread that evicts.
    """

    def __init__(
        self,
        target_bytes: int,
        owner: Owner,
        clock: Callable[[], float],
        coded_bytes: Callable[[], int],
        is_served: Callable[[], bool],
    ) -> None:
        self.target_bytes, self._owner, self._clock = target_bytes, owner, clock
        self._coded_bytes, self._is_served = coded_bytes, is_served
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.heap_bytes = 0
        self._waiting_bytes: list[int] = []
        """What each thread that waits for room wants to add."""
        self.is_stuck = False
        """Nothing that is here can ever leave. It ends with the next change."""
        self._retry_at_s = float("-inf")
        """When evicting makes sense again; put back by what changes."""
        self._failing_since_s: float | None = None
        """Since when something should leave and nothing has."""
        self.is_closed = False

    # -- how full it is ------------------------------------------------------------------------

    def managed_bytes(self) -> int:
        """Bytes in the heap and coded in memory."""
        return self.heap_bytes + self._coded_bytes()

    def excess_bytes(self) -> int:
        """How much is to leave the heap, for those who wait and to be ahead of those who come."""
        managed, target = self.managed_bytes(), self.target_bytes
        excess = max(max(self._waiting_bytes, default=0) + managed - target, self.over_bytes())
        if managed > AHEAD_SHARE * target:
            return max(excess, int(managed - _DOWN_TO_SHARE * target))
        return excess

    def over_bytes(self) -> int:
        """Of a process that is too large, what evicting can do about it."""
        if self.heap_bytes < _LEAST_HEAP_SHARE * self.target_bytes:
            return 0
        return min(self._owner.ask(self._owner.hooks.over_bytes, 0), self.heap_bytes)

    @property
    def is_filling(self) -> bool:
        """Whether it is time to ask for room (`admit`); cheap."""
        return self.managed_bytes() > _DOWN_TO_SHARE * self.target_bytes or self.over_bytes() > 0

    def has_room_ahead(self, n_bytes: int) -> bool:
        """Whether so many bytes may come back before they are asked for."""
        ahead_bytes = AHEAD_SHARE * self.target_bytes
        return self.managed_bytes() + n_bytes <= ahead_bytes and self.over_bytes() <= 0

    # -- who waits -----------------------------------------------------------------------------

    def admit(self, n_bytes: int, timeout_s: float) -> bool:
        """Wait until there is room for as many bytes more; whether there is."""
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        n_bytes = min(n_bytes, self.target_bytes // 2)
        with self.lock:
            self._waiting_bytes.append(n_bytes)
            try:
                while self.managed_bytes() + n_bytes > self.target_bytes or self.over_bytes() > 0:
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0 or not self._may_evict():
                        return False
                    self._changed.notify_all()
                    self._changed.wait(min(left_s, _IDLE_S))
            finally:
                self._waiting_bytes.remove(n_bytes)
        waited_s = time.monotonic() - began_s
        if waited_s > 0.001:
            self._owner.tell(self._owner.hooks.waited, waited_s)
        return True

    def _may_evict(self) -> bool:
        """Whether it makes sense to wait for the evicting thread (under the lock)."""
        if self.is_closed or self.is_stuck or not self._is_served():
            return False
        since_s = self._failing_since_s
        return since_s is None or self._clock() - since_s < _PATIENCE_S

    # -- what changes --------------------------------------------------------------------------

    def reconsider(self) -> None:
        """Something has changed: what could not leave may do so now (under the lock)."""
        self.is_stuck, self._retry_at_s = False, float("-inf")
        if self._waiting_bytes or self.excess_bytes() > 0:
            self._changed.notify_all()

    def wake(self) -> None:
        """Let all who wait look again (under the lock)."""
        self._changed.notify_all()

    def look(self) -> None:
        """Evict in the background if the process has grown too large."""
        with self.lock:
            if self.excess_bytes() > 0:
                self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self.lock:
            self.is_closed = True
            self._changed.notify_all()

    # -- the evicting thread -------------------------------------------------------------------

    def wait_for_excess(self) -> int | None:
        """Wait until evicting makes sense; how many bytes are too many, None once it is closed."""
        with self.lock:
            while not self.is_closed:
                excess = self.excess_bytes()
                if excess <= 0:
                    self._failing_since_s = None
                    self._changed.wait()
                    continue
                wait_s = self._retry_at_s - self._clock()
                if wait_s <= 0:
                    # What changes from here on puts it back once more.
                    self._retry_at_s = float("inf")
                    return excess
                self._changed.wait(None if self.is_stuck else wait_s)
            return None

    def tried(self, freed: int, left: Callable[[], Iterable[Entry]]) -> None:
        """Note what came of a try to evict: when to try again, or that it makes no sense.

        `left` gives what could leave now or later.
        """
        with self.lock:
            if freed > 0:
                self._failing_since_s, self._retry_at_s = None, float("-inf")
            else:
                open_to = list(left())
                if self._failing_since_s is None:
                    self._failing_since_s = self._clock()
                self.is_stuck = not open_to
                if self._retry_at_s == float("inf"):
                    self._retry_at_s = min((e.again.due_s for e in open_to), default=float("inf"))
            self._changed.notify_all()
