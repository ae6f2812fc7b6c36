"""Codecs: exact for every type, from many threads, and clear about what they cannot do."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepflow.decide.compression import CODEC_NAMES
from deepflow.errors import ConfigurationError, FrameError
from deepflow.intermediates import codecs

RNG = np.random.default_rng(0)
DTYPES = ("<f4", "<f8", "<f2", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "|u1", "|b1", "<c16")


@pytest.mark.parametrize("dtype", [*DTYPES, "<M8[s]", "bfloat16", ">f8", None])
@pytest.mark.parametrize("name", CODEC_NAMES)
def test_random_bits_of_every_type_come_back(name, dtype):
    data = RNG.bytes(4800)  # includes NaNs of every payload, infinities and -0.0
    if not codecs.suits(name, dtype, len(data)):
        pytest.skip(f"{name} does not take {dtype}")
    coded = codecs.encode(data, name, dtype)
    assert bytes(codecs.decode(coded, name, dtype, len(data))) == data


def test_ids_never_change():
    assert {codec.name: number for number, codec in codecs.BY_ID.items()} == {
        "raw": 0, "zstd": 1, "shuffle+zstd": 2, "shuffle+lz4": 3, "bytedelta+zstd": 4, "pco": 5,
        "zstd-dict": 6,
    }  # fmt: skip


def test_raw_copies_nothing():
    data = bytearray(100)
    view = codecs.encode(data, "raw")
    data[5] = 7
    assert view[5] == 7


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_many_threads_at_once(name):
    def once(seed):
        data = np.cumsum(np.random.default_rng(seed).integers(0, 99, 20_000)).astype("<i8")
        coded = codecs.encode(memoryview(data), name, "<i8")
        return bytes(codecs.decode(coded, name, "<i8", data.nbytes)) == data.tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(once, range(64)))


@pytest.mark.parametrize("name", ["zstd:0", "zstd:20", "lz4", "pco:13", "", "zstd-dict", "raw:1"])
def test_an_unknown_name_is_refused_with_the_choices(name):
    with pytest.raises(ConfigurationError, match="bytedelta"):
        codecs.parse(name)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_a_wrong_length_is_told(name):
    coded = codecs.encode(np.arange(1000.0).data, name, "<f8")
    for wrong in (7992, 8008):
        with pytest.raises(FrameError):
            codecs.decode(coded, name, "<f8", wrong)


def records(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        b'{"user": %d, "kind": "click", "page": "/shop/item/%d"}' % tuple(rng.integers(0, 9999, 2))
        for _ in range(n)
    ]


def test_a_dictionary_makes_small_records_smaller():
    name = codecs.register_dictionary(codecs.train_dictionary(records(2000), 4096))
    for record in records(20, seed=1):
        coded = codecs.encode(record, name)
        assert bytes(codecs.decode(coded, name, None, len(record))) == record
        assert len(coded) - 16 < 0.7 * len(codecs.encode(record, "zstd"))


def test_an_unknown_dictionary_is_named():
    name = codecs.register_dictionary(codecs.train_dictionary(records(2000), 4096))
    coded = bytearray(codecs.encode(records(1)[0], name))
    coded[0] ^= 1
    with pytest.raises(FrameError, match=r"dictionary .* is not known"):
        codecs.decode(coded, name, None, len(records(1)[0]))


def test_too_few_samples_train_no_dictionary():
    with pytest.raises(ConfigurationError, match="give more samples"):
        codecs.train_dictionary([b"a"])
