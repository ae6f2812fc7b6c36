"""A mapping of values that keeps in the heap what fits, and the rest where it takes less.

Heap, then coded in memory, then disk, then an object store. One thread evicts in the background,
another reads back what tasks are about to want, so that who sets and gets values waits as rarely as
can be. A copy on disk or in a store is kept when its value is read back: to evict that again costs
nothing. A stored copy that is damaged or gone is a lost value (`ValueLostError`), never another.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dask.sizeof import sizeof

from deepflow.decide.evict import Candidate, Room, place_for, victims
from deepflow.errors import FrameError, ValueLostError
from deepflow.intermediates import sampling, values
from deepflow.intermediates.codecs import element_bytes
from deepflow.intermediates.places import Place

__all__ = ["Hooks", "TieredStore", "Use"]

_SMALL_BYTES: Final = 16_384
"""Smaller values stay: they are little of any heap, and many."""
_AHEAD_SHARE: Final = 0.85
"""Of the target, from which on values are evicted in the background."""
_DOWN_TO_SHARE: Final = 0.75
_LEAST_HEAP_SHARE: Final = 0.1
"""Of the target: with less in the heap, a large process is none of its values' fault."""
_WORTH_RATIO: Final = 1.1
_MAX_LOST: Final = 1_000
_IDLE_S: Final = 0.5
_READ_BYTES_PER_S: Final = 5e8
"""From a disk, where most of it ends."""
_REFUSED_FOR_S: Final = 10.0
"""A place that has failed to take a value is left alone for so long."""
_THREADS: Final = 2

_log = logging.getLogger(__name__)


class Use(NamedTuple):
    """What is known of a key: seconds to compute it again, and how soon it is wanted."""

    recompute_s: float
    next_use: int | None


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a store asks and tells; called from its threads.

    `uses` of keys; `over_bytes`: by how much the process is too large, whatever its values say;
    `wanted`: keys that will be asked for soon, the first first; `left`: a value has
    left the heap; `lost`: a value is lost;
    `moved`: so many bytes went ``to`` or came ``from`` a tier, by name; `waited`: seconds that a
    thread was held back; `fallback`: its kind.
    """

    uses: Callable[[Iterable[Any]], dict[Any, Use]]
    over_bytes: Callable[[], int]
    wanted: Callable[[], list[Any]]
    left: Callable[[Any], None]
    lost: Callable[[Any], None]
    moved: Callable[[str, str, int], None]
    waited: Callable[[float], None]
    fallback: Callable[[str], None]


class _Copy(NamedTuple):
    place: Place
    token: Any
    stored_bytes: int


_GONE: Final = object()


@dataclass(slots=True, eq=False)
class _Entry:
    n_bytes: int
    value: Any = _GONE
    copy: _Copy | None = None
    alive: weakref.ref[Any] | None = None
    """The value after eviction, as long as somebody still has it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is being read back."""
    is_leaving: bool = False
    is_pinned: bool = False
    """It cannot be pickled."""
    n_reads: int = 0


class TieredStore(MutableMapping[Any, Any]):
    """See the top of this file. Thread-safe.

    `target_bytes`, of the heap and of what is coded in memory together: evicted towards it, and
    held back beyond it (`admit`).
    """

    def __init__(self, places: Iterable[Place], target_bytes: int, hooks: Hooks) -> None:
        self._places = {place.name: place for place in places}
        self.target_bytes, self._hooks = target_bytes, hooks
        self._entries: dict[Any, _Entry] = {}
        self._lost: OrderedDict[Any, str] = OrderedDict()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.heap_bytes = 0
        self._wanted_bytes = 0
        """To be freed for what is to come."""
        self._is_stuck = False
        self._closed_until_s: dict[str, float] = {}
        """By place: when it is tried again. Said once in the log for each."""
        self._is_closed = False
        self._wants_reading = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._evict, "deepflow-evict"), (self._read_ahead, "deepflow-read"))
        ]
        for thread in self._threads:
            thread.start()

    # -- as a mapping --------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        entry = _Entry(sizeof(value), value)
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._lost.pop(key, None)
            self._entries[key] = entry
            self.heap_bytes += entry.n_bytes
            self._is_stuck = False
            if self._excess_bytes() > 0:
                self._changed.notify_all()

    def __getitem__(self, key: Any) -> Any:
        """The value. `KeyError`, or `ValueLostError` for one whose stored copy is damaged."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if key in self._lost:
                    raise ValueLostError(f"the result {key!r} is lost here: {self._lost[key]}")
                raise KeyError(key)
            entry.n_reads += 1
            if entry.value is not _GONE:
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
        return entry is not None and entry.value is not _GONE

    def tier_of(self, key: Any) -> str:
        """``heap``, or the name of the place where it lies; `KeyError` if there is none."""
        with self._lock:
            entry = self._entries[key]
            if entry.value is not _GONE or entry.copy is None:
                return "heap"
            return entry.copy.place.name

    @property
    def spilled_total(self) -> tuple[int, int]:
        """Bytes that are not in the heap: as in memory, and as stored (Dask asks for it)."""
        with self._lock:
            away = [e for e in self._entries.values() if e.value is _GONE and e.copy is not None]
            return sum(e.n_bytes for e in away), sum(e.copy.stored_bytes for e in away if e.copy)

    def used_bytes(self) -> dict[str, int]:
        """By tier."""
        return {"heap": self.heap_bytes} | {n: p.used_bytes for n, p in self._places.items()}

    # -- back-pressure -------------------------------------------------------------------------

    def admit(self, n_bytes: int, timeout_s: float) -> bool:
        """Wait until there is room for as many bytes more; whether there is. Not for an event loop.

        False after `timeout_s`, or where nothing more can be evicted.
        """
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        n_bytes = min(n_bytes, self.target_bytes // 2)
        with self._lock:
            while self._managed_bytes() + n_bytes > self.target_bytes or self._over_bytes() > 0:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._is_stuck or self._is_closed:
                    return False
                self._wanted_bytes = max(self._wanted_bytes, n_bytes)
                self._changed.notify_all()
                self._changed.wait(min(left_s, _IDLE_S))
        waited_s = time.monotonic() - began_s
        if waited_s > 0.001:
            self._hooks.waited(waited_s)
        return True

    @property
    def is_filling(self) -> bool:
        """Whether it is time to ask for room (`admit`); cheap."""
        return self._managed_bytes() > _DOWN_TO_SHARE * self.target_bytes or (
            self._over_bytes() > 0
        )

    def look(self) -> None:
        """Evict in the background if the process has grown too large."""
        with self._lock:
            if self._excess_bytes() > 0:
                self._changed.notify_all()

    def close(self) -> None:
        """Stop, and remove every stored copy."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
        self._wants_reading.set()
        for thread in self._threads:
            thread.join(timeout=10)
        for place in self._places.values():
            place.close()

    # -- evicting, in a thread of its own ------------------------------------------------------

    def _managed_bytes(self) -> int:
        memory = self._places.get("memory")
        return self.heap_bytes + (memory.used_bytes if memory else 0)

    def _excess_bytes(self) -> int:
        managed, target = self._managed_bytes(), self.target_bytes
        excess = max(self._wanted_bytes, self._over_bytes())
        if managed > _AHEAD_SHARE * target:
            return max(excess, int(managed - _DOWN_TO_SHARE * target))
        return excess

    def _over_bytes(self) -> int:
        """Of a process that is too large, what evicting can do about it."""
        if self.heap_bytes < _LEAST_HEAP_SHARE * self.target_bytes:
            return 0
        return min(self._hooks.over_bytes(), self.heap_bytes)

    def _evict(self) -> None:
        while True:
            with self._lock:
                while not self._is_closed and (self._excess_bytes() <= 0 or self._is_stuck):
                    self._changed.wait()
                if self._is_closed:
                    return
                excess = self._excess_bytes()
            try:
                freed = self._evict_some(excess)
            except Exception:  # noqa: BLE001 - without this thread nothing is evicted
                _log.exception("evicting values failed; it goes on with the next ones")
                freed = 0
            with self._lock:
                self._wanted_bytes = max(0, self._wanted_bytes - freed)
                if freed <= 0:
                    self._is_stuck, self._wanted_bytes = True, 0
                self._changed.notify_all()

    def _evict_some(self, excess: int) -> int:
        """Evict the cheapest values; how many bytes that freed."""
        with self._lock:
            open_to = [
                (key, entry)
                for key, entry in self._entries.items()
                if entry.n_bytes >= _SMALL_BYTES and not entry.is_leaving and not entry.is_pinned
            ]
        uses = self._hooks.uses([key for key, _ in open_to])
        candidates = []
        for key, entry in open_to:
            use = uses.get(key, Use(1.0, None))
            freed = self._would_free(entry)
            read_s = entry.n_bytes / _READ_BYTES_PER_S
            candidates.append(Candidate((key, entry), freed, read_s, use.recompute_s, use.next_use))
        freed = 0
        for chosen in victims(candidates, excess):
            if self._is_closed:
                break
            freed += self._evict_one(*chosen.key)
        return freed

    def _would_free(self, entry: _Entry) -> int:
        if entry.value is not _GONE:
            return entry.n_bytes
        if entry.copy is not None and entry.copy.place.name == "memory":
            return entry.copy.stored_bytes
        return 0

    def _evict_one(self, key: Any, entry: _Entry) -> int:
        with self._lock:
            if self._entries.get(key) is not entry or entry.is_leaving:
                return 0
            value, copy, n_reads = entry.value, entry.copy, entry.n_reads
            if value is _GONE and (copy is None or copy.place.name != "memory"):
                return 0
            entry.is_leaving = True
        try:
            if value is _GONE:
                assert copy is not None
                return self._demote(key, entry, copy)
            if copy is None:
                copy = self._store(key, value, entry)
                if copy is None:
                    return 0
            with self._lock:
                if self._entries.get(key) is not entry:
                    copy.place.remove(copy.token)  # deleted meanwhile
                    return entry.n_bytes
                if entry.n_reads != n_reads:
                    # Somebody uses it: to let go of it would free nothing.
                    if copy.place.name == "memory":
                        copy.place.remove(copy.token)
                    else:
                        entry.copy = copy
                    return 0
                entry.copy = copy
                entry.value = _GONE
                entry.alive = _weakly(value)
                self.heap_bytes -= entry.n_bytes
            in_memory = copy.stored_bytes if copy.place.name == "memory" else 0
            self._hooks.left(key)
            return entry.n_bytes - in_memory
        finally:
            entry.is_leaving = False

    def _store(self, key: Any, value: Any, entry: _Entry) -> _Copy | None:
        """Code a value and write it where it belongs; None where that is not possible."""
        try:
            buffers = values.dump_parts(values.disassemble(value), _codec_of, _THREADS)
        except Exception as exc:  # noqa: BLE001 - pickling runs the user's code
            entry.is_pinned = True
            self._hooks.fallback("not_evictable")
            _log.warning("the result %r stays in memory, for it cannot be pickled: %r", key, exc)
            return None
        stored_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        room = self._rooms()
        while True:
            name = place_for(
                entry.n_bytes,
                stored_bytes,
                Room(room.get("memory"), room.get("disk"), room.get("remote")),
            )
            if name is None:
                self._hooks.fallback("nowhere_to_evict")
                return None
            place = self._places[name]
            try:
                token = place.write(buffers)
            except OSError as exc:
                self._refused(name, exc)
                del room[name]
                continue
            self._hooks.moved("to", name, stored_bytes)
            return _Copy(place, token, stored_bytes)

    def _demote(self, key: Any, entry: _Entry, copy: _Copy) -> int:
        """Move what is coded in memory down, as it is."""
        for name in ("disk", "remote"):
            if self._rooms().get(name, 0) < copy.stored_bytes:
                continue
            place = self._places[name]
            try:
                content = copy.place.read(copy.token)
            except FrameError:
                return 0  # read back or deleted meanwhile
            try:
                token = place.write([content])
            except OSError as exc:
                self._refused(name, exc)
                continue
            self._hooks.moved("to", name, copy.stored_bytes)
            moved = _Copy(place, token, copy.stored_bytes)
            with self._lock:
                if self._entries.get(key) is not entry or entry.copy is not copy:
                    place.remove(token)
                    return 0
                entry.copy = moved
            copy.place.remove(copy.token)
            return copy.stored_bytes
        return 0

    def _rooms(self) -> dict[str, int]:
        """Bytes that each place takes, without those that have just failed to take a value."""
        now_s = time.monotonic()
        return {
            name: place.room_bytes()
            for name, place in self._places.items()
            if now_s >= self._closed_until_s.get(name, 0.0)
        }

    def _refused(self, name: str, exc: OSError) -> None:
        self._hooks.fallback("tier_write_failed")
        if name not in self._closed_until_s:
            _log.warning("values do not go to %s now, the next place is tried: %s", name, exc)
        self._closed_until_s[name] = time.monotonic() + _REFUSED_FOR_S

    # -- reading back --------------------------------------------------------------------------

    def _read_back(self, key: Any, entry: _Entry) -> Any:
        with entry.lock:
            while True:
                with self._lock:
                    if entry.value is not _GONE:
                        return entry.value
                    value = entry.alive() if entry.alive is not None else None
                    if value is not None:
                        self._return_to_heap(key, entry, value)
                        return value
                    copy = entry.copy
                if copy is None:
                    raise KeyError(key)  # deleted meanwhile
                try:
                    value = values.load(copy.place.read(copy.token), _THREADS)
                except FrameError as exc:
                    if entry.copy is not copy:
                        continue  # it was moved to another place meanwhile
                    self._lose(key, entry, exc)
                    raise ValueLostError(f"the result {key!r} is lost here: {exc}") from exc
                self._hooks.moved("from", copy.place.name, copy.stored_bytes)
                with self._lock:
                    self._return_to_heap(key, entry, value)
                return value

    def _return_to_heap(self, key: Any, entry: _Entry, value: Any) -> None:
        """Under the lock."""
        if self._entries.get(key) is not entry:
            return
        entry.value, entry.alive = value, None
        self.heap_bytes += entry.n_bytes
        self._is_stuck = False
        if entry.copy is not None and entry.copy.place.name == "memory":
            entry.copy.place.remove(entry.copy.token)
            entry.copy = None
        if self._excess_bytes() > 0:
            self._changed.notify_all()

    def _lose(self, key: Any, entry: _Entry, exc: FrameError) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._drop(key)
            self._lost[key] = str(exc)
            if len(self._lost) > _MAX_LOST:
                self._lost.popitem(last=False)
        self._hooks.fallback("replica_lost")
        _log.warning("the stored copy of the result %r is lost, it is made anew: %s", key, exc)
        self._hooks.lost(key)

    def _drop(self, key: Any) -> None:
        """Under the lock."""
        entry = self._entries.pop(key)
        if entry.value is not _GONE:
            self.heap_bytes -= entry.n_bytes
            entry.value = _GONE
        if entry.copy is not None:
            copy, entry.copy = entry.copy, None
            copy.place.remove(copy.token)
        self._changed.notify_all()

    def _read_ahead(self) -> None:
        """Read what tasks will want, as far as there is room for it."""
        while True:
            self._wants_reading.wait()
            self._wants_reading.clear()
            if self._is_closed:
                return
            try:
                self._read_wanted()
            except Exception:  # noqa: BLE001 - a guess failed; who asks for a value reads it
                _log.exception("reading ahead failed; values are read when they are asked for")

    def _read_wanted(self) -> None:
        for key in self._hooks.wanted():
            with self._lock:
                entry = self._entries.get(key)
                if entry is None or entry.value is not _GONE:
                    continue
                ahead_bytes = _AHEAD_SHARE * self.target_bytes
                if self._managed_bytes() + entry.n_bytes > ahead_bytes or self._over_bytes() > 0:
                    return
            if self._is_closed:
                return
            try:
                self._read_back(key, entry)
            except (KeyError, ValueLostError):
                continue


def _weakly(value: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(value)
    except TypeError:
        return None


def _codec_of(part: values.Part) -> str:
    """Fast ones: what is evicted is read back at several GB/s; raw where it hardly shrinks."""
    octets = part.octets
    if octets.nbytes < values.RAW_BELOW_BYTES:
        return "raw"
    width = element_bytes(part.dtype)
    is_typed = width > 1 and octets.nbytes % width == 0
    codec = "shuffle+lz4" if is_typed else "zstd:1"
    if octets.nbytes >= 4 * _SMALL_BYTES:
        (found,) = sampling.sample(octets, part.dtype if is_typed else None, [codec])
        if found.ratio < _WORTH_RATIO:
            return "raw"
    return codec
