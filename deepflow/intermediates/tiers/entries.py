"""What a store knows of each value."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from deepflow.decide.evict import Backoff
from deepflow.intermediates.places import Place

__all__ = ["GONE", "Copy", "Entry", "Lost", "lives_here_only", "weakly"]

GONE: Final = object()
"""Stands for a value that has left the heap."""


class Copy(NamedTuple):
    """A value as it lies in a place."""

    place: Place
    token: Any
    stored_bytes: int


class Lost(NamedTuple):
    """Why a value is lost; and whether another one of that key could be read back."""

    reason: str
    can_be_read: bool


@dataclass(slots=True, eq=False)
class Entry:
    """One value. All but `lock` is read and written under the store's lock."""

    n_bytes: int
    value: Any = GONE
    copy: Copy | None = None
    alive: weakref.ref[Any] | None = None
    """The value after eviction, as long as somebody still has it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is being read back."""
    is_pinned: bool = False
    """It never leaves: it cannot be pickled, it lives only in this process, or no place takes it.

    A value of a type with a method ``__deepflow_pinned__`` is asked when it is about to leave."""
    n_reads: int = 0
    n_picklings_failed: int = 0
    coded_bytes: int | None = None
    """What it takes coded, once that is known."""
    again: Backoff = field(default_factory=Backoff)
    """When it is tried again."""
    room_epoch: int | None = None
    """When no place had room for it last (see `Shelves.room_epoch`)."""

    def would_free(self, n_places: int) -> int:
        """Bytes of memory that moving it down by one place frees, of so many places."""
        if self.value is not GONE:
            return self.n_bytes
        if self.copy is not None and self.copy.place.name == "memory" and n_places > 1:
            return self.copy.stored_bytes
        return 0


def lives_here_only(value: Any) -> bool:
    """Whether a value says of itself that it holds what no other process can have."""
    asked = getattr(type(value), "__deepflow_pinned__", None)
    return asked is not None and bool(asked(value))


def weakly(value: Any) -> weakref.ref[Any] | None:
    """A weak reference; None where the type has none."""
    try:
        return weakref.ref(value)
    except TypeError:
        return None
