"""Virtual time: the clock, the agenda of what is to happen, and hashes that stay the same."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from itertools import count
from typing import Any

__all__ = ["Action", "Agenda", "Clock", "StableHash"]

Action = Callable[..., Coroutine[Any, Any, object] | None]


class Clock:
    """Virtual seconds since the simulation began; calling it tells the time."""

    __slots__ = ("_agenda", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._agenda: Agenda | None = None

    def __call__(self) -> float:
        return self.now_s

    def wake_by(self, agenda: Agenda) -> None:
        """Let `call_later` enter what it is given there."""
        self._agenda = agenda

    def call_later(self, after_s: float, action: Callable[[], None]) -> None:
        """Call `action` in so many virtual seconds."""
        assert self._agenda is not None, "nothing runs on this clock yet"
        self._agenda.at(self.now_s + after_s, action)


class Agenda:
    """What is to happen when; what is due at the same time happens in the order it was put in."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._numbers = count()

    def at(self, when_s: float, action: Action, *args: Any) -> None:
        """Call `action` at `when_s`; if it returns a coroutine, that is awaited there and then."""
        heapq.heappush(self._entries, (when_s, next(self._numbers), action, args))

    def next_s(self) -> float:
        """When the next entry is due; inf if there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def pop(self) -> tuple[Action, tuple[Any, ...]]:
        """Take out the next entry."""
        _, _, action, args = heapq.heappop(self._entries)
        return action, args


class StableHash:
    """`hash` of a text that is the same in every process, and another one for each seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[object, int] = {}
        self.find = self._known.get
        """The hash of a value that was hashed before, else None."""

    def __call__(self, value: object) -> int:
        found = self._known.get(value)
        if found is None:
            digest = blake2b(f"{self._seed}:{value}".encode(), digest_size=8).digest()
            # Python's hashes are signed words; -1 and the largest ones are not among them.
            found = self._known[value] = int.from_bytes(digest, "little") >> 4
        return found
