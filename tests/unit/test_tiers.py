"""A store that keeps what fits: equal values from every tier, and no copy of a lost one."""

from __future__ import annotations

import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deepflow.errors import ValueLostError
from deepflow.intermediates import parcel as parcels
from deepflow.intermediates.loading import HOME
from deepflow.intermediates.parcel import Parcel
from deepflow.intermediates.places import Disk, InMemory, Place, PlaceError, Remote
from deepflow.intermediates.tiers import Hooks, TieredStore, Use
from deepflow.runner.wire import Entry, Outcomes

MB = 1_000_000
Make = Callable[..., TieredStore]


class Seen:
    """What a store told its owner."""

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        self.left: list[Any] = []
        self.lost: list[Any] = []
        self.wanted: list[Any] = []
        self.uses: dict[Any, Use] = {}

    def hooks(self) -> Hooks:
        def count(name: str, n: float = 1) -> None:
            self.counted[name] = self.counted.get(name, 0) + n

        return Hooks(
            uses=lambda keys: self.uses,
            over_bytes=lambda: 0,
            wanted=lambda: self.wanted,
            left=self.left.append,
            lost=self.lost.append,
            moved=lambda direction, tier, n_bytes: count(f"{direction}_{tier}", n_bytes),
            waited=lambda seconds: count("waited_s", seconds),
            fallback=count,
        )


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def make(tmp_path: Path, seen: Seen) -> Iterator[Make]:
    opened: list[TieredStore] = []

    def start(
        *places: Place,
        target: int = 4 * MB,
        hooks: Hooks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> TieredStore:
        chosen = places or (InMemory(MB), Disk(tmp_path / "tiers", None))
        opened.append(TieredStore(chosen, target, hooks or seen.hooks(), clock))
        return opened[-1]

    yield start
    for store in opened:
        store.close()


def noise(seed: int, n_bytes: int = MB) -> np.ndarray:
    return np.random.default_rng(seed).random(n_bytes // 8)


def counts(seed: int, n_bytes: int = MB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, n_bytes // 8)


def settled(store: TieredStore, most: int) -> None:
    """Wait for the evicting thread; a deadline only against a hang."""
    deadline = time.monotonic() + 30
    while store.used_bytes()["heap"] > most and time.monotonic() < deadline:
        time.sleep(0.005)
    assert store.used_bytes()["heap"] <= most


def tiers(store: TieredStore) -> dict[str, int]:
    found: dict[str, int] = {}
    for key in store:
        found[store.tier_of(key)] = found.get(store.tier_of(key), 0) + 1
    return found


def test_everything_comes_back_as_it_was_from_every_tier(make: Make, seen: Seen) -> None:
    store = make()
    for i in range(20):
        store[i] = noise(i) if i % 2 else counts(i)
    settled(store, int(3.5 * MB))
    assert set(tiers(store)) == {"heap", "memory", "disk"}
    for i in [*range(20), *reversed(range(20))]:
        assert np.array_equal(store[i], noise(i) if i % 2 else counts(i))
        assert store[i].flags.writeable
    assert seen.counted["to_memory"] > 0
    assert seen.counted["from_disk"] > 0
    assert len(store) == 20


def test_deleting_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    store = make()
    for i in range(12):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    for i in range(12):
        del store[i]
    assert store.used_bytes() == {"heap": 0, "memory": 0, "disk": 0}
    assert list((tmp_path / "tiers").iterdir()) == []
    assert 3 not in store
    with pytest.raises(KeyError):
        store[3]
    with pytest.raises(KeyError):
        del store[3]
    store.close()
    assert not (tmp_path / "tiers").exists()


def test_what_is_wanted_soon_stays(make: Make, seen: Seen) -> None:
    store = make()
    seen.uses = {i: Use(1.0, i) for i in range(10)}
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    assert store.tier_of(0) == "heap"
    assert store.tier_of(8) == "disk"


def test_a_copy_on_disk_is_written_once(make: Make, seen: Seen) -> None:
    store = make()
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    for _ in range(3):
        for i in range(10):
            store[i]
        settled(store, int(3.5 * MB))
    assert seen.counted["to_disk"] < 11 * 1.01 * MB


def test_a_value_in_use_is_not_read_again(make: Make, seen: Seen) -> None:
    store = make()
    held = noise(0)
    store[0] = held
    for i in range(1, 12):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    assert store.tier_of(0) == "disk"
    assert store[0] is held
    assert "from_disk" not in seen.counted


def test_what_will_be_wanted_is_read_ahead(make: Make, seen: Seen) -> None:
    store = make(target=8 * MB)
    for i in range(12):
        store[i] = noise(i)
    settled(store, 7 * MB)
    away = [i for i in store if store.tier_of(i) == "disk"]
    kept = [i for i in store if store.tier_of(i) == "heap"]
    for i in kept[:4]:
        del store[i]
    seen.wanted = away[1:3]
    assert np.array_equal(store[away[0]], noise(away[0]))
    deadline = time.monotonic() + 30
    while not store.is_in_heap(away[2]) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert all(store.is_in_heap(i) for i in away[1:3])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_copy_is_a_lost_value_and_never_another(
    make: Make, seen: Seen, tmp_path: Path, damage: str
) -> None:
    store = make(Disk(tmp_path / "tiers", None))
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    for path in (tmp_path / "tiers").iterdir():
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 4
        path.unlink()
        if damage != "remove":
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    away = [i for i in store if store.tier_of(i) == "disk"]
    for i in away:
        with pytest.raises(ValueLostError, match=f"result {i} is lost here"):
            store[i]
        assert i not in store
        with pytest.raises(ValueLostError):
            store[i]
    assert seen.counted["replica_lost"] == len(away) == len(seen.lost) > 0
    for i in away:
        store[i] = noise(i)  # made again
    for i in range(10):
        assert np.array_equal(store[i], noise(i))


class Full(Disk):
    """A disk that is full after some values, as `write` finds out."""

    def __init__(self, folder: Path, n_values: int) -> None:
        super().__init__(folder, None)
        self.n_values = n_values

    def write(self, buffers: Any) -> str:
        self.n_values -= 1
        if self.n_values < 0:
            raise OSError(28, "No space left on device")
        return super().write(buffers)


def test_a_full_disk_keeps_values_and_holds_threads_back_for_a_bounded_time(
    make: Make, seen: Seen, tmp_path: Path
) -> None:
    store = make(Full(tmp_path / "tiers", 2))
    for i in range(10):
        store[i] = noise(i)
    assert not store.admit(MB, timeout_s=0.5)
    assert seen.counted["tier_write_failed"] >= 1
    for i in range(10):
        assert np.array_equal(store[i], noise(i))


def test_a_full_disk_ends_no_eviction_for_good(make: Make, tmp_path: Path) -> None:
    disk = Full(tmp_path / "tiers", 0)
    store = make(disk)
    for i in range(10):
        store[i] = noise(i)
    assert not store.admit(MB, timeout_s=0.3)
    assert not store._is_stuck
    disk.n_values = 1_000  # somebody has made room
    settled(store, int(3.5 * MB))
    assert store.admit(MB, timeout_s=30)


def test_room_that_a_deletion_gives_back_is_used_before_the_pause_is_over(
    make: Make, tmp_path: Path
) -> None:
    disk = Disk(tmp_path / "tiers", int(2.5 * MB))
    store = make(disk)
    for i in range(10):
        store[i] = noise(i)
    settled(store, 8 * MB)
    first, second = (key for key in store if store.tier_of(key) == "disk")
    for _ in range(30):  # as long as the longest pause, were it only for the clock
        for entry in list(store._entries.values()):
            entry.again.failed(time.monotonic())
    del store[first]
    settled(store, 7 * MB)
    assert store.tier_of(second) == "disk"
    assert disk.used_bytes < 2.5 * MB


def test_a_folder_that_was_cleaned_away_is_made_again(make: Make, tmp_path: Path) -> None:
    store = make(Disk(tmp_path / "tiers", None))
    shutil.rmtree(tmp_path / "tiers")
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))


class Slow(InMemory):
    """A place that has a value while somebody does something."""

    def __init__(self, meanwhile: Callable[[], Any], n_times: int) -> None:
        super().__init__(1_000 * MB)
        self.meanwhile, self.left = meanwhile, n_times

    def write(self, buffers: Any) -> int:
        self.left -= 1
        if self.left >= 0:
            self.meanwhile()
        return super().write(buffers)


@pytest.mark.parametrize("n_reads", [0, 1, 4])
def test_a_value_that_is_read_while_it_leaves_leaves_later(make: Make, n_reads: int) -> None:
    store = make(Slow(lambda: store["k"], n_reads), target=MB)
    store["k"] = b"x" * 2 * MB
    settled(store, 0)
    assert store.tier_of("k") == "memory"
    assert not store._is_stuck
    assert store["k"] == b"x" * 2 * MB


def test_a_value_that_is_deleted_while_it_leaves_leaves_nothing(make: Make) -> None:
    store = make(Slow(lambda: store.__delitem__("k"), 1), target=MB)
    store["k"] = b"x" * 2 * MB
    store["other"] = b"y" * 2 * MB
    settled(store, 0)
    deadline = time.monotonic() + 30
    while set(tiers(store)) != {"memory"} and time.monotonic() < deadline:
        time.sleep(0.005)
    assert list(store) == ["other"]
    del store["other"]
    assert store.used_bytes() == {"heap": 0, "memory": 0}


@pytest.mark.parametrize("fault", [OSError(5, "no answer"), RuntimeError("a bug"), MemoryError()])
@pytest.mark.parametrize("where", ["room_bytes", "write"])
def test_a_place_that_fails_is_tried_again_whatever_it_raises(
    make: Make, seen: Seen, monkeypatch: pytest.MonkeyPatch, fault: Exception, where: str
) -> None:
    place = InMemory(1_000 * MB)
    works, n_failed = getattr(place, where), 0

    def fails(*arguments: Any) -> Any:
        nonlocal n_failed
        n_failed += 1
        if n_failed <= 3:
            raise fault
        return works(*arguments)

    monkeypatch.setattr(place, where, fails)
    store = make(place, target=MB)
    store["k"] = b"x" * 2 * MB
    settled(store, 0)
    assert seen.counted["tier_write_failed"] == 3
    assert not store._is_stuck


def test_between_two_tries_the_store_rests(make: Make, seen: Seen) -> None:
    now_s = [0.0]
    place = Slow(lambda: exec("raise OSError(5, 'no answer')"), 1_000)
    store = make(place, target=MB, clock=lambda: now_s[0])

    def tried(n_times: int) -> None:
        deadline = time.monotonic() + 30
        while seen.counted.get("tier_write_failed", 0) < n_times and time.monotonic() < deadline:
            store.look()
            time.sleep(0.005)

    store["k"] = b"x" * 2 * MB
    tried(1)
    for n_times, pause_s in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10], 2):
        for _ in range(5):
            store.look()
            time.sleep(0.001)
        assert seen.counted["tier_write_failed"] == n_times - 1
        now_s[0] += pause_s
        tried(n_times)
        assert seen.counted["tier_write_failed"] == n_times
    assert not store.admit(MB, timeout_s=1e6), "nothing has left for long: nobody waits"
    place.left = 0
    now_s[0] += 10
    store.look()
    settled(store, 0)
    assert store.admit(MB, timeout_s=30)


class Pinned:
    """A value of so many bytes that says whether it may leave."""

    def __init__(self, n_bytes: int, is_pinned: bool = True) -> None:
        self.n_bytes, self.is_pinned = n_bytes, is_pinned

    def __sizeof__(self) -> int:
        return self.n_bytes

    def __deepflow_pinned__(self) -> bool:
        return self.is_pinned


def test_what_says_that_it_lives_only_here_stays_and_nobody_waits_for_it(
    make: Make, seen: Seen
) -> None:
    store = make(target=MB)
    store["here"], store["anywhere"] = Pinned(2 * MB), Pinned(2 * MB, is_pinned=False)
    settled(store, 3 * MB)
    assert store.tier_of("here") == "heap"
    assert store.tier_of("anywhere") != "heap"
    assert not store.admit(MB, timeout_s=1e6)
    assert seen.counted["not_evictable"] == 1
    del store["here"]
    assert store.admit(MB, timeout_s=30)


def test_nobody_waits_for_what_no_place_would_take(make: Make) -> None:
    store = make(InMemory(1_000 * MB), target=MB)
    store["k"] = noise(1, 2 * MB)  # it does not shrink, and there is no disk
    assert not store.admit(MB, timeout_s=1e6)


class Changing:
    """Its pickling fails so many times with this."""

    def __init__(self, fault: BaseException, n_times: int) -> None:
        self.fault, self.left = fault, n_times

    def __sizeof__(self) -> int:
        return 2 * MB

    def __reduce__(self) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise self.fault
        return bytes, (10,)


@pytest.mark.parametrize(
    ("fault", "n_times", "leaves"),
    [
        (MemoryError(), 5, True),
        (RuntimeError("dictionary changed size during iteration"), 2, True),
        (RuntimeError("always"), 1_000, False),
        (RecursionError("too deep"), 1_000, False),
        (SystemExit(3), 1_000, False),
    ],
)
def test_pickling_that_fails_in_passing_is_tried_again_and_what_lasts_pins_the_value(
    make: Make, seen: Seen, fault: BaseException, n_times: int, leaves: bool
) -> None:
    store = make(target=MB)
    store["k"] = Changing(fault, n_times)
    if leaves:
        settled(store, 0)
        assert "not_evictable" not in seen.counted
    else:
        assert not store.admit(MB, timeout_s=1e6)
        assert seen.counted["not_evictable"] == 1
    store["other"] = noise(3)
    settled(store, 0 if leaves else int(2.5 * MB))
    assert "service_fault" not in seen.counted


def test_a_size_that_cannot_be_measured_is_guessed(make: Make) -> None:
    class Odd:
        def __sizeof__(self) -> int:
            raise RecursionError("too deep")

    store = make()
    store["odd"] = Odd()
    assert store.heap_bytes > 0


def test_an_owner_that_fails_does_not_end_the_store(make: Make, seen: Seen) -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("startstops")

    hooks = Hooks(fails, fails, fails, fails, fails, fails, fails, seen.hooks().fallback)
    store = make(hooks=hooks)
    for i in range(12):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    assert store.admit(MB, timeout_s=30)
    for i in range(12):
        assert np.array_equal(store[i], noise(i))
    assert seen.counted["service_fault"] > 0
    assert all(thread.is_alive() for thread in store._threads)


class Unwelcome:
    """It can be pickled, but not read back."""

    def __sizeof__(self) -> int:
        return 2 * MB

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("I do not come back")


def test_a_value_that_does_not_come_back_is_lost_once_and_then_stays(
    make: Make, seen: Seen
) -> None:
    store = make(target=MB)
    store["k"] = Unwelcome()
    settled(store, 0)
    with pytest.raises(ValueLostError, match="I do not come back"):
        store["k"]
    assert seen.lost == ["k"]
    again = store["k"] = Unwelcome()  # made again
    assert not store.admit(MB, timeout_s=1e6)
    assert store["k"] is again


def test_a_full_disk_goes_on_in_the_object_store(make: Make, tmp_path: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    store = make(Full(tmp_path / "tiers", 2), Remote("memory://bucket/x", "owner", None))
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    assert tiers(store)["remote"] > 0
    for i in range(10):
        assert np.array_equal(store[i], noise(i))
    store.close()
    assert fsspec.filesystem("memory").store == {}


def test_an_object_store_that_fails_every_other_call_loses_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    fsspec.filesystem("memory").store.clear()
    calls = [0]

    def every_other(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] % 2:
                raise ConnectionError("the store does not answer")
            return call(*args, **kwargs)

        return wrapped

    for name in ("pipe_file", "cat_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, every_other(getattr(MemoryFileSystem, name)))
    store = make(Remote("memory://bucket/y", "owner", None))
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(3.5 * MB))
    for i in range(10):
        assert np.array_equal(store[i], noise(i))
    assert "replica_lost" not in seen.counted
    assert calls[0] > 10
    store.close()
    assert fsspec.filesystem("memory").store == {}


def test_threads_wait_until_there_is_room(make: Make, seen: Seen) -> None:
    store = make()
    results: list[bool] = []

    def produce(i: int) -> None:
        store[i] = noise(i)
        results.append(store.admit(MB, timeout_s=30))

    threads = [threading.Thread(target=produce, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results)
    assert store.used_bytes()["heap"] <= 4 * MB


def test_what_cannot_be_pickled_stays(make: Make, seen: Seen) -> None:
    class Stubborn:
        def __init__(self) -> None:
            self.data = noise(1)

        def __sizeof__(self) -> int:
            return MB

        def __reduce__(self) -> Any:
            raise TypeError("I stay")

    store = make()
    stubborn = Stubborn()
    store["stubborn"] = stubborn
    for i in range(10):
        store[i] = noise(i)
    settled(store, int(4 * MB))
    assert store.tier_of("stubborn") == "heap"
    assert store["stubborn"] is stubborn


def test_many_threads_read_write_and_delete(make: Make) -> None:
    store = make()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            rng = np.random.default_rng(number)
            for step in range(40):
                key = (number, int(rng.integers(6)))
                if key in store and rng.random() < 0.3:
                    del store[key]
                elif key in store:
                    assert np.array_equal(store[key], noise(hash(key) % 1000, 200_000))
                else:
                    store[key] = noise(hash(key) % 1000, 200_000)
                if step % 7 == 0:
                    store.admit(200_000, 10)
        except BaseException as exc:  # noqa: BLE001 - looked at below
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    heap = sum(store[key].nbytes for key in store)
    assert heap == len(store) * 200_000


def test_places_refuse_what_is_not_there(tmp_path: Path) -> None:
    for place in (InMemory(MB), Disk(tmp_path / "d", None), Remote("memory://b/z", "o", None)):
        token = place.write([b"abc", b"def"])
        assert bytes(place.read(token)) == b"abcdef"
        assert place.used_bytes == 6
        place.remove(token)
        place.remove(token)
        assert place.used_bytes == 0
        with pytest.raises(PlaceError):
            place.read(token)
        place.close()


def test_a_large_value_is_never_in_memory_twice(make: Make, tmp_path: Path) -> None:
    """Written from where it lies, read piece by piece."""
    tracemalloc.start()
    try:
        store = make(target=100 * MB)
        store["large"] = noise(1, 128 * MB)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        settled(store, 0)
        assert tracemalloc.get_traced_memory()[1] - before < 4 * MB
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        value = store["large"]
        # A reader of the whole file would need as much again.
        assert tracemalloc.get_traced_memory()[1] - before < 1.4 * 128 * MB
    finally:
        tracemalloc.stop()
    assert np.array_equal(value, noise(1, 128 * MB))


def test_a_value_that_its_readers_have_put_on_disk_is_not_written_there_again(
    make: Make, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_disk", (str(tmp_path), MB))
    store = make()
    outcomes = Outcomes([Entry(uuid4(), "done", Parcel.of(noise(0, 3 * MB)), "COMPLETED")])
    opened = outcomes.entries[0].content.open(HOME)  # type: ignore[union-attr]
    store["opened"] = outcomes
    store["other"] = noise(1, 3 * MB)
    settled(store, int(3.5 * MB))
    assert store["opened"] is outcomes
    assert store.tier_of("opened") == "heap"
    assert np.array_equal(opened, noise(0, 3 * MB))
    assert store.used_bytes()["heap"] < 3.5 * MB
