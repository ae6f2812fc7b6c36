"""A mapping of values that keeps in the heap what fits, and the rest where it takes less.

Heap, then coded in memory, then disk, then an object store. One thread evicts in the background,
another reads back what tasks are about to want, so that who sets and gets values waits as rarely as
can be. A copy on disk or in a store is kept when its value is read back: to evict that again costs
nothing. A stored copy that is damaged or gone is a lost value (`ValueLostError`), never another.

A value that cannot leave is one of two kinds. What fails *in passing* (it was read meanwhile, a
place is full or does not answer, memory is short) is tried again after a pause that doubles, and
sooner when room comes back. What *lasts* (it cannot be pickled, it lives only in this process, no
place takes such a value) pins the value. Where only pinned values are left, nobody waits for room.
The store asks its owner through hooks, runs the users' pickling code and writes to places: none of
these can end its threads, whatever they raise.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from distributed import sizeof

from deepflow.decide.compression import HEAP
from deepflow.decide.evict import Backoff, Candidate, Room, place_for, victims
from deepflow.errors import FrameError, ValueLostError
from deepflow.intermediates import values
from deepflow.intermediates.choosing import codec_at_rest
from deepflow.intermediates.chunks import Part
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.places import Disk, Place

__all__ = ["Hooks", "TieredStore", "Use"]

_SMALL_BYTES: Final = 16_384
"""Smaller values stay: they are little of any heap, and many."""
_AHEAD_SHARE: Final = 0.85
"""Of the target, from which on values are evicted in the background."""
_DOWN_TO_SHARE: Final = 0.75
_LEAST_HEAP_SHARE: Final = 0.1
"""Of the target: with less in the heap, a large process is none of its values' fault."""
_LARGE_SHARE: Final = 0.25
"""Of the target, from which on a value goes to the disk as it is."""
_MAX_LOST: Final = 1_000
_IDLE_S: Final = 0.5
_READ_BYTES_PER_S: Final = 5e8
"""From a disk, where most of it ends."""
_PATIENCE_S: Final = 5.0
"""Nobody waits for room once nothing has left the heap for so long, although something should."""
_SOONER_S: Final = 1.0
"""When a place that has refused a value is tried again after room has come back in it."""
_MAX_PICKLINGS: Final = 3
"""A value whose pickling fails as if by a race is pinned after so many times."""
_RESTART_AFTER_S: Final = 0.5
_NO_LIMIT: Final = 1 << 62
_THREADS: Final = 2
_T = TypeVar("_T")

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


class _Lost(NamedTuple):
    """Why a value is lost; and whether another one of that key could be read back."""

    reason: str
    can_be_read: bool


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
    """When no place had room for it last (see `TieredStore._room_epoch`)."""


class TieredStore(MutableMapping[Any, Any]):
    """See the top of this file. Thread-safe.

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
        self._places = {place.name: place for place in places}
        self.target_bytes, self._hooks, self._clock = target_bytes, hooks, clock
        self._entries: dict[Any, _Entry] = {}
        self._lost: OrderedDict[Any, _Lost] = OrderedDict()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.heap_bytes = 0
        self._waiting_bytes: list[int] = []
        """What each thread that waits for room wants to add."""
        self._is_stuck = False
        """Nothing that is here can ever leave. It ends with the next change."""
        self._retry_at_s = float("-inf")
        """When evicting makes sense again; put back by what changes."""
        self._failing_since_s: float | None = None
        """Since when something should leave and nothing has."""
        self._room_epoch = 0
        """Counts when room came back in some place."""
        self._refusals = {name: Backoff() for name in self._places}
        """By place: when it is tried again."""
        self._said: set[str] = set()
        self._is_closed = False
        self._wants_reading = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(run,), name=name, daemon=True)
            for run, name in ((self._evict, "deepflow-evict"), (self._read_ahead, "deepflow-read"))
        ]
        for thread in self._threads:
            thread.start()

    # -- as a mapping --------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        entry = _Entry(sizeof.safe_sizeof(value), value)
        with self._lock:
            if key in self._entries:
                self._drop(key)
            lost = self._lost.pop(key, None)
            entry.is_pinned = lost is not None and not lost.can_be_read
            self._entries[key] = entry
            self.heap_bytes += entry.n_bytes
            self._reconsider()

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

        False after `timeout_s`; at once where nothing more can be evicted; and where nothing has
        left for some seconds although something should.
        """
        began_s = time.monotonic()
        deadline_s = began_s + timeout_s
        n_bytes = min(n_bytes, self.target_bytes // 2)
        with self._lock:
            self._waiting_bytes.append(n_bytes)
            try:
                while self._managed_bytes() + n_bytes > self.target_bytes or self._over_bytes() > 0:
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0 or not self._may_evict():
                        return False
                    self._changed.notify_all()
                    self._changed.wait(min(left_s, _IDLE_S))
            finally:
                self._waiting_bytes.remove(n_bytes)
        waited_s = time.monotonic() - began_s
        if waited_s > 0.001:
            self._tell(self._hooks.waited, waited_s)
        return True

    def _may_evict(self) -> bool:
        """Whether it makes sense to wait for the evicting thread (under the lock)."""
        if self._is_closed or self._is_stuck or not self._threads[0].is_alive():
            return False
        since_s = self._failing_since_s
        return since_s is None or self._clock() - since_s < _PATIENCE_S

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
            self._tell(place.close)

    # -- guards --------------------------------------------------------------------------------

    def _serve(self, run: Callable[[], None]) -> None:
        """A thread's life: whatever ends `run`, it is counted, and `run` begins anew."""
        while not self._is_closed:
            try:
                run()
            except BaseException:  # noqa: BLE001 - without this thread nothing moves any more
                self._fault(f"{threading.current_thread().name} met a fault and goes on")
                time.sleep(_RESTART_AFTER_S)

    def _ask(self, hook: Callable[..., _T], otherwise: _T, *arguments: Any) -> _T:
        """What the owner answers; `otherwise` where it fails."""
        try:
            return hook(*arguments)
        except Exception:  # noqa: BLE001 - the owner's trouble must not become the store's
            self._fault("asking a store's owner failed")
            return otherwise

    def _tell(self, hook: Callable[..., None], *arguments: Any) -> None:
        self._ask(hook, None, *arguments)

    def _fault(self, what: str) -> None:
        """Count a fault of what should not fail; logged once."""
        with suppress(Exception):  # counting is the owner's, too
            self._hooks.fallback("service_fault")
        if what not in self._said:
            self._said.add(what)
            _log.exception("%s", what)

    def _remove(self, copy: _Copy) -> None:
        """Remove a stored copy: there is room for others now (under the lock, or not)."""
        self._tell(copy.place.remove, copy.token)
        with self._lock:
            self._room_epoch += 1
            refusal = self._refusals[copy.place.name]
            if refusal.n_failed:
                refusal.sooner(self._clock() + _SOONER_S)
            self._reconsider()

    def _reconsider(self) -> None:
        """Something has changed: what could not leave may do so now (under the lock)."""
        self._is_stuck, self._retry_at_s = False, float("-inf")
        if self._waiting_bytes or self._excess_bytes() > 0:
            self._changed.notify_all()

    # -- evicting, in a thread of its own ------------------------------------------------------

    def _managed_bytes(self) -> int:
        memory = self._places.get("memory")
        return self.heap_bytes + (memory.used_bytes if memory else 0)

    def _excess_bytes(self) -> int:
        managed, target = self._managed_bytes(), self.target_bytes
        excess = max(max(self._waiting_bytes, default=0) + managed - target, self._over_bytes())
        if managed > _AHEAD_SHARE * target:
            return max(excess, int(managed - _DOWN_TO_SHARE * target))
        return excess

    def _over_bytes(self) -> int:
        """Of a process that is too large, what evicting can do about it."""
        if self.heap_bytes < _LEAST_HEAP_SHARE * self.target_bytes:
            return 0
        return min(self._ask(self._hooks.over_bytes, 0), self.heap_bytes)

    def _evict(self) -> None:
        while True:
            with self._lock:
                while not self._is_closed:
                    excess = self._excess_bytes()
                    if excess <= 0:
                        self._failing_since_s = None
                        self._changed.wait()
                        continue
                    wait_s = self._retry_at_s - self._clock()
                    if wait_s <= 0:
                        break
                    self._changed.wait(None if self._is_stuck else wait_s)
                if self._is_closed:
                    return
                # What changes from here on puts it back once more.
                self._retry_at_s = float("inf")
            freed = self._evict_some(excess)
            with self._lock:
                self._tried(freed)
                self._changed.notify_all()

    def _tried(self, freed: int) -> None:
        """Note what came of a try to evict: when to try again, or that it makes no sense."""
        if freed > 0:
            self._failing_since_s, self._retry_at_s = None, float("-inf")
            return
        open_to = [entry for _, entry in self._open_to_leave()]
        if self._failing_since_s is None:
            self._failing_since_s = self._clock()
        self._is_stuck = not open_to
        if self._retry_at_s == float("inf"):
            self._retry_at_s = min((e.again.due_s for e in open_to), default=float("inf"))

    def _open_to_leave(self) -> list[tuple[Any, _Entry]]:
        """What could leave where it is, now or later (under the lock)."""
        return [
            (key, entry)
            for key, entry in self._entries.items()
            if entry.n_bytes >= _SMALL_BYTES and not entry.is_pinned and self._would_free(entry) > 0
        ]

    def _evict_some(self, excess: int) -> int:
        """Evict the cheapest values; how many bytes that freed."""
        with self._lock:
            now_s = self._clock()
            due = [
                (key, entry)
                for key, entry in self._open_to_leave()
                if entry.again.is_due(now_s) or entry.room_epoch not in (None, self._room_epoch)
            ]
        if not due:
            return 0
        no_uses: dict[Any, Use] = {}
        uses = self._ask(self._hooks.uses, no_uses, [key for key, _ in due])
        candidates = []
        for key, entry in due:
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
        copy = entry.copy
        if copy is not None and copy.place.name == "memory" and len(self._places) > 1:
            return copy.stored_bytes
        return 0

    def _evict_one(self, key: Any, entry: _Entry) -> int:
        """Evict one value; how many bytes that freed. Where none, when it is tried again."""
        with self._lock:
            if self._entries.get(key) is not entry:
                return 0
            entry.room_epoch = None
        freed = 0
        try:
            freed = self._move_down(key, entry)
        except Exception:  # noqa: BLE001 - one value's trouble: it is tried again, others go on
            self._fault("evicting a value failed")
        finally:
            with self._lock:
                if freed > 0:
                    entry.again.succeeded()
                else:
                    self._put_off(entry)
        return freed

    def _put_off(self, entry: _Entry) -> None:
        """A value could not leave now: note when it is tried again (under the lock)."""
        entry.again.failed(self._clock())
        if entry.room_epoch is not None:
            for refusal in self._refusals.values():
                if refusal.n_failed:
                    entry.again.sooner(refusal.due_s)

    def _move_down(self, key: Any, entry: _Entry) -> int:
        with self._lock:
            value, copy, n_reads = entry.value, entry.copy, entry.n_reads
        if value is _GONE:
            return 0 if copy is None or copy.place.name != "memory" else self._demote(key, copy)
        if copy is None and (freed := self._leave_on_disk(key, value, entry)):
            return freed
        if copy is None:
            copy = self._store(key, value, entry)
            if copy is None:
                return 0
        with self._lock:
            if self._entries.get(key) is not entry:
                self._remove(copy)  # deleted meanwhile
                return entry.n_bytes
            if entry.n_reads != n_reads:
                # Somebody uses it: to let go of it would free nothing.
                if copy.place.name == "memory":
                    self._remove(copy)
                else:
                    entry.copy = copy
                return 0
            entry.copy = copy
            entry.value = _GONE
            entry.alive = _weakly(value)
            self.heap_bytes -= entry.n_bytes
        in_memory = copy.stored_bytes if copy.place.name == "memory" else 0
        self._tell(self._hooks.left, key)
        return max(1, entry.n_bytes - in_memory)

    def _leave_on_disk(self, key: Any, value: Any, entry: _Entry) -> int:
        """Count a value no longer whose readers have put it on disk; how many bytes that is."""
        asked = getattr(type(value), "__deepflow_on_disk_bytes__", None)
        on_disk_bytes = min(asked(value), entry.n_bytes) if asked is not None else 0
        if on_disk_bytes <= entry.n_bytes // 2:
            return 0
        with self._lock:
            if self._entries.get(key) is not entry or entry.value is not value:
                return 0
            self.heap_bytes -= on_disk_bytes
            entry.n_bytes -= on_disk_bytes
        return int(on_disk_bytes)

    def _store(self, key: Any, value: Any, entry: _Entry) -> _Copy | None:
        """Code a value and write it where it belongs; None where that is not possible."""
        if entry.coded_bytes is not None and self._place_for(entry, self._rooms()) is None:
            return None
        try:
            if _lives_here_only(value):
                entry.is_pinned = True
                self._tell(self._hooks.fallback, "not_evictable")
                return None
            # The codes of a value that takes much of the memory would be too much beside it.
            is_large = entry.n_bytes > _LARGE_SHARE * self.target_bytes
            choose = _raw if is_large and "disk" in self._places else _codec_of
            buffers = values.dump_parts(values.disassemble(value), choose, _THREADS)
        except MemoryError:
            self._tell(self._hooks.fallback, "memory_short")
            return None
        except BaseException as exc:  # noqa: BLE001 - pickling runs the user's code
            self._note_unpicklable(key, entry, exc)
            return None
        entry.coded_bytes = stored_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        rooms = self._rooms()
        while (name := self._place_for(entry, rooms)) is not None:
            token = self._write(name, buffers)
            if token is not None:
                self._tell(self._hooks.moved, "to", name, stored_bytes)
                return _Copy(self._places[name], token[0], stored_bytes)
            del rooms[name]
        return None

    def _note_unpicklable(self, key: Any, entry: _Entry, exc: BaseException) -> None:
        """Pin a value that cannot be pickled; not at once where it may only have been changing."""
        entry.n_picklings_failed += 1
        is_passing = isinstance(exc, RuntimeError) and not isinstance(
            exc, (RecursionError, NotImplementedError)
        )
        if is_passing and entry.n_picklings_failed < _MAX_PICKLINGS:
            return
        entry.is_pinned = True
        self._tell(self._hooks.fallback, "not_evictable")
        _log.warning(
            "the result %r stays in memory, for it cannot be pickled: %s", key, _said_by(exc)
        )

    def _place_for(self, entry: _Entry, rooms: dict[str, int]) -> str | None:
        """Where a value of known coded size goes. Where nowhere: for now, or for good (pinned)."""
        n_bytes, coded_bytes = entry.n_bytes, entry.coded_bytes
        assert coded_bytes is not None
        name = place_for(n_bytes, coded_bytes, _room_of(rooms))
        if name is not None:
            return name
        self._tell(self._hooks.fallback, "nowhere_to_evict")
        at_best = _room_of(dict.fromkeys(self._places, _NO_LIMIT))
        with self._lock:
            entry.is_pinned = place_for(n_bytes, coded_bytes, at_best) is None
            entry.room_epoch = self._room_epoch
        return None

    def _demote(self, key: Any, copy: _Copy) -> int:
        """Move what is coded in memory down, as it is."""
        entry = self._entries.get(key)
        for name in ("disk", "remote"):
            if entry is None or self._rooms().get(name, 0) < copy.stored_bytes:
                continue
            try:
                content = copy.place.read(copy.token)
            except FrameError:
                return 0  # read back or deleted meanwhile
            token = self._write(name, [content])
            if token is None:
                continue
            self._tell(self._hooks.moved, "to", name, copy.stored_bytes)
            moved = _Copy(self._places[name], token[0], copy.stored_bytes)
            with self._lock:
                if self._entries.get(key) is not entry or entry.copy is not copy:
                    self._remove(moved)
                    return 0
                entry.copy = moved
            self._remove(copy)
            return copy.stored_bytes
        if entry is not None:
            entry.room_epoch = self._room_epoch
        return 0

    def _write(self, name: str, buffers: Sequence[Buffer]) -> tuple[Any] | None:
        """Write to a place; what the value is found by there, or None where the place refuses."""
        try:
            token = self._places[name].write(buffers)
        except Exception as exc:  # noqa: BLE001 - a place's trouble is not the value's
            self._refused(name, exc)
            return None
        self._refusals[name].succeeded()
        return (token,)

    def _rooms(self) -> dict[str, int]:
        """Bytes that each place takes, without those that have just failed to take a value."""
        now_s = self._clock()
        rooms = {}
        for name, place in self._places.items():
            if not self._refusals[name].is_due(now_s):
                continue
            try:
                rooms[name] = place.room_bytes()
            except Exception as exc:  # noqa: BLE001 - as when writing
                self._refused(name, exc)
        return rooms

    def _refused(self, name: str, exc: Exception) -> None:
        self._tell(self._hooks.fallback, "tier_write_failed")
        with self._lock:
            self._refusals[name].failed(self._clock())
        if name not in self._said:
            self._said.add(name)
            _log.warning(
                "values do not go to %s now, the next place is tried: %s", name, _said_by(exc)
            )

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
                    value = _load(copy)
                except MemoryError:
                    raise  # it is still there, and may be read when there is room
                except Exception as exc:
                    if entry.copy is not copy:
                        continue  # it was moved to another place meanwhile
                    # Where the copy is whole but the value's own code does not take it, the next
                    # one is not evicted.
                    lost = _Lost(_said_by(exc), can_be_read=isinstance(exc, FrameError))
                    self._lose(key, entry, lost)
                    raise ValueLostError(f"the result {key!r} is lost here: {lost.reason}") from exc
                self._tell(self._hooks.moved, "from", copy.place.name, copy.stored_bytes)
                with self._lock:
                    self._return_to_heap(key, entry, value)
                return value

    def _return_to_heap(self, key: Any, entry: _Entry, value: Any) -> None:
        """Under the lock."""
        if self._entries.get(key) is not entry:
            return
        entry.value, entry.alive = value, None
        self.heap_bytes += entry.n_bytes
        if entry.copy is not None and entry.copy.place.name == "memory":
            copy, entry.copy = entry.copy, None
            self._remove(copy)
        self._reconsider()

    def _lose(self, key: Any, entry: _Entry, lost: _Lost) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._drop(key)
            self._lost[key] = lost
            if len(self._lost) > _MAX_LOST:
                self._lost.popitem(last=False)
        self._tell(self._hooks.fallback, "replica_lost")
        _log.warning(
            "the stored copy of the result %r is lost, it is made anew: %s", key, lost.reason
        )
        self._tell(self._hooks.lost, key)

    def _drop(self, key: Any) -> None:
        """Under the lock."""
        entry = self._entries.pop(key)
        if entry.value is not _GONE:
            self.heap_bytes -= entry.n_bytes
            entry.value = _GONE
        if entry.copy is not None:
            copy, entry.copy = entry.copy, None
            self._remove(copy)
        self._reconsider()
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
                self._fault("reading ahead failed; values are read when they are asked for")

    def _read_wanted(self) -> None:
        nothing: list[Any] = []
        for key in self._ask(self._hooks.wanted, nothing):
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


def _load(copy: _Copy) -> Any:
    if isinstance(copy.place, Disk):
        with copy.place.source(copy.token) as source:
            return values.load(source, _THREADS)
    return values.load(copy.place.read(copy.token), _THREADS)


def _lives_here_only(value: Any) -> bool:
    """Whether a value says of itself that it holds what no other process can have."""
    asked = getattr(type(value), "__deepflow_pinned__", None)
    return asked is not None and bool(asked(value))


def _room_of(rooms: dict[str, int]) -> Room:
    return Room(rooms.get("memory"), rooms.get("disk"), rooms.get("remote"))


def _said_by(exc: BaseException) -> str:
    """An exception in words, also where its own code fails."""
    try:
        return f"{type(exc).__name__}: {exc}"
    except Exception:  # noqa: BLE001 - an exception's `__str__` is the user's code
        return type(exc).__name__


def _weakly(value: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(value)
    except TypeError:
        return None


def _raw(part: Part) -> str:
    return "raw"


_codec_of: Final = partial(codec_at_rest, objective=HEAP)
