"""How many bytes a value holds, envelopes and containers opened.

The answer is what would move if the value moved: an array view counts its own elements and not the
array it was cut from, a broadcast array its distinct elements, an object that is referenced twice
counts once. It is within 5 % for arrays, frames, bytes, tensors and containers of them.

Cost is bounded. Up to `MAX_NODES` objects are visited, beyond that the rest is extrapolated.
A long container of scalars is sampled: mean size from about `SAMPLE` of them. Where the sample
meets an object twice, the distinct ones are counted, or in a very long container estimated from how
often it did (solving E[u] = D (1 - (1 - 1/D)^k) for D, which takes all as equally frequent).
The standard error is s / sqrt(SAMPLE): 2 % of the scalars' share where sizes vary by half the mean.
All elements' types are looked at (20 ns each, less than 2 % of pickling them), so that one array
among a hundred thousand numbers is found.
No value makes it raise: what cannot be measured counts as its shell, and is counted in `failures`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import itertools
import logging
import sys
import threading
import types
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Protocol, runtime_checkable

from deepflow.intermediates.pickling import class_text

__all__ = ["MAX_NODES", "SAMPLE", "SupportsPayload", "failures", "measure"]

MAX_NODES: Final = 20_000
"""The most objects visited for one answer (about 1 µs each)."""
SAMPLE: Final = 600
"""Scalars looked at in a long container."""
_EXACT_UP_TO: Final = 256
_DISTINCT_EXACT_UP_TO: Final = 200_000

_ENVELOPE_BYTES: Final = 1024
"""A State or ResultRecord without its payload, pickled; not walked, for a batch has hundreds."""

_SHELL_BYTES: Final = 64
_LARGEST_BYTES: Final = 1 << 50

_log = logging.getLogger(__name__)

_SCALARS: Final = frozenset(
    {
        int, float, complex, bool, str, bytes, type(None), decimal.Decimal, uuid.UUID,
        datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
    }
)  # fmt: skip
_FREE: Final = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.GeneratorType, types.CodeType, types.FrameType, logging.Logger, threading.Thread,
)  # fmt: skip
"""Belong to the program and not to the data; their contents are not followed."""

Sizer = Callable[[Any], tuple[int, Iterable[object]]]
"""Bytes of the object alone, and the objects it holds."""


@runtime_checkable
class SupportsPayload(Protocol):
    """An envelope that names what should be measured in its place."""

    def __deepflow_payload__(self) -> object:
        """The thing to measure."""


class _Failures:
    """How many objects could not be measured; each type is logged once."""

    def __init__(self) -> None:
        self.count = 0
        self._names: set[str] = set()

    def record(self, kind: type, error: Exception) -> None:
        self.count += 1
        name = f"{class_text(kind, '__module__')}.{class_text(kind, '__qualname__')}"
        if name not in self._names:
            self._names.add(name)
            _log.warning(
                "cannot measure a %s (%s); it counts as its shell from now on",
                name,
                type(error).__name__,
            )


failures: Final = _Failures()


def measure(value: object, *, max_nodes: int = MAX_NODES) -> int:
    """Bytes that ``value`` holds in memory. Never raises. O(min(objects in it, max_nodes))."""
    total = 0
    seen: set[int] = set()
    keep_alive: list[object] = []  # a freed temporary's id could be taken by another object
    stack: list[tuple[object, float]] = [(value, 1.0)]
    n_nodes = 0
    while stack:
        item, weight = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        keep_alive.append(item)
        n_nodes += 1
        n_bytes, children, factor = _one(item, max_nodes - n_nodes - len(stack))
        total += int(n_bytes * weight)
        weight *= factor
        if n_nodes < max_nodes * 4:  # many short containers: stop following, keep what is there
            stack.extend([(child, weight) for child in children])
    return total


def _one(item: object, budget: int) -> tuple[int, list[object], float]:
    """An object's own bytes, what is to be visited of what it holds, and how many each stands for.

    A failure counts as the shell: foreign properties may raise anything.
    """
    try:
        n_bytes, children = _sizer(type(item))(item)
        factor = 1.0
        if isinstance(children, _Long):
            added, children, factor = children.spread(budget)
            n_bytes += added
        return _bounded(n_bytes), list(children), factor
    except Exception as error:  # noqa: BLE001 - see above
        failures.record(type(item), error)
        return _shell(item), [], 1.0


def _shell(item: object) -> int:
    """Bytes of an object without what it holds; a small guess where it does not say."""
    try:
        return _bounded(sys.getsizeof(item, _SHELL_BYTES))
    except Exception:  # noqa: BLE001 - a foreign __sizeof__ may raise anything
        return _SHELL_BYTES


def _bounded(n_bytes: int) -> int:
    """The number itself where an object can be that large. `ValueError` where none can."""
    if not 0 <= n_bytes <= _LARGEST_BYTES:
        raise ValueError(f"no object has {n_bytes} bytes")
    return n_bytes


class _Long:
    """The elements of a long container, opened by sampling where that is enough."""

    def __init__(self, elements: Collection[object]) -> None:
        self._elements = elements

    def spread(self, budget: int) -> tuple[int, list[object], float]:
        """Bytes known already, elements still to visit, and how many each of those stands for."""
        if _all_scalars(self._elements):
            return _scalars_bytes(self._elements), [], 1.0
        scalars = [element for element in self._elements if type(element) in _SCALARS]
        others = [element for element in self._elements if type(element) not in _SCALARS]
        known = _scalars_bytes(scalars) if scalars else 0
        if len(others) <= budget:
            return known, others, 1.0
        few = others[:: -(-len(others) // max(16, budget))]
        return known, few, len(others) / len(few)


def _all_scalars(elements: Iterable[object]) -> bool:
    return _SCALARS.issuperset(map(type, elements))


def _scalars_bytes(scalars: Collection[object]) -> int:
    """Bytes of these scalars, each object once."""
    n = len(scalars)
    sample = list(itertools.islice(scalars, 0, None, max(1, n // SAMPLE)))
    distinct = {id(scalar): scalar for scalar in sample}
    if len(distinct) < len(sample) and n <= _DISTINCT_EXACT_UP_TO:
        every = dict(zip(map(id, scalars), scalars, strict=True))
        return sum(map(sys.getsizeof, every.values()))
    mean = sum(map(sys.getsizeof, distinct.values())) / len(distinct)
    return int(mean * _distinct_objects(len(distinct), len(sample), n))


def _distinct_objects(n_met: int, n_drawn: int, n: int) -> float:
    """How many distinct objects there are if ``n_drawn`` draws met ``n_met``; at most ``n``."""
    if n_met == n_drawn:
        return n
    low, high = float(n_met), float(n)
    for _ in range(40):
        middle = (low + high) / 2
        expected = middle * (1 - (1 - 1 / max(middle, 1.0000001)) ** n_drawn)
        low, high = (middle, high) if expected < n_met else (low, middle)
    return high


# One sizer for each kind of value


def _scalar(item: object) -> tuple[int, Iterable[object]]:
    return _shell(item), ()


def _buffer(item: memoryview) -> tuple[int, Iterable[object]]:
    return item.nbytes, ()


# Subclasses may iterate, count or name their attributes as they like: what is in the memory of the
# container itself is asked of its built-in base.


def _sequence(base: type[Collection[object]]) -> Sizer:
    def size(item: Collection[object]) -> tuple[int, Iterable[object]]:
        held = _attributes(item)
        elements = item if type(item) is base else list(base.__iter__(item))
        if len(elements) > _EXACT_UP_TO and not held:
            return _shell(item), _Long(elements)  # type: ignore[return-value]
        return _shell(item), [*elements, *held]

    return size


def _mapping(item: dict[object, object]) -> tuple[int, Iterable[object]]:
    keys, contents = dict.keys(item), dict.values(item)
    held = _attributes(item)
    if len(keys) <= _EXACT_UP_TO:
        return _shell(item), [*keys, *contents, *held]
    return _shell(item), [_Elements(keys), _Elements(contents), *held]


def _attributes(item: object) -> list[object]:
    """The values of an object's attributes, its slots not counted."""
    return list((_attribute_dict(item) or {}).values())


def _attribute_dict(item: object) -> dict[str, object] | None:
    """An object's attribute dictionary, None where it has none or it cannot be had."""
    try:
        held = object.__getattribute__(item, "__dict__")
    except Exception:  # noqa: BLE001 - a foreign `__dict__` may be a property that raises
        return None
    return held if type(held) is dict else None


class _Elements:
    """The keys or the values of a long mapping, as a node of their own."""

    def __init__(self, elements: Collection[object]) -> None:
        self.elements = elements


def _elements(item: _Elements) -> tuple[int, Iterable[object]]:
    return 0, _Long(item.elements)  # type: ignore[return-value]


def _distinct_elements(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    n = 1
    for length, stride in zip(shape, strides, strict=True):
        n *= length if stride or not length else 1
    return n


def _numpy(item: Any) -> tuple[int, Iterable[object]]:
    own = _distinct_elements(item.shape, item.strides) * item.itemsize
    shell = 96 + 16 * item.ndim
    if not item.dtype.hasobject:
        return own + shell, _attributes(item)  # a subclass's, such as a mask
    if item.dtype.kind != "O":  # objects inside a record: field by field
        return own + shell, [item[name] for name in item.dtype.names or ()]
    distinct = item[tuple(slice(None) if s else slice(1) for s in item.strides)]
    return own + shell, [_Elements(distinct.ravel().tolist())]


def _pandas(item: Any) -> tuple[int, Iterable[object]]:
    pandas = sys.modules["pandas"]
    if isinstance(item, pandas.MultiIndex):
        return 400 + sum(c.nbytes for c in item.codes), list(item.levels)
    if isinstance(item, pandas.DataFrame):
        own = int(item.memory_usage(index=False, deep=False).sum())
        positions = [i for i, dtype in enumerate(item.dtypes) if _holds_objects(dtype)]
        held = [_Elements(item.iloc[:, i].tolist()) for i in positions]
        return 1200 + own, [*held, item.index]
    if isinstance(item, pandas.Series):
        own = int(item.memory_usage(index=False, deep=False))
        held = [_Elements(item.tolist())] if _holds_objects(item.dtype) else []
        return 600 + own, [*held, item.index]
    own = int(item.memory_usage(deep=False))
    held = [_Elements(item.tolist())] if _holds_objects(item.dtype) else []
    return 400 + own, held


def _holds_objects(dtype: Any) -> bool:
    return getattr(dtype, "hasobject", False) or getattr(dtype, "storage", None) == "python"


def _nbytes(item: Any) -> tuple[int, Iterable[object]]:
    return int(item.nbytes) + 200, ()


def _arrow_array(item: Any) -> tuple[int, Iterable[object]]:
    return int(item.get_total_buffer_size()) + 200, ()  # pickled with its whole buffers


def _arrow_buffer(item: Any) -> tuple[int, Iterable[object]]:
    return int(item.size) + 64, ()


_TENSOR_BYTES: Final = 200
"""A tensor without its elements."""


def _torch(item: Any) -> tuple[int, Iterable[object]]:
    held = _attributes(item)
    if item.is_leaf and item.grad is not None:
        held.append(item.grad)
    layout = str(item.layout)
    if item.is_meta:
        return _TENSOR_BYTES, held
    if layout == "torch.sparse_coo":
        return _TENSOR_BYTES, [item._indices(), item._values(), *held]
    if layout in ("torch.sparse_csr", "torch.sparse_bsr"):
        parts = [item.crow_indices(), item.col_indices(), item.values()]
        return _TENSOR_BYTES, [*parts, *held]
    if layout in ("torch.sparse_csc", "torch.sparse_bsc"):
        parts = [item.ccol_indices(), item.row_indices(), item.values()]
        return _TENSOR_BYTES, [*parts, *held]
    if layout != "torch.strided" or item.is_nested:
        return _TENSOR_BYTES + item.numel() * item.element_size(), held
    n = _distinct_elements(tuple(item.shape), item.stride())
    return _TENSOR_BYTES + n * item.element_size(), held


def _torch_storage(item: Any) -> tuple[int, Iterable[object]]:
    return int(item.nbytes()) + 64, ()


def _polars(item: Any) -> tuple[int, Iterable[object]]:
    return int(item.estimated_size()) + 200, ()


def _prefect_state(item: Any) -> tuple[int, Iterable[object]]:
    return _ENVELOPE_BYTES, [item.data]


def _prefect_record(item: Any) -> tuple[int, Iterable[object]]:
    return _ENVELOPE_BYTES, [item.result]


def _payload(item: SupportsPayload) -> tuple[int, Iterable[object]]:
    return _shell(item), [item.__deepflow_payload__()]


def _slotted(item: Any) -> tuple[int, Iterable[object]]:
    """Any other object: its shell, its attributes, and what pydantic keeps beside them."""
    held: list[object] = []
    attributes = _attribute_dict(item)
    if attributes is not None:
        held.append(attributes)
    for cls in type(item).__mro__:
        for name, slot in vars(cls).items() if "__slots__" in vars(cls) else ():
            if type(slot) is types.MemberDescriptorType and name != "__pydantic_fields_set__":
                with contextlib.suppress(AttributeError):  # nothing was put there
                    held.append(slot.__get__(item))
    if dataclasses.is_dataclass(item) or held:
        return _shell(item), held
    nbytes = getattr(item, "nbytes", None)  # an array of a kind not known here
    return _shell(item) + (nbytes if isinstance(nbytes, int) else 0), ()


_BY_NAME: Final[dict[tuple[str, str], Sizer]] = {
    ("prefect", "State"): _prefect_state,
    ("prefect", "ResultRecord"): _prefect_record,
    ("numpy", "ndarray"): _numpy,
    ("numpy", "generic"): _scalar,
    ("pandas", "DataFrame"): _pandas,
    ("pandas", "Series"): _pandas,
    ("pandas", "Index"): _pandas,
    ("pyarrow", "Table"): _nbytes,
    ("pyarrow", "RecordBatch"): _nbytes,
    ("pyarrow", "Array"): _arrow_array,
    ("pyarrow", "ChunkedArray"): _arrow_array,
    ("pyarrow", "Buffer"): _arrow_buffer,
    ("torch", "Tensor"): _torch,
    ("torch", "UntypedStorage"): _torch_storage,
    ("torch", "TypedStorage"): _torch_storage,
    ("polars", "DataFrame"): _polars,
    ("polars", "Series"): _polars,
    ("cupy", "ndarray"): _nbytes,
}
_SEQUENCES: Final = {base: _sequence(base) for base in (list, tuple, set, frozenset, deque)}
_sizers: Final[dict[type, Sizer]] = {_Elements: _elements}
_MAX_KNOWN_TYPES: Final = 10_000  # tasks may make types as they run


def _sizer(kind: type) -> Sizer:
    """How to measure objects of a type; found once for each type."""
    known = _sizers.get(kind)
    if known is None:
        known = _find_sizer(kind)
        if len(_sizers) < _MAX_KNOWN_TYPES:
            _sizers[kind] = known
    return known


def _find_sizer(kind: type) -> Sizer:
    if hasattr(kind, "__deepflow_payload__"):
        return _payload
    for cls in kind.__mro__:
        sizer = _BY_NAME.get(
            (class_text(cls, "__module__").partition(".")[0], class_text(cls, "__name__"))
        )
        if sizer is not None:
            return sizer
    if issubclass(kind, memoryview):
        return _buffer
    if kind in _SCALARS or issubclass(kind, (bytearray, *_FREE)):
        return _scalar
    if issubclass(kind, dict):
        return _mapping
    for base, sizer in _SEQUENCES.items():
        if base in kind.__mro__:
            return sizer
    return _slotted
