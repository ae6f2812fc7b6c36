"""One value as the bytes of one file: typed frames behind a header that says how long each is.

    magic 8 B | digest of all that follows 16 B | number of frames u32 | length of each u64 | frames

The first frame is the value's structure (pickle 5), the others its buffers. Nothing is decoded
before the digest fits, so a damaged file is an error and never a wrong value.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import cloudpickle
import numpy as np
import zstandard

from deepflow.errors import StoredResultError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC: Final = b"\x93dflow1\n"
_DIGEST_BYTES: Final = 16
_FRAME: Final = struct.Struct("<BBxxxxxxQ")
_RAW, _ZSTD, _SHUFFLE_ZSTD = 0, 1, 2
_WORTH_BYTES: Final = 512


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
    """The value that `content` was packed from; arrays in it may be written to.

    Raises:
        StoredResultError: no such content, or a damaged one.
    """
    view = memoryview(content)
    address_of(view)
    body = view[len(MAGIC) + _DIGEST_BYTES :]
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


def address_of(content: Buffer) -> str:
    """The digest that `content` carries, after comparing it with what the bytes say.

    Raises:
        StoredResultError: no packed value, or a damaged one.
    """
    view = memoryview(content)
    if not is_packed(view):
        raise StoredResultError("these bytes are no stored result of deepflow: no such beginning")
    at = len(MAGIC) + _DIGEST_BYTES
    said = bytes(view[len(MAGIC) : at])
    found = hashlib.blake2b(view[at:], digest_size=_DIGEST_BYTES).digest()
    if said != found:
        raise StoredResultError(
            f"the stored result is damaged: its {len(view):,} bytes have the digest {found.hex()}, "
            f"written was {said.hex()}; delete the record so that it is computed again"
        )
    return said.hex()


def _dump(value: Any) -> list[bytes]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        structure = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except Exception:  # noqa: BLE001 - what pickle cannot by name, cloudpickle may by value
        buffers.clear()
        structure = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [_encode(structure, 1), *(_encode(b.raw(), memoryview(b).itemsize) for b in buffers)]


def _load(frames: Sequence[memoryview]) -> Any:
    structure, *buffers = map(_decode, frames)
    return pickle.loads(structure, buffers=buffers)


def _encode(data: Buffer, itemsize: int) -> bytes:
    view = memoryview(data)
    if view.nbytes >= _WORTH_BYTES:
        is_shuffled = itemsize in (2, 4, 8, 16)
        plain = (
            np.ascontiguousarray(np.frombuffer(view, np.uint8).reshape(-1, itemsize).T).data
            if is_shuffled
            else view
        )
        packed = zstandard.ZstdCompressor(level=1).compress(plain)
        if len(packed) < 0.97 * view.nbytes:
            codec = _SHUFFLE_ZSTD if is_shuffled else _ZSTD
            return _FRAME.pack(codec, itemsize if is_shuffled else 1, view.nbytes) + packed
    return _FRAME.pack(_RAW, 1, view.nbytes) + bytes(view)


def _decode(frame: memoryview) -> bytearray:
    codec, itemsize, n_bytes = _FRAME.unpack_from(frame)
    body = frame[_FRAME.size :]
    if codec == _RAW:
        return bytearray(body)
    plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=n_bytes)
    if codec == _ZSTD:
        return bytearray(plain)
    out = bytearray(n_bytes)
    np.frombuffer(out, np.uint8).reshape(-1, itemsize)[:] = (
        np.frombuffer(plain, np.uint8).reshape(itemsize, -1).T
    )
    return out
