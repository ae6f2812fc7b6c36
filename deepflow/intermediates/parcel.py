"""A value taken apart, so that each reader gets a copy of its own at the price of a page fault.

A parcel is a pickle and the large buffers that it refers to. Opening it makes the value anew:
containers are new objects, arrays lie in memory of their own, and what was one object within the
value stays one. Small buffers are copied. Large ones are mapped privately, copy-on-write: the
pages are shared by all readers until somebody writes to one, and the kernel then copies that page
for the writer alone. Where a buffer does not lie in a file in memory yet, it is put into one when
it is first opened; one that takes much of the process's memory goes into a file on disk. A buffer
that was read-only needs no copy, since nobody can write to it.

What cannot be pickled is no parcel but a `Stuck`: it is of use in its own process only.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, Final

from deepflow.intermediates import values
from deepflow.intermediates.arena import note_file, private_copy
from deepflow.intermediates.loading import Scope, loads

__all__ = ["MAPPED_FROM_BYTES", "Parcel", "Stuck", "lay_on_disk"]

MAPPED_FROM_BYTES: Final = 1 << 18
"""Smaller buffers are copied: that is faster than to map them."""
_WRITE_BYTES: Final = 1 << 26
_IN_LINE_BELOW_BYTES: Final = 4_096
"""A shorter pickle is a part of the one that it travels in."""
_PLAIN: Final = b"\0"
_WITH_BUFFERS: Final = b"\1"


_disk: tuple[str, int] | None = None


def lay_on_disk(folder: str, from_bytes: int) -> None:
    """In this process, put values of so many bytes into files on disk instead of in memory.

    The kernel keeps such a file in memory as long as there is room, and not beyond.
    """
    global _disk
    _disk = (folder, from_bytes)


def _is_on_disk(size_bytes: int) -> bool:
    return _disk is not None and size_bytes >= _disk[1]


def _new_file(size_bytes: int) -> IO[bytes]:
    """A file without a name, which goes with its last mapping."""
    if _disk is not None and _is_on_disk(size_bytes):
        return tempfile.TemporaryFile(dir=_disk[0], buffering=0)
    return os.fdopen(os.memfd_create("deepflow-parcel", os.MFD_CLOEXEC), "w+b", buffering=0)


def _write(fd: int, buffer: memoryview, start: int) -> None:
    octets = buffer.cast("B")
    while octets.nbytes:
        n_written = os.pwrite(fd, octets[:_WRITE_BYTES], start)
        octets, start = octets[n_written:], start + n_written


class Parcel:
    """See the top of this file. Thread-safe.

    `pickled` is the pickle; `buffers` are the large buffers, as typed memoryviews where their type
    is known; `readonly` says of each whether what lies on it was read-only.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "buffers",
        "dtypes",
        "on_disk_bytes",
        "pickled",
        "readonly",
    )

    def __init__(
        self,
        pickled: bytes | memoryview,
        buffers: Sequence[memoryview] = (),
        dtypes: Sequence[str | None] = (),
        readonly: Sequence[bool] = (),
    ) -> None:
        self.pickled = pickled
        self.buffers = [memoryview(buffer) for buffer in buffers]
        self.dtypes = tuple(dtypes)
        self.readonly = tuple(readonly)
        self.on_disk_bytes = 0
        """Of its buffers, those in a file on disk: the process holds no memory for them."""
        self._lock = threading.Lock()

    @classmethod
    def of(cls, value: object, meet: Callable[[Any], object] | None = None) -> Parcel:
        """`value` taken apart; its large buffers are not copied.

        `meet` is called with every object that is pickled, and may raise. Raises what pickling
        raises.
        """
        head, *parts = values.disassemble(value, meet=meet)
        return cls(
            head.octets,
            [part.octets for part in parts],
            [part.dtype for part in parts],
            [part.is_readonly for part in parts],
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of the pickle and of its buffers."""
        return len(self.pickled) + sum(buffer.nbytes for buffer in self.buffers)

    def open(self, scope: Scope) -> Any:
        """The value, made anew and apart from every other copy. Raises what unpickling raises."""
        return loads(self.pickled, scope, buffers=self._private() if self.buffers else None)

    def take(self, scope: Scope) -> Any:
        """The value on the parcel's own memory, for a parcel that nobody opens after this."""
        views = [
            view.toreadonly() if flag else _writable(view)
            for view, flag in zip(self.buffers, self.readonly, strict=True)
        ]
        return loads(self.pickled, scope, buffers=views or None)

    def detach(self) -> Parcel:
        """Copy what still belongs to the value that was taken apart, so that it may change."""
        for index, view in enumerate(self.buffers):
            if not (self.readonly[index] and isinstance(view.obj, bytes)):
                self.buffers[index] = memoryview(bytes(view))
        return self

    def _private(self) -> list[memoryview]:
        with self._lock:
            large = [
                index
                for index, view in enumerate(self.buffers)
                if view.nbytes >= MAPPED_FROM_BYTES and not self.readonly[index]
            ]
            mapped = private_copy([self.buffers[index] for index in large])
            if mapped is None and large and self._lay(large):
                mapped = private_copy([self.buffers[index] for index in large])
        found = dict(zip(large, mapped, strict=True)) if mapped is not None else {}
        return [
            view.toreadonly()
            if self.readonly[index]
            else found[index]
            if index in found
            else memoryview(bytearray(view))
            for index, view in enumerate(self.buffers)
        ]

    def _lay(self, indexes: Sequence[int]) -> bool:
        """Move buffers into a file in memory, from which they can be mapped; whether it went."""
        sizes = [self.buffers[index].nbytes for index in indexes]
        rounded = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
        starts = list(itertools.accumulate(rounded, initial=0))
        try:
            with _new_file(starts[-1]) as file:
                os.ftruncate(file.fileno(), starts[-1])
                for index, start in zip(indexes, starts, strict=False):
                    # Written, not mapped: this process does not hold the value twice.
                    _write(file.fileno(), self.buffers[index], start)
                mapping = mmap.mmap(
                    file.fileno(),
                    starts[-1],
                    flags=mmap.MAP_PRIVATE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
                note_file(mapping, file.fileno())
        except OSError:
            return False
        if _is_on_disk(starts[-1]):
            self.on_disk_bytes += sum(sizes)
        whole = memoryview(mapping)
        for index, start, size in zip(indexes, starts, sizes, strict=False):
            self.buffers[index] = whole[start : start + size]
        return True

    def __reduce__(self) -> Any:
        if isinstance(self.pickled, bytes) and len(self.pickled) < _IN_LINE_BELOW_BYTES:
            pickled: Any = self.pickled
        else:
            pickled = pickle.PickleBuffer(self.pickled)
        buffers = [pickle.PickleBuffer(buffer) for buffer in self.buffers]
        return _parcel, (pickled, buffers, self.dtypes, self.readonly)

    def __deepflow_payload__(self) -> object:
        """What counts as this object's size (see `intermediates.sizes`)."""
        return [memoryview(self.pickled), *self.buffers]

    # -- as bytes, for small ones --------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """All of it in one piece."""
        if not self.buffers:
            return _PLAIN + bytes(self.pickled)
        buffers = [bytes(buffer) for buffer in self.buffers]
        parts = (bytes(self.pickled), buffers, self.dtypes, self.readonly)
        return _WITH_BUFFERS + pickle.dumps(parts, protocol=5)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Parcel:
        """Inverse of `to_bytes`."""
        if blob[:1] == _PLAIN:
            return cls(memoryview(blob)[1:])
        return _parcel(*pickle.loads(memoryview(blob)[1:]))


def _parcel(pickled: Any, buffers: Any, dtypes: Any, readonly: Any) -> Parcel:
    return Parcel(
        pickled if isinstance(pickled, bytes) else memoryview(pickled),
        [memoryview(buffer) for buffer in buffers],
        dtypes,
        readonly,
    )


def _writable(view: memoryview) -> memoryview:
    return memoryview(bytearray(view)) if view.readonly else view


class Stuck:
    """A value that cannot be pickled, and why.

    It serves whoever is in its process. Where it moves, the value is left behind (`is_here` is
    false there), so that moving never fails or waits, and who opens it is told in words.
    """

    __slots__ = ("record", "value", "why")

    def __init__(self, value: Any, why: str, record: bytes = b"", *, is_here: bool = True) -> None:
        self.value: tuple[Any, ...] = (value,) if is_here else ()
        self.why = why
        """One sentence with the task, the type and the remedy."""
        self.record = record
        """The pickled record of the task run."""

    @property
    def is_here(self) -> bool:
        """Whether the value is in this process."""
        return bool(self.value)

    def __reduce__(self) -> Any:
        return _left_behind, (self.why, self.record)

    def __deepflow_payload__(self) -> object:
        """What counts as this object's size (see `intermediates.sizes`)."""
        return self.value


def _left_behind(why: str, record: bytes) -> Stuck:
    return Stuck(None, why, record, is_here=False)
