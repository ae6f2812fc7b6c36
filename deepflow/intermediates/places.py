"""Where evicted values lie: coded in memory, in files, or in an object store.

Each place takes and gives whole values as bytes, which check themselves (see `values`). Writing
raises `OSError` where there is no room or no answer; what cannot be read is `PlaceError`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from deepflow.errors import FrameError
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.sources import FileSource

__all__ = ["Disk", "InMemory", "Place", "PlaceError", "Remote"]

_FREE_SHARE: Final = 0.05
"""Of the file system, left to others."""
_TRIES: Final = 8
_FIRST_PAUSE_S: Final = 0.02
_T = TypeVar("_T")


class PlaceError(FrameError):
    """A stored value is not there any more, or its place does not answer."""


class Place(Protocol):
    """One tier. Thread-safe."""

    name: str

    @property
    def used_bytes(self) -> int:
        """What the values in it take."""

    def room_bytes(self) -> int:
        """How much more it takes."""

    def write(self, buffers: Sequence[Buffer]) -> Any:
        """Keep these bytes; what they are found by. `OSError` where that is not possible."""

    def read(self, token: Any) -> memoryview:
        """The bytes. `PlaceError` where they are not to be had."""

    def remove(self, token: Any) -> None:
        """Forget them. Raises nothing."""

    def close(self) -> None:
        """Remove everything."""


class _Sizes:
    """What the values in a place take. Exact although several threads write and remove."""

    def __init__(self) -> None:
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._of: dict[Any, int] = {}

    def __contains__(self, token: object) -> bool:
        return token in self._of

    def add(self, token: Any, n_bytes: int) -> None:
        """A value has come."""
        with self._lock:
            self._of[token] = n_bytes
            self.used_bytes += n_bytes

    def discard(self, token: Any) -> bool:
        """A value has gone; whether it was known."""
        with self._lock:
            n_bytes = self._of.pop(token, None)
            self.used_bytes -= n_bytes or 0
            return n_bytes is not None

    def clear(self) -> None:
        """All have gone."""
        with self._lock:
            self._of.clear()
            self.used_bytes = 0


class InMemory:
    """Bytes in this process."""

    name = "memory"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._sizes = _Sizes()
        self._kept: dict[int, bytes] = {}
        self._numbers = itertools.count()

    @property
    def used_bytes(self) -> int:
        """What is kept."""
        return self._sizes.used_bytes

    def room_bytes(self) -> int:
        """How much more it takes."""
        return self.limit_bytes - self.used_bytes

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Keep a copy."""
        number = next(self._numbers)
        joined = self._kept[number] = b"".join(buffers)
        self._sizes.add(number, len(joined))
        return number

    def read(self, token: int) -> memoryview:
        """The bytes."""
        try:
            return memoryview(self._kept[token])
        except KeyError:
            raise PlaceError("the value is not in memory any more") from None

    def remove(self, token: int) -> None:
        """Forget them."""
        self._kept.pop(token, None)
        self._sizes.discard(token)

    def close(self) -> None:
        """Remove everything."""
        self._kept.clear()
        self._sizes.clear()


class Disk:
    """A file for each value in a folder of our own, which goes with the worker."""

    name = "disk"

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._sizes = _Sizes()
        self._numbers = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def used_bytes(self) -> int:
        """What the files take."""
        return self._sizes.used_bytes

    def room_bytes(self) -> int:
        """Up to the limit, and to a twentieth of the file system that is left free."""
        try:
            found = os.statvfs(self.folder)
        except FileNotFoundError:  # somebody has cleaned up: what was there is lost, no more
            self.folder.mkdir(parents=True, exist_ok=True)
            found = os.statvfs(self.folder)
        free = int(found.f_frsize * (found.f_bavail - _FREE_SHARE * found.f_blocks))
        return free if self.limit_bytes is None else min(free, self.limit_bytes - self.used_bytes)

    def write(self, buffers: Sequence[Buffer]) -> str:
        """Write a file; a part of one is removed again."""
        name = f"{next(self._numbers)}.value"
        path = self.folder / name
        try:
            with path.open("xb", buffering=0) as file:
                for buffer in buffers:
                    view = memoryview(buffer).cast("B")
                    while view.nbytes:
                        view = view[file.write(view) :]
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._sizes.add(name, sum(memoryview(buffer).nbytes for buffer in buffers))
        return name

    def read(self, token: str) -> memoryview:
        """The file's content."""
        try:
            with (self.folder / token).open("rb", buffering=0) as file:
                out = np.empty(os.fstat(file.fileno()).st_size, np.uint8).data
                done = 0
                while done < out.nbytes and (n_read := file.readinto(out[done:])):
                    done += n_read
                return out[:done]
        except OSError as exc:
            raise PlaceError(f"{self.folder / token} cannot be read: {exc}") from exc

    @contextlib.contextmanager
    def source(self, token: str) -> Generator[FileSource, None, None]:
        """The file, to be read piece by piece: its content is never in memory as a whole."""
        try:
            file = (self.folder / token).open("rb", buffering=0)
        except OSError as exc:
            raise PlaceError(f"{self.folder / token} cannot be read: {exc}") from exc
        with file:
            yield FileSource(file, os.fstat(file.fileno()).st_size)

    def remove(self, token: str) -> None:
        """Remove the file."""
        self._sizes.discard(token)
        with contextlib.suppress(OSError):
            (self.folder / token).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._sizes.clear()


class Remote:
    """An object for each value below a URL, through fsspec. What fails is tried again, for some
    seconds in all; what is removed is removed in the background, for an event loop may ask."""

    name = "remote"

    def __init__(self, url: str, owner: str, limit_bytes: int | None) -> None:
        import fsspec

        self._files, root = fsspec.core.url_to_fs(url)
        self._root = f"{root.rstrip('/')}/{owner}"
        self.limit_bytes = limit_bytes
        self._sizes = _Sizes()
        self._numbers = itertools.count()
        self._removing = ThreadPoolExecutor(1, "deepflow-remove")

    @property
    def used_bytes(self) -> int:
        """What the objects take."""
        return self._sizes.used_bytes

    def room_bytes(self) -> int:
        """How much more it takes; no end where it has no limit."""
        return (1 << 62) if self.limit_bytes is None else self.limit_bytes - self.used_bytes

    def write(self, buffers: Sequence[Buffer]) -> str:
        """Write an object."""
        name, content = f"{next(self._numbers)}.value", b"".join(buffers)

        def put() -> None:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/{name}", content)

        try:
            _persistently(put)
        except Exception as exc:
            raise OSError(f"{self._root} does not take a value: {exc!r}") from exc
        self._sizes.add(name, len(content))
        return name

    def read(self, token: str) -> memoryview:
        """The object's content."""
        path = f"{self._root}/{token}"
        if token not in self._sizes:
            raise PlaceError(f"{path} was removed")
        try:
            content: bytes = _persistently(lambda: self._files.cat_file(path))
        except Exception as exc:
            raise PlaceError(f"{path} cannot be read: {exc!r}") from exc
        return memoryview(content)

    def remove(self, token: str) -> None:
        """Remove the object; one that the store does not let go of is left to it."""
        if self._sizes.discard(token):
            with contextlib.suppress(RuntimeError):  # closed meanwhile: the whole folder goes
                self._removing.submit(self._remove, f"{self._root}/{token}")

    def _remove(self, path: str) -> None:
        with contextlib.suppress(Exception):
            _persistently(lambda: self._files.rm_file(path))

    def close(self) -> None:
        """Remove everything, and wait for it: seconds where the store does not answer."""
        self._removing.shutdown(cancel_futures=True)
        self._sizes.clear()
        with contextlib.suppress(Exception):
            _persistently(lambda: self._files.rm(self._root, recursive=True))


def _persistently(call: Callable[[], _T]) -> _T:
    """Call, and again after a pause that doubles; what is not there is said at once."""
    for attempt in range(_TRIES):
        try:
            return call()
        except FileNotFoundError:
            raise
        except Exception:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("the last try returned or raised")
