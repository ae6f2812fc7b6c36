"""The mapping: values come and go, and what has left the heap is read back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

from cachetools import FIFOCache
from distributed import sizeof

from deepflow.decide.fallbacks import Fallback
from deepflow.errors import FrameError, ValueLostError
from deepflow.intermediates import values
from deepflow.intermediates.places import Disk, Place
from deepflow.intermediates.tiers.entries import GONE, Copy, Entry, Lost
from deepflow.intermediates.tiers.evicting import THREADS, Evictor
from deepflow.intermediates.tiers.owner import Hooks, Owner, said_by
from deepflow.intermediates.tiers.pressure import Pressure
from deepflow.intermediates.tiers.shelves import Shelves

__all__ = ["TieredStore"]

_MAX_LOST: Final = 1_000
_RESTART_AFTER_S: Final = 0.5

_log = logging.getLogger(__name__)


class TieredStore(MutableMapping[Any, Any]):
    """See the top of `tiers`. Thread-safe.

    `target_bytes`, of the heap and of what is coded in memory together: evicted towards it, and
    held back beyond it (`admit`).
    """

    def __init__(
        self,
        places: Iterable[Place],
        target_bytes: int,
        hooks: Hooks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner = Owner(hooks)
        self._entries: dict[Any, Entry] = {}
        self._lost: FIFOCache[Any, Lost] = FIFOCache(_MAX_LOST)
        self._pressure = Pressure(
            target_bytes,
            self._owner,
            clock,
            coded_bytes=lambda: self._shelves.memory_bytes,
            is_served=lambda: self._threads[0].is_alive(),
        )
        self._lock = self._pressure.lock
        self._shelves = Shelves(
            places, self._lock, self._owner, clock, room_came=self._pressure.reconsider
        )
        evictor = Evictor(self._entries, self._pressure, self._shelves, self._owner, clock)
        self._wants_reading = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(run,), name=name, daemon=True)
            for run, name in ((evictor.run, "deepflow-evict"), (self._read_ahead, "deepflow-read"))
        ]
        for thread in self._threads:
            thread.start()

    # -- as a mapping --------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        entry = Entry(sizeof.safe_sizeof(value), value)
        with self._lock:
            if key in self._entries:
                self._drop(key)
            lost = self._lost.pop(key, None)
            entry.is_pinned = lost is not None and not lost.can_be_read
            self._entries[key] = entry
            self._pressure.heap_bytes += entry.n_bytes
            self._pressure.reconsider()

    def __getitem__(self, key: Any) -> Any:
        """The value. `KeyError`, or `ValueLostError` for one whose stored copy is damaged."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if key in self._lost:
                    raise ValueLostError(
                        f"the result {key!r} is lost here: {self._lost[key].reason}"
                    )
                raise KeyError(key)
            entry.n_reads += 1
            if entry.value is not GONE:
                return entry.value
        self._wants_reading.set()
        return self._read_back(key, entry)

    def __delitem__(self, key: Any) -> None:
        with self._lock:
            if key in self._entries:
                self._drop(key)
            elif key not in self._lost:
                raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def pop(self, key: Any, default: Any = None) -> Any:
        """Not offered: it would read a value back only to drop it. Use ``del``."""
        raise NotImplementedError("use `del`: pop would read the value back only to drop it")

    # -- what it says of itself ----------------------------------------------------------------

    def is_in_heap(self, key: Any) -> bool:
        """Whether getting it reads nothing."""
        entry = self._entries.get(key)
        return entry is not None and entry.value is not GONE

    def tier_of(self, key: Any) -> str:
        """``heap``, or the name of the place where it lies; `KeyError` if there is none."""
        with self._lock:
            entry = self._entries[key]
            if entry.value is not GONE or entry.copy is None:
                return "heap"
            return entry.copy.place.name

    @property
    def target_bytes(self) -> int:
        """What the heap and what is coded in memory are to take together."""
        return self._pressure.target_bytes

    @property
    def heap_bytes(self) -> int:
        """What the values in the heap take."""
        return self._pressure.heap_bytes

    @property
    def _is_stuck(self) -> bool:
        """Whether nothing in the heap can leave it; for who looks into a store that does not."""
        return self._pressure.is_stuck

    @property
    def spilled_total(self) -> tuple[int, int]:
        """Bytes that are not in the heap: as in memory, and as stored (Dask asks for it)."""
        with self._lock:
            away = [e for e in self._entries.values() if e.value is GONE and e.copy is not None]
            return sum(e.n_bytes for e in away), sum(e.copy.stored_bytes for e in away if e.copy)

    def used_bytes(self) -> dict[str, int]:
        """By tier."""
        return {"heap": self.heap_bytes} | self._shelves.used_bytes()

    # -- back-pressure -------------------------------------------------------------------------

    def admit(self, n_bytes: int, timeout_s: float) -> bool:
        """Wait until there is room for as many bytes more; whether there is. Not for an event loop.

        False after `timeout_s`; at once where nothing more can be evicted; and where nothing has
        left for some seconds although something should.
        """
        return self._pressure.admit(n_bytes, timeout_s)

    @property
    def is_filling(self) -> bool:
        """Whether it is time to ask for room (`admit`); cheap."""
        return self._pressure.is_filling

    def look(self) -> None:
        """Evict in the background if the process has grown too large."""
        self._pressure.look()

    def close(self) -> None:
        """Stop, and remove every stored copy."""
        self._pressure.close()
        self._wants_reading.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._shelves.close()

    def _serve(self, run: Callable[[], None]) -> None:
        """A thread's life: whatever ends `run`, it is counted, and `run` begins anew."""
        while not self._pressure.is_closed:
            try:
                run()
            except BaseException:  # noqa: BLE001 - without this thread nothing moves any more
                self._owner.note_fault(f"{threading.current_thread().name} met a fault and goes on")
                time.sleep(_RESTART_AFTER_S)

    # -- reading back --------------------------------------------------------------------------

    def _read_back(self, key: Any, entry: Entry) -> Any:
        with entry.lock:
            while True:
                with self._lock:
                    if entry.value is not GONE:
                        return entry.value
                    value = entry.alive() if entry.alive is not None else None
                    if value is not None:
                        self._return_to_heap(key, entry, value)
                        return value
                    copy = entry.copy
                if copy is None:
                    raise KeyError(key)  # deleted meanwhile
                try:
                    value = _load(copy)
                except MemoryError:
                    raise  # it is still there, and may be read when there is room
                except Exception as exc:
                    if entry.copy is not copy:
                        continue  # it was moved to another place meanwhile
                    # Where the copy is whole but the value's own code does not take it, the next
                    # one is not evicted.
                    lost = Lost(said_by(exc), can_be_read=isinstance(exc, FrameError))
                    self._lose(key, entry, lost)
                    raise ValueLostError(f"the result {key!r} is lost here: {lost.reason}") from exc
                self._owner.tell(
                    self._owner.hooks.moved, "from", copy.place.name, copy.stored_bytes
                )
                with self._lock:
                    self._return_to_heap(key, entry, value)
                return value

    def _return_to_heap(self, key: Any, entry: Entry, value: Any) -> None:
        """Under the lock."""
        if self._entries.get(key) is not entry:
            return
        entry.value, entry.alive = value, None
        self._pressure.heap_bytes += entry.n_bytes
        if entry.copy is not None and entry.copy.place.name == "memory":
            copy, entry.copy = entry.copy, None
            self._shelves.remove(copy)
        self._pressure.reconsider()

    def _lose(self, key: Any, entry: Entry, lost: Lost) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._drop(key)
            self._lost[key] = lost
        self._owner.note_fallback(Fallback.REPLICA_LOST)
        _log.warning(
            "the stored copy of the result %r is lost, it is made anew: %s", key, lost.reason
        )
        self._owner.tell(self._owner.hooks.lost, key)

    def _drop(self, key: Any) -> None:
        """Under the lock."""
        entry = self._entries.pop(key)
        if entry.value is not GONE:
            self._pressure.heap_bytes -= entry.n_bytes
            entry.value = GONE
        if entry.copy is not None:
            copy, entry.copy = entry.copy, None
            self._shelves.remove(copy)
        self._pressure.reconsider()
        self._pressure.wake()

    def _read_ahead(self) -> None:
        """Read what tasks will want, as far as there is room for it."""
        while True:
            self._wants_reading.wait()
            self._wants_reading.clear()
            if self._pressure.is_closed:
                return
            try:
                self._read_wanted()
            except Exception:  # noqa: BLE001 - a guess failed; whoever asks for a value reads it
                self._owner.note_fault(
                    "reading ahead failed; values are read when they are asked for"
                )

    def _read_wanted(self) -> None:
        nothing: list[Any] = []
        for key in self._owner.ask(self._owner.hooks.wanted, nothing):
            with self._lock:
                entry = self._entries.get(key)
                if entry is None or entry.value is not GONE:
                    continue
                if not self._pressure.has_room_ahead(entry.n_bytes):
                    return
            if self._pressure.is_closed:
                return
            try:
                self._read_back(key, entry)
            except (KeyError, ValueLostError):
                continue


def _load(copy: Copy) -> Any:
    if isinstance(copy.place, Disk):
        with copy.place.source(copy.token) as source:
            return values.load(source, THREADS)
    return values.load(copy.place.read(copy.token), THREADS)
