"""Which values leave the heap, and how one moves down to a place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from deepflow.decide.compression import HEAP
from deepflow.decide.evict import Candidate, victims
from deepflow.decide.fallbacks import Fallback
from deepflow.errors import FrameError
from deepflow.intermediates import values
from deepflow.intermediates.choosing import codec_at_rest
from deepflow.intermediates.chunks import Part
from deepflow.intermediates.tiers.entries import GONE, Copy, Entry, lives_here_only, weakly
from deepflow.intermediates.tiers.owner import Owner, Use, said_by
from deepflow.intermediates.tiers.pressure import Pressure
from deepflow.intermediates.tiers.shelves import Shelves

__all__ = ["THREADS", "Evictor"]

THREADS: Final = 2
"""That code and decode one value."""
_SMALL_BYTES: Final = 16_384
"""Smaller values stay: they are little of any heap, and many."""
_LARGE_SHARE: Final = 0.25
"""Of the target, from which on a value goes to the disk as it is."""
_READ_BYTES_PER_S: Final = 5e8
"""From a disk, where most of it ends."""
_MAX_PICKLINGS: Final = 3
"""A value whose pickling fails as if by a race is pinned after so many times."""

_log = logging.getLogger(__name__)


class Evictor:
    """Moves values of a store down, the cheapest first. `entries` are the store's."""

    def __init__(
        self,
        entries: Mapping[Any, Entry],
        pressure: Pressure,
        shelves: Shelves,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self._entries, self._pressure, self._shelves = entries, pressure, shelves
        self._owner, self._clock, self._lock = owner, clock, pressure.lock

    def run(self) -> None:
        """Evict whenever there is too much, until the store is closed. A thread's life."""
        while (excess := self._pressure.wait_for_excess()) is not None:
            freed = self._evict_some(excess)
            self._pressure.tried(freed, lambda: (entry for _, entry in self._open_to_leave()))

    # -- which ---------------------------------------------------------------------------------

    def _open_to_leave(self) -> list[tuple[Any, Entry]]:
        """What could leave where it is, now or later (under the lock)."""
        return [
            (key, entry)
            for key, entry in self._entries.items()
            if entry.n_bytes >= _SMALL_BYTES and not entry.is_pinned and self._would_free(entry) > 0
        ]

    def _would_free(self, entry: Entry) -> int:
        return entry.would_free(len(self._shelves))

    def _evict_some(self, excess: int) -> int:
        """Evict the cheapest values; how many bytes that freed."""
        with self._lock:
            now_s = self._clock()
            due = [
                (key, entry)
                for key, entry in self._open_to_leave()
                if self._shelves.is_due(entry, now_s)
            ]
        if not due:
            return 0
        no_uses: dict[Any, Use] = {}
        uses = self._owner.ask(self._owner.hooks.uses, no_uses, [key for key, _ in due])
        candidates = []
        for key, entry in due:
            use = uses.get(key, Use(1.0, None))
            freed = self._would_free(entry)
            read_s = entry.n_bytes / _READ_BYTES_PER_S
            candidates.append(Candidate((key, entry), freed, read_s, use.recompute_s, use.next_use))
        freed = 0
        for chosen in victims(candidates, excess):
            if self._pressure.is_closed:
                break
            freed += self._evict_one(*chosen.key)
        return freed

    def _evict_one(self, key: Any, entry: Entry) -> int:
        """Evict one value; how many bytes that freed. Where none, when it is tried again."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return 0
            entry.room_epoch = None
        freed = 0
        try:
            freed = self._move_down(key, entry)
        except Exception:  # noqa: BLE001 - one value's trouble: it is tried again, others go on
            self._owner.note_fault("evicting a value failed")
        finally:
            with self._lock:
                if freed > 0:
                    entry.again.succeeded()
                else:
                    self._shelves.put_off(entry)
        return freed

    # -- how -----------------------------------------------------------------------------------

    def _move_down(self, key: Any, entry: Entry) -> int:
        with self._lock:
            value, copy, n_reads = entry.value, entry.copy, entry.n_reads
        if value is GONE:
            return 0 if copy is None or copy.place.name != "memory" else self._demote(key, copy)
        if copy is None and (freed := self._leave_on_disk(key, value, entry)):
            return freed
        if copy is None:
            copy = self._store(key, value, entry)
            if copy is None:
                return 0
        with self._lock:
            if self._entries.get(key) is not entry:
                self._shelves.remove(copy)  # deleted meanwhile
                return entry.n_bytes
            if entry.n_reads != n_reads:
                # Somebody uses it: to let go of it would free nothing.
                if copy.place.name == "memory":
                    self._shelves.remove(copy)
                else:
                    entry.copy = copy
                return 0
            entry.copy = copy
            entry.value = GONE
            entry.alive = weakly(value)
            self._pressure.heap_bytes -= entry.n_bytes
        in_memory = copy.stored_bytes if copy.place.name == "memory" else 0
        self._owner.tell(self._owner.hooks.left, key)
        return max(1, entry.n_bytes - in_memory)

    def _leave_on_disk(self, key: Any, value: Any, entry: Entry) -> int:
        """Count a value no longer whose readers have put it on disk; how many bytes that is."""
        asked = getattr(type(value), "__deepflow_on_disk_bytes__", None)
        on_disk_bytes = min(asked(value), entry.n_bytes) if asked is not None else 0
        if on_disk_bytes <= entry.n_bytes // 2:
            return 0
        with self._lock:
            if self._entries.get(key) is not entry or entry.value is not value:
                return 0
            self._pressure.heap_bytes -= on_disk_bytes
            entry.n_bytes -= on_disk_bytes
        return int(on_disk_bytes)

    def _store(self, key: Any, value: Any, entry: Entry) -> Copy | None:
        """Code a value and write it where it belongs; None where that is not possible."""
        shelves = self._shelves
        if entry.coded_bytes is not None and shelves.place_for(entry, shelves.rooms()) is None:
            return None
        try:
            if lives_here_only(value):
                entry.is_pinned = True
                self._owner.note_fallback(Fallback.NOT_EVICTABLE)
                return None
            # The codes of a value that takes much of the memory would be too much beside it.
            is_large = entry.n_bytes > _LARGE_SHARE * self._pressure.target_bytes
            choose = _raw if is_large and "disk" in shelves else _codec_of
            buffers = values.dump_parts(values.disassemble(value), choose, THREADS)
        except MemoryError:
            self._owner.note_fallback(Fallback.MEMORY_SHORT)
            return None
        except BaseException as exc:  # noqa: BLE001 - pickling runs the user's code
            self._note_unpicklable(key, entry, exc)
            return None
        entry.coded_bytes = stored_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        rooms = shelves.rooms()
        while (name := shelves.place_for(entry, rooms)) is not None:
            copy = shelves.put(name, buffers, stored_bytes)
            if copy is not None:
                return copy
            del rooms[name]
        return None

    def _note_unpicklable(self, key: Any, entry: Entry, exc: BaseException) -> None:
        """Pin a value that cannot be pickled; not at once where it may only have been changing."""
        entry.n_picklings_failed += 1
        is_passing = isinstance(exc, RuntimeError) and not isinstance(
            exc, (RecursionError, NotImplementedError)
        )
        if is_passing and entry.n_picklings_failed < _MAX_PICKLINGS:
            return
        entry.is_pinned = True
        self._owner.note_fallback(Fallback.NOT_EVICTABLE)
        _log.warning(
            "the result %r stays in memory, for it cannot be pickled: %s", key, said_by(exc)
        )

    def _demote(self, key: Any, copy: Copy) -> int:
        """Move what is coded in memory down, as it is."""
        entry = self._entries.get(key)
        for name in ("disk", "remote"):
            if entry is None or self._shelves.rooms().get(name, 0) < copy.stored_bytes:
                continue
            try:
                content = copy.place.read(copy.token)
            except FrameError:
                return 0  # read back or deleted meanwhile
            moved = self._shelves.put(name, [content], copy.stored_bytes)
            if moved is None:
                continue
            with self._lock:
                if self._entries.get(key) is not entry or entry.copy is not copy:
                    self._shelves.remove(moved)
                    return 0
                entry.copy = moved
            self._shelves.remove(copy)
            return copy.stored_bytes
        if entry is not None:
            entry.room_epoch = self._shelves.room_epoch
        return 0


def _raw(part: Part) -> str:
    return "raw"


_codec_of: Final = partial(codec_at_rest, objective=HEAP)
