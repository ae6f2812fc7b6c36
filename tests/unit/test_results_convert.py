from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from prefect._internal.result_records import ResultRecordMetadata
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedPickleSerializer, PickleSerializer

from deepflow.cli import main
from deepflow.intermediates.stored import address_of, pack
from deepflow.runner.results.converting import Folder, convert
from deepflow.runner.results.serializer import DeepflowSerializer
from deepflow.runner.results.storage import DeepflowResultStore

VALUES: dict[str, Any] = {"a": np.arange(5000), "b": {"x": 1}, "sub/c": "text"}


def store(folder: Path, serializer: Any) -> ResultStore:
    return ResultStore(
        result_storage=LocalFileSystem(basepath=str(folder)),
        serializer=serializer,
        cache_result_in_memory=False,
    )


def fill(folder: Path) -> None:
    for i, (key, value) in enumerate(VALUES.items()):
        store(folder, CompressedPickleSerializer() if i % 2 else PickleSerializer()).write(
            value, key=key
        )


def check(folder: Path) -> None:
    """Every record is there for a store of ours."""
    ours = DeepflowResultStore.of(store(folder, DeepflowSerializer()))
    for key, value in VALUES.items():
        assert ours.exists(key), key
        np.testing.assert_array_equal(ours.read(key).result, value)


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["results", "convert", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_there_and_back_in_place(tmp_path: Path) -> None:
    fill(tmp_path)
    code, told = run(str(tmp_path))
    assert (code, told["converted"], told["kept"]) == (0, 3, 0)
    assert told["bytes_after"] < told["bytes_before"] / 4
    check(tmp_path)
    assert run(str(tmp_path))[1]["kept"] == 3
    assert run(str(tmp_path), "--to", "prefect")[1]["converted"] == 3
    assert not list(tmp_path.rglob("*.meta"))
    plain = store(tmp_path, PickleSerializer())
    for key, value in VALUES.items():
        assert plain.exists(key)
        np.testing.assert_array_equal(plain.read(key).result, value)


def test_into_another_folder_the_source_stays(tmp_path: Path) -> None:
    source, dest = tmp_path / "from", tmp_path / "to"
    fill(source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert run(str(source), str(dest))[1]["converted"] == 3
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    check(dest)
    assert run(str(source), str(dest))[1]["kept"] == 3


def test_damaged_records_are_named_and_left(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-9])
    (tmp_path / "notes.txt").write_text("no record")
    code, told = run(str(tmp_path))
    assert code == 1
    assert {one["name"] for one in told["damaged"]} == {"a", "notes.txt"}
    assert told["converted"] == 2
    assert (tmp_path / "notes.txt").read_text() == "no record"


def write_apart(folder: Path, key: str, value: Any) -> None:
    """As earlier versions wrote a record: the metadata in a file of their own."""
    content = pack(value)
    metadata = ResultRecordMetadata(
        serializer=DeepflowSerializer(address=address_of(content)), storage_key=str(folder / key)
    )
    (folder / key).parent.mkdir(parents=True, exist_ok=True)
    (folder / key).write_bytes(content)
    (folder / f"{key}.meta").write_bytes(metadata.dump_bytes())


def test_records_of_earlier_versions_are_read_and_brought_into_one_file(tmp_path: Path) -> None:
    for key, value in VALUES.items():
        write_apart(tmp_path, key, value)
    check(tmp_path)
    assert run(str(tmp_path))[1]["converted"] == 3
    check(tmp_path)
    assert not list(tmp_path.rglob("*.meta"))
    write_apart(tmp_path, "a", VALUES["a"])
    assert run(str(tmp_path), "--to", "prefect")[1]["converted"] == 3
    assert not list(tmp_path.rglob("*.meta"))


@pytest.mark.parametrize("layout", ["deepflow", "prefect"])
@pytest.mark.parametrize("n_writes", range(6))
def test_broken_off_anywhere_every_record_is_there_and_it_goes_on(
    layout: Any, n_writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    if layout == "prefect":
        list(convert(Folder(str(tmp_path)), Folder(str(tmp_path)), "deepflow"))
    left = [n_writes]

    def counted(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(*arguments)

        return call

    for name in ("write", "remove"):
        monkeypatch.setattr(Folder, name, counted(getattr(Folder, name)))
    folder = Folder(str(tmp_path))
    try:
        list(convert(folder, folder, layout))
    except KeyboardInterrupt:
        check(tmp_path)
    monkeypatch.undo()
    assert all(one.became != "damaged" for one in convert(folder, folder, layout))
    check(tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_any_url_of_fsspec(tmp_path: Path) -> None:
    fill(tmp_path)
    memory = fsspec.filesystem("memory")
    done = list(convert(Folder(str(tmp_path)), Folder("memory://compact"), "deepflow"))
    assert [one.became for one in done] == ["converted"] * 3
    assert memory.exists("/compact/sub/c")
    back = tmp_path / "back"
    assert len(list(convert(Folder("memory://compact"), Folder(str(back)), "deepflow"))) == 3
    check(back)


def test_a_wrong_url_is_told() -> None:
    done = CliRunner().invoke(main, ["results", "convert", "nosuch://x"])
    assert done.exit_code == 2
    assert "nosuch" in done.output
    assert "Traceback" not in done.output


def test_help_opens_with_an_example() -> None:
    done = CliRunner().invoke(main, ["results", "convert", "--help"])
    assert "Example: deepflow results convert" in done.output
