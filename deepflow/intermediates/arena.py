"""Memory that the processes of one host share: written once by its owner, mapped by the others.

A segment is a file in a memory file system (``/dev/shm``): one page of header, then data. Only its
owner writes it. Whoever reads it, the owner included, gets private mappings: pages are shared until
somebody writes to an array, and then the kernel copies those pages for the writer alone. So arrays
are writable, as Dask hands them out, and nobody sees another one's changes.

Life of a segment: allocated, filled, sealed; when the owner's last view is gone it is free, and
when no reader is left it may be filled again, since memory that has been touched before is ten
times as fast to write as new memory. Readers are known by the kernel's locks on the file, which
end with the mapping or with the process, however it ends. A descriptor carries the segment's
generation, which changes before a segment is filled again: one that is outdated is `SegmentGone`,
never another value.

Files are named ``deepflow-OWNER.NUMBER``. The owner holds a lock on ``deepflow-OWNER.key`` as long
as it lives; files of an owner whose lock can be had are orphans, and are removed by `sweep`. The
key file's content is the proof that two processes see the same folder (see `read_key`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import struct
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from deepflow.errors import FrameError
from deepflow.intermediates.codecs import Buffer

__all__ = [
    "DEFAULT_FOLDER",
    "Arena",
    "Descriptor",
    "Draft",
    "SegmentGone",
    "Sealed",
    "attach",
    "note_file",
    "private_copy",
    "read_key",
    "sweep",
]

DEFAULT_FOLDER: Final = Path("/dev/shm")
_PAGE_BYTES: Final = 4096
_ALIGN_BYTES: Final = 64
_MAGIC: Final = b"DFseg\x01\0\0"
_HEADER: Final = struct.Struct("<8sQQ")
_KEY_BYTES: Final = 32
_NAME: Final = re.compile(r"deepflow-([0-9a-f]{16})\.(key|[0-9]+)")
_RESERVE_SHARE: Final = 0.1
"""Of the file system, left to others."""


class SegmentGone(FrameError):
    """The segment of a descriptor is not there any more, or holds another value by now."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Where buffers lie: a segment as it was at one generation, and (offset, bytes) of each."""

    owner: str
    number: int
    generation: int
    spans: tuple[tuple[int, int], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(length for _, length in self.spans)


class _Segment:
    """One file of this process, with the mapping that it is written through."""

    def __init__(self, path: Path, number: int, size_bytes: int) -> None:
        self.path, self.number, self.size_bytes = path, number, size_bytes
        self.generation = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)
        try:
            # Without it a full file system would be a SIGBUS at the first write.
            os.posix_fallocate(self.fd, 0, size_bytes)
            self.map = mmap.mmap(self.fd, size_bytes)
        except BaseException:
            os.unlink(path)
            os.close(self.fd)
            raise

    def renew(self) -> bool:
        """Make descriptors of what was in it outdated; False while somebody still reads it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            self.generation += 1
            self.map[: _HEADER.size] = _HEADER.pack(_MAGIC, self.generation, self.size_bytes)
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True

    def remove(self) -> None:
        """Unlink and close; mappings of readers stay."""
        self.path.unlink(missing_ok=True)
        os.close(self.fd)
        with contextlib.suppress(BufferError):  # a draft's view is left: it goes with that
            self.map.close()


class Draft:
    """Space in a segment that is being filled; give it to `Arena.seal` or `Arena.discard`."""

    def __init__(self, segment: _Segment, sizes: Sequence[int]) -> None:
        self._segment = segment
        self.spans = _lay_out(sizes)
        whole = memoryview(segment.map)
        self.views = [whole[start : start + length] for start, length in self.spans]
        """Writable, one for each size asked for."""


class Sealed:
    """A filled segment: keep it as long as its descriptor is to be valid for others."""

    def __init__(self, mapping: mmap.mmap, descriptor: Descriptor) -> None:
        self._mapping = mapping
        self.descriptor = descriptor
        self.buffers = _cut(mapping, descriptor.spans)
        """Writable; what is written stays private."""


class Arena:
    """The segments of one process. Thread-safe.

    `limit_bytes` bounds all segments, `pool_bytes` those kept warm for the next value. A tenth of
    the file system is left to others, whatever the limit. Raises `OSError` where `folder` cannot
    be written.
    """

    def __init__(self, folder: Path, limit_bytes: int, pool_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes, self.pool_bytes = limit_bytes, pool_bytes
        self.owner = secrets.token_hex(8)
        self.used_bytes = 0
        """Of all segments, the pool's included."""
        self.is_tight = False
        """Whether the process is short of memory: then there is no room, and nothing is kept."""
        self._lock = threading.Lock()
        self._next = 0
        self._pool: deque[_Segment] = deque()
        # Appended to by finalizers, which may run anywhere, so without the lock.
        self._freed: deque[_Segment] = deque()
        self._lingering: list[_Segment] = []
        self._is_closed = False
        sweep(folder)
        self.key_name = f"deepflow-{self.owner}.key"
        self._key_path = folder / self.key_name
        self._key_fd = _make_key(self._key_path)
        self.key = read_key(folder, self.key_name) or b""

    def draft(self, sizes: Sequence[int]) -> Draft | None:
        """Space for buffers of these sizes, or None where there is no room."""
        spans = _lay_out(sizes)
        needed = _round_up(spans[-1][0] + spans[-1][1] if spans else _PAGE_BYTES)
        with self._lock:
            self._collect()
            segment = self._take(needed)
            if segment is None:
                return None
            return Draft(segment, sizes)

    def seal(self, draft: Draft) -> Sealed:
        """Make what was filled readable by others, as long as the answer or a view of it lives."""
        segment = draft._segment
        for view in draft.views:
            view.release()
        draft.views.clear()
        mapping = _map_noted(segment.fd, segment.size_bytes)
        weakref.finalize(mapping, self._freed.append, segment).atexit = False
        descriptor = Descriptor(self.owner, segment.number, segment.generation, tuple(draft.spans))
        return Sealed(mapping, descriptor)

    def discard(self, draft: Draft) -> None:
        """Give back what was not filled after all."""
        draft.views.clear()
        self._freed.append(draft._segment)

    def put(self, buffers: Sequence[Buffer]) -> Sealed | None:
        """Copy buffers into a segment; None where there is no room."""
        octets = [memoryview(buffer).cast("B") for buffer in buffers]
        draft = self.draft([part.nbytes for part in octets])
        if draft is None:
            return None
        for view, part in zip(draft.views, octets, strict=True):
            view[:] = part
        return self.seal(draft)

    def tidy(self) -> None:
        """Take in what was freed, and remove what the pool need not keep. Call now and then."""
        with self._lock:
            self._collect()

    def close(self) -> None:
        """Remove all files; views that are still held keep their contents."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for path in self.folder.glob(f"deepflow-{self.owner}.*"):
                path.unlink(missing_ok=True)
            os.close(self._key_fd)

    def _collect(self) -> None:
        """Under the lock: freed segments that nobody reads go to the pool, and its excess away."""
        waiting = self._lingering
        while self._freed:
            waiting.append(self._freed.popleft())
        self._lingering = []
        for segment in waiting:
            if segment.renew():
                self._pool.append(segment)
            else:
                self._lingering.append(segment)
        kept_bytes = 0 if self.is_tight else self.pool_bytes
        excess = sum(segment.size_bytes for segment in self._pool) - kept_bytes
        while self._pool and (excess > 0 or self._is_closed):
            excess -= self._remove(self._pool.popleft())

    def _take(self, needed: int) -> _Segment | None:
        """Under the lock: a segment of at least `needed` bytes, warm if there is a fitting one."""
        if self._is_closed or self.is_tight:
            return None
        fitting = [s for s in self._pool if needed <= s.size_bytes <= 2 * needed]
        if fitting:
            best = min(fitting, key=lambda segment: segment.size_bytes)
            self._pool.remove(best)
            return best
        while self._pool and self.used_bytes + needed > self.limit_bytes:
            self._remove(self._pool.popleft())
        if self.used_bytes + needed > self.limit_bytes or needed > _free_bytes(self.folder):
            return None
        self._next += 1
        path = self.folder / f"deepflow-{self.owner}.{self._next}"
        try:
            segment = _Segment(path, self._next, needed)
        except OSError:
            return None
        segment.renew()
        self.used_bytes += needed
        return segment

    def _remove(self, segment: _Segment) -> int:
        segment.remove()
        self.used_bytes -= segment.size_bytes
        return segment.size_bytes


def attach(folder: Path, descriptor: Descriptor) -> list[memoryview]:
    """The buffers of a descriptor, mapped and not copied; writable, changes stay private.

    `SegmentGone` where the segment is not there any more, or holds another value.
    """
    path = folder / f"deepflow-{descriptor.owner}.{descriptor.number}"
    gone = f"the shared segment {path.name} is gone; fetch the value another way"
    if not _NAME.fullmatch(path.name):
        raise SegmentGone(f"{path.name!r} is no segment's name")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise SegmentGone(gone) from exc
    try:
        # Held by the mapping's own descriptor from here on, until the mapping is gone.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mapping = _map_noted(fd, os.fstat(fd).st_size)
        magic, generation, size_bytes = _HEADER.unpack_from(mapping)
    except (OSError, ValueError, struct.error) as exc:
        raise SegmentGone(gone) from exc
    finally:
        os.close(fd)
    ends = [start + length for start, length in descriptor.spans]
    fits = size_bytes == len(mapping) and max(ends, default=0) <= size_bytes
    if magic != _MAGIC or generation != descriptor.generation or not fits:
        raise SegmentGone(gone)
    return _cut(mapping, descriptor.spans)


_files: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()
"""The file of each mapping that may be mapped again."""


def note_file(mapping: mmap.mmap, fd: int) -> None:
    """Let `private_copy` map the file of `mapping` again; `fd` stays the caller's."""
    kept = os.dup(fd)
    _files[mapping] = kept
    weakref.finalize(mapping, os.close, kept).atexit = False


def private_copy(views: Sequence[memoryview]) -> list[memoryview] | None:
    """Views with the same contents on private mappings of their own: writable, nothing is copied.

    None where one of them does not lie in a file that was noted. What readers of the original have
    written to their own pages is not in the copy. `OSError` where the file cannot be mapped.
    """
    mappings: dict[int, memoryview] = {}
    copies = []
    for view in views:
        mapping = view.obj
        fd = _files.get(mapping) if isinstance(mapping, mmap.mmap) else None
        if fd is None:
            return None
        assert isinstance(mapping, mmap.mmap)
        whole = mappings.get(fd)
        if whole is None:
            whole = mappings[fd] = memoryview(_map_again(fd, len(mapping)))
        start = _address(view) - _address(mapping)
        copies.append(whole[start : start + view.nbytes])
    return copies


def _map_again(fd: int, size_bytes: int) -> mmap.mmap:
    # Opened anew, so that the owner sees this reader's lock and does not fill the segment again.
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(again, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _map_private(again, size_bytes)
    finally:
        os.close(again)


def _address(buffer: Buffer | mmap.mmap) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def read_key(folder: Path, name: str) -> bytes | None:
    """The content of another process's key file, if this process sees it: the proof that it does.

    An address proves nothing: containers and address translation make it lie.
    """
    found = _NAME.fullmatch(name)
    if not found or found[2] != "key":
        return None
    try:
        content = (folder / name).read_bytes()
    except OSError:
        return None
    return content if len(content) == _KEY_BYTES else None


def sweep(folder: Path) -> int:
    """Remove the files of owners that are gone; how many. `OSError` if there is no such folder."""
    owners: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if found := _NAME.fullmatch(path.name):
            owners.setdefault(found[1], []).append(path)
    n_removed = 0
    for owner, paths in owners.items():
        key_path = folder / f"deepflow-{owner}.key"
        try:
            fd = os.open(key_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            fd = -1  # the key is the last file of an owner to be made and the last to go
        except OSError:
            continue  # another user's
        try:
            if fd >= 0:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in sorted(paths, key=lambda path: path == key_path):
                path.unlink(missing_ok=True)
                n_removed += 1
        except OSError:
            continue  # alive
        finally:
            if fd >= 0:
                os.close(fd)
    return n_removed


def _make_key(path: Path) -> int:
    """Write the key file and keep it locked; it appears under its name when it is."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, secrets.token_bytes(_KEY_BYTES))
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.rename(draft, path)
    except BaseException:
        os.close(fd)
        draft.unlink(missing_ok=True)
        raise
    return fd


def _lay_out(sizes: Sequence[int]) -> list[tuple[int, int]]:
    spans, start = [], _PAGE_BYTES
    for size in sizes:
        spans.append((start, size))
        start += -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
    return spans


def _round_up(n_bytes: int) -> int:
    """To an eighth of its power of two, so that values of about one size share segments."""
    step = max(_PAGE_BYTES, 1 << max(0, n_bytes.bit_length() - 4))
    return -(-n_bytes // step) * step


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return int(found.f_frsize * (found.f_bavail - _RESERVE_SHARE * found.f_blocks))


def _map_noted(fd: int, size_bytes: int) -> mmap.mmap:
    mapping = _map_private(fd, size_bytes)
    note_file(mapping, fd)
    return mapping


def _map_private(fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(fd, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _cut(mapping: mmap.mmap, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
    whole = memoryview(mapping)
    return [whole[start : start + length] for start, length in spans]
