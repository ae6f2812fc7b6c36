"""Reads values that earlier versions have stored; nothing writes this format any more.

    magic 8 B | digest of all that follows 16 B | number of frames u32 | length of each u64 | frames
    frame: codec u8 | type of the items, as `struct` names it, 1 B | read-only u8 | 0
    | number of chunks u32 | bytes u64 | length of each chunk u64 | the chunks

The first frame is the value's pickle, the others its buffers. Each chunk but the last stands for
4 MiB. `stored` has compared the digest before anything is read here.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from deepflow.errors import FrameError
from deepflow.intermediates import chunks, codecs

__all__ = ["MAGIC", "read_parts"]

MAGIC: Final = b"\x93dflow1\n"
_FRAME: Final = struct.Struct("<Bc?xIQ")
_CHUNK_BYTES: Final = 4 * 1024**2


class _Job(NamedTuple):
    stored: memoryview
    codec: int
    dtype: str
    place: memoryview


def read_parts(body: memoryview, threads: int = 1) -> tuple[list[memoryview], list[bool]]:
    """The parts of a value, and whether each was read-only; `FrameError` if they cannot be read."""
    octets, readonly = [], []
    try:
        (n_frames,) = struct.unpack_from("<I", body)
        lengths = struct.unpack_from(f"<{n_frames}Q", body, 4)
        at = 4 + 8 * n_frames
        for length in lengths:
            out, is_readonly = _read_frame(body[at : at + length], threads)
            octets.append(out)
            readonly.append(is_readonly)
            at += length
    except struct.error as exc:
        raise FrameError(f"the stored value ends early ({exc}); {chunks.REMEDY}") from exc
    return octets, readonly


def _read_frame(frame: memoryview, threads: int) -> tuple[memoryview, bool]:
    codec, name, is_readonly, n_chunks, n_bytes = _FRAME.unpack_from(frame)
    lengths = struct.unpack_from(f"<{n_chunks}Q", frame, _FRAME.size)
    at = _FRAME.size + 8 * n_chunks
    out, jobs = chunks.allocate(n_bytes), []
    for number, length in enumerate(lengths):
        place = out[number * _CHUNK_BYTES : (number + 1) * _CHUNK_BYTES]
        jobs.append(_Job(frame[at : at + length], codec, name.decode("ascii"), place))
        at += length
    for _ in chunks.side_by_side(_decode, jobs, threads, lambda job: job.place.nbytes):
        pass
    return out, is_readonly


def _decode(job: _Job) -> None:
    codecs.decode_into(*job)
