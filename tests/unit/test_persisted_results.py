from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedPickleSerializer, JSONSerializer, PickleSerializer

from deepflow.errors import StoredResultError
from deepflow.intermediates.stored import pack, unpack
from deepflow.observe import metrics
from deepflow.runner import caching, storage
from deepflow.runner.caching import CONTENT
from deepflow.runner.serializer import DeepflowSerializer
from deepflow.runner.storage import DeepflowResultStore

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
    assert (tmp_path / "k").stat().st_size < 100_200
    assert noise[:1000] in (tmp_path / "k").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"k", "k.meta"}


@pytest.mark.parametrize(
    "serializer", [PickleSerializer(), JSONSerializer(), CompressedPickleSerializer()]
)
def test_records_of_prefects_serializers_are_read(serializer: Any, tmp_path: Path) -> None:
    plain_in(tmp_path, serializer).write({"a": [1, 2]}, key="k")
    store = store_in(tmp_path)
    assert store.exists("k")
    assert store.read("k").result == {"a": [1, 2]}


def test_a_prefect_without_the_serializer_does_not_take_ours_for_a_value(tmp_path: Path) -> None:
    store_in(tmp_path).write(np.arange(1000), key="k")
    plain = plain_in(tmp_path, PickleSerializer())
    assert not plain.exists("k"), "so it computes"
    with pytest.raises(Exception, match=r"."):
        plain.read("k")


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone", "other", "meta"])
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
    elif harm == "gone":
        file.unlink()
    elif harm == "other":
        file.write_bytes(pack("another value, whole"))
    else:
        (tmp_path / "k.meta").write_bytes(b"{")
    before = metrics.value("deepflow_damaged_results_total")
    with caplog.at_level(logging.WARNING, logger="prefect.deepflow.results"):
        logging.getLogger("prefect").propagate = True
        assert not store.exists("k")
    assert metrics.value("deepflow_damaged_results_total") == before + 1
    with pytest.raises(Exception, match=r"."):
        store.read("k")
    store.write(np.arange(1000), key="k")
    assert same(np.arange(1000), store.read("k").result)


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


def test_a_writing_that_was_broken_off_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    put = storage.put_file

    def die_at_metadata(files: Any, key: str, content: bytes) -> None:
        if key.endswith(".meta"):
            raise KeyboardInterrupt
        put(files, key, content)

    monkeypatch.setattr(storage, "put_file", die_at_metadata)
    with pytest.raises(KeyboardInterrupt):
        store.write(1, key="k")
    assert not store.exists("k")


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
    assert {path.name for path in tmp_path.iterdir()} == {"k", "k.meta"}


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


def test_an_addressed_input_has_one_key_written_or_read(tmp_path: Path) -> None:
    store, value = store_in(tmp_path), np.arange(1000)
    unaddressed = key_of(x=value)
    store.write(value, key="k")
    written = key_of(x=value)
    read = store.read("k").result
    assert read is not value
    assert key_of(x=read) == written != unaddressed
    assert key_of(x=[read]) == key_of(x=[value]) != written
    address = caching.address_of(value)
    assert address == pickle.loads(pickle.dumps(store.read("k").metadata)).serializer.address


def test_a_changed_input_is_hashed_again(tmp_path: Path) -> None:
    store, value = store_in(tmp_path), np.arange(1000)
    store.write(value, key="k")
    before = key_of(x=value)
    value[3] = -1
    assert caching.address_of(value) is None
    assert key_of(x=value) != before


def test_what_is_gone_is_forgotten(tmp_path: Path) -> None:
    value = np.arange(10)
    store_in(tmp_path).write(value, key="k")
    n_known = len(caching._known)
    del value
    assert len(caching._known) == n_known - 1


def test_content_leaves_out_what_is_subtracted() -> None:
    policy = CONTENT - "y"
    assert policy.compute_key(None, {"x": 1, "y": 2}, {}) == policy.compute_key(  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        {"x": 1, "y": 3},
        {},
    )
