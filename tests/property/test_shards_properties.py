"""Whatever the file and the sizes: shards together are the file, and each row is in one."""

from __future__ import annotations

import csv
import io
import itertools
from unittest import mock

import fsspec
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.locate import shards as module
from deepflow.locate.shards import Shard, shards

contents = st.one_of(
    st.lists(
        st.binary(max_size=12).map(lambda b: b.replace(b"\n", b" ")), min_size=1, max_size=40
    ).flatmap(lambda rows: st.sampled_from([b"\n", b"\r\n"]).map(lambda end: end.join(rows))),
    st.binary(min_size=1, max_size=300),
).filter(
    # files that announce another kind of content are cut in other ways
    lambda b: (
        not b.startswith((b"PAR1", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
        and not any(b.startswith(magic) for magic, _ in module._MAGIC)
    )
)
sizes = st.one_of(
    st.builds(lambda n: {"rows": n}, st.integers(1, 50)),
    st.builds(lambda n: {"n_shards": n}, st.integers(1, 60)),
    st.builds(lambda n: {"block_bytes": n}, st.integers(1, 400)),
    st.just({}),
)
small_reads = st.integers(1, 64)


def cut(content: bytes, *, read_at_once: int = 1 << 16, **said: object) -> list[Shard]:
    fs = fsspec.filesystem("memory")
    fs.pipe("/property", content)
    with (
        mock.patch.object(module, "_PEEK_BYTES", read_at_once),
        mock.patch.object(module, "_SCAN_BYTES", read_at_once),
    ):
        return shards("memory://property", **said)  # type: ignore[arg-type]


def lines_of(content: bytes) -> list[bytes]:
    return list(io.BytesIO(content))


@settings(max_examples=200, deadline=None)
@given(contents, sizes, small_reads)
def test_every_row_is_in_exactly_one_shard(content, said, read_at_once) -> None:
    parts = cut(content, read_at_once=read_at_once, **said)
    assert b"".join(part.read() for part in parts) == content
    assert list(itertools.chain(*(part.lines() for part in parts))) == lines_of(content)
    assert all(part.n_bytes > 0 for part in parts)
    if parts and "rows" in said:
        counts = [len(list(part.lines())) for part in parts]
        assert all(count == said["rows"] for count in counts[:-1])
        assert counts[-1] <= said["rows"]
    if "n_shards" in said:
        assert len(parts) <= said["n_shards"]


@settings(max_examples=100, deadline=None)
@given(contents.filter(bool), sizes, small_reads)
def test_the_header_is_in_each_shard_and_in_no_shards_rows(content, said, read_at_once) -> None:
    parts = cut(content, read_at_once=read_at_once, header=True, **said)
    header, *rows = lines_of(content)
    assert list(itertools.chain(*(part.lines() for part in parts))) == rows
    assert all(part.read().startswith(header) for part in parts)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.text('ab",\n', max_size=6), min_size=2, max_size=3), min_size=1),
    sizes,
    small_reads,
)
def test_csv_with_quoted_newlines_is_read_back_row_by_row(rows, said, read_at_once) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    parts = cut(text.getvalue().encode(), read_at_once=read_at_once, quoted=True, **said)
    read = [list(csv.reader(io.StringIO(part.read().decode(), newline=""))) for part in parts]
    assert list(itertools.chain(*read)) == rows


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), sizes.filter(lambda said: "rows" not in said))
def test_blocks_together_are_the_file(content, said) -> None:
    parts = cut(content, by="blocks", **said)
    assert b"".join(part.read() for part in parts) == content
    if "block_bytes" in said:
        assert all(part.n_bytes == said["block_bytes"] for part in parts[:-1])
