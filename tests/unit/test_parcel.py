"""Each reader of a parcel gets a value of its own, and nothing is copied before it is written."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepflow.intermediates import parcel as parcels
from deepflow.intermediates import values
from deepflow.intermediates.arena import Arena, attach, private_copy
from deepflow.intermediates.loading import HOME
from deepflow.intermediates.parcel import MAPPED_FROM_BYTES, Parcel, Stuck

SMALL, LARGE = 10, MAPPED_FROM_BYTES // 8 + 1


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_what_one_reader_writes_no_other_sees(n: int) -> None:
    parcel = Parcel.of({"a": np.zeros(n), "seen": []})
    first, second = parcel.open(HOME), parcel.open(HOME)
    first["a"] += 1
    first["seen"].append(1)
    assert second["a"][0] == 0
    assert second["seen"] == []
    assert parcel.open(HOME)["a"][0] == 0


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_the_original_is_not_changed_by_readers(n: int) -> None:
    array = np.zeros(n)
    parcel = Parcel.of(array)
    for _ in range(3):
        opened = parcel.open(HOME)
        opened[:] = 7
    assert array[0] == 0


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_what_is_one_object_within_a_value_stays_one(n: int) -> None:
    array = np.zeros(n)
    opened = Parcel.of([array, {"again": array}]).open(HOME)
    assert opened[0] is opened[1]["again"]


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_frames_series_and_bytearrays_are_writable_and_apart(n: int) -> None:
    parcel = Parcel.of((pd.DataFrame({"x": np.zeros(n)}), pd.Series(np.zeros(n)), bytearray(8 * n)))
    for _ in range(2):
        frame, series, octets = parcel.open(HOME)
        frame["x"] += 1
        series += 1
        octets[0] += 1
        assert (frame["x"].iloc[0], series.iloc[0], octets[0]) == (1.0, 1.0, 1)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_a_read_only_array_stays_read_only(n: int) -> None:
    array = np.zeros(n)
    array.flags.writeable = False
    assert not Parcel.of(array).open(HOME).flags.writeable


def test_large_buffers_are_laid_into_a_file_once_and_mapped_by_each_reader() -> None:
    parcel = Parcel.of(np.arange(LARGE, dtype=float))
    before = parcel.buffers[0].obj
    first = parcel.open(HOME)
    laid = parcel.buffers[0].obj
    second = parcel.open(HOME)
    assert laid is not before
    assert parcel.buffers[0].obj is laid
    assert not np.shares_memory(first, second)
    assert np.array_equal(first, second)


def test_what_takes_much_of_the_memory_is_opened_from_a_file_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_disk", None)
    parcels.lay_on_disk(str(tmp_path), 8 * LARGE)
    parcel = Parcel.of([np.arange(LARGE, dtype=float), np.ones(LARGE)])
    first = parcel.open(HOME)
    first[0][0] = 99
    second = parcel.open(HOME)
    assert np.array_equal(second[0], np.arange(LARGE, dtype=float))
    assert np.array_equal(second[1], np.ones(LARGE))
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) in maps.read()
    assert list(tmp_path.iterdir()) == []  # it has no name that could be left


def test_where_no_file_can_be_made_readers_get_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_disk", (str(tmp_path / "absent"), 0))
    parcel = Parcel.of(np.zeros(LARGE))
    first = parcel.open(HOME)
    first += 1
    assert parcel.open(HOME)[0] == 0


def test_readers_at_the_same_time_get_copies_apart() -> None:
    parcel = Parcel.of(np.zeros(LARGE))
    start, sums = threading.Barrier(8), []

    def read(number: int) -> None:
        start.wait()
        opened = parcel.open(HOME)
        opened += number
        sums.append((number, float(opened[0]), float(opened[-1])))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == [(n, float(n), float(n)) for n in range(8)]


def test_a_parcel_in_a_segment_is_mapped_from_there_and_holds_the_segment(tmp_path: Path) -> None:
    arena = Arena(tmp_path, 1 << 28, 0)
    parts = values.disassemble(Parcel.of(np.arange(LARGE, dtype=float)))
    sealed = arena.put([part.octets for part in parts])
    assert sealed is not None
    descriptor = sealed.descriptor
    parcel: Any = values.assemble(
        attach(tmp_path, descriptor), [part.is_readonly for part in parts]
    )
    assert private_copy(parcel.buffers) is not None
    opened = parcel.open(HOME)
    opened[0] = 99
    assert parcel.open(HOME)[0] == 0
    # The owner lets go of it, and the next value of that size must not be laid over what is open.
    del sealed, parcel
    again = arena.put([bytes(part.octets.nbytes) for part in parts])
    assert again is not None
    assert np.array_equal(opened[1:], np.arange(1, LARGE, dtype=float))
    arena.close()


def test_types_of_buffers_are_known_after_a_journey() -> None:
    parts = values.disassemble(Parcel.of(np.arange(LARGE, dtype=np.float32)))
    assert "<f4" in [part.dtype for part in parts]
    arrived: Any = values.assemble(
        [part.octets for part in parts], [part.is_readonly for part in parts]
    )
    assert "<f4" in [part.dtype for part in values.disassemble(arrived)]


@pytest.mark.parametrize("value", [None, {"a": [1, 2]}, np.arange(SMALL), b"x" * 100_000])
def test_a_small_parcel_survives_as_bytes(value: Any) -> None:
    opened = Parcel.from_bytes(Parcel.of(value).to_bytes()).open(HOME)
    assert np.array_equal(opened, value) if isinstance(value, np.ndarray) else opened == value


def test_a_detached_parcel_does_not_see_what_its_owner_writes_later() -> None:
    array = np.zeros(LARGE)
    parcel = Parcel.of(array).detach()
    array += 1
    assert parcel.open(HOME)[0] == 0


def test_a_stuck_value_serves_its_process_and_is_left_behind_when_it_moves() -> None:
    lock = threading.Lock()
    stuck = Stuck(lock, "a lock cannot be pickled", b"record")
    assert stuck.is_here
    assert stuck.value == (lock,)
    moved = pickle.loads(pickle.dumps(stuck, protocol=5))
    assert not moved.is_here
    assert (moved.why, moved.record) == ("a lock cannot be pickled", b"record")
