from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedPickleSerializer, JSONSerializer, PickleSerializer
from prefect.types._datetime import now
from pydantic import ValidationError

from deepflow.errors import StoredResultError
from deepflow.intermediates import values
from deepflow.intermediates.choosing import Choices
from deepflow.intermediates.stored import address_of, pack, pack_record, split_record, unpack
from deepflow.observe import metrics
from deepflow.runner.results import storage
from deepflow.runner.results.caching import CONTENT
from deepflow.runner.results.serializer import DeepflowSerializer
from deepflow.runner.results.storage import DeepflowResultStore
from tests.unit import stored_format_1
from tests.unit.stored_format_1 import content_of

VALUES = {
    "sorted": np.arange(20_000),
    "empty": np.zeros((0, 3)),
    "scalar array": np.array(5),
    "fortran": np.asfortranarray(np.random.default_rng(0).normal(size=(40, 50))),
    "strided": np.arange(1000)[::3],
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "objects": np.array([1, "a", None], dtype=object),
    "plain": {"a": [1, 2.5, None], "b": ("x", b"y")},
    "function": lambda: 3,
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, pd.DataFrame):
        return left.equals(right)
    return left() == right() if callable(left) else left == right


def store_in(folder: Any, serializer: Any = None, **said: Any) -> DeepflowResultStore:
    files = folder if not isinstance(folder, Path) else LocalFileSystem(basepath=str(folder))
    return DeepflowResultStore.of(
        ResultStore(
            result_storage=files,
            serializer=serializer or DeepflowSerializer(),
            cache_result_in_memory=False,
            **said,
        )
    )


def plain_in(folder: Path, serializer: Any) -> ResultStore:
    return ResultStore(
        result_storage=LocalFileSystem(basepath=str(folder)),
        serializer=serializer,
        cache_result_in_memory=False,
    )


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_from_every_layout(name: str, tmp_path: Path) -> None:
    value = VALUES[name]
    ours, plain = store_in(tmp_path), plain_in(tmp_path, DeepflowSerializer())
    ours.write(value, key="apart")
    plain.write(value, key="one-document")
    assert ours.exists("apart")
    assert same(value, ours.read("apart").result)
    assert ours.exists("one-document")
    assert same(value, ours.read("one-document").result)
    assert plain.exists("one-document")
    assert same(value, plain.read("one-document").result)
    assert same(value, plain.read("apart").result), "a Prefect that knows the serializer reads it"


def test_the_name_is_known_to_prefect() -> None:
    store = ResultStore(serializer=DeepflowSerializer(type="deepflow"))
    assert isinstance(store.serializer, DeepflowSerializer)


def test_bytes_are_stored_as_they_are(tmp_path: Path) -> None:
    noise = os.urandom(100_000)
    store_in(tmp_path).write(noise, key="k")
    assert (tmp_path / "k").stat().st_size < 100_600
    assert noise[:1000] in (tmp_path / "k").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize(
    "serializer", [PickleSerializer(), JSONSerializer(), CompressedPickleSerializer()]
)
def test_records_of_prefects_serializers_are_read(serializer: Any, tmp_path: Path) -> None:
    plain_in(tmp_path, serializer).write({"a": [1, 2]}, key="k")
    store = store_in(tmp_path)
    assert store.exists("k")
    assert store.read("k").result == {"a": [1, 2]}


@pytest.mark.parametrize("serializer", [PickleSerializer(), DeepflowSerializer()])
def test_prefects_own_store_finds_a_record_of_ours(serializer: Any, tmp_path: Path) -> None:
    store_in(tmp_path).write(np.arange(1000), key="k")
    store_in(tmp_path).write(1, key="over", expiration=now("UTC") - timedelta(days=1))
    plain = plain_in(tmp_path, serializer)
    assert plain.exists("k")
    record = plain.read("k")
    assert same(np.arange(1000), record.result)
    assert isinstance(record.serializer, DeepflowSerializer)
    assert not plain.exists("over"), "its time is over"
    assert not store_in(tmp_path).exists("over")


async def test_prefects_own_store_finds_a_record_of_ours_asynchronously(tmp_path: Path) -> None:
    store_in(tmp_path).write([1, 2], key="k")
    plain = plain_in(tmp_path, PickleSerializer())
    assert await plain.aexists("k")
    assert (await plain.aread("k")).result == [1, 2]


def test_prefect_writes_over_a_record_of_ours_and_the_last_one_counts(tmp_path: Path) -> None:
    ours, plain = store_in(tmp_path), plain_in(tmp_path, PickleSerializer())
    ours.write("first", key="k")
    plain.write("second", key="k")
    assert ours.exists("k")
    assert ours.read("k").result == plain.read("k").result == "second"
    ours.write("third", key="k")
    assert ours.exists("k")
    assert ours.read("k").result == plain.read("k").result == "third"


def test_prefect_writes_over_a_record_of_an_earlier_version(tmp_path: Path) -> None:
    content = pack("first")
    (tmp_path / "k").write_bytes(content)
    said = ResultRecordMetadata(
        serializer=DeepflowSerializer(address=address_of(content)),
        storage_key="k",
        expiration=now("UTC") - timedelta(days=1),
    )
    (tmp_path / "k.meta").write_bytes(said.dump_bytes())
    ours = store_in(tmp_path)
    assert not ours.exists("k"), "its time is over"
    for store in (plain_in(tmp_path, PickleSerializer()), ours):
        store.write("second", key="k")
        assert ours.exists("k")
        assert ours.read("k").result == "second"


def test_a_prefect_without_deepflow_does_not_take_ours_for_a_value(tmp_path: Path) -> None:
    store_in(tmp_path).write(np.arange(1000), key="k")
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEEPFLOW], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.stdout.split() == ["False", "raised", "False"], told.stderr


WITHOUT_DEEPFLOW = """
import sys
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer
store = ResultStore(result_storage=LocalFileSystem(basepath="."), serializer=PickleSerializer())
print(store.exists("k"))
try:
    store.read("k")
except Exception:
    print("raised")
print("deepflow" in sys.modules)
"""


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other", "meta"])
def test_a_damaged_record_is_not_there_and_is_told_once(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(tmp_path)
    store.write(np.arange(1000), key="k")
    file = tmp_path / "k"
    content = file.read_bytes()
    if harm == "flip":
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif harm == "cut":
        file.write_bytes(content[:-5])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "other":
        file.write_bytes(pack_record(split_record(content)[0], pack("another value, whole")))
    else:
        at = content.index(b"storage_key")
        file.write_bytes(content[:at] + b"S" + content[at + 1 :])
    before = metrics.value("deepflow_damaged_results_total")
    with caplog.at_level(logging.WARNING, logger="prefect.deepflow.results"):
        logging.getLogger("prefect").propagate = True
        assert not store.exists("k")
    assert metrics.value("deepflow_damaged_results_total") == before + 1
    with pytest.raises(Exception, match=r"."):
        store.read("k")
    store.write(np.arange(1000), key="k")
    assert same(np.arange(1000), store.read("k").result)


def is_as_made(found: Any, made: Any) -> bool:
    """Whether a value is equal in type, layout, flags and bits."""
    if isinstance(made, torch.Tensor):
        return found.dtype == made.dtype and torch.equal(found, made)
    if isinstance(made, np.ndarray):
        is_alike = found.flags.f_contiguous == made.flags.f_contiguous or not made.flags.forc
        return is_alike and same(found, made) and found.dtype == made.dtype
    return type(found) is type(made) and same(found, made)


@pytest.mark.parametrize("name", stored_format_1.VALUES)
def test_a_value_that_an_earlier_version_has_written_is_read(name: str) -> None:
    content, made = content_of(stored_format_1.VALUES[name]), stored_format_1.made()[name]
    found = unpack(content)
    assert is_as_made(found, made)
    assert is_as_made(unpack(pack(found)), made)
    if isinstance(made, np.ndarray):
        assert found.flags.writeable == (name != "read-only")


def test_records_that_an_earlier_version_has_written_are_read(tmp_path: Path) -> None:
    (tmp_path / "ours").write_bytes(content_of(stored_format_1.RECORD))
    (tmp_path / "one-document").write_bytes(content_of(stored_format_1.ONE_DOCUMENT))
    for store in (store_in(tmp_path), plain_in(tmp_path, PickleSerializer())):
        assert store.exists("ours")
        value = store.read("ours").result
        assert same(np.arange(200), value["a"])
        assert value["b"] == ["x", None]
        assert same(np.arange(200), store.read("one-document").result)


@given(st.data())
def test_no_harm_to_a_value_of_an_earlier_version_yields_a_value(data: st.DataObject) -> None:
    whole = content_of(stored_format_1.VALUES["shuffled"])
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(StoredResultError):
        unpack(whole[:at])
    with pytest.raises(StoredResultError):
        unpack(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])


RNG = np.random.default_rng(0)
SENT = {
    "tensor": torch.from_numpy(RNG.normal(100, 20, 200_000).round(2)).reshape(400, 500).t(),
    "bfloat16": torch.from_numpy(RNG.normal(0, 0.02, 200_000)).bfloat16(),
    "every third row": RNG.integers(0, 1_000_000, (6_000, 100))[::3],
    "every third column": RNG.integers(0, 1_000_000, (2_000, 300))[:, ::3],
    "broadcast": np.broadcast_to(RNG.normal(100, 20, 2_000), (100, 2_000)),
    "strings": RNG.choice(np.array(["Bern", "Basel", "Geneva", None], object), 100_000),
    "dates": (1_700_000_000 + RNG.integers(0, 100, 100_000).cumsum()).astype("M8[s]"),
    "frame": pd.DataFrame(
        {
            "city": RNG.choice(np.array(["Bern", "Basel", "Geneva"], object), 50_000),
            "price": RNG.normal(100, 20, 50_000).round(2),
            "when": pd.date_range("2020", periods=50_000, freq="s"),
        }
    ),
}


@pytest.mark.parametrize("name", SENT)
def test_a_persisted_value_takes_no_more_bytes_than_the_same_one_on_a_link(name: str) -> None:
    value = SENT[name]
    choosing = Choices("adaptive", 2).for_peer("peer")
    choosing.link((12.5e6, False))  # 0.1 Gbit: the best ratio wins
    sent = values.dump_parts(values.disassemble(value), choosing.codec)
    on_link = sum(memoryview(buffer).nbytes for buffer in sent)
    # pco has to be a fifth smaller to be stored.
    assert len(pack(value)) <= 1.25 * on_link + 24
    assert is_as_made(unpack(pack(value)), value)


@given(st.data())
def test_no_harm_to_the_bytes_yields_a_value(data: st.DataObject) -> None:
    whole = pack(np.arange(300))
    at = data.draw(st.integers(0, len(whole) - 1))
    harmed = (
        whole[:at]
        if data.draw(st.booleans())
        else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    )
    with pytest.raises(StoredResultError):
        unpack(harmed)


@given(st.data())
def test_no_harm_to_a_records_bytes_yields_a_value(data: st.DataObject) -> None:
    serializer = DeepflowSerializer()
    whole = pack_record(ResultRecordMetadata(serializer=serializer).dump_bytes(), pack([1, "a"]))
    assert ResultRecord.deserialize(whole).result == [1, "a"]
    at = data.draw(st.integers(0, len(whole) - 1))
    harmed = (
        whole[:at]
        if data.draw(st.booleans())
        else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    )
    with pytest.raises((StoredResultError, ValidationError)):
        ResultRecord.deserialize(harmed)


def test_a_writing_of_an_earlier_version_that_was_broken_off_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(pack(1))
    assert not store_in(tmp_path).exists("k")


def test_a_disk_that_fails_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    store.write("old", key="k")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.write("new", key="k")
    monkeypatch.undo()
    assert store.read("k").result == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


class Flaky(RemoteFileSystem):
    """Fails so many calls out of each `n`."""

    _block_type_slug = "flaky-for-a-test"
    n_calls: int = 0
    fails: int = 1
    of: int = 2

    def _trip(self) -> None:
        self.n_calls += 1
        if self.n_calls % self.of < self.fails:
            raise ConnectionError("503 Slow Down")

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> str:
        self._trip()
        return super().write_path(path, content=content, _sync=True)

    def read_path(self, path: str, _sync: bool = True) -> bytes:
        self._trip()
        return super().read_path(path, _sync=True)


def test_storage_that_fails_half_its_calls_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_pause", lambda _s: None)
    store = store_in(Flaky(basepath="memory://half"))
    for i in range(5):
        store.write(np.arange(i), key=f"k{i}")
    assert all(store.exists(f"k{i}") and len(store.read(f"k{i}").result) == i for i in range(5))


def test_storage_that_fails_always_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_pause", lambda _s: None)
    store = store_in(Flaky(basepath="memory://never", fails=1, of=1))
    with pytest.raises(StoredResultError, match=r"8 times.*503 Slow Down"):
        store.write(1, key="k")


async def test_the_async_side_does_the_same(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.awrite([1, 2], key="k")
    assert await store.aexists("k")
    assert (await store.aread("k")).result == [1, 2]


def key_of(**inputs: Any) -> str | None:
    return CONTENT.compute_key(None, inputs, {})  # type: ignore[arg-type]


def test_an_array_has_one_key_wherever_it_comes_from(tmp_path: Path) -> None:
    store, value = store_in(tmp_path), np.arange(1000)
    before = key_of(x=value)
    store.write(value, key="k")
    read = store.read("k").result
    assert read is not value
    assert before == key_of(x=value) == key_of(x=read) == key_of(x=np.arange(2000)[:1000])
    assert key_of(x=[read]) == key_of(x=[value]) != before
    value[3] = -1
    assert key_of(x=value) != before


def test_arrays_that_differ_in_any_way_have_keys_of_their_own() -> None:
    zeros = np.zeros(6, "i4")
    record = np.dtype([("a", "i4"), ("b", "i4")])
    others = [
        zeros,
        zeros.reshape(2, 3),
        zeros.astype(">i4"),
        zeros.view("u4"),
        zeros.view("f4"),
        zeros.view(record),
        zeros.view(np.dtype([("a", "i4"), ("c", "i4")])),
        zeros[:0],
        np.zeros((0, 3), "i4"),
        zeros[0],
        np.zeros(6, "M8[s]"),
        np.zeros(6, "M8[ms]"),
        np.zeros(6, "S0"),
        np.array([None] * 6, dtype=object),
    ]
    assert len({key_of(x=one) for one in others}) == len(others)


def test_an_input_that_contains_itself_has_a_key() -> None:
    recursive: list[Any] = []
    recursive.append(recursive)
    assert key_of(x=recursive) is not None


def test_content_leaves_out_what_is_subtracted() -> None:
    policy = CONTENT - "y"
    assert policy.compute_key(None, {"x": 1, "y": 2}, {}) == policy.compute_key(  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        {"x": 1, "y": 3},
        {},
    )
