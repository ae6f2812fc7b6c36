"""Inputs cut into shards: by rows, by blocks, along HDFS blocks, by Parquet's row groups."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import logging
import pickle
import socket
from pathlib import Path

import pytest

import deepflow
from deepflow import Shard, hints, shards
from deepflow.errors import ConfigurationError
from deepflow.hints import Near
from deepflow.locate import shards as module
from tests.webhdfs import WebHdfs

ROWS = b"".join(b"row %d,%s\n" % (i, b"x" * (i % 17)) for i in range(200))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(ROWS)
    return path


def bodies(parts: list[Shard]) -> list[bytes]:
    return [b"".join(shard.lines()) for shard in parts]


def assert_contiguous(parts: list[Shard]) -> None:
    assert [p.index for p in parts] == list(range(len(parts)))
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))


def test_every_row_is_in_one_shard_and_shards_have_about_the_size_that_was_said(file) -> None:
    parts = shards(file, block_bytes=500)
    assert b"".join(bodies(parts)) == ROWS
    assert_contiguous(parts)
    assert all(body.endswith(b"\n") and body.startswith(b"row ") for body in bodies(parts))
    assert all(400 < p.n_bytes < 600 for p in parts[:-1])
    assert sum(p.n_bytes for p in parts) == len(ROWS)


def test_a_number_of_shards_and_a_number_of_rows(file) -> None:
    assert len(shards(file, n_shards=7)) == 7
    assert b"".join(bodies(shards(file, n_shards=7))) == ROWS
    counts = [len(list(part.lines())) for part in shards(file, rows=30)]
    assert counts == [30] * 6 + [20]
    assert [len(list(p.lines())) for p in shards(file, rows=200)] == [200]
    assert [len(list(p.lines())) for p in shards(file, rows=1000)] == [200]
    assert len(shards(file, n_shards=100_000)) == 200  # a row is not cut


def test_rows_are_counted_across_the_pieces_in_which_a_file_is_read(file, monkeypatch) -> None:
    monkeypatch.setattr(module, "_SCAN_BYTES", 37)
    assert [len(list(p.lines())) for p in shards(file, rows=30)] == [30] * 6 + [20]
    quoted = shards(file, block_bytes=500, quoted=True)
    assert bodies(quoted) == bodies(shards(file, block_bytes=500))


def test_a_row_longer_than_what_is_read_at_once_is_not_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PEEK_BYTES", 4)
    path = tmp_path / "long"
    path.write_bytes(b"a" * 1000 + b"\n" + b"b" * 1000)
    assert bodies(shards(path, block_bytes=100)) == [b"a" * 1000 + b"\n", b"b" * 1000]


def test_a_small_file_is_one_shard_and_an_empty_one_none(tmp_path, file) -> None:
    assert len(shards(file)) == 1
    empty = tmp_path / "empty"
    empty.touch()
    assert shards(empty) == shards(empty, by="blocks", n_shards=3) == []
    only_header = tmp_path / "header"
    only_header.write_bytes(b"a,b\n")
    assert shards(only_header, header=True) == []


def test_each_shard_begins_with_the_header_and_no_row_is_lost(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"name,size\r\n" + ROWS.replace(b"\n", b"\r\n"))
    parts = shards(path, header=True, block_bytes=300)
    assert len(parts) > 5
    read = [list(csv.DictReader(io.TextIOWrapper(p.open(), newline=""))) for p in parts]
    assert [row["name"] for row in itertools.chain(*read)] == [f"row {i}" for i in range(200)]
    assert all(p.read().startswith(b"name,size\r\nrow ") for p in parts)
    assert b"".join(bodies(parts)) == ROWS.replace(b"\n", b"\r\n")


def test_a_quoted_newline_does_not_end_a_row(tmp_path) -> None:
    rows = [[f"id {i}", 'he said "x"\n\nand\n' * (i % 3), "end"] for i in range(60)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["first\nname", "b", "c"], *rows])
    path = tmp_path / "q.csv"
    path.write_bytes(text.getvalue().encode())
    for parts in (
        shards(path, header=True, quoted=True, block_bytes=200),
        shards(path, header=True, quoted=True, rows=7),
        shards(path, header=True, quoted=True, n_shards=9),
    ):
        assert len(parts) > 3
        read = [list(csv.reader(io.TextIOWrapper(p.open(), newline="")))[1:] for p in parts]
        assert list(itertools.chain(*read)) == rows


def test_blocks_are_cut_at_the_very_byte(tmp_path) -> None:
    content = bytes(range(256)) * 10
    path = tmp_path / "b"
    path.write_bytes(content)
    parts = shards(path, by="blocks", block_bytes="1 KiB")
    assert [p.n_bytes for p in parts] == [1024, 1024, 512]
    assert b"".join(p.read() for p in parts) == content
    assert [p.n_bytes for p in shards(path, by="blocks", n_shards=3)] == [853, 853, 854]


def test_a_shard_is_small_travels_and_says_what_to_be_near(file) -> None:
    part = shards(file, n_shards=4)[2]
    arrived = pickle.loads(pickle.dumps(part))
    assert arrived == part
    assert hash(arrived) == hash(part)
    assert arrived.read() == part.read()
    assert len(pickle.dumps(part)) < 500
    assert part.near == (Near("host", socket.gethostname()),)
    assert hints(near=part.near).hints.near == part.near


def test_on_a_network_filesystem_no_host_is_preferred(file, monkeypatch) -> None:
    monkeypatch.setattr(module, "is_on_network", lambda path: True)
    assert shards(file)[0].near == ()


def test_a_relative_path_and_a_file_url_are_the_same_file(file, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    assert shards("rows.csv") == shards(file) == shards(f"file://{file}")
    assert Path(shards("rows.csv")[0].url).is_absolute()


def test_any_url_that_fsspec_knows_can_be_cut() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/shards/rows.csv", ROWS)
    parts = shards("memory://shards/rows.csv", block_bytes=500)
    assert b"".join(bodies(parts)) == ROWS
    assert parts[0].near == (Near("url", "memory://shards/rows.csv"),)


# -- HDFS --------------------------------------------------------------------------------------


def test_shards_lie_along_hdfs_blocks_and_each_is_near_its_own_hosts() -> None:
    with WebHdfs({"/logs/a.csv": ROWS}, block_bytes=700) as server:
        parts = shards(server.url("/logs/a.csv"))
        assert b"".join(bodies(parts)) == ROWS
    assert len(parts) == -(-len(ROWS) // 700)
    for i, part in enumerate(parts):
        assert abs(part.start - 700 * i) < 30
        first, second = f"dn{i % 3 + 1}.example.org", f"dn{(i + 1) % 3 + 1}.example.org"
        assert set(part.near) == {Near("host", first), Near("host", second)}


def test_a_shard_over_several_blocks_is_near_the_hosts_that_hold_most() -> None:
    with WebHdfs({"/a": bytes(700)}, block_bytes=100) as server:
        (part,) = shards(server.url("/a"), by="blocks", n_shards=1)
        thirds = shards(server.url("/a"), by="blocks", block_bytes=250)
    # of 7 blocks node 1 has 5, node 2 has 5, node 3 has 4
    assert [n.value[:3] for n in part.near] == ["dn1", "dn2", "dn3"]
    # bytes 250 to 500: node 1 has 150, node 2 has 200, node 3 has 150
    assert [n.value[:3] for n in thirds[1].near] == ["dn2", "dn1", "dn3"]


def test_only_a_little_of_a_remote_file_is_read_to_cut_it() -> None:
    content = ROWS * 300
    with WebHdfs({"/a": content}, block_bytes=len(content) // 4) as server:
        parts = shards(server.url("/a"))
        read = sum(int(q["length"]) for q in server.queries if q["op"] == "OPEN")
        assert b"".join(bodies(parts)) == content
    assert len(parts) == 4
    n_reads = 4  # the beginning, and at three cuts; fsspec reads one byte ahead each time
    assert read <= 8 + 3 * module._PEEK_BYTES + n_reads


def test_without_block_locations_it_is_cut_by_size_and_said(caplog) -> None:
    with WebHdfs({"/a": ROWS}, knows_blocks=False) as server:
        parts = shards(server.url("/a"), n_shards=3)
        assert b"".join(bodies(parts)) == ROWS
    assert [p.near for p in parts] == [()] * 3
    assert "cut by size and near nothing" in caplog.text


def test_options_travel_with_the_shard_and_are_not_shown() -> None:
    with WebHdfs({"/a": ROWS}) as server:
        options = {"port": server.port, "user": "joe"}
        parts = shards("hdfs://127.0.0.1:8020/a", n_shards=2, storage_options=options)
        arrived = pickle.loads(pickle.dumps(parts[1]))
        assert arrived.read() == parts[1].read()
        assert {q["user.name"] for q in server.queries} == {"joe"}
    assert "joe" not in repr(arrived)


# -- compressed files and Parquet ----------------------------------------------------------------


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_compressed_file_is_one_shard_and_that_is_said_once(tmp_path, caplog, compress) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(compress(b"h1,h2\n" + ROWS))
    (part,) = shards(path, n_shards=8, header=True)
    assert part.header == b"h1,h2\n"
    assert part.read() == b"h1,h2\n" + ROWS
    assert b"".join(part.lines()) == ROWS
    assert part.n_bytes == path.stat().st_size
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "is one shard" in line
    caplog.clear()
    assert len(shards(path)) == 1
    assert not caplog.records  # small, and nobody wanted more shards
    raw = shards(path, by="blocks", n_shards=2)
    assert b"".join(p.read() for p in raw) == path.read_bytes()


def test_parquet_is_cut_between_row_groups(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pa.table({"a": list(range(1000)), "b": [str(i) * 5 for i in range(1000)]})
    parquet.write_table(table, path, row_group_size=100)
    for parts in (
        shards(path),
        shards(path, rows=250),
        shards(path, n_shards=4),
        shards(path, block_bytes=3000),
        shards(path, block_bytes=10),
    ):
        assert pa.concat_tables([p.table() for p in parts]).equals(table)
        assert parts[0].row_groups[0] == 0
        assert all(a.row_groups[1] == b.row_groups[0] for a, b in itertools.pairwise(parts))
        assert all(a.stop <= b.start for a, b in itertools.pairwise(parts))
    assert len(shards(path)) == 1
    assert [p.table().num_rows for p in shards(path, rows=250)] == [300, 200, 300, 200]
    assert len(shards(path, n_shards=4)) == 4
    assert len(shards(path, block_bytes=10)) == 10
    assert shards(path, rows=250)[1].table(["a"]).column_names == ["a"]
    assert shards(path)[0].near == (Near("host", socket.gethostname()),)
    with pytest.raises(ConfigurationError, match=r"use shard\.table\(\)"):
        shards(path)[0].read()
    with pytest.raises(ConfigurationError, match="leave out header"):
        shards(path, header=True)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rows": 0}, "rows=0 must be a whole number from 1 on"),
        ({"n_shards": True}, "n_shards=True must be a whole number"),
        ({"n_shards": 2.5}, "n_shards=2.5"),
        ({"block_bytes": "4 foo"}, "block_bytes: '4 foo' is not a size"),
        ({"rows": 3, "n_shards": 2}, "rows=3, n_shards=2 contradict each other"),
        ({"by": "lines"}, "by='lines' must be 'rows' or 'blocks'"),
        ({"by": "blocks", "rows": 3}, "knows no rows"),
        ({"by": "blocks", "header": True}, "leave out header and quoted"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_to_do(file, said, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        shards(file, **said)


def test_a_missing_input_a_directory_and_an_unknown_scheme_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no .*none; check the path"):
        shards(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="is a directory; call shards"):
        shards(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        shards("floppy://a/b")
    with WebHdfs({}) as server, pytest.raises(ConfigurationError, match="there is no webhdfs://"):
        shards(server.url("/none"))
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        shards("webhdfs://joe@127.0.0.1:1/none")


def test_text_in_utf_16_is_refused(tmp_path) -> None:
    path = tmp_path / "wide"
    path.write_text("a\nb\n", encoding="utf-16")
    with pytest.raises(ConfigurationError, match="store it as UTF-8"):
        shards(path)
    assert len(shards(path, by="blocks")) == 1


def test_a_first_row_too_long_for_a_header_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 10)
    path = tmp_path / "a"
    path.write_bytes(b"a" * 50 + b"\nb\n")
    with pytest.raises(ConfigurationError, match="too long for a header"):
        shards(path, header=True)


def test_a_file_cut_short_after_it_was_sharded_is_an_error_not_a_short_read(file) -> None:
    part = shards(file, n_shards=2)[1]
    file.write_bytes(ROWS[:-100])
    with pytest.raises(OSError, match="ended 100 bytes before its shard"):
        part.read()


def test_the_public_name_is_the_function() -> None:
    assert deepflow.shards is shards
    assert callable(deepflow.shards)
