"""Frames: what goes in comes out, and damage is always told."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.errors import ConfigurationError, FrameError
from deepflow.intermediates import codecs, frames

CODECS = ("raw", "zstd:3", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco")


def numbers(n=1000, dtype="<f8"):
    return np.cumsum(np.random.default_rng(0).integers(0, 9, n)).astype(dtype)


def packed(data, codec, dtype=None):
    return b"".join(frames.pack(memoryview(data), codec, dtype))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n", [0, 1, 1000, 400_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_frame_gives_back_the_bytes_writable(codec, n, threads):
    data = numbers(n)
    frame = frames.pack(memoryview(data), codec, "<f8", threads)
    out = frames.unpack(frame, threads)
    assert bytes(out) == data.tobytes()
    assert not out.readonly
    assert bytes(frames.unpack(b"".join(frame))) == data.tobytes()


def test_a_frame_may_be_cut_anywhere():
    data = numbers()
    whole = packed(data, "zstd", "<f8")
    for step in (1, 7, 61):
        parts = [whole[i : i + step] for i in range(0, len(whole), step)]
        assert bytes(frames.unpack(parts)) == data.tobytes()


def test_what_does_not_shrink_is_stored_raw():
    noise = random.Random(0).randbytes(100_000)
    assert len(packed(noise, "zstd")) < len(noise) + 100


FRAMES = [packed(numbers(), codec, "<f8") for codec in CODECS]


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_no_damage_gives_a_wrong_value(data):
    frame = bytearray(data.draw(st.sampled_from(FRAMES)))
    exact = numbers().tobytes()
    if data.draw(st.booleans()):
        frame = frame[: data.draw(st.integers(0, len(frame) - 1))]
    else:
        for bit in data.draw(st.lists(st.integers(0, len(frame) * 8 - 1), min_size=1, max_size=4)):
            frame[bit // 8] ^= 1 << bit % 8
    try:
        assert bytes(frames.unpack(frame)) == exact
    except FrameError:
        return


def test_a_header_that_asks_for_too_much_allocates_nothing():
    import zlib

    header = frames._HEADER.pack(b"DFfr", 1, 1, 0, 2**60, 0, 0)
    frame = header + frames._SUM.pack(zlib.crc32(header))
    with pytest.raises(FrameError, match="can add up to 0 bytes"):
        frames.unpack(frame)


def test_chunks_of_another_frame_or_order_do_not_pass():
    data = random.Random(1).randbytes(2 * frames.CHUNK_BYTES)
    header, *chunks = frames.pack(data, "raw")
    with pytest.raises(FrameError, match="chunk 0 does not match"):
        frames.unpack([header, *chunks[2:], *chunks[:2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: b"XXXX" + f[4:], "no frame"),
        (lambda f: f[:4] + b"\x09" + f[5:], "version 9"),
        (lambda f: f + b"x", "1 bytes follow"),
        (lambda f: f[:-1], "cut off"),
    ],
)
def test_the_error_says_what_is_wrong(change, message):
    with pytest.raises(FrameError, match=message):
        frames.unpack(change(packed(numbers(), "zstd")))


def test_an_unknown_codec_is_refused():
    with pytest.raises(ConfigurationError, match="no codec is called"):
        frames.pack(b"x", "zsdt")


def test_pco_falls_back_to_zstd_for_what_is_no_number():
    assert frames.unpack(frames.pack(b"abc" * 100, "pco", None)) == b"abc" * 100
    _, header = frames.read_frame(frames.Source(frames.pack(b"abc" * 100, "pco", None)))
    assert header.codec == codecs.parse("zstd").number
