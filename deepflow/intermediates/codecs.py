"""How one buffer is made smaller and back: a fixed table of codecs with stable ids.

    id  name            for
    0   raw             what does not shrink, or is too small to be worth it
    1   zstd            bytes of no known type; levels as ``zstd:1`` to ``zstd:19``
    2   shuffle+zstd    numbers: the bytes of equal weight brought together first
    3   shuffle+lz4     the same, several GB/s, for fast links and for memory
    4   bytedelta+zstd  smooth numbers: differences of the shuffled bytes
    5   pco             numbers: models their distribution; the best ratio, slower
    6   zstd-dict       small alike records, against a trained dictionary: ``zstd-dict:DIGEST``

The ids are part of the stored format and never change their meaning. All functions may be called
from several threads at once: zstd's contexts are kept per thread, blosc2 and pcodec get a context
of their own for each call. None checks the integrity of what it decodes: `chunks` does before.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zstandard

from deepflow.decide.compression import MAX_LEVELS
from deepflow.errors import ConfigurationError, FrameError, nearest

__all__ = [
    "BY_ID",
    "MAX_BYTES",
    "RAW",
    "Buffer",
    "Codec",
    "decode",
    "decode_into",
    "element_bytes",
    "encode",
    "parse",
    "register_dictionary",
    "suits",
    "train_dictionary",
    "whole_elements",
]

Buffer = bytes | bytearray | memoryview

RAW: Final = 0
MAX_BYTES: Final = 1 << 30
"""The most that is encoded in one call. Blosc2 ends below 2 GiB; chunks are far smaller."""

_DIGEST_BYTES: Final = 16
_PCO_DTYPES: Final = frozenset(["f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8"])
_OTHER_ELEMENT_BYTES: Final = {"bfloat16": 2, "bool": 1}


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table. ``level`` and ``dictionary`` come from the name, as in ``zstd:3``."""

    number: int
    name: str
    level: int = 1
    dictionary: bytes = b""


_PCO_LEVEL: Final = 8
"""pcodec's own default; from 1 it is up to five times as fast, for a smaller ratio."""

_TABLE: Final = tuple(
    Codec(number, name, _PCO_LEVEL if name == "pco" else 1)
    for number, name in enumerate(
        ("raw", "zstd", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco", "zstd-dict")
    )
)
BY_ID: Final = {codec.number: codec for codec in _TABLE}
_BY_NAME: Final = {codec.name: codec for codec in _TABLE}
_PCO: Final = _BY_NAME["pco"].number


@functools.cache
def parse(name: str) -> Codec:
    """The codec of a name such as ``pco:2`` or ``zstd:3``; else `ConfigurationError`."""
    family, _, argument = name.partition(":")
    codec = _BY_NAME.get(family)
    if codec is not None and family in MAX_LEVELS and argument:
        if argument.isascii() and argument.isdigit() and 1 <= int(argument) <= MAX_LEVELS[family]:
            return Codec(codec.number, name, level=int(argument))
    elif codec is not None and family == "zstd-dict":
        try:
            digest = bytes.fromhex(argument)
        except ValueError:
            digest = b""
        if len(digest) == _DIGEST_BYTES:
            return Codec(codec.number, name, dictionary=digest)
    elif codec is not None and not argument:
        return codec
    close = nearest(family, tuple(_BY_NAME))
    hint = f"; did you mean {close!r}?" if close and close != family else ""
    raise ConfigurationError(
        f"no codec is called {name!r}{hint} Known: raw, zstd, zstd:1 to zstd:19, shuffle+zstd, "
        f"shuffle+lz4, bytedelta+zstd, pco, pco:1 to pco:12, zstd-dict:DIGEST (32 hex digits)."
    )


def element_bytes(dtype: str | None) -> int:
    """Bytes of one element of a numpy dtype name or ``bfloat16``; 1 where the type is unknown."""
    if dtype is None:
        return 1
    known = _OTHER_ELEMENT_BYTES.get(dtype)
    if known is not None:
        return known
    try:
        return max(1, np.dtype(dtype).itemsize)
    except (TypeError, ValueError):
        return 1


def whole_elements(dtype: str | None, size_bytes: int) -> tuple[str | None, int]:
    """The type that a buffer is coded as, and bytes of one element.

    None and 1 for a buffer that is not made of whole elements.
    """
    width = element_bytes(dtype)
    return (None, 1) if size_bytes % width else (dtype, width)


def suits(codec: str, dtype: str | None, size_bytes: int) -> bool:
    """Whether a codec can take a buffer: pco only numbers of 2 to 8 bytes, and whole ones."""
    if parse(codec).number != _PCO:
        return True
    return _pco_dtype(dtype) is not None and size_bytes % element_bytes(dtype) == 0


def encode(data: Buffer, codec: str, dtype: str | None = None) -> Buffer:
    """The encoded bytes; ``raw`` gives back a view of `data`.

    `data` is at most `MAX_BYTES` of contiguous memory, not copied. `dtype` is that of its elements,
    as numpy names it. `ConfigurationError` for an unknown codec or one that does not suit.
    """
    chosen = parse(codec)
    octets = memoryview(data).cast("B")
    if octets.nbytes > MAX_BYTES:
        raise ConfigurationError(
            f"{octets.nbytes} bytes are too many for one call (at most {MAX_BYTES}); "
            "cut them into chunks"
        )
    if not octets.nbytes:
        return octets
    if not suits(codec, dtype, octets.nbytes):
        raise ConfigurationError(
            f"pco takes whole numbers of elements of {sorted(_PCO_DTYPES)} in this machine's byte "
            f"order, not {octets.nbytes} bytes of {dtype}; use zstd or shuffle+zstd"
        )
    return _ENCODERS[chosen.number](octets, chosen, dtype)


def decode(data: Buffer, codec: str, dtype: str | None, size_bytes: int) -> memoryview:
    """The `size_bytes` bytes that were encoded, writable; `FrameError` if they are not there."""
    out = np.empty(size_bytes, np.uint8).data
    decode_into(data, parse(codec).number, dtype, out)
    return out


def decode_into(data: Buffer, number: int, dtype: str | None, out: memoryview) -> None:
    """Decode into all of `out`, a writable view of bytes. `FrameError` if the sizes do not agree.

    The codec is given by its id, as chunks have it. No copy but that of the codec itself.
    """
    octets = memoryview(data).cast("B")
    decoder = _DECODERS.get(number)
    if decoder is None:
        raise FrameError(
            f"the codec with id {number} is unknown here; read it with the version that wrote it"
        )
    if not out.nbytes:
        if octets.nbytes:
            raise FrameError(f"{octets.nbytes} stored bytes stand for an empty buffer")
        return
    try:
        n_bytes = decoder(octets, dtype, out)
    except (RuntimeError, ValueError, TypeError, OverflowError, zstandard.ZstdError) as exc:
        if isinstance(exc, FrameError):
            raise
        raise FrameError(f"{BY_ID[number].name} cannot decode the bytes: {exc}") from exc
    if n_bytes != out.nbytes:
        raise FrameError(f"{BY_ID[number].name} gave {n_bytes} bytes where {out.nbytes} were said")


# raw


def _raw(data: memoryview, codec: Codec, dtype: str | None) -> Buffer:
    return data


def _raw_back(data: memoryview, dtype: str | None, out: memoryview) -> int:
    if data.nbytes == out.nbytes:
        out[:] = data
    return data.nbytes


# zstd

_contexts = threading.local()


def _zstd(data: memoryview, codec: Codec, dtype: str | None) -> Buffer:
    return _compressor(codec.level, b"").compress(data)


def _zstd_back(data: memoryview, dtype: str | None, out: memoryview) -> int:
    return _zstd_read(_decompressor(b""), data, out)


def _zstd_read(decompressor: zstandard.ZstdDecompressor, data: memoryview, out: memoryview) -> int:
    n_bytes = 0
    with decompressor.stream_reader(data, closefd=False) as reader:
        while n_bytes < out.nbytes:
            n_read = reader.readinto(out[n_bytes:])
            if not n_read:
                break
            n_bytes += n_read
        return n_bytes + len(reader.read(1))


def _compressor(level: int, digest: bytes) -> zstandard.ZstdCompressor:
    kept: dict[tuple[int, bytes], zstandard.ZstdCompressor] = _contexts.__dict__.setdefault(
        "compressors", {}
    )
    found = kept.get((level, digest))
    if found is None:
        found = zstandard.ZstdCompressor(level=level, dict_data=_dictionary(digest))
        kept[level, digest] = found
    return found


def _decompressor(digest: bytes) -> zstandard.ZstdDecompressor:
    kept: dict[bytes, zstandard.ZstdDecompressor] = _contexts.__dict__.setdefault(
        "decompressors", {}
    )
    found = kept.get(digest)
    if found is None:
        found = kept[digest] = zstandard.ZstdDecompressor(dict_data=_dictionary(digest))
    return found


# zstd with a trained dictionary; the stored bytes begin with the dictionary's digest

_dictionaries: Final[dict[bytes, zstandard.ZstdCompressionDict]] = {}


def train_dictionary(samples: Sequence[bytes], max_bytes: int = 65_536) -> bytes:
    """A dictionary for records like `samples`; give it to `register_dictionary` on both ends.

    Wants some hundred samples; `ConfigurationError` where they are too few or too small to train.
    """
    try:
        return zstandard.train_dictionary(max_bytes, list(samples)).as_bytes()
    except (zstandard.ZstdError, ValueError) as exc:
        total = sum(map(len, samples))
        raise ConfigurationError(
            f"no dictionary of {max_bytes} bytes can be trained from {len(samples)} samples of "
            f"{total} bytes ({exc}); give more samples, or a smaller max_bytes"
        ) from exc


def register_dictionary(content: bytes) -> str:
    """Make a dictionary known to this process; the name of the codec that uses it."""
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    _dictionaries[digest] = zstandard.ZstdCompressionDict(content)
    return f"zstd-dict:{digest.hex()}"


def _dictionary(digest: bytes) -> zstandard.ZstdCompressionDict | None:
    if not digest:
        return None
    found = _dictionaries.get(digest)
    if found is None:
        raise FrameError(
            f"the dictionary {digest.hex()} is not known to this process; give its content to "
            "register_dictionary first"
        )
    return found


def _zstd_dict(data: memoryview, codec: Codec, dtype: str | None) -> Buffer:
    return codec.dictionary + _compressor(codec.level, codec.dictionary).compress(data)


def _zstd_dict_back(data: memoryview, dtype: str | None, out: memoryview) -> int:
    digest = bytes(data[:_DIGEST_BYTES])
    if len(digest) < _DIGEST_BYTES:
        raise FrameError("the bytes end before the digest of their dictionary")
    return _zstd_read(_decompressor(digest), data[_DIGEST_BYTES:], out)


# blosc2: imported when first used, since it takes a quarter of a second


@functools.cache
def _blosc(name: str) -> tuple[Any, dict[str, Any]]:
    import blosc2

    shuffle, delta = blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA
    filters = [shuffle, delta] if name.startswith("bytedelta") else [shuffle]
    lz4, zstd = blosc2.Codec.LZ4, blosc2.Codec.ZSTD
    fixed = {
        "codec": lz4 if name.endswith("lz4") else zstd,
        "clevel": 1,
        "filters": filters,
        "filters_meta": [0] * len(filters),
        "nthreads": 1,  # chunks are shared out to threads; blosc2's own pool is one per process
    }
    return blosc2, fixed


def _blosc_to(data: memoryview, codec: Codec, dtype: str | None) -> Buffer:
    blosc2, fixed = _blosc(codec.name)
    encoded: bytes = blosc2.compress2(data, typesize=min(255, element_bytes(dtype)), **fixed)
    return encoded


def _blosc_back(data: memoryview, dtype: str | None, out: memoryview) -> int:
    blosc2, _ = _blosc("shuffle+lz4")
    if data.nbytes < 16:
        raise FrameError("the bytes end before blosc2's header")
    n_bytes, stored, _ = blosc2.get_cbuffer_sizes(data[:32].tobytes().ljust(32, b"\0"))
    if n_bytes == out.nbytes and stored == data.nbytes:
        blosc2.decompress2(data, dst=out, nthreads=1)
    return int(n_bytes) if stored == data.nbytes else -1


# pco


def _pco_dtype(dtype: str | None) -> Any:
    """The type that pco is to see: dates as their integers; None if it has none."""
    if dtype is None or dtype in _OTHER_ELEMENT_BYTES:
        return None
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        return None
    if found.kind in "mM" and found.isnative:
        return np.dtype(np.int64)
    return found if found.isnative and f"{found.kind}{found.itemsize}" in _PCO_DTYPES else None


def _pco(data: memoryview, codec: Codec, dtype: str | None) -> Buffer:
    import pcodec

    numbers = np.frombuffer(data, _pco_dtype(dtype))
    encoded: bytes = pcodec.standalone.simple_compress(
        numbers, pcodec.ChunkConfig(compression_level=codec.level)
    )
    return encoded


def _pco_back(data: memoryview, dtype: str | None, out: memoryview) -> int:
    import pcodec

    seen_as = _pco_dtype(dtype)
    if seen_as is None:
        raise FrameError(f"pco has no numbers of type {dtype}")
    numbers = np.frombuffer(out, seen_as)
    progress = pcodec.standalone.simple_decompress_into(bytes(data), numbers)
    return int(progress.n_processed) * seen_as.itemsize if progress.finished else -1


_ENCODERS: Final[dict[int, Callable[[memoryview, Codec, str | None], Buffer]]] = {
    0: _raw,
    1: _zstd,
    2: _blosc_to,
    3: _blosc_to,
    4: _blosc_to,
    5: _pco,
    6: _zstd_dict,
}
_DECODERS: Final[dict[int, Callable[[memoryview, str | None, memoryview], int]]] = {
    0: _raw_back,
    1: _zstd_back,
    2: _blosc_back,
    3: _blosc_back,
    4: _blosc_back,
    5: _pco_back,
    6: _zstd_dict_back,
}
