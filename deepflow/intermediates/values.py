"""A Python value as frames: its pickle, and each large buffer with the codec that its type wants.

    magic "DFva" | version u8 | 0 0 0 | buffers u32 | read-only flags, a byte each | crc32 u32
    frame of the pickle | frame of each buffer, in the order the pickle refers to them

What the value is made of decides the element types: numpy arrays and the blocks of data frames say
theirs, Arrow columns are asked, tensors travel as numpy arrays. Columns of Python strings that
repeat are sent as their distinct values and codes.

`load` runs a pickle: as with pickle itself, only load what a trusted program has written.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from deepflow.errors import FrameError
from deepflow.intermediates import frames
from deepflow.intermediates.checks import crc32
from deepflow.intermediates.codecs import Buffer, element_bytes
from deepflow.intermediates.pickling import (
    EnvelopePickler,
    cached_by_type,
    class_text,
    standing_for,
)

__all__ = [
    "Choose",
    "Part",
    "assemble",
    "choose_by_type",
    "disassemble",
    "dump",
    "dump_parts",
    "load",
]


@dataclass(frozen=True, slots=True)
class Part:
    """One buffer of a value: its bytes, the type of its elements (None: unknown), its flag.

    ``task`` is whose result it belongs to, where that is known.
    """

    octets: memoryview
    dtype: str | None
    is_readonly: bool
    task: str = ""


Choose = Callable[[memoryview, str | None], str]
"""Which codec a buffer gets, by its bytes and the type of its elements (None: unknown)."""

VERSION: Final = 1
RAW_BELOW_BYTES: Final = 4_096

_MAGIC: Final = b"DFva"
_PRELUDE: Final = struct.Struct("<4sBxxxI")
_SUM: Final = struct.Struct("<I")
_FACTORISE_FROM: Final = 64


def choose_by_type(data: memoryview, dtype: str | None) -> str:
    """Without any knowledge of the link: shuffled zstd for typed elements, zstd for the others."""
    if data.nbytes < RAW_BELOW_BYTES:
        return "raw"
    return "shuffle+zstd" if element_bytes(dtype) > 1 else "zstd:1"


def dump(value: object, choose: Choose = choose_by_type, threads: int = 1) -> list[Buffer]:
    """`value` as buffers, to be written one after the other.

    Large data that stays raw is not copied: keep the value unchanged until they are written.
    Raises what pickling raises.
    """
    return dump_parts(disassemble(value), lambda part: choose(part.octets, part.dtype), threads)


def dump_parts(
    parts: Sequence[Part], choose: Callable[[Part], str], threads: int = 1
) -> list[Buffer]:
    """As `dump`, of a value that has been taken apart."""
    prelude = _PRELUDE.pack(_MAGIC, VERSION, len(parts) - 1)
    prelude += bytes(part.is_readonly for part in parts[1:])
    out: list[Buffer] = [prelude + _SUM.pack(crc32(prelude))]
    for part in parts:
        out.extend(frames.pack(part.octets, choose(part), part.dtype, threads))
    return out


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


def load(buffers: Buffer | Iterable[Buffer] | frames.Source, threads: int = 1) -> Any:
    """The value that `dump` was given. `FrameError` if the bytes are not exactly what it wrote.

    Arrays are writable where they were. Whatever else the value's own classes raise while they are
    built passes through.
    """
    source = buffers if isinstance(buffers, frames.Source) else frames.Source(buffers)
    fixed = bytes(source.take(_PRELUDE.size))
    magic, version, n_buffers = _PRELUDE.unpack(fixed)
    if magic != _MAGIC:
        raise FrameError(f"these bytes are no value: they begin with {magic!r}, not {_MAGIC!r}")
    if version != VERSION:
        raise FrameError(
            f"the value has version {version}, this program reads version {VERSION}: read it with "
            "the version that wrote it, or compute it again if it is damaged"
        )
    flags = bytes(source.take(n_buffers))
    (crc,) = _SUM.unpack(source.take(_SUM.size))
    if crc32(fixed + flags) != crc:
        raise FrameError("the value's prelude does not match its check sum; compute it again")
    octets = [frames.read_frame(source, threads)[0] for _ in range(n_buffers + 1)]
    source.expect_end()
    return assemble(octets, [True, *map(bool, flags)])


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
