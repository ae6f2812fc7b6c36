"""Locks that the scheduler keeps for all workers, since a lock in memory binds one process only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

LOCK = "deepflow_lock"
"""The scheduler's handler for them."""


@dataclass(frozen=True, slots=True)
class _Held:
    holder: str
    owner: str
    until_s: float | None


class LockTable:
    """Who holds which lock. Nothing here waits: who wants a lock asks again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def holder(self, name: str) -> str | None:
        """Who holds the lock now; None where it is free."""
        held = self._held.get(name)
        if held is not None and held.until_s is not None and held.until_s <= self._clock():
            del self._held[name]
            return None
        return None if held is None else held.holder

    def acquire(self, name: str, holder: str, owner: str, hold_s: float | None = None) -> bool:
        """Whether `holder` has the lock now; it had it before, or it was free.

        `owner`: the process that dies with it. `hold_s`: after how long it is free in any case.
        """
        if self.holder(name) not in (None, holder):
            return False
        until_s = None if hold_s is None else self._clock() + hold_s
        self._held[name] = _Held(holder, owner, until_s)
        return True

    def release(self, name: str, holder: str) -> bool:
        """Free the lock; False where `holder` did not have it."""
        if self.holder(name) != holder:
            return False
        del self._held[name]
        return True

    def drop(self, owner: str) -> None:
        """A process has gone: what it held is free."""
        for name in [name for name, held in self._held.items() if held.owner == owner]:
            del self._held[name]

    def answer(
        self,
        action: str,
        name: str,
        holder: str = "",
        owner: str = "",
        hold_s: float | None = None,
    ) -> bool | str | None:
        """A request as it arrives: `acquire`, `release`, or `holder`."""
        if action == "acquire":
            return self.acquire(name, holder, owner, hold_s)
        if action == "release":
            return self.release(name, holder)
        return self.holder(name)
