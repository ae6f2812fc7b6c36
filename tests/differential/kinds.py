"""The types that users pass: one table of values, by name, at any number of elements."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib.util
import ipaddress
import pathlib
import random
import re
import tempfile
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse
import torch

__all__ = ["KINDS", "Kind", "missing"]


class Kind(NamedTuple):
    """A kind of value."""

    name: str
    make: Callable[[int], Any]
    """The same value whenever it is called with the same number of elements."""
    needs: str | None = None
    """A library that may be missing."""
    most: int = 1_000_000
    """The most elements that it is made of: Python objects are slow to make."""


def missing(kind: Kind) -> str | None:
    """Why a kind cannot be tried here, or None."""
    if kind.needs is None or importlib.util.find_spec(kind.needs) is not None:
        return None
    return f"{kind.needs} is not installed"


# -- classes of users ------------------------------------------------------------------------------


@dataclasses.dataclass
class Plain:
    weights: np.ndarray
    name: str = "plain"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and bool(np.array_equal(self.weights, other.weights))

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: tuple[float, ...]


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Flags(enum.Flag):
    A = 1
    B = 2


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: float
    y: float


class OddEq(list):  # type: ignore[type-arg]
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class RaisingEq:
    def __init__(self, n: int) -> None:
        self.n = n

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


class OwnReduce:
    def __init__(self, n: int) -> None:
        self.n, self.made_by = n, "init"

    def __reduce__(self) -> Any:
        return _own_reduced, (self.n,)


def _own_reduced(n: int) -> OwnReduce:
    made = OwnReduce(n)
    made.made_by = "reduce"
    return made


class OddLen:
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        raise TypeError("no length")

    def __bool__(self) -> bool:
        raise TypeError("no truth")


class WithState:
    def __init__(self, n: int) -> None:
        self.content, self.cache = list(range(n)), "not kept"

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.content, self.cache = state["content"], "made again"


class OwnDict(dict):  # type: ignore[type-arg]
    note = ""


class OwnList(list):  # type: ignore[type-arg]
    pass


class OwnStr(str):
    pass


class OwnInt(int):
    pass


class OwnBytes(bytes):
    pass


class OwnArray(np.ndarray):  # type: ignore[type-arg]
    """With an attribute, as units libraries have it."""

    def __array_finalize__(self, other: Any) -> None:
        self.unit = getattr(other, "unit", None)

    def __reduce__(self) -> Any:
        make, arguments, state = super().__reduce__()
        return make, arguments, (state, self.unit)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.unit = state[1]


class OwnFrame(pd.DataFrame):
    _metadata = ["unit"]  # noqa: RUF012 - as pandas wants it

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return OwnFrame


class OwnModule(torch.nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.arange(float(n)))
        self.tied = self.one
        self.register_buffer("bits", torch.zeros(n, dtype=torch.bool))
        self.note = "mine"


def _zeroed(module: torch.nn.Linear) -> torch.nn.Linear:
    torch.nn.init.zeros_(module.weight)
    return module


def _with_attribute(obj: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(obj, name, value)
    return obj


# -- numpy -----------------------------------------------------------------------------------------


def _numbers(n: int, dtype: str) -> np.ndarray:
    return (np.arange(n) % 100).astype(dtype)


def _masked(n: int) -> Any:
    return np.ma.masked_array(np.arange(float(n)), mask=np.arange(n) % 3 == 0, fill_value=-1.0)


def _memmap(n: int) -> np.memmap:
    with tempfile.NamedTemporaryFile(prefix="deepflow-differential-") as file:
        made = np.memmap(file.name, dtype="f8", mode="w+", shape=(n,))
        made[:] = np.arange(n)
        return made


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _dtype_with_metadata(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.dtype("f8", metadata={"unit": "m"}))


_NUMPY = [
    *(
        Kind(f"numpy {dtype}", functools.partial(_numbers, dtype=dtype))
        for dtype in ("?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4")
    ),
    Kind("numpy longdouble", lambda n: np.arange(n).astype(np.longdouble)),
    Kind("numpy S", lambda n: np.array([b"ab", b"c"] * (n // 2))),
    Kind("numpy U", lambda n: np.array(["ab", "ü"] * (n // 2))),
    Kind("numpy V", lambda n: np.zeros(n, dtype="V7")),
    Kind("numpy dates", lambda n: np.arange(n).astype("M8[ns]")),
    Kind("numpy days", lambda n: np.arange(n).astype("M8[D]")),
    Kind("numpy dates with NaT", lambda n: np.array(["2020-01-01", "NaT"] * (n // 2), "M8[s]")),
    Kind("numpy spans", lambda n: np.arange(n).astype("m8[us]")),
    Kind("numpy big-endian dates", lambda n: np.arange(n).astype(">M8[ns]")),
    Kind("numpy strided dates", lambda n: np.arange(2 * n).astype("M8[ns]")[::2]),
    Kind("numpy Fortran", lambda n: np.asfortranarray(np.arange(float(n)).reshape(2, -1))),
    Kind("numpy 3-d Fortran", lambda n: np.zeros((2, 5, max(1, n // 10)), order="F")),
    Kind("numpy permuted", lambda n: np.zeros((2, 5, max(1, n // 10))).transpose(1, 2, 0)),
    Kind("numpy strided", lambda n: np.arange(2.0 * n)[::2]),
    Kind("numpy reversed", lambda n: np.arange(float(n))[::-1]),
    Kind("numpy flipped both", lambda n: np.arange(float(n)).reshape(2, -1)[::-1, ::-1]),
    Kind("numpy broadcast", lambda n: np.broadcast_to(np.float64(1.5), (n,))),
    Kind("numpy broadcast row", lambda n: np.broadcast_to(np.arange(5.0), (max(1, n // 5), 5))),
    Kind("numpy scalar array", lambda n: np.array(1.5)),
    Kind("numpy scalar", lambda n: np.float32(1.5)),
    Kind("numpy date scalar", lambda n: np.datetime64("2020-01-01", "ns")),
    Kind("numpy empty", lambda n: np.zeros((0, 3))),
    Kind("numpy empty Fortran", lambda n: np.zeros((3, 0, 2), order="F")),
    Kind("numpy structured", lambda n: np.zeros(n, dtype=[("a", "f8"), ("b", "i2", (2,))])),
    Kind("numpy aligned", lambda n: np.zeros(n, np.dtype([("a", "i1"), ("b", "f8")], align=True))),
    Kind("numpy record", lambda n: np.rec.fromarrays([np.arange(n), np.zeros(n)], names="a,b")),
    Kind("numpy structured objects", lambda n: np.array([(1, "x")] * n, [("a", "i4"), ("b", "O")])),
    Kind("numpy field", lambda n: np.zeros(n, dtype=[("a", "f8"), ("b", "i4")])["b"]),
    Kind("numpy masked", _masked),
    Kind("numpy hard mask", lambda n: np.ma.array(np.zeros(n), mask=False, hard_mask=True)),
    Kind("numpy masked structured", lambda n: np.ma.zeros(n, dtype=[("a", "f8"), ("b", "i4")])),
    Kind("numpy matrix", lambda n: np.asmatrix(np.zeros((2, n // 2)))),
    Kind("numpy chararray", lambda n: np.char.array(["ab", "c"] * (n // 2))),
    Kind("numpy objects", lambda n: np.array([1, "a", None, 1.5, (1,)] * (n // 5), dtype=object)),
    Kind("numpy strings as objects", lambda n: np.array(["a", None, "b"] * n, dtype=object)),
    Kind("numpy nan objects", lambda n: np.array([float("nan"), "x"] * n, dtype=object)),
    Kind("numpy zeros of both signs", lambda n: np.array([0.0, -0.0] * n)),
    Kind("numpy nan", lambda n: np.array([np.nan, np.inf, -np.inf] * n)),
    Kind("numpy functions", lambda n: np.array([len, max] * min(n, 50), dtype=object)),
    Kind("numpy string dtype", lambda n: np.array(["a", "long" * 9] * n, np.dtypes.StringDType())),
    Kind("numpy metadata", _dtype_with_metadata),
    Kind("numpy read-only", lambda n: _frozen(np.arange(float(n)))),
    Kind("numpy read-only view", lambda n: np.arange(2.0 * n)[::2].view() if n else None),
    Kind("numpy memmap", _memmap),
    Kind("numpy subclass", lambda n: _with_attribute(np.zeros(n).view(OwnArray), unit="m")),
    Kind("numpy of bytes", lambda n: np.frombuffer(bytes(8 * n))),
    Kind("numpy generator", lambda n: np.random.default_rng(3)),
    Kind("numpy dtype", lambda n: np.dtype([("a", ">f8")])),
    Kind("numpy polynomial", lambda n: np.polynomial.Polynomial([1, 2])),
]

# -- pandas ----------------------------------------------------------------------------------------


def _frame(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "i": np.arange(n),
            "f": np.where(np.arange(n) % 7 == 0, np.nan, 0.25),
            "s": [f"name{i % 9}" for i in range(n)],
            "o": pd.Series([["p", None, 1.5, "q"][i % 4] for i in range(n)], dtype=object),
            "b": np.arange(n) % 2 == 0,
            "t": pd.date_range("2020", periods=n, freq="s"),
            "c": pd.Categorical.from_codes(np.arange(n) % 2, ["a", "b"]),
            "n": pd.array([None if i % 3 else i for i in range(n)], dtype="Int64"),
        },
        index=pd.Index(np.arange(n) * 2, name="key"),
    )


def _levels(n: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([["a", "b"], range(n // 2)], names=["x", None])
    columns = pd.MultiIndex.from_tuples([("p", 1), ("q", 2)])
    return pd.DataFrame(np.arange(2.0 * len(index)).reshape(-1, 2), index=index, columns=columns)


def _attrs(n: int) -> pd.DataFrame:
    frame = pd.DataFrame({"a": range(n)})
    frame.attrs["source"] = {"file": "x"}
    frame.flags.allows_duplicate_labels = False
    return frame


def _dates(n: int, **options: Any) -> pd.DatetimeIndex:
    return pd.date_range("2020", periods=min(n, 100_000), **options)


_PANDAS = [
    Kind("pandas frame", _frame),
    Kind("pandas levels", _levels),
    Kind("pandas attrs", _attrs),
    Kind("pandas empty", lambda n: pd.DataFrame()),
    Kind("pandas no rows", lambda n: _frame(4).iloc[:0]),
    Kind("pandas no columns", lambda n: pd.DataFrame(index=range(n))),
    Kind("pandas slice", lambda n: _frame(2 * n).iloc[::2, 1:4]),
    Kind("pandas same columns", lambda n: pd.DataFrame(np.zeros((n, 2)), columns=["a", "a"])),
    Kind("pandas odd columns", lambda n: pd.DataFrame({None: range(n), 1: 2, ("t",): 3})),
    Kind("pandas one block", lambda n: pd.DataFrame(np.zeros((n // 2, 2), order="F"))),
    Kind(
        "pandas transposed",
        lambda n: pd.DataFrame(np.arange(2.0 * n).reshape(-1, 2)).T,
        most=20_000,
    ),
    Kind("pandas series", lambda n: pd.Series(np.arange(float(n)), name="x")),
    Kind("pandas named by a tuple", lambda n: pd.Series(range(n), name=("a", 1))),
    Kind("pandas strings", lambda n: pd.Series(["a", "b", None] * n, dtype="str")),
    Kind("pandas python strings", lambda n: pd.Series(["a", None] * n, dtype="string[python]")),
    Kind("pandas arrow strings", lambda n: pd.Series(["a", None] * n, dtype="string[pyarrow]")),
    Kind(
        "pandas objects", lambda n: pd.Series([[1], {"a": 2}, None] * n, dtype=object), most=50_000
    ),
    Kind("pandas arrow ints", lambda n: pd.Series(range(n), dtype="int64[pyarrow]")),
    Kind(
        "pandas arrow lists",
        lambda n: pd.Series([[1, 2], None] * n, dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
        most=50_000,
    ),
    Kind("pandas boolean", lambda n: pd.Series([True, None] * n, dtype="boolean")),
    Kind("pandas Float64", lambda n: pd.Series([1.5, None] * n, dtype="Float64")),
    Kind(
        "pandas category",
        lambda n: pd.Series(pd.Categorical(["b", "a"] * n, ["b", "a", "c"], ordered=True)),
    ),
    Kind("pandas time zone", lambda n: pd.Series(_dates(n, freq="h", tz="Europe/Berlin"))),
    Kind("pandas seconds", lambda n: pd.Series(_dates(n, freq="s", unit="s"))),
    Kind("pandas spans", lambda n: pd.Series(pd.to_timedelta(np.arange(n), unit="ms"))),
    Kind(
        "pandas periods",
        lambda n: pd.Series(pd.period_range("2020", periods=min(n, 5000), freq="D")),
    ),
    Kind("pandas intervals", lambda n: pd.Series(pd.interval_range(0, min(n, 5000)))),
    Kind("pandas sparse", lambda n: pd.Series(pd.arrays.SparseArray(np.arange(n) % 10 == 0))),
    Kind("pandas index", lambda n: pd.Index(np.arange(n), name="i")),
    Kind("pandas range index", lambda n: pd.RangeIndex(1, n, 3)),
    Kind("pandas dates with a frequency", lambda n: _dates(n, freq="D")[:3000]),
    Kind("pandas multi index", lambda n: pd.MultiIndex.from_product([["a"], range(n)])),
    Kind("pandas categorical index", lambda n: pd.CategoricalIndex(["a", "b"] * n)),
    Kind("pandas timestamp", lambda n: pd.Timestamp("2020", tz="UTC")),
    Kind("pandas NA", lambda n: [pd.NA, pd.NaT]),
    Kind("pandas period", lambda n: pd.Period("2020-01", freq="M")),
    Kind("pandas offset", lambda n: pd.offsets.BusinessDay(3)),
    Kind("pandas grouper", lambda n: pd.Timedelta("1h")),
    Kind("pandas subclass", lambda n: _with_attribute(OwnFrame({"a": range(n)}), unit="m")),
]

# -- Arrow -----------------------------------------------------------------------------------------


def _table(n: int) -> pa.Table:
    return pa.table(
        {
            "i": range(n),
            "s": [f"{i % 9}" for i in range(n)],
            "l": [[i % 3] for i in range(n)],
            "n": [None if i % 2 else 1.5 for i in range(n)],
        }
    ).replace_schema_metadata({"k": "v"})


def _arrow(data: Callable[[int], list[Any]], type: Any = None) -> Callable[[int], Any]:
    return lambda n: pa.array(data(n), type=type)


_ARROW = [
    Kind("arrow table", _table, most=100_000),
    Kind("arrow chunks", lambda n: pa.concat_tables([_table(10), _table(20)])),
    Kind("arrow slice", lambda n: _table(2 * n).slice(3, n), most=100_000),
    Kind("arrow batch", lambda n: _table(n).to_batches()[0], most=100_000),
    Kind("arrow no rows", lambda n: _table(4).slice(0, 0)),
    Kind("arrow numbers", lambda n: pa.array(np.arange(n))),
    Kind("arrow sliced array", lambda n: pa.array(np.arange(2 * n))[n // 2 : n]),
    Kind("arrow chunked array", lambda n: pa.chunked_array([np.arange(n), np.arange(3)])),
    Kind("arrow strings", _arrow(lambda n: ["a", None, "ü"] * n)),
    Kind("arrow large strings", _arrow(lambda n: ["a", None] * n, pa.large_string())),
    Kind("arrow string views", _arrow(lambda n: ["a", "long" * 9] * n, pa.string_view())),
    Kind("arrow binary", _arrow(lambda n: [b"a", b""] * n)),
    Kind("arrow dictionary", lambda n: pa.array(["a", "b"] * n).dictionary_encode()),
    Kind(
        "arrow decimals",
        _arrow(lambda n: [decimal.Decimal("1.10"), None] * n, pa.decimal128(9, 2)),
        most=50_000,
    ),
    Kind("arrow structs", _arrow(lambda n: [{"a": 1, "b": None}] * n), most=100_000),
    Kind("arrow dates", _arrow(lambda n: [datetime.date(2020, 1, 1)] * n), most=100_000),
    Kind("arrow time zone", lambda n: pa.array(np.arange(n), pa.timestamp("us", "UTC"))),
    Kind("arrow booleans", _arrow(lambda n: [True, None, False] * n)),
    Kind("arrow nulls", lambda n: pa.nulls(n)),
    Kind("arrow runs", lambda n: pa.RunEndEncodedArray.from_arrays([n, 2 * n], [1, 2])),
    Kind("arrow half floats", lambda n: pa.array(np.zeros(n, "f2"))),
    Kind("arrow schema", lambda n: pa.schema([("a", pa.int64())], metadata={"k": "v"})),
    Kind("arrow scalar", lambda n: pa.scalar(1.5)),
    Kind("arrow buffer", lambda n: pa.py_buffer(bytes(n))),
]

# -- polars, xarray, PIL ---------------------------------------------------------------------------


def _polars(n: int) -> Any:
    import polars

    return polars.DataFrame(
        {"i": range(n), "s": ["a", None] * (n // 2), "l": [[1]] * n, "f": [1.5] * n}
    )


def _polars_series(n: int) -> Any:
    import polars

    return polars.Series("x", ["a", "b"] * n, dtype=polars.Categorical)


def _polars_lazy(n: int) -> Any:
    return _polars(n).lazy().select("i")


def _xarray(n: int) -> Any:
    import xarray

    return xarray.DataArray(
        np.arange(float(n)).reshape(2, -1),
        dims=("x", "t"),
        coords={"x": ["a", "b"]},
        attrs={"unit": "m"},
        name="v",
    )


def _xarray_set(n: int) -> Any:
    return _xarray(n).to_dataset().assign_attrs(title="t")


def _image(mode: str) -> Callable[[int], Any]:
    def make(n: int) -> Any:
        from PIL import Image

        side = max(1, min(int(n**0.5), 500))
        made = Image.new(mode, (side, 2), 1 if mode in "1LPFI" else (1,) * len(mode))
        made.info["note"] = "mine"
        return made

    return make


_OTHERS = [
    Kind("polars frame", _polars, "polars", most=100_000),
    Kind("polars series", _polars_series, "polars", most=100_000),
    Kind("polars lazy", _polars_lazy, "polars", most=100_000),
    Kind("xarray array", _xarray, "xarray"),
    Kind("xarray dataset", _xarray_set, "xarray"),
    *(Kind(f"image {mode}", _image(mode), "PIL") for mode in ("1", "L", "P", "RGB", "RGBA", "F")),
]

# -- scipy -----------------------------------------------------------------------------------------


def _sparse(form: str) -> Callable[[int], Any]:
    def make(n: int) -> Any:
        side = max(2, min(int(n**0.5), 300))
        return scipy.sparse.eye_array(side, side + 1, format=form)

    return make


_SCIPY = [
    *(
        Kind(f"scipy {form}", _sparse(form))
        for form in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
    ),
    Kind("scipy matrix", lambda n: scipy.sparse.csr_matrix(np.eye(5))),
]

# -- torch -----------------------------------------------------------------------------------------

_DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "int8", "uint8", "int16", "uint16", "int32"),
    *("uint32", "int64", "uint64", "bool", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"),
)


def _tensor(n: int, dtype: str) -> torch.Tensor:
    return (torch.arange(n) % 4).to(getattr(torch, dtype))


def _image_tensor(n: int) -> torch.Tensor:
    side = max(2, int((n / 3) ** 0.5))
    return torch.arange(3.0 * side * side).reshape(1, 3, side, side)


def _sparse_tensor(layout: str) -> Callable[[int], torch.Tensor]:
    def make(n: int) -> torch.Tensor:
        dense = torch.eye(4 * max(1, min(int(n**0.5), 200) // 4))
        if layout == "coo":
            return dense.to_sparse()
        if layout in ("bsr", "bsc"):
            return getattr(dense, f"to_sparse_{layout}")((2, 2))  # type: ignore[no-any-return]
        return getattr(dense, f"to_sparse_{layout}")()  # type: ignore[no-any-return]

    return make


def _hybrid(n: int) -> torch.Tensor:
    indices = torch.tensor([[0, 0, 1]])
    return torch.sparse_coo_tensor(indices, torch.ones(3, max(1, n // 3)), (4, max(1, n // 3)))


def _with_grad(n: int) -> torch.Tensor:
    made = torch.ones(n, requires_grad=True)
    (made * 2).sum().backward()
    return made


_TORCH = [
    *(Kind(f"torch {dtype}", functools.partial(_tensor, dtype=dtype)) for dtype in _DTYPES),
    Kind("torch scalar", lambda n: torch.tensor(1.5)),
    Kind("torch empty", lambda n: torch.zeros(0, 3)),
    Kind("torch transposed", lambda n: torch.arange(float(n)).reshape(2, -1).T),
    Kind("torch strided", lambda n: torch.arange(2.0 * n)[::2]),
    Kind("torch narrow", lambda n: torch.arange(3.0 * n)[n : 2 * n]),
    Kind("torch expanded", lambda n: torch.ones(1).expand(n)),
    Kind("torch expanded row", lambda n: torch.arange(5.0).expand(max(1, n // 5), 5)),
    Kind("torch channels last", lambda n: _image_tensor(n).to(memory_format=torch.channels_last)),
    Kind("torch conjugated", lambda n: torch.ones(n, dtype=torch.complex64).mul(1j).conj()),
    Kind("torch negated", lambda n: torch.ones(n, dtype=torch.complex64).conj().imag),
    Kind("torch needs a gradient", lambda n: torch.ones(n, requires_grad=True)),
    Kind("torch with a gradient", _with_grad),
    Kind("torch parameter", lambda n: torch.nn.Parameter(torch.ones(n))),
    Kind(
        "torch frozen parameter", lambda n: torch.nn.Parameter(torch.ones(n), requires_grad=False)
    ),
    Kind("torch attribute", lambda n: _with_attribute(torch.zeros(n), note="mine")),
    Kind("torch meta", lambda n: torch.zeros(n, device="meta")),
    Kind(
        "torch quantized",
        lambda n: torch.quantize_per_tensor(torch.arange(float(n)), 0.1, 0, torch.quint8),
    ),
    *(
        Kind(f"torch sparse {layout}", _sparse_tensor(layout))
        for layout in ("coo", "csr", "csc", "bsr", "bsc")
    ),
    Kind("torch sparse hybrid", _hybrid),
    Kind(
        "torch sparse not coalesced", lambda n: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (n,))
    ),
    Kind("torch sharing memory", lambda n: (lambda whole: [whole, whole[1:]])(torch.zeros(n))),
    Kind("torch module", OwnModule),
    Kind("torch state", lambda n: OwnModule(n).state_dict()),
    Kind("torch linear", lambda n: _zeroed(torch.nn.Linear(n, 1, bias=False))),
    Kind("torch size", lambda n: torch.Size([n, 2])),
    Kind("torch dtype", lambda n: [torch.bfloat16, torch.device("cpu"), torch.strided]),
]

# -- Python ----------------------------------------------------------------------------------------


def _shared(n: int) -> Any:
    inner = [float(n)]
    return [inner, {"again": inner}]


_PYTHON = [
    Kind("bytes", lambda n: bytes(n)),
    Kind("bytearray", lambda n: bytearray(n)),
    Kind("str", lambda n: "ü" * n),
    Kind("surrogates", lambda n: "\udce9" * n),
    Kind("int", lambda n: 7**n, most=10_000),
    Kind("float", lambda n: [0.1, -0.0, float("inf")]),
    Kind("list", lambda n: [0.5] * n),
    Kind("list of str", lambda n: [f"{i}" for i in range(n)]),
    Kind("tuple", lambda n: tuple(range(n))),
    Kind("set", lambda n: set(range(n))),
    Kind("frozenset", lambda n: frozenset(range(n))),
    Kind("dict", lambda n: {i: str(i) for i in reversed(range(n))}),
    Kind("ordered dict", lambda n: collections.OrderedDict((i, i) for i in reversed(range(n)))),
    Kind("default dict", lambda n: collections.defaultdict(list, a=[n])),
    Kind("counter", lambda n: collections.Counter(["a", "b"] * n)),
    Kind("deque", lambda n: collections.deque(range(n), maxlen=n)),
    Kind("chain map", lambda n: collections.ChainMap({"a": n}, {"b": 2})),
    Kind("range", lambda n: range(0, n, 3)),
    Kind("slice", lambda n: slice(1, n)),
    Kind("memory in an array", lambda n: array.array("d", range(n))),
    Kind("shared", _shared),
    Kind("named tuple", lambda n: Point(1.5, n)),
    Kind("dataclass", lambda n: Plain(np.arange(float(n)))),
    Kind("frozen dataclass", lambda n: Slotted(n, (1.5,))),
    Kind("enum", lambda n: [Colour.RED, Flags.A | Flags.B, Level.LOW]),
    Kind("decimals", lambda n: [decimal.Decimal("1.10"), decimal.Decimal("NaN")] * n, most=50_000),
    Kind("fractions", lambda n: [fractions.Fraction(1, 3)] * n, most=50_000),
    Kind(
        "date times",
        lambda n: [
            datetime.datetime(2020, 1, 1, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
            datetime.date(2020, 1, 1),
            datetime.timedelta(1),
            datetime.time(1, tzinfo=datetime.UTC),
        ],
    ),
    Kind(
        "ids",
        lambda n: [uuid.UUID(int=n), pathlib.PurePosixPath("/a"), ipaddress.ip_address("::1")],
    ),
    Kind("patterns", lambda n: re.compile("a+", re.IGNORECASE)),
    Kind("random state", lambda n: random.Random(3)),
    Kind("equal to all", lambda n: OddEq([1] * n)),
    Kind("refuses to be compared", RaisingEq),
    Kind("own reduce", OwnReduce),
    Kind("odd length", OddLen),
    Kind("own state", WithState),
    Kind("own dict", lambda n: _with_attribute(OwnDict(a=n), note="mine")),
    Kind("own list", lambda n: _with_attribute(OwnList(range(n)), note="mine")),
    Kind("own str", lambda n: OwnStr("x" * n)),
    Kind("own int", OwnInt),
    Kind("own bytes", lambda n: OwnBytes(n)),
    Kind("partial", lambda n: functools.partial(max, n)),
    Kind("functions", lambda n: [len, np.sum, pathlib.Path, Plain]),
    Kind("an error", lambda n: ValueError("a", n)),
    Kind("an error of notes", lambda n: _with_attribute(ValueError("a"), __notes__=["b"])),
    Kind("nothing", lambda n: [None, ..., NotImplemented, True]),
    Kind("complex", lambda n: [1j, complex(0.0, -0.0)]),
    Kind("namespace", lambda n: __import__("types").SimpleNamespace(a=n)),
]

KINDS = (*_NUMPY, *_PANDAS, *_ARROW, *_OTHERS, *_SCIPY, *_TORCH, *_PYTHON)
