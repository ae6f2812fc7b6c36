"""The places that a store writes to, and when one that has failed is tried again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from deepflow.decide.evict import Backoff, Room, place_for
from deepflow.decide.fallbacks import Fallback
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.places import Place
from deepflow.intermediates.tiers.entries import Copy, Entry
from deepflow.intermediates.tiers.owner import Owner, said_by

__all__ = ["Shelves"]

_SOONER_S: Final = 1.0
"""When a place that has refused a value is tried again after room has come back in it."""
_NO_LIMIT: Final = 1 << 62

_log = logging.getLogger(__name__)


class Shelves:
    """The places of one store, by name. Thread-safe; `lock` is the store's.

    `room_came` is called, under the lock, when something was removed.
    """

    def __init__(
        self,
        places: Iterable[Place],
        lock: threading.RLock,
        owner: Owner,
        clock: Callable[[], float],
        room_came: Callable[[], None],
    ) -> None:
        self.places = {place.name: place for place in places}
        self._lock, self._owner, self._clock, self._room_came = lock, owner, clock, room_came
        self.room_epoch = 0
        """Counts when room came back in some place."""
        self._refusals = {name: Backoff() for name in self.places}
        """By place: when it is tried again."""

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    @property
    def memory_bytes(self) -> int:
        """What lies coded in memory."""
        memory = self.places.get("memory")
        return memory.used_bytes if memory else 0

    def used_bytes(self) -> dict[str, int]:
        """By place."""
        return {name: place.used_bytes for name, place in self.places.items()}

    def rooms(self) -> dict[str, int]:
        """Bytes that each place takes, without those that have just failed to take a value."""
        now_s = self._clock()
        rooms = {}
        for name, place in self.places.items():
            if not self._refusals[name].is_due(now_s):
                continue
            try:
                rooms[name] = place.room_bytes()
            except Exception as exc:  # noqa: BLE001 - as when writing
                self._refused(name, exc)
        return rooms

    def place_for(self, entry: Entry, rooms: dict[str, int]) -> str | None:
        """Where a value of known coded size goes. Where nowhere: for now, or for good (pinned)."""
        n_bytes, coded_bytes = entry.n_bytes, entry.coded_bytes
        assert coded_bytes is not None
        name = place_for(n_bytes, coded_bytes, _room_of(rooms))
        if name is not None:
            return name
        self._owner.note_fallback(Fallback.NOWHERE_TO_EVICT)
        at_best = _room_of(dict.fromkeys(self.places, _NO_LIMIT))
        with self._lock:
            entry.is_pinned = place_for(n_bytes, coded_bytes, at_best) is None
            entry.room_epoch = self.room_epoch
        return None

    def put(self, name: str, buffers: Sequence[Buffer], stored_bytes: int) -> Copy | None:
        """Write to a place; None where the place refuses."""
        place = self.places[name]
        try:
            token = place.write(buffers)
        except Exception as exc:  # noqa: BLE001 - a place's trouble is not the value's
            self._refused(name, exc)
            return None
        self._refusals[name].succeeded()
        self._owner.tell(self._owner.hooks.moved, "to", name, stored_bytes)
        return Copy(place, token, stored_bytes)

    def remove(self, copy: Copy) -> None:
        """Remove a stored copy: there is room for others now (under the lock, or not)."""
        self._owner.tell(copy.place.remove, copy.token)
        with self._lock:
            self.room_epoch += 1
            refusal = self._refusals[copy.place.name]
            if refusal.n_failed:
                refusal.sooner(self._clock() + _SOONER_S)
            self._room_came()

    def put_off(self, entry: Entry) -> None:
        """A value could not leave now: note when it is tried again (under the lock)."""
        entry.again.failed(self._clock())
        if entry.room_epoch is not None:
            for refusal in self._refusals.values():
                if refusal.n_failed:
                    entry.again.sooner(refusal.due_s)

    def is_due(self, entry: Entry, now_s: float) -> bool:
        """Whether it makes sense to try a value again (under the lock)."""
        return entry.again.is_due(now_s) or entry.room_epoch not in (None, self.room_epoch)

    def close(self) -> None:
        """Remove every stored copy."""
        for place in self.places.values():
            self._owner.tell(place.close)

    def _refused(self, name: str, exc: Exception) -> None:
        self._owner.note_fallback(Fallback.TIER_WRITE_FAILED)
        with self._lock:
            self._refusals[name].failed(self._clock())
        if self._owner.is_new(f"{name} refuses values"):
            _log.warning(
                "values do not go to %s now, the next place is tried: %s", name, said_by(exc)
            )


def _room_of(rooms: dict[str, int]) -> Room:
    return Room(rooms.get("memory"), rooms.get("disk"), rooms.get("remote"))
