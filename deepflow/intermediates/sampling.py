"""What codecs would do to a buffer, from three short parts of it: ratios, and speeds if asked.

`deepflow.decide.compression` takes the numbers from here, and asks no clock itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from deepflow.decide.compression import Sample, candidates
from deepflow.intermediates import codecs
from deepflow.intermediates.codecs import Buffer

__all__ = ["PART_BYTES", "PARTS", "ratios", "sample"]

PARTS: Final = 3
PART_BYTES: Final = 262_144
"""The most of each part; a buffer below 16 MiB has shorter ones, down to the least."""
_LEAST_PART_BYTES: Final = 32_768
_PART_SHARE: Final = 64
_SHORTEST_S: Final = 1e-7


def sample(
    data: Buffer,
    dtype: str | None = None,
    names: Sequence[str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Ratio and one-core speeds of each codec in `names` on the begin, the middle and the end.

    `names` defaults to the candidates of the type. Codecs that do not suit the type are left out,
    as is everything for an empty buffer. The parts are coded one by one, so that a jump between
    them costs nothing.
    """
    octets = memoryview(data).cast("B")
    if not octets.nbytes:
        return []
    dtype, width = codecs.whole_elements(dtype, octets.nbytes)
    tried = candidates(dtype, width) if names is None else names
    wanted = min(PART_BYTES, max(_LEAST_PART_BYTES, octets.nbytes // _PART_SHARE))
    parts = _parts(octets, width, wanted)
    out = np.empty(max(part.nbytes for part in parts), np.uint8).data
    return [
        _measure(parts, name, dtype, out, clock)
        for name in tried
        if codecs.suits(name, dtype, octets.nbytes)
    ]


def ratios(data: Buffer, dtype: str | None, names: Iterable[str], part_bytes: int) -> list[Sample]:
    """As `sample`, but the ratio alone, which takes no decoding. `dtype` must divide the buffer."""
    octets = memoryview(data).cast("B")
    if not octets.nbytes:
        return []
    parts = _parts(octets, codecs.element_bytes(dtype), part_bytes)
    n_bytes = sum(part.nbytes for part in parts)
    return [
        Sample(name, n_bytes / sum(len(codecs.encode(part, name, dtype)) for part in parts))
        for name in names
        if codecs.suits(name, dtype, octets.nbytes)
    ]


def _parts(octets: memoryview, width: int, wanted: int) -> list[memoryview]:
    step = max(width, wanted // width * width)
    if octets.nbytes <= PARTS * step:
        return [octets]
    middle = (octets.nbytes - step) // 2 // width * width
    return [octets[start : start + step] for start in (0, middle, octets.nbytes - step)]


def _measure(
    parts: list[memoryview],
    name: str,
    dtype: str | None,
    out: memoryview,
    clock: Callable[[], float],
) -> Sample:
    number = codecs.parse(name).number
    # The first call in a process imports the library and makes its contexts.
    codecs.encode(parts[0][: codecs.element_bytes(dtype)], name, dtype)
    began = clock()
    coded = [codecs.encode(part, name, dtype) for part in parts]
    between = clock()
    for part, stored in zip(parts, coded, strict=True):
        codecs.decode_into(stored, number, dtype, out[: part.nbytes])
    ended = clock()
    logical = sum(part.nbytes for part in parts)
    stored_bytes = sum(len(stored) for stored in coded)
    return Sample(
        name,
        logical / stored_bytes,
        logical / max(between - began, _SHORTEST_S),
        logical / max(ended - between, _SHORTEST_S),
    )
