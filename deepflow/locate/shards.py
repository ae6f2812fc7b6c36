"""An input cut into shards, along the blocks in which it lies, each with what it should be near.

    for shard in deepflow.shards("hdfs://namenode/logs/2024.csv", header=True):
        with hints(near=shard.near):
            count.submit(shard)

How it is cut:

rows         (the default) at ends of lines, so that every row is in exactly one shard. Cuts are
             made where blocks begin and moved on to the next row's start; that reads a little of
             the file around each cut, or all of it once with ``rows=`` or ``quoted=True``.
row groups   the same for Parquet files, which name their own groups of rows.
blocks       at the very byte where a block begins, whatever the file holds.

Blocks are those of HDFS; where the storage has none, or they cannot be had (a line in the log says
so), they are `DEFAULT_BLOCK_BYTES`. A compressed file is one shard: it can only be read from its
beginning.

The ways of cutting are in one file, since all of them ask a source for its size, blocks and bytes.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import socket
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from deepflow.decide.location import Holder
from deepflow.errors import ConfigurationError
from deepflow.hints import Near, parse_bytes
from deepflow.locate.hdfs import Block, block_locations, holders
from deepflow.locate.paths import is_on_network
from deepflow.locate.storage import HDFS_SCHEMES, filesystem, safe_text, scheme_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DEFAULT_BLOCK_BYTES", "Shard", "shards"]

_log = logging.getLogger("deepflow.locate.shards")

DEFAULT_BLOCK_BYTES: Final = 64 * 1024**2
"""Size of a shard where neither the storage nor the caller says one."""

MAX_HEADER_BYTES: Final = 1024**2
"""A header travels with every shard; a longer first row is taken for a mistake."""

_SCAN_BYTES: Final = 8 * 1024**2
_PEEK_BYTES: Final = 64 * 1024
_N_READERS: Final = 8
_MOST_HOSTS: Final = 8
_PARQUET: Final = b"PAR1"
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
"""How compressed files begin, with fsspec's name for the compression."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of an input. Small and picklable: it is read where it arrives."""

    url: str
    """The path or URL of the whole input."""
    index: int
    start: int
    """First byte of the part; of the file as it is stored."""
    stop: int
    """The byte after its last one."""
    near: tuple[Near, ...] = ()
    """What to run near, for ``hints(near=shard.near)``: the hosts that hold most of it, first."""
    header: bytes = b""
    """The input's first row, if it was said to be a header."""
    compression: str | None = None
    """fsspec's name for how the whole file is compressed."""
    row_groups: tuple[int, int] | None = None
    """First row group of a Parquet file in the shard, and the one after its last."""
    storage_options: tuple[tuple[str, object], ...] = field(default=(), repr=False)
    """For fsspec. They travel with the shard: better keep secrets in each machine's own
    configuration."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the part as it is stored, without the header."""
        return self.stop - self.start

    def open(self) -> BinaryIO:
        """A binary file of the header and the part after it, for any reader of rows.

        Bytes as a reader wants them: a compressed file is decompressed. Close it. Raises
        :class:`ConfigurationError` for Parquet (see :meth:`table`).
        """
        if self.row_groups is not None:
            raise ConfigurationError(
                f"{safe_text(self.url)} is Parquet, whose rows are no run of bytes; use "
                "shard.table(), or cut it with by='blocks'"
            )
        if self.compression is not None:
            fs, path = self._filesystem()
            whole = fs.open(path, "rb", compression=self.compression)
            return io.BufferedReader(whole)
        return io.BufferedReader(_Part(self._raw(), self), buffer_size=1024**2)

    def read(self) -> bytes:
        """All of :meth:`open`."""
        with self.open() as file:
            return file.read()

    def lines(self) -> Iterator[bytes]:
        """The rows without the header, each with its end of line as in the file.

        A row ends at a newline: one with a quoted newline comes in pieces (give :meth:`open` to a
        CSV reader instead).
        """
        with self.open() as file:
            file.read(len(self.header))
            yield from file

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """The row groups of a Parquet input as a `pyarrow.Table`."""
        if self.row_groups is None:
            raise ConfigurationError(
                f"{safe_text(self.url)} is not Parquet (or was cut by='blocks'); use shard.open()"
            )
        with self._raw() as file:
            groups = range(*self.row_groups)
            return _parquet_file(file).read_row_groups(groups, columns=columns)

    def _filesystem(self) -> tuple[Any, str]:
        return filesystem(self.url, dict(self.storage_options))

    def _raw(self) -> Any:
        fs, path = self._filesystem()
        return fs.open(path, "rb")


def shards(
    path: str | os.PathLike[str],
    *,
    by: Literal["rows", "blocks"] = "rows",
    rows: int | None = None,
    n_shards: int | None = None,
    block_bytes: int | str | None = None,
    header: bool = False,
    quoted: bool = False,
    storage_options: Mapping[str, object] | None = None,
) -> list[Shard]:
    """`path` (a local path or any URL that fsspec knows) cut into shards, in order.

    Together they are the file, each byte of it in one shard, the header apart. At most one of the
    sizes may be said: `rows` in each shard, `n_shards` in all (fewer if rows are too long or too
    few for that), or `block_bytes` (also ``"64 MiB"``), about that many in each; else the blocks of
    the storage are taken.

    `header`: the first row names the columns; each shard's :meth:`Shard.open` begins with it.
    `quoted`: rows may have newlines within double quotes, as CSV allows; this reads the whole file
    once, since only from the beginning is it known which newline is within quotes. Rows end at
    ``\\n`` (so also ``\\r\\n``); text is expected in UTF-8 or another encoding that keeps that byte
    for newlines. An empty input gives no shard.

    Raises :class:`ConfigurationError` for a missing input, sizes that cannot be, and what cannot be
    cut in the way that was said.
    """
    url = os.fspath(path)
    if isinstance(url, bytes):
        url = os.fsdecode(url)
    if url.startswith("file://"):
        url = Near.of(url).value
    if not scheme_of(url):
        url = os.path.abspath(os.path.expanduser(url))
    size = _Size.checked(by, rows, n_shards, block_bytes)
    if by == "blocks" and (header or quoted):
        raise ConfigurationError("by='blocks' knows no rows; leave out header and quoted")
    source = _Source.of(url, storage_options)
    if source.n_bytes == 0:
        return []
    if by == "blocks":
        return source.shards(itertools.pairwise(source.cuts(size, 0)))
    kind = source.kind()
    if kind == "parquet":
        if header or quoted:
            raise ConfigurationError(
                f"{safe_text(url)} is Parquet, which names its columns; leave out header and quoted"
            )
        return _row_group_shards(source, size)
    if kind is not None:
        return [_compressed_shard(source, kind, header=header, is_cut_wanted=size.is_said)]
    return _row_shards(source, size, header=header, quoted=quoted)


@dataclass(frozen=True, slots=True)
class _Size:
    """How large shards are to be; nothing said: along the storage's blocks."""

    rows: int | None = None
    n_shards: int | None = None
    block_bytes: int | None = None

    @classmethod
    def checked(
        cls, by: str, rows: int | None, n_shards: int | None, block_bytes: int | str | None
    ) -> _Size:
        if by not in ("rows", "blocks"):
            raise ConfigurationError(f"by={by!r} must be 'rows' or 'blocks'")
        said = {"rows": rows, "n_shards": n_shards, "block_bytes": block_bytes}
        said = {name: value for name, value in said.items() if value is not None}
        if len(said) > 1:
            listed = ", ".join(f"{name}={value!r}" for name, value in said.items())
            raise ConfigurationError(f"{listed} contradict each other; say one of them")
        if by == "blocks" and rows is not None:
            raise ConfigurationError(f"by='blocks' knows no rows (rows={rows!r}); say block_bytes")
        for name in ("rows", "n_shards"):
            value = said.get(name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ConfigurationError(f"{name}={value!r} must be a whole number from 1 on")
        try:
            n_bytes = None if block_bytes is None else parse_bytes(block_bytes)
        except ValueError as error:
            raise ConfigurationError(f"block_bytes: {error}") from error
        return cls(rows, n_shards, n_bytes)

    @property
    def is_said(self) -> bool:
        return (self.rows, self.n_shards, self.block_bytes) != (None, None, None)


@dataclass(frozen=True, slots=True)
class _Source:
    """The whole input, opened to be cut."""

    url: str
    fs: Any
    path: str
    n_bytes: int
    options: tuple[tuple[str, object], ...]
    blocks: tuple[Block, ...]
    near: tuple[Near, ...]
    """For shards of which no hosts are known."""

    @classmethod
    def of(cls, url: str, options: Mapping[str, object] | None) -> _Source:
        given = tuple(sorted((options or {}).items()))
        shown = safe_text(url)
        try:
            fs, path = filesystem(url, options)
            info = fs.info(path)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"there is no {shown}; check the path, and that this machine can see it"
            ) from error
        except (OSError, ImportError) as error:
            raise ConfigurationError(f"{shown} cannot be opened: {error}") from error
        if info.get("type") == "directory":
            raise ConfigurationError(f"{shown} is a directory; call shards() for each of its files")
        if info.get("size") is None:
            raise ConfigurationError(
                f"{shown} has no known size, so it cannot be cut; copy it to a storage that "
                "tells sizes"
            )
        blocks = _blocks(url, fs, path) if scheme_of(url) in HDFS_SCHEMES else ()
        return cls(url, fs, path, int(info["size"]), given, blocks, _near(url))

    def kind(self) -> str | None:
        """`parquet`, the name of a compression, or None; by how the file begins.

        Raises :class:`ConfigurationError` for text in UTF-16 or UTF-32.
        """
        first = self.read(0, 8)
        if first.startswith(_PARQUET):
            return "parquet"
        if first.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
            raise ConfigurationError(
                f"{safe_text(self.url)} is text in UTF-16 or UTF-32, which cannot be cut at "
                "newline bytes; store it as UTF-8, or cut it with by='blocks'"
            )
        for magic, compression in _MAGIC:
            if first.startswith(magic):
                return compression
        return None

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the file as stored, no more asked of the storage than these. Thread-safe."""
        # WebHDFS takes no cache_type, and reads its block_size (5 MiB) ahead unless that is small.
        remote = {"cache_type": "none", "block_size": 1} if scheme_of(self.url) else {}
        with self.fs.open(self.path, "rb", **remote) as file:
            file.seek(start)
            return bytes(file.read(min(stop, self.n_bytes) - start))

    def cuts(self, size: _Size, start: int) -> list[int]:
        """Where shards would begin if bytes were all, from `start`, and the end of the file."""
        stop = self.n_bytes
        if size.n_shards is not None:
            n = min(size.n_shards, max(1, stop - start))
            inner = [start + (stop - start) * i // n for i in range(1, n)]
        elif size.block_bytes is None and self.blocks:
            inner = [block.start for block in self.blocks]
        else:
            step = size.block_bytes or DEFAULT_BLOCK_BYTES
            inner = list(range(start - start % step + step, stop, step))
        return [start, *(cut for cut in inner if start < cut < stop), stop]

    def shards(
        self,
        parts: Iterable[tuple[int, int]],
        *,
        header: bytes = b"",
        compression: str | None = None,
    ) -> list[Shard]:
        return [
            Shard(
                self.url,
                i,
                start,
                stop,
                self.near_of(start, stop),
                header,
                compression,
                storage_options=self.options,
            )
            for i, (start, stop) in enumerate(parts)
        ]

    def near_of(self, start: int, stop: int) -> tuple[Near, ...]:
        """The hosts that hold most of these bytes; half as much as the first one, at least."""
        within = [
            Block(max(start, b.start), min(stop, b.stop), b.hosts)
            for b in self.blocks
            if b.start < stop and b.stop > start
        ]
        most_first = holders(within)[:_MOST_HOSTS]
        if not most_first:
            return self.near
        return tuple(_host(h) for h in most_first if h.share >= most_first[0].share / 2)


def _blocks(url: str, fs: Any, path: str) -> tuple[Block, ...]:
    try:
        return tuple(block_locations(fs, path))
    except (OSError, ValueError) as error:
        _log.warning(
            "Shards of %s are cut by size and near nothing: %s",
            safe_text(url),
            safe_text(str(error)),
        )
        return ()


def _host(holder: Holder) -> Near:
    return Near("host", holder.name)


def _near(url: str) -> tuple[Near, ...]:
    """For a file here this machine, unless its disk is on the network; for others their URL."""
    scheme = scheme_of(url)
    if scheme in HDFS_SCHEMES:
        return ()
    if scheme:
        return (Near("url", url),)
    return () if is_on_network(url) else (Near("host", socket.gethostname()),)


# -- rows --------------------------------------------------------------------------------------


def _row_shards(source: _Source, size: _Size, *, header: bool, quoted: bool) -> list[Shard]:
    first = _first_row(source, quoted=quoted) if header else b""
    begin = len(first)
    if begin >= source.n_bytes:
        return []
    if size.rows is not None:
        starts: Iterable[int] = _every(size.rows, _row_starts(source, begin, quoted=quoted))
    elif quoted:
        starts = _first_at_or_after(
            source.cuts(size, begin)[1:-1], _row_starts(source, begin, quoted=True)
        )
    else:
        starts = _next_row_starts(source, source.cuts(size, begin)[1:-1])
    inner = sorted({start for start in starts if begin < start < source.n_bytes})
    return source.shards(itertools.pairwise([begin, *inner, source.n_bytes]), header=first)


def _next_row_starts(source: _Source, cuts: Sequence[int]) -> list[int]:
    """For each cut the start of the first row that begins at or after it."""
    with ThreadPoolExecutor(_N_READERS, thread_name_prefix="deepflow-shards") as pool:
        return list(pool.map(partial(_next_row_start, source), cuts))


def _next_row_start(source: _Source, cut: int) -> int:
    at, step = cut - 1, _PEEK_BYTES  # the byte before: a row may begin right at the cut
    while at < source.n_bytes:
        found = source.read(at, at + step).find(b"\n")
        if found >= 0:
            return at + found + 1
        at, step = at + step, min(2 * step, _SCAN_BYTES)
    return source.n_bytes


def _row_starts(source: _Source, begin: int, *, quoted: bool) -> Iterator[npt.NDArray[np.int64]]:
    """Where rows start after the one at `begin`, in pieces; reads the file once."""
    import numpy as np

    n_quotes = 0
    with source.fs.open(source.path, "rb") as file:
        file.seek(begin)
        at = begin
        while piece := file.read(_SCAN_BYTES):
            values = np.frombuffer(piece, dtype=np.uint8)
            newlines = np.flatnonzero(values == ord("\n"))
            if quoted:
                quotes = np.flatnonzero(values == ord('"'))
                before = n_quotes + np.searchsorted(quotes, newlines)
                newlines = newlines[before % 2 == 0]
                n_quotes += len(quotes)
            yield newlines.astype(np.int64) + at + 1
            at += len(piece)


def _every(n: int, pieces: Iterable[npt.NDArray[np.int64]]) -> Iterator[int]:
    """Every n-th row start."""
    n_passed = 0
    for piece in pieces:
        yield from map(int, piece[(n - 1 - n_passed) % n :: n])
        n_passed += len(piece)


def _first_at_or_after(
    cuts: Sequence[int], pieces: Iterable[npt.NDArray[np.int64]]
) -> Iterator[int]:
    """For each cut the first row start at or after it, if there is one."""
    import numpy as np

    left = np.asarray(cuts, dtype=np.int64)
    for piece in pieces:
        if len(piece) and len(left):
            here = left[left <= piece[-1]]
            yield from map(int, piece[np.searchsorted(piece, here)])
            left = left[len(here) :]


def _first_row(source: _Source, *, quoted: bool) -> bytes:
    """The header with its end of line."""
    start = source.read(0, MAX_HEADER_BYTES)
    end = _end_of_row(start, quoted=quoted)
    if end is None and len(start) < source.n_bytes:
        raise ConfigurationError(_long_header(source.url))
    return start[:end]


def _end_of_row(text: bytes, *, quoted: bool) -> int | None:
    """Where the first row of `text` ends, its newline included; None if it does not."""
    end = 0
    while found := text.find(b"\n", end) + 1:
        if not quoted or text.count(b'"', 0, found) % 2 == 0:
            return found
        end = found
    return None


def _long_header(url: str) -> str:
    return (
        f"the first row of {safe_text(url)} is longer than {MAX_HEADER_BYTES} bytes, too long for "
        "a header that goes with every shard; leave out header=True if it has none"
    )


# -- compressed files ----------------------------------------------------------------------------


def _compressed_shard(
    source: _Source, compression: str, *, header: bool, is_cut_wanted: bool
) -> Shard:
    if is_cut_wanted or source.n_bytes > DEFAULT_BLOCK_BYTES:
        _log.warning(
            "%s is compressed (%s) and is one shard: it can only be read from its beginning. Store "
            "it in parts, or as Parquet.",
            safe_text(source.url),
            compression,
        )
    first = b""
    try:
        with source.fs.open(source.path, "rb", compression=compression) as file:
            if header:
                first = file.readline(MAX_HEADER_BYTES + 1)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigurationError(
            f"{safe_text(source.url)} is compressed ({compression}) and cannot be read: {error}; "
            "store it uncompressed or with gzip, or cut it with by='blocks'"
        ) from error
    if len(first) > MAX_HEADER_BYTES:
        raise ConfigurationError(_long_header(source.url))
    return source.shards([(0, source.n_bytes)], header=first, compression=compression)[0]


# -- Parquet -----------------------------------------------------------------------------------


def _row_group_shards(source: _Source, size: _Size) -> list[Shard]:
    """Whole row groups together until each shard has the size that was said."""
    with source.fs.open(source.path, "rb") as file:
        found = _parquet_file(file).metadata
        groups = [found.row_group(i) for i in range(found.num_row_groups)]
        extents = [_extent(group) for group in groups]
        n_rows = [int(group.num_rows) for group in groups]
    if not groups:
        return []
    if size.rows is not None:
        begun = [0, *itertools.accumulate(n_rows)][:-1]
        targets = list(range(size.rows, sum(n_rows), size.rows))
    else:
        begun = [start for start, _ in extents]
        targets = source.cuts(size, begun[0])[1:-1]
    # A new shard begins with the first group at or after each target.
    firsts = sorted({0, *(bisect_left(begun, target) for target in targets)} - {len(groups)})
    return [
        Shard(
            source.url,
            i,
            extents[a][0],
            extents[b - 1][1],
            source.near_of(extents[a][0], extents[b - 1][1]),
            row_groups=(a, b),
            storage_options=source.options,
        )
        for i, (a, b) in enumerate(itertools.pairwise([*firsts, len(groups)]))
    ]


def _extent(group: Any) -> tuple[int, int]:
    """The bytes of the file that a row group takes."""
    starts, stops = [], []
    for i in range(group.num_columns):
        column = group.column(i)
        start = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            start = min(start, column.dictionary_page_offset)
        starts.append(start)
        stops.append(start + column.total_compressed_size)
    return min(starts), max(stops)


def _parquet_file(file: Any) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError(
            "Parquet is cut by its row groups, which takes pyarrow: pip install pyarrow, "
            "or cut it with by='blocks'"
        ) from error
    return parquet.ParquetFile(file)


class _Part(io.RawIOBase):
    """The header and then the bytes of a shard, read from the whole file as they are wanted."""

    def __init__(self, file: Any, shard: Shard) -> None:
        super().__init__()
        self._file = file
        self._header = shard.header
        self._left = shard.n_bytes
        file.seek(shard.start)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        if self._header:
            piece, self._header = self._header[: len(into)], self._header[len(into) :]
        else:
            piece = self._file.read(min(len(into), self._left))
            if not piece and self._left:
                raise OSError(
                    f"the file ended {self._left} bytes before its shard; it was made shorter "
                    "after it was cut"
                )
            self._left -= len(piece)
        into[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()
