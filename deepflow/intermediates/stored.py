"""One value as the bytes of one file: typed frames behind a header that says how long each is.

    magic 8 B | digest of all that follows 16 B | number of frames u32 | length of each u64 | frames

A record is such a value with what is said of it in front:

    magic 8 B | digest of the metadata 16 B | their length u32 | metadata | value as above

The first frame is the value's structure (pickle 5), the others its buffers; a frame's head says
whether the buffer was read-only. What belongs to ``__main__`` is stored by value, as Prefect's
pickle serializer does it: another script has another ``__main__``. Nothing is decoded before the
digest fits, so a damaged file is an error and never a wrong value.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeVar

from deepflow.errors import FrameError, StoredResultError
from deepflow.intermediates import codecs
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.pickling import dump

MAGIC: Final = b"\x93dflow1\n"
RECORD_MAGIC: Final = b"\x93dfrec1\n"
_DIGEST_BYTES: Final = 16
_HEAD_BYTES: Final = len(MAGIC) + _DIGEST_BYTES
_LENGTH: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<Bc?xIQ")
_RAW, _ZSTD, _SHUFFLE_ZSTD, _PCO = (
    codecs.parse(name).number for name in ("raw", "zstd", "shuffle+zstd", "pco")
)
_WORTH_BYTES: Final = 512
_CHUNK_BYTES: Final = 4 * 1024**2
_SAMPLE_BYTES: Final = 128 * 1024
_NUMBERS: Final = "hHeiIlLqQfd"
_PRICE: Final = {_ZSTD: 1.0, _SHUFFLE_ZSTD: 1.0, _PCO: 1.25}
"""Storage wants ratio, but pcodec packs a few times slower: it has to be a fifth smaller."""

T = TypeVar("T")
U = TypeVar("U")


def pack(value: Any) -> bytes:
    """`value` as the content of one file.

    Raises whatever cloudpickle raises for a value that cannot be pickled.
    """
    frames = _dump(value)
    head = struct.pack(f"<I{len(frames)}Q", len(frames), *map(len, frames))
    digest = hashlib.blake2b(head, digest_size=_DIGEST_BYTES)
    for frame in frames:
        digest.update(frame)
    return b"".join((MAGIC, digest.digest(), head, *frames))


def unpack(content: Buffer) -> Any:
    """The value that `content` was packed from; arrays in it may be written to where they could.

    Raises:
        StoredResultError: no such content, or a damaged one.
    """
    body = _checked(memoryview(content))
    (n_frames,) = struct.unpack_from("<I", body)
    lengths = struct.unpack_from(f"<{n_frames}Q", body, 4)
    frames, at = [], 4 + 8 * n_frames
    for length in lengths:
        frames.append(body[at : at + length])
        at += length
    return _load(frames)


def is_packed(content: Buffer) -> bool:
    """Whether `content` says that it is ours; it may be damaged still."""
    return bytes(memoryview(content)[: len(MAGIC)]) == MAGIC


def pack_record(metadata: bytes, content: bytes) -> bytes:
    """A packed value with metadata in front, as the content of one file."""
    digest = hashlib.blake2b(metadata, digest_size=_DIGEST_BYTES).digest()
    return b"".join((RECORD_MAGIC, digest, _LENGTH.pack(len(metadata)), metadata, content))


def is_record(content: Buffer) -> bool:
    """Whether `content` says that it is a record of ours; it may be damaged still."""
    return bytes(memoryview(content)[: len(RECORD_MAGIC)]) == RECORD_MAGIC


def split_record(content: Buffer) -> tuple[bytes, memoryview]:
    """The metadata, checked, and the packed value, which :func:`unpack` checks.

    Raises:
        StoredResultError: no record, or its metadata are damaged.
    """
    view = memoryview(content)
    start = _HEAD_BYTES + _LENGTH.size
    if is_record(view) and len(view) >= start:
        (length,) = _LENGTH.unpack_from(view, _HEAD_BYTES)
        metadata = bytes(view[start : start + length])
        digest = hashlib.blake2b(metadata, digest_size=_DIGEST_BYTES).digest()
        if digest == view[len(RECORD_MAGIC) : _HEAD_BYTES]:
            return metadata, view[start + length :]
    raise StoredResultError(
        "the stored result is damaged: its metadata do not have the digest that was written; "
        "delete the record so that it is computed again"
    )


def address_of(content: Buffer) -> str:
    """The digest that `content` carries; :func:`unpack` compares it with what the bytes say.

    Raises:
        StoredResultError: no packed value.
    """
    view = memoryview(content)
    if not is_packed(view) or len(view) < _HEAD_BYTES:
        raise StoredResultError(
            "these bytes are no stored result of deepflow: no such beginning; delete the record so "
            "that it is computed again"
        )
    return bytes(view[len(MAGIC) : _HEAD_BYTES]).hex()


def _checked(view: memoryview) -> memoryview:
    """What follows the digest, after comparing the two."""
    said = address_of(view)
    found = hashlib.blake2b(view[_HEAD_BYTES:], digest_size=_DIGEST_BYTES).hexdigest()
    if said != found:
        raise StoredResultError(
            f"the stored result is damaged: its {len(view):,} bytes have the digest {found}, "
            f"written was {said}; delete the record so that it is computed again"
        )
    return view[_HEAD_BYTES:]


def _dump(value: Any) -> list[bytes]:
    buffers: list[pickle.PickleBuffer] = []
    structure = dump(value, buffers.append)
    return [_encode(structure, "B", False), *(_encode(*_described(b)) for b in buffers)]


def _load(frames: Sequence[memoryview]) -> Any:
    structure, *buffers = map(_decode, frames)
    # Unpickling makes nothing but objects that stay: looking among them for garbage, again and
    # again, takes longer than making them.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return pickle.loads(structure, buffers=buffers)
    finally:
        if was_enabled:
            gc.enable()


def _described(buffer: pickle.PickleBuffer) -> tuple[memoryview, str, bool]:
    """A buffer's bytes, the type of its items as `struct` names it, and whether it is read-only."""
    view = memoryview(buffer)
    name = view.format or "B"
    return buffer.raw(), name if name in _NUMBERS else "B", view.readonly


def _encode(view: memoryview, number: str, is_readonly: bool) -> bytes:
    """A buffer as one frame: head, the length of each chunk, the chunks, packed side by side."""
    codec = _choose(view, number)
    chunks = [view[i : i + _CHUNK_BYTES] for i in range(0, view.nbytes, _CHUNK_BYTES)]
    packed = list(_in_threads(lambda chunk: _pack_chunk(codec, chunk, number), chunks))
    head = _FRAME.pack(codec, number.encode(), is_readonly, len(packed), view.nbytes)
    return b"".join((head, struct.pack(f"<{len(packed)}Q", *map(len, packed)), *packed))


def _decode(frame: memoryview) -> bytearray | memoryview:
    codec, name, is_readonly, n_chunks, n_bytes = _FRAME.unpack_from(frame)
    lengths = struct.unpack_from(f"<{n_chunks}Q", frame, _FRAME.size)
    out, at = bytearray(n_bytes), _FRAME.size + 8 * n_chunks
    place, jobs = memoryview(out), []
    for i, length in enumerate(lengths):
        goal = place[i * _CHUNK_BYTES : (i + 1) * _CHUNK_BYTES]
        jobs.append((frame[at : at + length], goal))
        at += length
    for _ in _in_threads(lambda job: _unpack_chunk(codec, job[0], name.decode(), job[1]), jobs):
        pass
    return memoryview(out).toreadonly() if is_readonly else out


def _choose(view: memoryview, number: str) -> int:
    """The codec for a buffer, by what each makes of two samples of it."""
    if view.nbytes < _WORTH_BYTES:
        return _RAW
    at = view.nbytes // 2 // 16 * 16
    samples = [view[:_SAMPLE_BYTES], view[at : at + _SAMPLE_BYTES]]
    candidates = [_ZSTD]
    if number in _NUMBERS:
        candidates = [_SHUFFLE_ZSTD, _PCO]
    sizes = {c: sum(len(_pack_chunk(c, one, number)) for one in samples) for c in candidates}
    best = min(candidates, key=lambda c: sizes[c] * _PRICE[c])
    return best if sizes[best] < 0.97 * sum(one.nbytes for one in samples) else _RAW


def _pack_chunk(codec: int, chunk: memoryview, number: str) -> Buffer:
    return codecs.encode(chunk, codecs.BY_ID[codec].name, number)


def _unpack_chunk(codec: int, chunk: memoryview, number: str, goal: memoryview) -> None:
    try:
        codecs.decode_into(chunk, codec, number, goal)
    except FrameError as error:
        raise StoredResultError(f"the stored result cannot be read: {error}") from error


def _in_threads(call: Callable[[T], U], jobs: Sequence[T]) -> Iterator[U]:
    """`call` of each job in order; side by side where there are several."""
    if len(jobs) < 2:
        yield from map(call, jobs)
        return
    yield from _pool(os.getpid()).map(call, jobs)


@cache
def _pool(_pid: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 4), "deepflow-stored")
