"""A store that keeps what fits: equal values from every tier, and no copy of a lost one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deepflow.errors import ValueLostError
from deepflow.intermediates.places import Disk, InMemory, Place, PlaceError, Remote
from deepflow.intermediates.tiers import Hooks, TieredStore, Use

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

    def start(*places: Place, target: int = 4 * MB) -> TieredStore:
        chosen = places or (InMemory(MB), Disk(tmp_path / "tiers", None))
        opened.append(TieredStore(chosen, target, seen.hooks()))
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
    assert not store.admit(MB, timeout_s=5)
    assert seen.counted["tier_write_failed"] >= 1
    for i in range(10):
        assert np.array_equal(store[i], noise(i))


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
