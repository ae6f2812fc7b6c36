"""One buffer as a self-describing frame: what it is coded with, how long it is, and check sums.

Little-endian. A header, then chunks:

    magic "DFfr" | version u8 | codec u8 | dtype length u8 | 0 | logical bytes u64
    | stored bytes u64 | chunks u32 | dtype, ASCII | crc32 u32 of all before
    chunk: codec u8 | 0 0 0 | logical bytes u32 | stored bytes u32 | crc32 u32 | the stored bytes

``stored bytes`` counts the chunks with their heads. A chunk that did not shrink is raw, whatever
the frame's codec. A chunk's sum starts from the header's sum plus its position and covers its head,
so that chunks of two frames, or of one frame in another order, do not pass.

Every way to be wrong is a `FrameError`. No memory is asked for before all heads have been read and
agree with each other and with the bytes at hand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeVar

import numpy as np

from deepflow.errors import FrameError
from deepflow.intermediates import codecs
from deepflow.intermediates.checks import crc32
from deepflow.intermediates.codecs import Buffer

__all__ = [
    "CHUNK_BYTES",
    "VERSION",
    "FileSource",
    "Header",
    "Source",
    "pack",
    "read_frame",
    "unpack",
]

VERSION: Final = 1
CHUNK_BYTES: Final = 1 << 20
"""Chunks are cut this long: enough for a codec's ratio, little enough to overlap with sending."""

_MAGIC: Final = b"DFfr"
_MAX_CHUNK_BYTES: Final = 1 << 26
_AT_ONCE: Final = 16
"""Chunks for each thread that are decoded together."""
_HEADER: Final = struct.Struct("<4sBBBxQQI")
_HEAD: Final = struct.Struct("<BxxxIII")
_SUM: Final = struct.Struct("<I")
_REMEDY: Final = "discard this copy; read another one or compute the value again"

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says about itself; sizes in bytes, ``stored_bytes`` without the header."""

    codec: int
    dtype: str | None
    logical_bytes: int
    stored_bytes: int
    n_chunks: int
    crc: int


def pack(
    data: Buffer, codec: str, dtype: str | None = None, threads: int = 1
) -> list[bytes | memoryview]:
    """The frame of a contiguous buffer as a list of buffers, to be written one after the other.

    Raw chunks are views of `data`, not copies: keep it unchanged until they are written. A codec
    that does not suit `dtype` is replaced by zstd; a `dtype` that does not divide the buffer is
    dropped. With `threads` > 1, that many chunks are coded at once.
    """
    octets = memoryview(data).cast("B")
    width = codecs.element_bytes(dtype)
    if octets.nbytes % width:
        dtype, width = None, 1
    if not codecs.suits(codec, dtype, octets.nbytes):
        codec = "zstd"
    step = max(width, CHUNK_BYTES // width * width)
    starts = range(0, octets.nbytes, step)

    def code(start: int) -> tuple[int, int, Buffer]:
        part = octets[start : start + step]
        coded = codecs.encode(part, codec, dtype)
        number = codecs.parse(codec).number
        if len(coded) >= part.nbytes:
            return codecs.RAW, part.nbytes, part
        return number, part.nbytes, coded

    chunks = _map(code, starts, threads)
    named = (dtype or "").encode("ascii")
    stored = sum(_HEAD.size + len(coded) for _, _, coded in chunks)
    header = (
        _HEADER.pack(
            _MAGIC,
            VERSION,
            codecs.parse(codec).number,
            len(named),
            octets.nbytes,
            stored,
            len(chunks),
        )
        + named
    )
    crc = crc32(header)
    frame: list[bytes | memoryview] = [header + _SUM.pack(crc)]
    for position, (number, logical, coded) in enumerate(chunks):
        chunk_crc = _chunk_crc(crc, position, number, logical, coded)
        frame.append(_HEAD.pack(number, logical, len(coded), chunk_crc))
        frame.append(memoryview(coded))
    return frame


def unpack(frame: Buffer | Iterable[Buffer], threads: int = 1) -> memoryview:
    """The buffer of one frame, writable, as bytes; `FrameError` if it is not exactly one frame.

    `frame` may be cut into buffers in any way.
    """
    source = Source(frame)
    out, _ = read_frame(source, threads)
    source.expect_end()
    return out


def read_frame(source: Source, threads: int = 1) -> tuple[memoryview, Header]:
    """The next frame of a source: its buffer, writable, and its header; errors as `unpack`."""
    header = _read_header(source)
    if header.stored_bytes > source.left_bytes:
        raise FrameError(
            f"the frame says {header.stored_bytes} stored bytes but only {source.left_bytes} "
            f"follow: it was cut off; {_REMEDY}"
        )
    most = min(header.n_chunks, header.stored_bytes // _HEAD.size) * _MAX_CHUNK_BYTES
    if header.logical_bytes > most:
        raise FrameError(
            f"the chunks can add up to {most} bytes, the header says {header.logical_bytes}; "
            f"{_REMEDY}"
        )
    out = _allocate(header.logical_bytes)

    def fill(head: tuple[int, int, int, memoryview]) -> None:
        number, start, n_bytes, coded = head
        codecs.decode_into(coded, number, header.dtype, out[start : start + n_bytes])

    heads: list[tuple[int, int, int, memoryview]] = []
    logical = stored = 0
    for position in range(header.n_chunks):
        if len(heads) >= _AT_ONCE * threads:
            # As they come: what lies in a file is never in memory twice.
            _map(fill, heads, threads)
            heads.clear()
        number, n_bytes, n_stored, chunk_crc = _HEAD.unpack(source.take(_HEAD.size))
        stored += _HEAD.size + n_stored
        if n_bytes > _MAX_CHUNK_BYTES or stored > header.stored_bytes:
            raise FrameError(f"chunk {position} has an impossible length; {_REMEDY}")
        coded = source.take(n_stored)
        if _chunk_crc(header.crc, position, number, n_bytes, coded) != chunk_crc:
            raise FrameError(f"chunk {position} does not match its check sum; {_REMEDY}")
        if logical + n_bytes > header.logical_bytes:
            raise FrameError(f"chunk {position} goes beyond the end of its frame; {_REMEDY}")
        heads.append((number, logical, n_bytes, coded))
        logical += n_bytes
    if logical != header.logical_bytes or stored != header.stored_bytes:
        raise FrameError(
            f"the chunks add up to {logical} bytes ({stored} stored), the header says "
            f"{header.logical_bytes} ({header.stored_bytes}); {_REMEDY}"
        )
    _map(fill, heads, threads)
    return out, header


class Source:
    """Bytes that lie in several buffers, taken from the front; nothing is joined without need."""

    def __init__(self, buffers: Buffer | Iterable[Buffer]) -> None:
        several = [buffers] if isinstance(buffers, (bytes, bytearray, memoryview)) else buffers
        self._parts = [memoryview(part).cast("B") for part in several if len(part)]
        self._parts.reverse()
        self.left_bytes = sum(part.nbytes for part in self._parts)

    def take(self, n_bytes: int) -> memoryview:
        """The next bytes, as a view where they lie in one buffer; `FrameError` if too few."""
        if n_bytes > self.left_bytes:
            raise FrameError(
                f"{n_bytes} bytes are needed but only {self.left_bytes} follow: cut off; {_REMEDY}"
            )
        self.left_bytes -= n_bytes
        if not n_bytes:
            return memoryview(b"")
        first = self._parts.pop()
        if first.nbytes >= n_bytes:
            if first.nbytes > n_bytes:
                self._parts.append(first[n_bytes:])
            return first[:n_bytes]
        joined = bytearray(first)
        while len(joined) < n_bytes:
            part = self._parts.pop()
            missing = n_bytes - len(joined)
            joined += part[:missing]
            if part.nbytes > missing:
                self._parts.append(part[missing:])
        return memoryview(joined)

    def expect_end(self) -> None:
        """`FrameError` if bytes are left."""
        if self.left_bytes:
            raise FrameError(f"{self.left_bytes} bytes follow after the end; {_REMEDY}")


class FileSource(Source):
    """Bytes of a file, read as they are taken; `FrameError` where it ends early or fails."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        super().__init__(())
        self._file, self.left_bytes = file, n_bytes

    def take(self, n_bytes: int) -> memoryview:
        """The next bytes, in memory of their own."""
        if n_bytes > self.left_bytes:
            raise FrameError(
                f"{n_bytes} bytes are needed but only {self.left_bytes} follow: cut off; {_REMEDY}"
            )
        self.left_bytes -= n_bytes
        out = _allocate(n_bytes)
        done = 0
        try:
            while done < n_bytes and (n_read := self._file.readinto(out[done:])):  # type: ignore[attr-defined]
                done += n_read
        except OSError as exc:
            raise FrameError(f"the file cannot be read ({exc}); {_REMEDY}") from exc
        if done < n_bytes:
            raise FrameError(f"the file ends {n_bytes - done} bytes too early; {_REMEDY}")
        return out


def _read_header(source: Source) -> Header:
    fixed = bytes(source.take(_HEADER.size))
    magic, version, codec, named_bytes, logical, stored, n_chunks = _HEADER.unpack(fixed)
    if magic != _MAGIC:
        raise FrameError(f"these bytes are no frame: they begin with {magic!r}, not {_MAGIC!r}")
    if version != VERSION:
        raise FrameError(
            f"the frame has version {version}, this program reads version {VERSION}: read it with "
            f"the version that wrote it, or, if it is damaged, {_REMEDY}"
        )
    named = bytes(source.take(named_bytes))
    (crc,) = _SUM.unpack(source.take(_SUM.size))
    if crc32(fixed + named) != crc:
        raise FrameError(f"the frame's header does not match its check sum; {_REMEDY}")
    if codec not in codecs.BY_ID:
        raise FrameError(
            f"the codec with id {codec} is unknown here; use the version that wrote it"
        )
    if not named.isascii():
        raise FrameError(f"the element type {named!r} is no name; {_REMEDY}")
    return Header(codec, named.decode("ascii") or None, logical, stored, n_chunks, crc)


def _chunk_crc(crc: int, position: int, number: int, n_bytes: int, coded: Buffer) -> int:
    head = struct.pack("<IBII", position & 0xFFFFFFFF, number, n_bytes, len(coded))
    return crc32(coded, crc32(head, crc))


def _allocate(n_bytes: int) -> memoryview:
    try:
        return np.empty(n_bytes, np.uint8).data
    except (MemoryError, ValueError, OverflowError) as exc:
        raise FrameError(f"there is no memory for the {n_bytes} bytes of this frame") from exc


def _map(call: Callable[[_In], _Out], items: Sequence[_In], threads: int) -> list[_Out]:
    if threads <= 1 or len(items) <= 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), "deepflow-codec") as pool:
        return list(pool.map(call, items))
