"""A Python value as parts and back, and the bytes that parts are stored as.

    magic "DFva" | version u8 | 0 0 0 | parts u32 | bytes of the table u32
    | for each part: bytes u64 | flags u8 | length of the type's name u8 | the name, ASCII
    | crc32 u32 of all before | the chunks of all parts (see `chunks`), with that sum as their seed

The first part is the value's pickle; the others are the buffers that the pickle refers to, in that
order. A flag of 1 says that the buffer was read-only.

What the value is made of decides the element types: numpy arrays and the blocks of data frames say
theirs, Arrow columns are asked, tensors travel as numpy arrays. Columns of Python strings that
repeat are sent as their distinct values and codes.

`load` runs a pickle: as with pickle itself, only load what a trusted program has written. Stored
results refer to `_viewed` and `_expanded` here: their names, parameters and module stay.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from deepflow.decide.compression import CHUNK_BYTES, STORE, Resting
from deepflow.errors import FrameError
from deepflow.intermediates import chunks, codecs
from deepflow.intermediates.choosing import codec_at_rest
from deepflow.intermediates.chunks import Coded, Filling, Head, Part, Piece
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.pickling import (
    EnvelopePickler,
    cached_by_type,
    class_text,
    standing_for,
)
from deepflow.intermediates.sources import Source

__all__ = [
    "Choose",
    "assemble",
    "disassemble",
    "dump",
    "dump_parts",
    "load",
    "read_parts",
]

Choose = Callable[[Part], str]
"""Which codec a part gets."""

VERSION: Final = 2

_MAGIC: Final = b"DFva"
_PRELUDE: Final = struct.Struct("<4sBxxxII")
_ENTRY: Final = struct.Struct("<QBB")
_SUM: Final = struct.Struct("<I")
_READ_ONLY: Final = 1
_FACTORISE_FROM: Final = 64


def dump(value: object, objective: Resting = STORE, threads: int = 1) -> list[Buffer]:
    """`value` as buffers, to be written one after the other.

    Large data that stays raw is not copied: keep the value unchanged until they are written. With
    `threads` above 1, so many chunks are coded at once. Raises what pickling raises.
    """
    choose = partial(codec_at_rest, objective=objective)
    return dump_parts(disassemble(value), choose, threads, objective.chunk_bytes)


def dump_parts(
    parts: Sequence[Part], choose: Choose, threads: int = 1, chunk_bytes: int = CHUNK_BYTES
) -> list[Buffer]:
    """As `dump`, of a value that has been taken apart."""
    prelude = _prelude_of(parts)
    seed = chunks.crc32(prelude)
    out: list[Buffer] = [prelude + _SUM.pack(seed)]

    def pieces() -> Iterator[Piece]:
        for number, part in enumerate(parts):
            if part.octets.nbytes:
                yield from chunks.cut(number, part, choose(part), chunk_bytes)

    def code(piece: Piece) -> tuple[bytes, Coded]:
        coded = chunks.code(piece.octets, piece.codec, piece.dtype)
        return chunks.pack_head(piece.part, piece.start, coded, seed), coded

    for head, coded in chunks.side_by_side(code, pieces(), threads, _work_of):
        out += (head, coded.stored)
    return out


def _work_of(piece: Piece) -> int:
    return 0 if piece.codec == "raw" else piece.octets.nbytes


def _prelude_of(parts: Sequence[Part]) -> bytes:
    table = bytearray()
    for part in parts:
        name = (part.dtype or "").encode("ascii")
        table += _ENTRY.pack(part.octets.nbytes, part.is_readonly and _READ_ONLY, len(name)) + name
    return _PRELUDE.pack(_MAGIC, VERSION, len(parts), len(table)) + table


def disassemble(
    value: object, task: str = "", meet: Callable[[Any], object] | None = None
) -> list[Part]:
    """The pickle of a value, and after it each large buffer that it refers to, not copied.

    `meet` is called with every object that is pickled, and may raise. Keep the value unchanged as
    long as the parts are used. Raises what pickling raises.
    """
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    kind = _ValuePickler if meet is None else _MeetingPickler
    pickler = kind(file, protocol=5, buffer_callback=buffers.append)
    if isinstance(pickler, _MeetingPickler) and meet is not None:
        pickler.meet = meet
    pickler.dump(standing_for(value))
    parts = [Part(file.getbuffer(), None, True, task)]
    for buffer in buffers:
        view = memoryview(buffer)
        parts.append(Part(buffer.raw(), pickler.dtype_of(buffer), view.readonly, task))
    return parts


def assemble(octets: Sequence[memoryview], readonly: Sequence[bool]) -> Any:
    """The value of parts, made on top of their memory and not copied: of each the bytes, and
    whether its array was read-only. Raises what unpickling raises.
    """
    pickled, *contents = octets
    flags = readonly[1:]
    views = [o.toreadonly() if flag else o for o, flag in zip(contents, flags, strict=True)]
    return pickle.loads(pickled, buffers=views)


def load(buffers: Buffer | Iterable[Buffer] | Source, threads: int = 1) -> Any:
    """The value that `dump` was given. `FrameError` if the bytes are not exactly what it wrote.

    Arrays are writable where they were. Whatever else the value's own classes raise while they are
    built passes through.
    """
    return assemble(*read_parts(buffers, threads))


def read_parts(
    buffers: Buffer | Iterable[Buffer] | Source, threads: int = 1
) -> tuple[list[memoryview], list[bool]]:
    """The parts of a value, in memory of their own, and whether each was read-only.

    What lies in a file is read piece by piece and never in memory twice. Errors as `load`.
    """
    source = buffers if isinstance(buffers, Source) else Source(buffers)
    entries, seed = _read_prelude(source)
    n_bytes = sum(entry.n_bytes for entry in entries)
    most_bytes = source.left_bytes // chunks.HEAD_BYTES * chunks.MAX_BYTES
    if n_bytes > most_bytes:
        raise FrameError(
            f"the chunks can add up to {most_bytes} bytes, the table says {n_bytes}; "
            f"{chunks.REMEDY}"
        )
    octets = [chunks.allocate(entry.n_bytes) for entry in entries]
    filling = Filling(octets, [entry.dtype for entry in entries])

    def coded() -> Iterator[_Job]:
        while not filling.is_full:
            head = chunks.read_head(source.take(chunks.HEAD_BYTES), seed)
            place = filling.place(head)
            if head.codec == codecs.RAW:
                source.take_into(place)
                chunks.check(head, place)
            else:
                yield _Job(head, source.take(head.n_stored), filling.dtype_of(head), place)

    def decode(job: _Job) -> None:
        chunks.decode(*job)

    for _ in chunks.side_by_side(decode, coded(), threads, lambda job: job.place.nbytes):
        pass
    source.expect_end()
    return octets, [entry.is_readonly for entry in entries]


class _Job(NamedTuple):
    head: Head
    stored: memoryview
    dtype: str | None
    place: memoryview


class _Entry(NamedTuple):
    """A part as the table has it."""

    n_bytes: int
    is_readonly: bool
    dtype: str | None


def _read_prelude(source: Source) -> tuple[list[_Entry], int]:
    """The table of parts, and its check sum."""
    fixed = bytes(source.take(_PRELUDE.size))
    magic, version, n_parts, n_table = _PRELUDE.unpack(fixed)
    if magic != _MAGIC:
        raise FrameError(f"these bytes are no value: they begin with {magic!r}, not {_MAGIC!r}")
    if version != VERSION:
        raise FrameError(
            f"the value has version {version}, this program reads version {VERSION}: read it with "
            f"the version that wrote it, or, if it is damaged, {chunks.REMEDY}"
        )
    table = bytes(source.take(n_table))
    (crc,) = _SUM.unpack(source.take(_SUM.size))
    if chunks.crc32(fixed + table) != crc:
        raise FrameError(f"the value's table does not match its check sum; {chunks.REMEDY}")
    entries, at = [], 0
    try:
        for _ in range(n_parts):
            n_bytes, flags, n_name = _ENTRY.unpack_from(table, at)
            name = table[at + _ENTRY.size : at + _ENTRY.size + n_name].decode("ascii")
            entries.append(_Entry(n_bytes, bool(flags & _READ_ONLY), name or None))
            at += _ENTRY.size + n_name
    except (struct.error, UnicodeDecodeError) as exc:
        raise FrameError(f"the value's table cannot be read ({exc}); {chunks.REMEDY}") from exc
    if at != len(table) or not entries:
        raise FrameError(f"the value's table has another length than it says; {chunks.REMEDY}")
    return entries, crc


class _ValuePickler(EnvelopePickler):
    """Also notes the element types of Arrow's buffers, and factorises columns of strings."""

    def __init__(
        self,
        file: io.BytesIO,
        protocol: int | None = None,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    ) -> None:
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self._dtypes: dict[int, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Called for every object of no built-in type; NotImplemented leaves it to cloudpickle."""
        kind = type(obj)
        if kind is np.ndarray:
            reduced = self.attempt(_reduce_objects if obj.dtype.kind == "O" else _reduce_dates, obj)
            if reduced is not NotImplemented:
                return reduced
        elif _has_types_apart(kind):
            self.attempt(self._note_types, obj)
        return super().reducer_override(obj)

    def _note_types(self, obj: Any) -> None:
        name = type(obj).__name__
        if name == "Parcel":
            for buffer, dtype in zip(obj.buffers, obj.dtypes, strict=True):
                if dtype and buffer.nbytes:
                    self._dtypes[_address(buffer)] = dtype
        elif name in ("ChunkedArray", "Table", "RecordBatch"):
            for column in [obj] if name == "ChunkedArray" else obj.columns:
                for chunk in getattr(column, "chunks", [column]):
                    self._note_arrow(chunk)
        elif hasattr(obj, "buffers"):
            self._note_arrow(obj)

    def _note_arrow(self, array: Any) -> None:
        dtype = _ARROW_DTYPES.get(str(array.type).partition("[")[0])
        buffers = array.buffers()
        if dtype and len(buffers) > 1 and buffers[1] is not None:
            self._dtypes[buffers[1].address] = dtype

    def dtype_of(self, buffer: pickle.PickleBuffer) -> str | None:
        """The element type of a buffer: as it says itself, or as noted on the way."""
        if self._dtypes and (octets := buffer.raw()).nbytes:
            noted = self._dtypes.get(_address(octets))
            if noted:
                return noted
        view = memoryview(buffer)
        try:
            dtype = np.dtype(view.format)
        except (TypeError, ValueError):
            return None
        return dtype.str if dtype.itemsize == view.itemsize > 1 and dtype.kind != "V" else None


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


class _MeetingPickler(_ValuePickler):
    """Shows each object to somebody before it is pickled."""

    meet: Callable[[Any], object]

    def persistent_id(self, obj: Any) -> None:
        """No object is left out of the pickle."""
        self.meet(obj)


@cached_by_type
def _has_types_apart(kind: type) -> bool:
    """Whether an object of this type knows the types of its buffers, which do not say them."""
    room = class_text(kind, "__module__").partition(".")[0]
    name = class_text(kind, "__name__")
    if room == "pyarrow":
        return name.endswith("Array") or name in ("Table", "RecordBatch")
    return room == "deepflow" and name == "Parcel"


_ARROW_DTYPES: Final = {
    **{f"{kind}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (16, 32, 64)},
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "string": "int32",
    "binary": "int32",
    "large_string": "int64",
    "large_binary": "int64",
    "timestamp": "int64",
    "duration": "int64",
    "date32": "int32",
    "date64": "int64",
}


def _reduce_dates(array: Any) -> Any:
    """Dates and time spans as their integers, since numpy's dates have no buffer of their own."""
    if array.dtype.kind not in "mM" or not array.size:
        return NotImplemented
    if not array.flags.c_contiguous or not array.dtype.isnative:
        return NotImplemented
    return _viewed, (array.view(np.int64), array.dtype)


def _viewed(array: Any, dtype: Any) -> Any:
    """Writable, as numpy's pickle makes dates whatever they were."""
    return (array if array.flags.writeable else array.copy()).view(dtype)


def _reduce_objects(array: Any) -> Any:
    """Strings, None and NaN that repeat: the distinct ones and a code for each element."""
    if array.size < _FACTORISE_FROM or not (array.flags.c_contiguous or array.flags.f_contiguous):
        return NotImplemented
    order = "C" if array.flags.c_contiguous else "F"
    flat = array.ravel(order=order).tolist()
    if not set(map(type, flat)) <= {str, type(None), float}:
        return NotImplemented
    code_of: dict[Any, int] = {}
    codes = [code_of.setdefault(element, len(code_of)) for element in flat]
    distinct = list(code_of)
    # Floats other than NaN are left alone: 0.0 and -0.0 are one key.
    if len(distinct) * 2 > len(flat) or any(type(d) is float and d == d for d in distinct):
        return NotImplemented
    width = np.uint8 if len(distinct) <= 256 else np.uint16 if len(distinct) <= 65_536 else np.int64
    return _expanded, (distinct, np.array(codes, width), array.shape, order)


def _expanded(distinct: list[Any], codes: Any, shape: tuple[int, ...], order: Any) -> Any:
    known = np.empty(len(distinct), object)
    known[:] = distinct
    return known[codes].reshape(shape, order=order)
