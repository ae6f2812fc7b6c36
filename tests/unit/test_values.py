"""Values: exact equality after dump and load, types and missing values included."""

import math
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from deepflow.errors import FrameError
from deepflow.intermediates import values


def through(value, choose=None):
    """`value`, written and read back; each part with the codec that `choose` gives it."""
    parts = values.disassemble(value)
    buffers = values.dump(value) if choose is None else values.dump_parts(parts, choose)
    return values.load(b"".join(buffers))


def test_plain_values_come_back():
    for value in (None, 3, "x", {"a": [1, (2.5, b"z")]}, b"y" * 100_000, bytearray(b"z" * 100_000)):
        back = through(value)
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize("codec", ["raw", "zstd", "shuffle+lz4", "bytedelta+zstd", "pco"])
@pytest.mark.parametrize("dtype", ["f8", "f4", ">f8", "i2", "?", "c16", "M8[s]", "m8[ns]", "S5"])
def test_arrays_come_back_with_any_codec(codec, dtype):
    array = np.arange(6000).astype("i8").astype(dtype).reshape(20, 300)
    back = through(array, choose=lambda part: codec)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert back.flags.writeable


def test_layouts_come_back():
    for array in (np.ones((30, 40), order="F"), np.arange(99)[::3], np.zeros((0, 4))):
        back = through(array)
        np.testing.assert_array_equal(back, array)
        assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc


def test_numpy_types_reach_the_choice():
    seen = set()

    def choose(part):
        seen.add(part.dtype)
        return "zstd"

    through([np.zeros(99, "f4"), torch.zeros(99).bfloat16()], choose=choose)
    assert {"<f4", "<i2"} <= seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_tensors_come_back(dtype):
    tensor = torch.arange(6000).to(dtype).reshape(60, 100)
    back = through(tensor)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def frame():
    n = 5000
    return pd.DataFrame(
        {
            "i": np.arange(n),
            "f": np.where(np.arange(n) % 7 == 0, np.nan, 0.25),
            "s": [f"name{i % 9}" for i in range(n)],
            "o": pd.Series([["p", None, math.nan, "q"][i % 4] for i in range(n)], dtype=object),
            "t": pd.date_range("2020", periods=n, freq="s"),
            "c": pd.Categorical(["a", "b"] * (n // 2)),
            "n": pd.array([None if i % 3 else i for i in range(n)], dtype="Int64"),
        },
        index=pd.Index(np.arange(n) * 2, name="key"),
    )


def test_a_data_frame_comes_back_exactly():
    table = frame()
    back = through(table)
    pd.testing.assert_frame_equal(back, table)
    assert [type(x) for x in back["o"]] == [type(x) for x in table["o"]]
    assert sum(map(len, values.dump(table))) < 0.2 * table.memory_usage(deep=True).sum()


def test_objects_that_only_look_alike_are_kept_apart():
    column = np.array([0.0, -0.0, 1, True, 1.0, None, "x", "x"] * 50, object)
    back = through(column)
    assert list(map(repr, back)) == list(map(repr, column))


def test_an_arrow_table_comes_back():
    table = pa.table({"x": list(range(5000)), "s": ["a", None] * 2500})
    assert through(table).equals(table)


def test_damage_is_told():
    whole = b"".join(values.dump(frame()))
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        position = rng.randrange(len(whole))
        damaged[position] ^= 1 << rng.randrange(8)
        try:
            pd.testing.assert_frame_equal(values.load(damaged), frame())
        except FrameError:
            continue
    for _ in range(100):
        with pytest.raises(FrameError):
            values.load(whole[: rng.randrange(len(whole))])
