"""Bytes that are taken from the front: of buffers in memory, or of a file as it is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from deepflow.errors import FrameError
from deepflow.intermediates.chunks import REMEDY, allocate
from deepflow.intermediates.codecs import Buffer

__all__ = ["FileSource", "Source"]


class Source:
    """Bytes that lie in one or several buffers; nothing is joined without need."""

    def __init__(self, buffers: Buffer | Iterable[Buffer]) -> None:
        several = [buffers] if isinstance(buffers, (bytes, bytearray, memoryview)) else buffers
        self._parts = [memoryview(part).cast("B") for part in several if len(part)]
        self._parts.reverse()
        self.left_bytes = sum(part.nbytes for part in self._parts)
        self._part = self._parts.pop() if self._parts else memoryview(b"")
        self._at = 0
        """How much of the first part is taken."""

    def take(self, n_bytes: int) -> memoryview:
        """The next bytes, as a view where they lie in one buffer; `FrameError` if too few."""
        self._count(n_bytes)
        end = self._at + n_bytes
        if end <= len(self._part):
            found = self._part[self._at : end]
            self._at = end
            return found
        out = allocate(n_bytes)
        self._fill(out)
        return out

    def take_into(self, out: memoryview) -> None:
        """Copy the next bytes to where they belong; errors as `take`."""
        self._count(out.nbytes)
        self._fill(out)

    def expect_end(self) -> None:
        """`FrameError` if bytes are left."""
        if self.left_bytes:
            raise FrameError(f"{self.left_bytes} bytes follow after the end; {REMEDY}")

    def _count(self, n_bytes: int) -> None:
        if n_bytes > self.left_bytes:
            raise FrameError(
                f"{n_bytes} bytes are needed but only {self.left_bytes} follow: they were cut off; "
                f"{REMEDY}"
            )
        self.left_bytes -= n_bytes

    def _fill(self, out: memoryview) -> None:
        done = 0
        while done < out.nbytes:
            if self._at == len(self._part):
                self._part, self._at = self._parts.pop(), 0
            found = self._part[self._at : self._at + out.nbytes - done]
            out[done : done + found.nbytes] = found
            done += found.nbytes
            self._at += found.nbytes


class FileSource(Source):
    """Bytes of a file, read as they are taken; `FrameError` where it ends early or fails."""

    def __init__(self, file: BinaryIO, n_bytes: int) -> None:
        super().__init__(())
        self._file, self.left_bytes = file, n_bytes

    def take(self, n_bytes: int) -> memoryview:
        """The next bytes, in memory of their own."""
        self._count(n_bytes)
        out = allocate(n_bytes)
        self._fill(out)
        return out

    def _fill(self, out: memoryview) -> None:
        done = 0
        try:
            while done < out.nbytes and (n_read := self._file.readinto(out[done:])):  # type: ignore[attr-defined]
                done += n_read
        except OSError as exc:
            raise FrameError(f"the file cannot be read ({exc}); {REMEDY}") from exc
        if done < out.nbytes:
            raise FrameError(f"the file ends {out.nbytes - done} bytes too early; {REMEDY}")
