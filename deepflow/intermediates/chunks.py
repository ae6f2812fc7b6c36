"""The chunk: a piece of a buffer, coded, with a head that says where it belongs and a check sum.

Everything that deepflow sends or stores by itself is a row of chunks: `stream` sends them over a
socket, `values` writes them one after the other, and `stored` keeps what `values` wrote. A value is
taken apart into parts, each one contiguous buffer, and each part is cut into chunks. A chunk is,
little-endian:

    part u32 | codec u8 | 0 0 0 | start u64 | bytes u32 | stored bytes u32 | crc32 u32
    | the stored bytes

``start`` is the chunk's place in its part. A piece that coding makes no smaller is stored raw,
whatever codec was asked for. The sum covers the head and the stored bytes. It begins with a seed:
chunks of two values that have different seeds do not pass for each other.

Chunks come in order and without a gap. `Filling` refuses every other one, so that a chunk that is
missing, repeated or exchanged is found as surely as a flipped bit. Every way to be wrong is a
`FrameError`.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple, TypeVar

import numpy as np
from isal.isal_zlib import crc32  # zlib's CRC-32, several times as fast

from deepflow.errors import FrameError
from deepflow.intermediates import codecs
from deepflow.intermediates.codecs import Buffer

__all__ = [
    "HEAD_BYTES",
    "REMEDY",
    "Coded",
    "Filling",
    "Head",
    "Part",
    "Piece",
    "allocate",
    "check",
    "code",
    "crc32",
    "cut",
    "decode",
    "pack_head",
    "read_head",
    "side_by_side",
    "step_of",
]

MAX_BYTES: Final = 1 << 26
"""No chunk is longer, so that a damaged head cannot ask for more memory."""
REMEDY: Final = "discard these bytes; fetch them again, read another copy or compute the value anew"

_HEAD: Final = struct.Struct("<IBxxxQII")
_SUM: Final = struct.Struct("<I")
_BOTH: Final = struct.Struct("<IBxxxQIII")
HEAD_BYTES: Final = _BOTH.size
_WORTH_A_THREAD_BYTES: Final = 1 << 16
"""Less is done sooner than handed to another thread."""
_MAX_THREADS: Final = 4

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Part:
    """One buffer of a value: its bytes, the type of its elements (None: unknown), its flag.

    ``task`` is whose result it belongs to, where that is known.
    """

    octets: memoryview
    dtype: str | None
    is_readonly: bool
    task: str = ""


class Piece(NamedTuple):
    """What one chunk is made of."""

    part: int
    start: int
    octets: memoryview
    codec: str
    dtype: str | None


class Coded(NamedTuple):
    """A piece after coding: the codec's id, its bytes before, and what is stored."""

    codec: int
    n_bytes: int
    stored: Buffer


class Head(NamedTuple):
    """What a chunk says of itself. ``head_crc`` is the sum of the head alone, as found."""

    part: int
    codec: int
    start: int
    n_bytes: int
    n_stored: int
    crc: int
    head_crc: int


# coding


def step_of(octets: memoryview, dtype: str | None, chunk_bytes: int) -> tuple[int, str | None]:
    """How long to cut the chunks of a part, and the type to code them with.

    A chunk has whole elements. A part that is not made of whole elements is cut as plain bytes.
    """
    dtype, width = codecs.whole_elements(dtype, octets.nbytes)
    return max(width, chunk_bytes // width * width), dtype


def cut(number: int, part: Part, codec: str, chunk_bytes: int) -> Iterator[Piece]:
    """The pieces of a part, in order; nothing is copied."""
    step, dtype = step_of(part.octets, part.dtype, chunk_bytes)
    for start in range(0, part.octets.nbytes, step):
        yield Piece(number, start, part.octets[start : start + step], codec, dtype)


def code(octets: memoryview, codec: str, dtype: str | None) -> Coded:
    """Code a piece. One that becomes no smaller stays raw, and is not copied.

    Where the codec does not suit the type, zstd takes its place. `ConfigurationError` for a codec
    that does not exist.
    """
    if not codecs.suits(codec, dtype, octets.nbytes):
        codec = "zstd:1"
    stored = codecs.encode(octets, codec, dtype)
    if len(stored) >= octets.nbytes:
        return Coded(codecs.RAW, octets.nbytes, octets)
    return Coded(codecs.parse(codec).number, octets.nbytes, stored)


def pack_head(part: int, start: int, coded: Coded, seed: int = 0) -> bytes:
    """The head of a chunk, which goes in front of the stored bytes."""
    head = _HEAD.pack(part, coded.codec, start, coded.n_bytes, len(coded.stored))
    return head + _SUM.pack(crc32(coded.stored, crc32(head, seed)))


# decoding


def read_head(packed: Buffer, seed: int = 0) -> Head:
    """The head in `HEAD_BYTES` bytes. Nothing is checked: see `Filling.place` and `check`."""
    return Head._make((*_BOTH.unpack(packed), crc32(packed[: _HEAD.size], seed)))


def check(head: Head, stored: Buffer) -> None:
    """`FrameError` where head and stored bytes are not as they were written."""
    if crc32(stored, head.head_crc) != head.crc:
        raise FrameError(
            f"a chunk of part {head.part} at byte {head.start} does not match its check sum; "
            f"{REMEDY}"
        )


def decode(head: Head, stored: Buffer, dtype: str | None, place: memoryview) -> None:
    """Check a chunk, and decode it into its place."""
    check(head, stored)
    codecs.decode_into(stored, head.codec, dtype, place)


class Filling:
    """The parts of one value while chunks fill them.

    `views` are writable views of bytes, `dtypes` the types of their elements.
    """

    def __init__(self, views: Sequence[memoryview], dtypes: Sequence[str | None]) -> None:
        self._views, self._dtypes = views, dtypes
        self._part = self._start = 0
        self._skip_full()

    def _skip_full(self) -> None:
        while self._part < len(self._views) and self._start == self._views[self._part].nbytes:
            self._part, self._start = self._part + 1, 0

    @property
    def is_full(self) -> bool:
        """Whether every byte of every part has its chunk."""
        return self._part == len(self._views)

    def place(self, head: Head) -> memoryview:
        """Where the next chunk is to be decoded; `FrameError` for any other than the next one.

        The head may be damaged: `check` shows it once the stored bytes are there.
        """
        if self.is_full or (head.part, head.start) != (self._part, self._start):
            raise FrameError(
                f"a chunk says that it is of part {head.part} at byte {head.start}, where another "
                f"one has to be: chunks are missing or damaged; {REMEDY}"
            )
        view = self._views[self._part]
        end = head.start + head.n_bytes
        is_possible = (
            0 < head.n_bytes <= MAX_BYTES
            and end <= view.nbytes
            and head.n_stored <= head.n_bytes
            and (head.n_stored == head.n_bytes or head.codec != codecs.RAW)
        )
        if not is_possible:
            raise FrameError(
                f"a chunk of part {head.part} at byte {head.start} has an impossible length; "
                f"{REMEDY}"
            )
        if head.codec not in codecs.BY_ID:
            raise FrameError(
                f"the codec with id {head.codec} is unknown here; use the version that wrote it"
            )
        self._start = end
        if end == view.nbytes:
            self._skip_full()
        return view[head.start : end]

    def dtype_of(self, head: Head) -> str | None:
        """The type of the elements of a chunk's part."""
        return self._dtypes[head.part]

    def expect_full(self) -> None:
        """`FrameError` where chunks are missing."""
        if not self.is_full:
            missing = sum(view.nbytes for view in self._views[self._part :]) - self._start
            raise FrameError(f"{missing} bytes of the value are missing; {REMEDY}")


def allocate(n_bytes: int) -> memoryview:
    """Writable memory for a part; `FrameError` where there is none."""
    try:
        return np.empty(n_bytes, np.uint8).data
    except (MemoryError, ValueError, OverflowError) as exc:
        raise FrameError(f"there is no memory for the {n_bytes} bytes of a value") from exc


# in several threads


def side_by_side(
    call: Callable[[_In], _Out],
    items: Iterable[_In],
    threads: int,
    n_bytes: Callable[[_In], int],
) -> Iterator[_Out]:
    """`call` of each item, in order, on up to so many threads of this process.

    Items are taken as they are needed. `n_bytes` says how much work one is: small ones are done in
    the calling thread. When this ends, for whatever reason, no call is running any more.
    """
    if threads <= 1:
        yield from map(call, items)
        return
    ahead: deque[tuple[_In, Future[_Out] | None]] = deque()
    try:
        for item in items:
            is_long = n_bytes(item) >= _WORTH_A_THREAD_BYTES
            ahead.append((item, _pool(os.getpid()).submit(call, item) if is_long else None))
            if len(ahead) > threads:
                yield _done(call, *ahead.popleft())
        while ahead:
            yield _done(call, *ahead.popleft())
    finally:
        futures = [future for _, future in ahead if future is not None]
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()


def _done(call: Callable[[_In], _Out], item: _In, future: Future[_Out] | None) -> _Out:
    return call(item) if future is None else future.result()


@cache
def _pool(_pid: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS), "deepflow-codec")
