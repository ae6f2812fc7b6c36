"""Chunks: what goes in comes out, and damage is always told."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.decide.compression import CHUNK_BYTES
from deepflow.errors import ConfigurationError, FrameError
from deepflow.intermediates import chunks, codecs, values
from deepflow.intermediates.chunks import Filling, Head, Part
from deepflow.intermediates.codecs import Buffer
from deepflow.intermediates.sources import FileSource, Source

CODECS = ("raw", "zstd:3", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco")


def numbers(n: int = 1000, dtype: str = "<f8") -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).integers(0, 9, n)).astype(dtype)


def packed(data: object, codec: str, dtype: str | None = None, threads: int = 1) -> list[Buffer]:
    part = Part(memoryview(data).cast("B"), dtype, False)  # type: ignore[arg-type]
    return values.dump_parts([part], lambda part: codec, threads)


def whole(data: object, codec: str, dtype: str | None = None) -> bytes:
    return b"".join(packed(data, codec, dtype))


def unpacked(buffers: Buffer | Sequence[Buffer] | Source, threads: int = 1) -> memoryview:
    (part,), _ = values.read_parts(buffers, threads)
    return part


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n", [0, 1, 1000, 400_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_part_comes_back_writable(codec: str, n: int, threads: int) -> None:
    data = numbers(n)
    buffers = packed(data, codec, "<f8", threads)
    out = unpacked(buffers, threads)
    assert bytes(out) == data.tobytes()
    assert not out.readonly
    assert bytes(unpacked(b"".join(buffers))) == data.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_small_and_large_parts_come_back_in_their_order(threads: int) -> None:
    arrays = [numbers(n) for n in (3, 300_000, 0, 1, 150_000, 9_000, 0, 500_000)]
    parts = [Part(memoryview(a).cast("B"), "<f8", bool(i % 2)) for i, a in enumerate(arrays)]
    given_codecs = iter(CODECS + CODECS)
    buffers = values.dump_parts(parts, lambda part: next(given_codecs), threads)
    octets, readonly = values.read_parts(b"".join(buffers), threads)
    assert [bytes(part) for part in octets] == [array.tobytes() for array in arrays]
    assert readonly == [False, True] * 4


def test_buffers_may_be_cut_anywhere() -> None:
    data = numbers()
    for codec in ("zstd", "raw"):
        content = whole(data, codec, "<f8")
        for step in (1, 7, 61):
            parts = [content[i : i + step] for i in range(0, len(content), step)]
            assert bytes(unpacked(parts)) == data.tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_read_as_it_is_needed(codec: str) -> None:
    data = numbers(400_000)
    content = whole(data, codec, "<f8")
    assert bytes(unpacked(FileSource(io.BytesIO(content), len(content)), 2)) == data.tobytes()
    short = FileSource(io.BytesIO(content[:-1]), len(content))
    with pytest.raises(FrameError, match="1 bytes too early"):
        unpacked(short, 2)


def test_what_does_not_shrink_is_stored_raw() -> None:
    noise = random.Random(0).randbytes(100_000)
    assert len(whole(noise, "zstd")) < len(noise) + 100


CONTENTS = [whole(numbers(), codec, "<f8") for codec in CODECS]


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_no_damage_gives_a_wrong_value(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(CONTENTS)))
    exact = numbers().tobytes()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        flips = st.lists(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=4)
        for bit in data.draw(flips):
            content[bit // 8] ^= 1 << bit % 8
    try:
        assert bytes(unpacked(content)) == exact
    except FrameError:
        return


@pytest.mark.parametrize("codec", ["raw", "shuffle+lz4"])
def test_every_flipped_bit_is_told(codec: str) -> None:
    content = whole(np.arange(40.0) // 8, codec, "<f8")
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            unpacked(damaged)


def test_a_table_that_asks_for_too_much_allocates_nothing() -> None:
    table = values._ENTRY.pack(2**60, 0, 0)
    prelude = values._PRELUDE.pack(b"DFva", values.VERSION, 1, len(table)) + table
    with pytest.raises(FrameError, match="can add up to 0 bytes"):
        unpacked(prelude + values._SUM.pack(chunks.crc32(prelude)))


def test_chunks_of_another_value_do_not_pass() -> None:
    noise = random.Random(1).randbytes(2 * CHUNK_BYTES)
    prelude, head, stored, *rest = packed(noise, "raw")
    # The same chunk, of a value whose table is another one.
    _, other_head, other_stored, *_ = packed(noise + b"more", "raw")
    assert bytes(stored) == bytes(other_stored)
    with pytest.raises(FrameError, match="does not match its check sum"):
        unpacked([prelude, other_head, other_stored, *rest])
    assert bytes(unpacked([prelude, head, stored, *rest])) == noise


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 2), (0, 2), (0, 1, 1, 2), (0, 1)])
def test_chunks_that_are_missing_repeated_or_exchanged_do_not_pass(order: tuple[int, ...]) -> None:
    data = random.Random(1).randbytes(3 * CHUNK_BYTES)
    prelude, *rest = packed(data, "raw")
    pairs = [rest[i : i + 2] for i in range(0, len(rest), 2)]
    with pytest.raises(FrameError):
        unpacked([prelude, *(buffer for i in order for buffer in pairs[i])])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head(1, 0, 0, 8, 8, 0, 0), "another one has to be"),
        (Head(0, 0, 8, 8, 8, 0, 0), "another one has to be"),
        (Head(0, 0, 0, 0, 0, 0, 0), "impossible length"),
        (Head(0, 0, 0, 17, 17, 0, 0), "impossible length"),
        (Head(0, 0, 0, 16, 8, 0, 0), "impossible length"),
        (Head(0, 1, 0, 8, 9, 0, 0), "impossible length"),
        (Head(0, 99, 0, 8, 8, 0, 0), "codec with id 99"),
    ],
)
def test_a_chunk_that_cannot_be_the_next_one_is_refused(head: Head, message: str) -> None:
    filling = Filling([memoryview(bytearray(16))], [None])
    with pytest.raises(FrameError, match=message):
        filling.place(head)
    with pytest.raises(FrameError, match="16 bytes of the value are missing"):
        filling.expect_full()
    assert filling.place(Head(0, 0, 0, 16, 16, 0, 0)).nbytes == 16
    assert filling.is_full


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: b"XXXX" + f[4:], "no value"),
        (lambda f: f[:4] + b"\x09" + f[5:], "version 9"),
        (lambda f: f + b"x", "1 bytes follow"),
        (lambda f: f[:-1], "cut off"),
    ],
)
def test_the_error_says_what_is_wrong(change, message) -> None:
    with pytest.raises(FrameError, match=message):
        unpacked(change(whole(numbers(), "zstd")))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no codec is called"):
        packed(b"x", "zsdt")


def test_zstd_takes_the_place_of_pco_for_what_is_no_number() -> None:
    buffers = packed(b"abc" * 100, "pco")
    assert unpacked(buffers) == b"abc" * 100
    assert chunks.read_head(buffers[1]).codec == codecs.parse("zstd").number


def test_calls_side_by_side_keep_their_order_and_none_runs_on_after_an_error() -> None:
    running: list[int] = []

    def call(number: int) -> int:
        running.append(number)
        try:
            if number == 5:
                raise ValueError("five")
            return number
        finally:
            running.remove(number)

    def size(number: int) -> int:
        return 0 if number % 3 else 1 << 20

    assert list(chunks.side_by_side(call, iter([0, 1, 2, 3, 4]), 2, size)) == [0, 1, 2, 3, 4]
    found = []
    with pytest.raises(ValueError, match="five"):
        found.extend(chunks.side_by_side(call, iter(range(100)), 2, size))
    assert not running
