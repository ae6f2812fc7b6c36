"""The same value whichever way it travels: told apart from plain cloudpickle by nothing."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import pickle
import subprocess
import sys
import tempfile
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from deepflow.intermediates import pickling, stored, values
from deepflow.intermediates.loading import HOME
from deepflow.intermediates.parcel import Parcel
from deepflow.intermediates.pickling import EnvelopePickler, standing_for

SIZES = (10, 100_000)


# The ways a value may go


def dump(value: object, callback: Callable[[pickle.PickleBuffer], Any] | None = None) -> memoryview:
    """The pickle of a value; `callback` gets each buffer, without one they are part of it."""
    file = io.BytesIO()
    EnvelopePickler(file, protocol=5, buffer_callback=callback).dump(standing_for(value))
    return file.getbuffer()


def plain(value: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(value))


def in_band(value: Any) -> Any:
    return pickle.loads(dump(value))


def out_of_band(value: Any) -> Any:
    """Each buffer copied as a transport does: what was writable into memory that may be written."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = dump(value, buffers.append)
    return pickle.loads(pickled, buffers=[_carried(buffer) for buffer in buffers])


def _carried(buffer: pickle.PickleBuffer) -> memoryview:
    octets = buffer.raw()
    if octets.readonly:
        return memoryview(bytes(octets))
    # In the middle of a message, as frames lie in shared memory.
    message = bytearray(64 + octets.nbytes)
    message[64:] = octets
    return memoryview(message)[64:]


def dumped(value: Any) -> Any:
    return values.load(values.dump(value))


def packed(value: Any) -> Any:
    return stored.unpack(stored.pack(value))


def in_a_parcel(value: Any) -> Any:
    return Parcel.of(value).detach().open(HOME)


def in_a_small_parcel(value: Any) -> Any:
    return Parcel.from_bytes(Parcel.of(value).to_bytes()).open(HOME)


WAYS: dict[str, Callable[[Any], Any]] = {
    "in band": in_band,
    "out of band": out_of_band,
    "dumped": dumped,
    "stored": packed,
    "in a parcel": in_a_parcel,
    "in a small parcel": in_a_small_parcel,
}


class Text(str):
    pass


# What can be told of a value


PLAIN = {int, float, complex, bool, str, bytes, type(None), pd.Timestamp, pd.Timedelta, Text}


def told(value: Any) -> Any:
    """Everything about a value that a task could see, in plain terms."""
    room = type(value).__module__.partition(".")[0]
    if isinstance(value, np.ndarray):
        return _told_array(value)
    if room == "torch" or "Tensor" in {cls.__name__ for cls in type(value).__mro__}:
        return _told_torch(value)
    if isinstance(value, pd.DataFrame):
        columns = [told(value.iloc[:, i]) for i in range(value.shape[1])]
        return type(value), told(value.columns), told(value.index), columns, told(value.attrs)
    if isinstance(value, pd.Series):
        return type(value), value.name, value.dtype, told(value.index), told(value.array)
    if isinstance(value, pd.Index):
        return type(value), list(value.names), str(value.dtype), len(value), _some_of(value)
    if isinstance(value, pd.api.extensions.ExtensionArray):
        return type(value), str(value.dtype), len(value), _some_of(value)
    if room == "scipy":
        dense = value.toarray()
        return type(value), value.dtype, value.shape, told(dense), value.has_sorted_indices
    if room == "pyarrow":
        return _told_arrow(value)
    if room == "polars":
        return type(value), str(getattr(value, "schema", None)), _told_arrow(value.to_arrow())
    if room == "xarray":
        return _told_xarray(value)
    if room == "PIL":
        return type(value), value.mode, value.size, value.tobytes(), value.info
    if isinstance(value, types.FunctionType):
        return value.__name__, value()
    if isinstance(value, dict):
        return type(value), [(told(key), told(one)) for key, one in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        kinds = list(map(type, list.__iter__(value) if isinstance(value, list) else value))
        if PLAIN.issuperset(kinds):
            return type(value), kinds, repr(list(value))
        return type(value), [told(one) for one in value]
    if isinstance(value, float) and value != value:
        return float, "nan"
    if isinstance(value, enum.Enum):
        return type(value), value.name, value.value
    if hasattr(value, "__dict__"):
        return type(value).__name__, told(vars(value))
    return type(value), value


def _some_of(column: Any) -> Any:
    """All elements of a short column; of a long one many from everywhere."""
    if len(column) <= 2_000:
        return told(column.tolist())
    return told(column[:500].tolist()), told(column[::197].tolist()), told(column[-500:].tolist())


def _told_arrow(value: Any) -> Any:
    said: list[Any] = [type(value).__name__, str(getattr(value, "schema", None))]
    if hasattr(value, "columns"):
        said += [value.schema.metadata, value.num_rows, *map(_told_arrow, value.columns)]
    elif hasattr(value, "as_py"):
        said += [str(value.type), value.as_py()]
    elif hasattr(value, "to_pylist"):
        said += [
            str(value.type),
            len(value),
            value.null_count,
            value[:300].to_pylist(),
            value[-300:].to_pylist(),
        ]
        said += [[len(chunk) for chunk in getattr(value, "chunks", [])]]
    return said


def _told_xarray(value: Any) -> Any:
    if hasattr(value, "data_vars"):
        return type(value), {str(name): _told_xarray(value[name]) for name in value.variables}
    coords = {str(name): told(one.values) for name, one in value.coords.items()}
    return type(value), value.name, value.dims, told(value.values), coords, told(value.attrs)


def _told_array(array: Any) -> Any:
    flags = array.flags
    said = [type(array).__name__, array.dtype, array.dtype.metadata, array.shape, array.strides]
    said += [flags.writeable, flags.c_contiguous, flags.f_contiguous, flags.aligned]
    if isinstance(array, np.ma.MaskedArray):
        said += [told(array.data.view(np.ndarray)), told(array.mask), array.fill_value]
    elif array.dtype.hasobject:
        said.append(_some_of(array.reshape(-1)))
    else:
        said.append(array.tobytes())
    return said


def _told_torch(value: Any) -> Any:
    import torch

    if isinstance(value, torch.nn.Module):
        return type(value).__name__, [
            told(one) for one in value.state_dict(keep_vars=True).values()
        ]
    if isinstance(value, torch.UntypedStorage):
        return type(value), bytes(value.tolist())
    with torch._C.DisableTorchFunctionSubclass():
        said: list[Any] = [type(value).__name__, value.dtype, value.layout, value.device]
        said += [value.requires_grad, told(vars(value)), value.is_conj(), value.is_neg()]
        if value.layout is torch.strided and not value.is_nested:
            said.append(value.stride())
        if value.is_leaf:
            said.append(None if value.grad is None else told(value.grad))
        if value.device.type == "meta":
            return [*said, tuple(value.shape)]
        bare = value.detach()
        if bare.layout is torch.sparse_coo:
            said += [bare.is_coalesced(), told(bare._indices()), told(bare._values())]
        elif bare.is_nested:
            return [*said, [told(one) for one in bare.unbind()]]
        elif bare.layout is not torch.strided:
            said += [tuple(bare.shape), told(bare.to_dense())]
        elif bare.is_quantized:
            said += [value.qscheme(), told(bare.int_repr()), told(bare.dequantize())]
        else:
            whole = torch.empty(bare.shape, dtype=bare.dtype).copy_(bare)
            said += [tuple(bare.shape), whole.reshape(-1).view(torch.uint8).numpy().tobytes()]
    return said


# What may be sent


class Colour(enum.Enum):
    RED = 1
    GREEN = "g"


class Flags(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Model:
    weights: Any
    name: str = "m"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    weights: Any


class Numbers(list[Any]):
    """A list that cannot be compared, and says that it is empty."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    def __len__(self) -> int:
        return 0

    __hash__ = None  # type: ignore[assignment]


class Reduced:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return Reduced, (self.data[::-1],)


class Array(np.ndarray[Any, Any]):
    pass


def numpy_kinds(n: int) -> Iterator[tuple[str, Any]]:
    side = int(n**0.5)
    square = np.arange(side * side, dtype=float).reshape(side, side)
    yield "float", np.arange(n, dtype=float)
    yield "big-endian", np.arange(n, dtype=">i4")
    yield "bool", np.arange(n) % 2 == 0
    yield "complex", np.arange(n) * 1j
    yield "longdouble", np.arange(n, dtype=np.longdouble)
    yield "half", np.arange(n, dtype=np.float16)
    yield "Fortran order", np.asfortranarray(square)
    yield "transposed", square.T
    yield "every third", np.arange(n)[::3]
    yield "backwards", np.arange(n)[::-1]
    yield "both backwards", square[::-1, ::-1]
    yield "a column", square[:, 1]
    yield "broadcast", np.broadcast_to(np.arange(side), (side, side))
    yield "broadcast scalar", np.broadcast_to(np.float32(2), (n,))
    yield "broadcast strided", np.broadcast_to(np.arange(side * 2)[::2], (side, side))
    yield "broadcast dates", np.broadcast_to(np.datetime64("2020", "ns"), (n,))
    yield "windows", np.lib.stride_tricks.sliding_window_view(np.arange(n), 3)
    yield "permuted axes", np.arange(side * side * 2).reshape(side, 2, side).transpose(1, 2, 0)
    yield "zero-size", np.zeros((0, n))
    yield "zero-size strided", np.zeros((n, 4))[:, 4:]
    yield "0-d", np.array(3.5)
    yield "scalar", np.float32(3.5)
    record = np.dtype([("a", "i4"), ("b", "f8", (2,)), ("c", "U3")])
    yield "structured", np.zeros(n, record)
    yield "structured, one field", np.zeros(n, record)["b"]
    yield "aligned structure", np.zeros(n, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    yield "structured with objects", np.array([(1, "x")] * n, dtype=[("a", "i4"), ("o", "O")])
    yield "record array", np.rec.array(np.zeros(n, record))
    yield "objects", np.array([1, "a", None, 2.5, True] * (n // 5), dtype=object)
    yield "objects backwards", np.array(["a", None] * (n // 2), dtype=object)[::-1]
    yield "lambdas", np.array([lambda: 1] * 10, dtype=object)
    yield "text", np.array(["ab", "c"] * (n // 2))
    yield "bytes", np.array([b"ab", b"c"] * (n // 2))
    yield "void", np.zeros(n, "V5")
    yield "variable text", np.array(["ab", "c" * 30] * (n // 2), dtype=np.dtypes.StringDType())
    yield "dates", np.arange(n).astype("datetime64[s]")
    yield "spans", np.arange(n).astype("timedelta64[ms]")
    yield "dates every third", np.arange(n).astype("datetime64[D]")[::3]
    yield "big-endian dates", np.arange(n).astype(">M8[s]")
    yield "masked", np.ma.masked_greater(np.arange(n), n // 2)
    yield "masked strided", np.ma.masked_greater(np.arange(n), n // 2)[::2]
    yield "matrix", np.matrix(square)
    yield "subclass", np.arange(n).view(Array)
    yield "metadata", np.zeros(n, np.dtype("f8", metadata={"unit": "m"}))
    yield "twice", (lambda one: [one, one, one[::2]])(np.arange(n))
    for name, one in (
        ("float", np.arange(n, dtype=float)),
        ("Fortran order", np.asfortranarray(square)),
        ("every third", np.arange(n)[::3]),
        ("dates", np.arange(n).astype("datetime64[s]")),
        ("objects", np.array(["a", None] * (n // 2), dtype=object)),
        ("structured", np.zeros(n, record)),
        ("subclass", np.arange(n).view(Array)),
    ):
        one.flags.writeable = False
        yield f"read-only {name}", one


def pandas_kinds(n: int) -> Iterator[tuple[str, Any]]:
    class Local:
        def __init__(self) -> None:
            self.x = 1

    frame = pd.DataFrame({"a": range(n), "b": np.arange(n) / 2, "c": ["x", "yy"] * (n // 2)})
    yield "frame", frame
    yield (
        "arrow column and columns in Fortran order",
        pd.concat(
            [
                pd.DataFrame(np.zeros((n, 3), order="F")),
                pd.Series(["a", "b"] * (n // 2), dtype="str"),
            ],
            axis=1,
        ),
    )
    yield "frame slice", frame.iloc[2:8]
    yield "frame every third", frame.iloc[::3]
    yield "frame of one type, transposed", pd.DataFrame(np.zeros((3, n))).T
    noted = frame.copy()
    noted.attrs = {"f": lambda: 1, "unit": "m"}
    yield "lambda in attrs", noted
    yield "lambda in a cell", pd.DataFrame({"f": [lambda: 1] * min(n, 2_000)})
    yield "local objects", pd.DataFrame({"o": [Local() for _ in range(min(n, 2_000))]})
    yield "mixed objects", pd.Series([1, "a", None, True, 1.0] * (n // 5), dtype=object)
    yield "one and true", pd.Series([1, True, 1.0] * (n // 5), dtype=object)
    yield "zeros", pd.Series([0.0, -0.0, "x"] * (n // 5), dtype=object)
    yield "strings and NaN", pd.Series(["a", float("nan"), None] * (n // 5), dtype=object)
    yield "text subclass", pd.Series([Text("a"), "a"] * (n // 2), dtype=object)
    yield "python strings", pd.Series(["a", None] * (n // 2), dtype="string[python]")
    yield "arrow strings", pd.Series(["a", None] * (n // 2), dtype="string[pyarrow]")
    yield "arrow list", pd.Series([1, None] * (n // 2), dtype="int64[pyarrow]")
    yield "nullable", pd.Series([1, None] * (n // 2), dtype="Int32")
    yield "nullable bool", pd.Series([True, None] * (n // 2), dtype="boolean")
    yield "category", pd.Series(["a", "b"] * (n // 2)).astype("category")
    yield "ordered category", pd.Categorical(["b", "a"] * (n // 2), ["b", "a"], ordered=True)
    yield "dates", pd.Series(pd.date_range("2020", periods=n, freq="min", tz="Europe/Paris"))
    yield "date index", pd.date_range("2020", periods=n, freq="min")
    yield "spans", pd.Series(pd.to_timedelta(np.arange(n), unit="s"))
    yield "periods", pd.Series(pd.period_range("2020", periods=min(n, 5_000), freq="D"))
    yield "intervals", pd.Series(pd.interval_range(0, min(n, 5_000)))
    yield "sparse", pd.Series(pd.arrays.SparseArray([0, 1] * (n // 2)))
    index = pd.MultiIndex.from_product([["a", "b"], range(n // 2)], names=["k", None])
    yield "many levels", pd.DataFrame({"v": range(n)}, index=index)
    yield "duplicate columns", pd.DataFrame(np.zeros((n, 2)), columns=["a", "a"])
    yield "empty", frame.iloc[:0]


def torch_kinds(n: int) -> Iterator[tuple[str, Any]]:
    torch = pytest.importorskip("torch")

    class Tensor(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    class Dispatched(torch.Tensor):  # type: ignore[misc, name-defined]
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return super().__torch_function__(func, types, args, kwargs or {})

    def noted(tensor: Any) -> Any:
        tensor.note = "mine"
        tensor.f = lambda: 1
        return tensor

    def with_grad(tensor: Any) -> Any:
        (tensor * 2).sum().backward()
        return tensor

    side = int(n**0.5)
    even = side // 2 * 2
    row, square = torch.arange(n * 1.0), torch.rand(side, side)
    yield "plain", row
    yield "attributes", noted(row.clone())
    yield "channels last", torch.rand(1, 3, side, side).to(memory_format=torch.channels_last)
    yield "transposed", square.T
    yield "expanded", row[:side].expand(side, side)
    yield "expanded scalar", torch.ones(1).expand(n)
    yield "every second column", square[:, ::2]
    yield "a column", square[:, 1]
    yield "an expanded column", square[:, 1:2].expand(side, 4)
    yield "windows", row.unfold(0, 3, 1)
    yield "windows with holes", row[::2].unfold(0, 3, 1)
    yield "slice", row[2:5]
    yield "zero elements", torch.zeros(0, 3)
    yield "0-d", torch.tensor(3.0)
    for name in (
        *("bfloat16", "float16", "float64", "complex64", "complex128", "int8", "int16", "uint8"),
        "bool",
    ):
        yield name, torch.ones(n).to(getattr(torch, name))
    ones = torch.ones(n, dtype=torch.complex64)
    yield "conjugated", ones.conj()
    yield "negated", ones.conj().imag
    yield "conjugated slice", ones[2:].conj()
    yield "conjugated with holes", torch.ones(side, side, dtype=torch.complex64)[:, ::3].conj()
    yield "meta", torch.zeros(n, device="meta")
    yield "sparse", torch.eye(side).to_sparse()
    yield (
        "sparse with duplicates",
        torch.sparse_coo_tensor(torch.zeros(1, side, dtype=torch.long), torch.ones(side), (n,)),
    )
    yield "csr", torch.eye(side).to_sparse_csr()
    yield "csc", torch.eye(side).to_sparse_csc()
    yield "bsr", torch.eye(even).to_sparse_bsr((2, 2))
    yield "bsc", torch.eye(even).to_sparse_bsc((2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "quantized", torch.quantize_per_tensor(row, 0.1, 3, torch.qint8)
        yield (
            "quantized by channel",
            torch.quantize_per_channel(
                torch.rand(2, n), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
            ),
        )
        yield "nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(n)])
    yield "requires grad", torch.ones(n, requires_grad=True)
    yield "with history", torch.ones(n, requires_grad=True) * 2
    yield "parameter", torch.nn.Parameter(torch.ones(n))
    yield (
        "integer parameter",
        torch.nn.Parameter(torch.ones(n, dtype=torch.int64), requires_grad=False),
    )
    yield "noted parameter", noted(torch.nn.Parameter(torch.ones(n)))
    yield "buffer", torch.nn.Buffer(torch.ones(n))
    yield "subclass", torch.ones(n).as_subclass(Tensor)
    yield "noted subclass", noted(torch.ones(n).as_subclass(Tensor))
    yield "subclass with its own dispatch", torch.ones(n).as_subclass(Dispatched)
    yield "module", torch.nn.Linear(side, side)
    yield "twice", [row, row, {"again": row}]
    sparse = torch.nn.Module()
    sparse.register_buffer("mask", torch.eye(side).to_sparse())
    yield "module with a sparse buffer", sparse


def torch_kinds_that_pickle_loses(n: int) -> Iterator[tuple[str, Any]]:
    """Plain pickle cannot read these back, or drops a part of them."""
    torch = pytest.importorskip("torch")

    class Tensor(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    def with_grad(tensor: Any) -> Any:
        (tensor * 2).sum().backward()
        return tensor

    side = int(n**0.5)
    for name in (
        *("uint16", "uint32", "uint64", "complex32"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ):
        yield name, torch.ones(n).to(getattr(torch, name))
    yield "every second uint16", torch.ones(n).to(torch.uint16)[::2]
    yield "subclass of uint16", torch.ones(n).to(torch.uint16).as_subclass(Tensor)
    yield "conjugated complex32", torch.ones(n).to(torch.complex32).conj()
    yield "float8 that requires grad", torch.ones(n).to(torch.float8_e4m3fn).requires_grad_()
    yield "grad", with_grad(torch.ones(n, requires_grad=True))
    yield "parameter with grad", with_grad(torch.nn.Parameter(torch.ones(n)))
    yield "sparse that requires grad", torch.eye(side).to_sparse().requires_grad_()
    yield "csr that requires grad", torch.eye(side).to_sparse_csr().requires_grad_()
    yield "storage", torch.ones(min(n, 2_000)).untyped_storage()
    model = torch.nn.Linear(side, 2)
    model(torch.ones(1, side)).sum().backward()
    yield "module with grads", model


def other_kinds(n: int) -> Iterator[tuple[str, Any]]:
    class Local:
        def __init__(self) -> None:
            self.x = 1

    def closed_over() -> Any:
        return n

    text = "ab" * (n // 2)
    yield "text", text
    yield "text with lone surrogates", "\ud800" * n
    yield "bytes", text.encode()
    yield "bytearray", bytearray(text.encode())
    yield "bytes inside", {"a": text.encode(), "b": bytearray(text.encode())}
    yield "memoryview", [memoryview(text.encode()), memoryview(bytearray(text.encode()))[::2]]
    yield "array of the standard library", array.array("d", range(n))
    yield "local object", [Local()]
    yield "function", closed_over
    yield "lambda", {"f": lambda: n}
    yield "enum", [Colour.RED, Flags.A | Flags.B]
    yield "decimal", [decimal.Decimal("1.50"), fractions.Fraction(1, 3)]
    yield "time", [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)]
    yield "path and id", [pathlib.PurePosixPath("a/b"), uuid.UUID(int=5)]
    yield "named tuple", Point(1, np.arange(n))
    yield "dataclass", Model(np.arange(n, dtype=float))
    yield "frozen dataclass", Frozen(1)
    yield "namespace", types.SimpleNamespace(a=np.arange(n))
    yield "deque", collections.deque([np.arange(n)], 5)
    yield "default dict", collections.defaultdict(list, {"a": [1]})
    yield "ordered dict", collections.OrderedDict(a=1, b=2)
    yield "sets", {1, 2, frozenset({3})}
    yield "range and slice", [range(n), slice(1, None)]
    yield "text subclass", Text("a")
    yield "reduced", Reduced(b"abc")
    yield "huge number", 10**400
    yield "numbers", [float("inf"), -0.0, 1j, None, ..., True]


def scipy_kinds(n: int) -> Iterator[tuple[str, Any]]:
    sparse = pytest.importorskip("scipy.sparse")
    side = int(n**0.5)
    eye = np.eye(side)
    for name in ("csr_array", "csc_array", "csr_matrix", "csc_matrix", "bsr_array"):
        yield name, getattr(sparse, name)(eye)


def pillow_kinds(n: int) -> Iterator[tuple[str, Any]]:
    image = pytest.importorskip("PIL.Image")
    side = int(n**0.5)
    for mode in ("RGB", "L", "1", "RGBA", "I;16"):
        yield mode, image.new(mode, (side, side))


def arrow_kinds(n: int) -> Iterator[tuple[str, Any]]:
    arrow = pytest.importorskip("pyarrow")
    numbers = arrow.array([1, None, 3, 4, 5] * (n // 5))
    texts = arrow.array(["a", None, "ccc", "é", ""] * (n // 5))
    table = arrow.table({"i": numbers, "t": texts, "f": np.arange(n) / 2})
    yield "table", table
    yield "table with metadata", table.replace_schema_metadata({"a": "b"})
    yield "slice", table.slice(3, 4)
    yield "large slice", table.slice(n // 3, n // 3)
    yield "chunked", arrow.concat_tables([table, table.slice(2, 5)])
    yield "empty", table.slice(0, 0)
    yield "batch", table.to_batches()[0]
    yield "slice of a batch", table.to_batches()[0].slice(2, 5)
    yield "array", numbers
    yield "slice of an array", texts.slice(2, 5)
    yield "chunked array", table["t"]
    yield "categories", texts.dictionary_encode()
    yield "lists", arrow.array([[1, 2], None, []] * (n // 5))
    yield "structures", arrow.array([{"a": 1, "b": "x"}, None] * (n // 5))
    yield "dates", arrow.array([datetime.datetime(2020, 1, 1)] * n, arrow.timestamp("us", "UTC"))
    yield "decimals", arrow.array([decimal.Decimal("1.5")] * n)
    yield "booleans", arrow.array([True, None, False] * (n // 5))
    yield "views", arrow.array(["a" * 20, None] * (n // 5), arrow.string_view())
    yield "nulls", arrow.nulls(n)
    yield "scalar", numbers[0]
    for name, one in (
        ("lists", arrow.array([[1, 2], None, []] * (n // 5))),
        ("structures", arrow.array([{"a": 1, "b": "x"}, None] * (n // 5))),
        ("categories", texts.dictionary_encode()),
        ("booleans", arrow.array([True, None, False] * (n // 5))),
        ("views", arrow.array(["a" * 20, None] * (n // 5), arrow.string_view())),
        ("nulls", arrow.nulls(n)),
        ("maps", arrow.array([[("a", 1)], None] * (n // 5), arrow.map_("str", "int64"))),
        (
            "extension",
            arrow.ExtensionArray.from_storage(
                arrow.uuid(), arrow.array([bytes(16)] * n, arrow.binary(16))
            ),
        ),
    ):
        yield f"slice of {name}", one.slice(1, 3)
    halves = arrow.chunked_array([numbers[: n // 2], numbers[n // 2 :]])
    yield "columns of other chunks", arrow.table({"i": numbers, "j": halves}).slice(n // 3)


def polars_kinds(n: int) -> Iterator[tuple[str, Any]]:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"i": range(n), "t": ["a", None] * (n // 2), "f": np.arange(n) / 2})
    yield "frame", frame
    yield "slice", frame[2:8]
    yield "series", frame["t"]
    yield "categories", frame["t"].cast(polars.Categorical)
    yield "lists", polars.Series([[1, 2], None] * (n // 2))
    yield "dates", polars.Series([datetime.datetime(2020, 1, 1)] * n)


def xarray_kinds(n: int) -> Iterator[tuple[str, Any]]:
    xarray = pytest.importorskip("xarray")
    side = int(n**0.5)
    square = np.arange(side * side, dtype=float).reshape(side, side)
    array = xarray.DataArray(square, dims=("a", "b"), coords={"a": range(side)}, attrs={"u": "m"})
    yield "array", array
    yield "transposed", array.T
    yield "every second", array[::2, ::3]
    yield "lambda in attrs", array.assign_attrs(f=lambda: 1)
    yield "dataset", xarray.Dataset({"x": array, "y": ("a", np.arange(side))})


def files_and_maps(n: int) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mapped = np.memmap(f"{folder}/m", np.int64, "w+", shape=(n,))
        mapped[:] = np.arange(n)
        yield "memory map", mapped
        yield "part of a memory map", mapped[::2]
        yield "view of a memory map", np.asarray(mapped)
        mapped.flush()
        np.save(f"{folder}/a.npy", np.arange(n))
        yield "read-only map of a file", np.load(f"{folder}/a.npy", mmap_mode="r")
        yield "plain view of it", np.asarray(np.load(f"{folder}/a.npy", mmap_mode="r"))
    yield "on bytes", np.frombuffer(bytes(8 * n))
    yield "on a bytearray", np.frombuffer(bytearray(8 * n))


FAMILIES: dict[str, Callable[[int], Iterator[tuple[str, Any]]]] = {
    "numpy": numpy_kinds,
    "pandas": pandas_kinds,
    "torch": torch_kinds,
    "arrow": arrow_kinds,
    "polars": polars_kinds,
    "xarray": xarray_kinds,
    "maps": files_and_maps,
    "other": other_kinds,
    "scipy": scipy_kinds,
    "pillow": pillow_kinds,
}


quiet = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support is experimental", "ignore:Sparse ", "ignore:the matrix subclass"
)


@quiet
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_is_what_cloudpickle_makes_of_it_whichever_way_it_goes(family: str, n: int) -> None:
    before = pickling.fallbacks.count
    n_kinds = 0
    for name, value in FAMILIES[family](n):
        n_kinds += 1
        expected = told(plain(value))
        for way, go in WAYS.items():
            assert told(go(value)) == expected, (name, way)
    assert n_kinds >= 5
    assert pickling.fallbacks.count == before, "no reducer failed"


def test_an_array_keeps_its_byte_order_which_pickle_loses_with_its_gaps() -> None:
    for sent in (
        np.arange(10, dtype=">i8")[::2],
        np.broadcast_to(np.arange(5, dtype=">f4"), (3, 5)),
    ):
        for go in WAYS.values():
            back = go(sent)
            assert back.dtype == sent.dtype
            assert back.dtype.byteorder == ">"
            np.testing.assert_array_equal(back, sent)


@quiet
@pytest.mark.parametrize("n", SIZES)
def test_a_tensor_that_pickle_cannot_take_arrives_as_it_was(n: int) -> None:
    for name, value in torch_kinds_that_pickle_loses(n):
        for way, go in WAYS.items():
            assert told(go(value)) == told(value), (name, way)


# Without copies


def test_a_large_tensor_is_neither_copied_going_nor_coming() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.zeros(100_000),
        torch.zeros(300, 300).T,
        torch.zeros(100_000, dtype=torch.uint16),
        torch.zeros(1, 3, 200, 200).to(memory_format=torch.channels_last),
        torch.nn.Parameter(torch.zeros(100_000)),
    ):
        buffers: list[pickle.PickleBuffer] = []
        pickled = dump(tensor, buffers.append)
        assert pickled.nbytes < 2_000
        (buffer,) = buffers
        assert np.frombuffer(buffer.raw(), np.uint8).ctypes.data == tensor.data_ptr()
        message = bytearray(64 + buffer.raw().nbytes)
        back = pickle.loads(pickled, buffers=[memoryview(message)[64:]])
        with torch.no_grad():
            back.fill_(1)
        assert any(message), "the tensor lies in the message"


def test_a_part_of_a_large_tensor_or_table_travels_alone() -> None:
    torch = pytest.importorskip("torch")
    arrow = pytest.importorskip("pyarrow")
    whole = torch.zeros(1_000, 1_000)
    for part, n_bytes in (
        (whole[5:10], 20_000),
        (whole[:, 3], 4_000),
        (whole[:, ::500], 8_000),
        (whole[0].expand(1_000, 1_000), 4_000),
        (np.broadcast_to(np.zeros(1_000), (1_000, 1_000)), 8_000),
        (np.zeros((1_000, 1_000))[:, 3], 8_000),
        (arrow.table({"a": np.zeros(1_000_000)}).slice(5, 100), 800),
        (arrow.array(np.zeros(1_000_000)).slice(5, 100), 800),
        (pd.Series(["abcd"] * 100_000, dtype="str").iloc[5:105], 400),
    ):
        assert n_bytes <= len(dump(part)) < n_bytes + 3_000


def test_bytes_that_arrived_whole_are_not_copied() -> None:
    sent = bytes(100_000)
    buffers: list[pickle.PickleBuffer] = []
    pickled = dump(sent, buffers.append)
    assert pickled.nbytes < 1_000
    arrived = bytes(buffers[0])
    assert pickle.loads(pickled, buffers=[memoryview(arrived)]) is arrived
    assert pickle.loads(pickled, buffers=[arrived]) is arrived
    longer = arrived + b"tail"
    assert pickle.loads(pickled, buffers=[memoryview(longer)[: len(sent)]]) == sent
    backwards = memoryview(bytes(range(250)) * 400)[::-1]
    assert pickle.loads(pickled, buffers=[backwards]) == backwards.tobytes()
    mutable = bytearray(sent)
    back = pickle.loads(pickled, buffers=[memoryview(mutable)])
    mutable[0] = 1
    assert type(back) is bytes
    assert back == sent


def test_a_bytearray_that_arrived_is_the_receivers_own() -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickled = dump(bytearray(100_000), buffers.append)
    arrived = bytearray(100_000)
    back = pickle.loads(pickled, buffers=[arrived])
    back[0] = 1
    assert type(back) is bytearray
    assert arrived[0] == 0


def test_long_bytes_that_are_a_states_payload_are_a_buffer() -> None:
    from prefect.states import Completed

    buffers: list[pickle.PickleBuffer] = []
    pickled = dump(Completed(data=bytes(100_000)), buffers.append)
    assert pickled.nbytes < 10_000
    arrived = bytes(buffers[0])
    state = pickle.loads(pickled, buffers=[memoryview(arrived)])
    assert state.data is arrived
    assert state.is_completed()


# What a reducer cannot take


def test_what_a_reducer_cannot_take_goes_the_ordinary_way_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")

    def refuse(*_: Any) -> Any:
        raise RuntimeError("of another version")

    class Odd(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    told_of: list[int] = []
    monkeypatch.setattr(pickling.fallbacks, "on_fallback", lambda: told_of.append(1))
    monkeypatch.setattr(pickling, "_with_spans", refuse)
    monkeypatch.setattr(values, "_reduce_dates", refuse)
    before = pickling.fallbacks.count
    with caplog.at_level("WARNING", logger=pickling.__name__):
        for value in (torch.ones(3).as_subclass(Odd), torch.ones(3).as_subclass(Odd)):
            assert told(in_band(value)) == told(value)
        dates = np.arange(5).astype("datetime64[s]")
        assert told(dumped(dates)) == told(dates)
    assert pickling.fallbacks.count == before + 3
    assert len(told_of) == 3
    assert caplog.text.count("Odd is pickled the ordinary way") == 1


def test_a_type_that_refuses_every_question_is_pickled_as_cloudpickle_does() -> None:
    class Refuses(type):
        @property
        def __module__(cls) -> Any:  # type: ignore[override]
            raise RuntimeError("not to be asked")

    kind = Refuses("Named", (), {"__reduce__": lambda self: (int, (5,))})
    assert in_band(kind()) == 5
    assert dumped([kind()]) == [5]


def test_what_cloudpickle_cannot_take_raises_what_cloudpickle_raises() -> None:
    import threading

    for value in (threading.Lock(), [1, threading.Lock()], (one for one in "ab")):
        with pytest.raises(TypeError) as ordinary:
            cloudpickle.dumps(value)
        for go in WAYS.values():
            with pytest.raises(TypeError) as ours:
                go(value)
            assert str(ours.value) == str(ordinary.value)


# What cannot be imported


def test_what_belongs_to_main_goes_by_value_at_any_depth(tmp_path: pathlib.Path) -> None:
    write = """
import dataclasses, pandas as pd
import io
from deepflow.intermediates import stored, values
from deepflow.intermediates.pickling import EnvelopePickler
def price(): return 42
@dataclasses.dataclass
class Kept:
    f: object
frame = pd.DataFrame({"f": [price] * 3})
frame.attrs["f"] = {"deep": [price]}
value = {"f": price, "object": Kept(price), "frame": frame, "class": Kept}
open("dumped", "wb").write(b"".join(values.dump(value)))
open("packed", "wb").write(stored.pack(value))
file = io.BytesIO()
EnvelopePickler(file, protocol=5).dump(value)
open("pickled", "wb").write(file.getvalue())
"""
    read = """
import pickle
import subprocess
import sys
from deepflow.intermediates import stored, values
def price(): return -1
class Kept:
    pass
for value in (values.load(open("dumped", "rb").read()), stored.unpack(open("packed", "rb").read()),
              pickle.load(open("pickled", "rb"))):
    print(value["f"](), value["object"].f(), value["frame"]["f"][1](),
          value["frame"].attrs["f"]["deep"][0](), value["class"](1).f)
"""
    told_by = [
        subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for text in (write, read)
    ]
    assert told_by[1].splitlines() == ["42 42 42 42 1"] * 3


# Columns that are sent as their distinct values


@pytest.mark.parametrize(
    "elements",
    [
        ["a", None] * 50,
        [1, True, 1.0, "1"] * 50,
        [0.0, -0.0] * 50,
        ["a", Text("a")] * 50,
        [float("nan"), None, "nan"] * 50,
        [np.float64("nan"), "a"] * 50,
        [pd.NA, pd.NaT, None] * 50,
        [b"a", "a"] * 50,
        [(1,), (True,)] * 50,
        ["é", "e\u0301", "\ud800"] * 50,
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_column_keeps_the_type_and_the_value_of_each_element(
    elements: list[Any], order: Any
) -> None:
    column = np.empty((len(elements) // 2, 2), object, order=order)
    column.ravel(order="K")[:] = elements
    for back in (dumped(column), packed(column), out_of_band(column)):
        flat = back.ravel(order="K").tolist()
        assert list(map(type, flat)) == list(map(type, column.ravel(order="K").tolist()))
        assert list(map(repr, flat)) == list(map(repr, column.ravel(order="K").tolist()))
        assert (back.flags.writeable, back.flags.f_contiguous) == (True, order == "F")


def test_the_same_object_met_twice_arrives_as_one() -> None:
    torch = pytest.importorskip("torch")
    for one in (np.zeros(5), np.zeros(50_000)[::2], torch.zeros(5), torch.eye(3).T, {"a": 1}):
        for go in WAYS.values():
            first, second, inside = go([one, one, {"again": one}])
            assert first is second
            assert inside["again"] is first
