"""One value as the bytes of one file: what `values` writes, behind a digest of all of it.

    magic 8 B | digest of all that follows 16 B | the value, see `values`

A record is such a value with what is said of it in front:

    magic 8 B | digest of the metadata 16 B | their length u32 | metadata | value as above

What belongs to ``__main__`` is stored by value, as Prefect's pickle serializer does it: another
script has another ``__main__``. Nothing is decoded before the digest fits, so a damaged file is an
error and never a wrong value. Values that earlier versions wrote are read by `stored_before`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import struct
from typing import Any, Final

from deepflow.decide.compression import STORE
from deepflow.errors import FrameError, StoredResultError
from deepflow.intermediates import stored_before, values
from deepflow.intermediates.codecs import Buffer

MAGIC: Final = b"\x93dflow2\n"
RECORD_MAGIC: Final = b"\x93dfrec1\n"
_MAGICS: Final = (MAGIC, stored_before.MAGIC)
_DIGEST_BYTES: Final = 16
_HEAD_BYTES: Final = len(MAGIC) + _DIGEST_BYTES
_LENGTH: Final = struct.Struct("<I")
_THREADS: Final = min(os.cpu_count() or 1, 4)


def pack(value: Any) -> bytes:
    """`value` as the content of one file.

    Raises whatever cloudpickle raises for a value that cannot be pickled.
    """
    buffers = values.dump(value, STORE, _THREADS)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for buffer in buffers:
        digest.update(buffer)
    return b"".join((MAGIC, digest.digest(), *buffers))


def unpack(content: Buffer) -> Any:
    """The value that `content` was packed from; arrays in it may be written to where they could.

    Raises:
        StoredResultError: no such content, or a damaged one.
    """
    view = memoryview(content)
    body = _checked(view)
    read = stored_before.read_parts if _magic_of(view) == stored_before.MAGIC else values.read_parts
    try:
        parts, readonly = read(body, _THREADS)
    except FrameError as error:
        raise StoredResultError(f"the stored result cannot be read: {error}") from error
    # Unpickling makes nothing but objects that stay. To look among them for garbage, again and
    # again, takes longer than to make them.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return values.assemble(parts, readonly)
    finally:
        if was_enabled:
            gc.enable()


def _magic_of(view: memoryview) -> bytes:
    return bytes(view[: len(MAGIC)])


def is_packed(content: Buffer) -> bool:
    """Whether `content` says that it is ours; it may be damaged still."""
    return _magic_of(memoryview(content)) in _MAGICS


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
