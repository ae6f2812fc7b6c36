"""One pickle for every value: protocol 5, with large data out of band where the caller wants that.

A value that comes out of an `EnvelopePickler` is what plain cloudpickle would have made of it, in
band and out of band, small and large. What cannot be imported (a lambda, a local class, anything of
``__main__``) goes by value. Pickle already hands out contiguous arrays, frames and Arrow tables as
buffers, without a copy. This module adds:

- arrays of numpy with gaps, and broadcast ones, as one buffer of their distinct elements. They
  arrive as numpy's own pickle makes them, contiguous and writable, but keep their byte order.
- tensors of torch, as one buffer of the memory that they span, whatever their dtype. torch's own
  pickle copies the whole storage twice, and cannot read back the dtypes it got last (uint16,
  float8). Strides, attributes, conjugation, `requires_grad` and `.grad` arrive as they were.
- slices of Arrow arrays and tables without what they were cut from.
- `bytes` and `bytearray` that are the value itself, or the payload of a Prefect envelope.

Flags: a contiguous array of numpy that is read-only stays read-only; any other array arrives
writable, as with pickle. Not kept, as with pickle: hooks of tensors, autograd history (a tensor
with history arrives as a leaf with the same `requires_grad`), and memory shared by two tensors or
arrays of one value. A tensor with elements arrives on memory that torch cannot make larger, so that
`resize_` beyond it raises.

What one of these reducers cannot take goes the ordinary way, and is counted in `fallbacks`. Stored
results refer to the functions here that make a value from its buffers (`_tensor`, `_broadcast`,
and so on): their names and parameters stay.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import cloudpickle

__all__ = [
    "LARGE_BYTES",
    "EnvelopePickler",
    "Fallbacks",
    "LargeBytes",
    "fallbacks",
    "cached_by_type",
    "class_text",
    "reducer_of",
    "standing_for",
]

LARGE_BYTES: Final = 65_536
"""Byte strings from this length on are sent as a frame of their own."""

_log = logging.getLogger(__name__)

Reducer = Callable[[Any], Any]
T = TypeVar("T")


class Fallbacks:
    """How many objects went the ordinary way because a reducer failed; each type is logged once.

    ``on_fallback`` is called for each: whoever has metrics sets it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.on_fallback: Callable[[], object] = lambda: None
        self._names: set[str] = set()

    def record(self, kind: type, error: Exception) -> None:
        """Note that an object of this type was left to cloudpickle."""
        self.count += 1
        self.on_fallback()
        name = f"{class_text(kind, '__module__')}.{class_text(kind, '__qualname__')}"
        if name not in self._names:
            self._names.add(name)
            _log.warning(
                "a %s is pickled the ordinary way from now on (%s)", name, type(error).__name__
            )


fallbacks: Final = Fallbacks()


def standing_for(value: object) -> object:
    """What to pickle in place of `value`, so that long bytes are a buffer of their own."""
    if type(value) in (bytes, bytearray) and len(value) >= LARGE_BYTES:  # type: ignore[arg-type]
        return LargeBytes(value)  # type: ignore[arg-type]
    return value


class EnvelopePickler(cloudpickle.Pickler):
    """Pickles as cloudpickle does, and large data of more kinds out of band."""

    def reducer_override(self, obj: Any) -> Any:
        """Called for every object of no built-in type; NotImplemented leaves it to cloudpickle."""
        reduce = reducer_of(type(obj))
        if reduce is not None:
            reduced = self.attempt(reduce, obj)
            if reduced is not NotImplemented:
                return reduced
        return super().reducer_override(obj)

    @staticmethod
    def attempt(reduce: Reducer, obj: Any) -> Any:
        """What `reduce` makes of an object; NotImplemented, counted, where it raises."""
        try:
            return reduce(obj)
        except Exception as error:  # noqa: BLE001 - it may run the user's code
            fallbacks.record(type(obj), error)
            return NotImplemented


class LargeBytes:
    """Stands in a pickle for bytes that travel as a buffer of their own."""

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Any, ...]:
        make = _bytes_of if type(self._content) is bytes else bytearray
        return make, (pickle.PickleBuffer(self._content),)


def _bytes_of(buffer: Any) -> bytes:
    """A buffer as bytes: the very object that it is a view of where it is a view of all of one."""
    if type(buffer) is bytes:
        return buffer
    if type(buffer) is memoryview:
        whole = buffer.obj
        if type(whole) is bytes and len(whole) == buffer.nbytes and buffer.c_contiguous:
            return whole
    return bytes(buffer)


# Which reducer a type has


def cached_by_type(find: Callable[[type], T]) -> Callable[[type], T]:
    """`find`, asked once for each type; a type that is kept here may still be freed."""
    known: weakref.WeakKeyDictionary[type, T] = weakref.WeakKeyDictionary()

    def found(kind: type) -> T:
        try:
            return known[kind]
        except KeyError:
            answer = known[kind] = find(kind)
            return answer
        except Exception:  # noqa: BLE001 - a metaclass may raise anything when it is hashed
            return find(kind)

    return found


@cached_by_type
def reducer_of(kind: type) -> Reducer | None:
    """What reduces objects of this type; None leaves it to cloudpickle.

    Types are known by name. Looking into a library's module for its types would fail while another
    thread is in the middle of importing it, which happens on a worker: one task imports torch while
    another one's result is being sent.
    """
    for cls in type.__dict__["__mro__"].__get__(kind):
        module, name = class_text(cls, "__module__"), class_text(cls, "__name__")
        room = module.partition(".")[0]
        reducer = _REDUCERS.get((room, name.partition("[")[0]))
        if reducer is not None and (cls is kind or room in _WITH_SUBCLASSES):
            return reducer
    return None


def class_text(cls: type, name: str) -> str:
    """A class's own name or module, without running a metaclass's code; '' where it has none."""
    with contextlib.suppress(Exception):
        found = type.__getattribute__(cls, name)
        if type(found) is str:
            return found
    return ""


# numpy


def _reduce_array(array: Any) -> Any:
    """Arrays with gaps as a contiguous copy, broadcast ones as their distinct elements."""
    import numpy

    if array.flags.c_contiguous or array.flags.f_contiguous:
        return NotImplemented

    by_stride = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    if array.transpose(by_stride).flags.c_contiguous or array.dtype.hasobject:
        return NotImplemented
    if 0 in array.strides:
        distinct = array[tuple(slice(None) if s else slice(1) for s in array.strides)]
        return _broadcast, (numpy.array(distinct, order="C"), array.shape)
    return numpy.asarray, (numpy.ascontiguousarray(array),)


def _broadcast(distinct: Any, shape: tuple[int, ...]) -> Any:
    """A whole array of its own, as numpy's pickle makes of a broadcast one."""
    import numpy

    return numpy.array(numpy.broadcast_to(distinct, shape), order="C")


# pyarrow


def _reduce_arrow(array: Any) -> Any:
    """A slice as an IPC stream, since pickle would send the whole array it was cut from.

    Tables and chunked arrays pickle their chunks, so their slices come here, too.
    """
    import pyarrow as arrow

    if array.get_total_buffer_size() <= 1.05 * array.nbytes + LARGE_BYTES:
        return NotImplemented
    if _holds_extensions(arrow, array.type):
        return NotImplemented  # a stream's reader knows registered types only
    sink = arrow.BufferOutputStream()
    batch = arrow.RecordBatch.from_arrays([array], ["slice"])
    with arrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return _arrow_slice, (sink.getvalue(),)


def _holds_extensions(arrow: Any, kind: Any) -> bool:
    if isinstance(kind, arrow.BaseExtensionType):
        return True
    if isinstance(kind, arrow.DictionaryType):
        return _holds_extensions(arrow, kind.value_type)
    return any(_holds_extensions(arrow, kind.field(i).type) for i in range(kind.num_fields))


def _arrow_slice(stream: Any) -> Any:
    import pyarrow

    with pyarrow.ipc.open_stream(stream) as reader:
        return reader.read_next_batch().column(0)


# torch. A tensor's own reduction says what it is made of; only its storage is replaced.


def _reduce_tensor(tensor: Any) -> Any:
    """Any tensor: torch's own reduction, with the memory that it spans as a buffer."""
    import torch

    make, arguments, *rest = tensor.__reduce_ex__(5)
    make, arguments = _with_spans(torch, make, arguments)
    with torch._C.DisableTorchFunctionSubclass():
        layout = tensor.layout
        grad = tensor.grad if tensor.is_leaf else None
        requires_grad = tensor.requires_grad
    sparse_grad = requires_grad and layout is not torch.strided
    if rest or not (sparse_grad or grad is not None):
        return (make, arguments, *rest)
    return make, arguments, (requires_grad, grad), None, None, _set_grad


def _with_spans(torch: Any, make: Any, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A reduction of torch's with buffers in place of storages, where it is known how."""
    utils = torch._utils
    if make is torch._tensor._rebuild_from_type_v2:
        inner, kind, inner_arguments, state = arguments
        inner, inner_arguments = _with_spans(torch, inner, inner_arguments)
        return make, (inner, kind, inner_arguments, state)
    if make is utils._rebuild_sparse_tensor:
        return _sparse_tensor, arguments
    if make is utils._rebuild_tensor_v2:
        storage, offset, size, stride, requires_grad, _hooks, *metadata = arguments
        dtype = storage.dtype
    elif make is utils._rebuild_tensor_v3:
        storage, offset, size, stride, requires_grad, _hooks, dtype, *metadata = arguments
    else:
        return make, arguments
    untyped = getattr(storage, "_untyped_storage", storage)
    if untyped.device.type != "cpu" or (untyped.nbytes() and not untyped.data_ptr()):
        return make, arguments
    memory = _memory(torch, untyped, dtype, offset, size, stride)
    return _tensor, (*memory, dtype, tuple(size), tuple(stride), requires_grad, *metadata)


def _memory(
    torch: Any, storage: Any, dtype: Any, offset: int, size: Sequence[int], stride: Sequence[int]
) -> tuple[pickle.PickleBuffer | None, tuple[int, ...] | None]:
    """The memory of a tensor as a buffer, and None or the shape of its distinct elements.

    Memory without many holes is taken as it is, not copied. Of a tensor with holes (every hundredth
    column) the distinct elements are copied together.
    """
    if 0 in size:
        return None, None
    distinct = tuple(n if s else 1 for n, s in zip(size, stride, strict=True))
    span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    is_packed = span <= 1.25 * _product(distinct) or _overlaps(distinct, stride)
    item_bytes = dtype.itemsize
    if is_packed:
        carrier = getattr(torch, _CARRIERS.get(str(dtype), _BY_ITEM_BYTES.get(item_bytes, "uint8")))
        per_item = item_bytes // carrier.itemsize
        flat = torch.empty(0, dtype=carrier, device="cpu")
        flat.set_(storage, offset * per_item, (span * per_item,), (1,))
        return pickle.PickleBuffer(flat.numpy()), None
    # Without conjugation and negation: those are said beside.
    holey = torch.empty(0, dtype=dtype, device="cpu").set_(storage, offset, distinct, tuple(stride))
    whole = holey.contiguous()
    return _memory(torch, whole.untyped_storage(), dtype, 0, distinct, whole.stride())[0], distinct


def _product(numbers: Sequence[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def _overlaps(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether two elements may lie at one place, as in sliding windows."""
    reach = 0
    for step, n in sorted(zip(stride, size, strict=True)):
        if n > 1:
            if step <= reach:
                return True
            reach += (n - 1) * step
    return False


_CARRIERS: Final = {
    f"torch.{name}": carrier
    for name, carrier in {
        **{same: same for same in ("float16", "float32", "float64", "int16", "int32", "int64")},
        "complex32": "float16",
        "complex64": "float32",
        "complex128": "float64",
    }.items()
}
"""The dtype of numpy's that a buffer is given, so that a codec knows its elements."""
_BY_ITEM_BYTES: Final = {2: "int16", 4: "int32", 8: "int64"}


def _storage(buffer: Any, item_bytes: int = 1) -> Any:
    """A storage on top of a buffer; what is read-only, or begins between elements, is copied."""
    import torch

    if buffer is None:
        return torch.UntypedStorage(0)
    octets = memoryview(buffer)
    if octets.readonly:
        octets = memoryview(bytearray(octets))
    octets = octets.cast("B") if octets.nbytes else octets
    flat = torch.frombuffer(octets, dtype=torch.uint8)
    if flat.data_ptr() % min(item_bytes, 8):
        flat = flat.clone()
    return flat.untyped_storage()


def _tensor(
    buffer: Any,
    distinct: tuple[int, ...] | None,
    dtype: Any,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    metadata: Any = None,
) -> Any:
    """The tensor of a buffer, see `_memory`; made on top of it where it has no holes."""
    import torch

    nothing = torch.empty(0, dtype=dtype, device="cpu")
    storage = _storage(buffer, dtype.itemsize)
    if distinct is not None:
        packed = nothing.clone().set_(storage).reshape(distinct)
        span = 1 + sum((n - 1) * s for n, s in zip(distinct, stride, strict=True))
        octets = torch.zeros(span * dtype.itemsize, dtype=torch.uint8, device="cpu")
        storage = octets.untyped_storage()
        nothing.clone().set_(storage, 0, distinct, stride).copy_(packed)
    tensor = nothing.set_(storage, 0, size, stride)
    if metadata:
        torch._utils.set_tensor_metadata(tensor, metadata)
    return tensor.requires_grad_() if requires_grad else tensor


def _sparse_tensor(layout: Any, made_of: tuple[Any, ...]) -> Any:
    """As torch's own, which keeps every sparse tensor alive until a file is loaded."""
    import torch

    if layout is torch.sparse_coo:
        indices, values, size, *coalesced = made_of
        is_coalesced = coalesced[0] if coalesced else None
        return torch.sparse_coo_tensor(
            indices, values.detach(), size, check_invariants=False, is_coalesced=is_coalesced
        )
    compressed, plain, values, size = made_of
    return torch.sparse_compressed_tensor(
        compressed, plain, values.detach(), size, layout=layout, check_invariants=False
    )


def _set_grad(tensor: Any, state: tuple[bool, Any]) -> None:
    requires_grad, grad = state
    if requires_grad and not tensor.requires_grad:
        tensor.requires_grad_()
    if grad is not None:
        tensor.grad = grad


def _reduce_storage(storage: Any) -> Any:
    """A storage in this machine's memory as one buffer."""
    import torch

    untyped = getattr(storage, "_untyped_storage", storage)
    n_bytes = untyped.nbytes()
    if untyped.device.type != "cpu" or (n_bytes and not untyped.data_ptr()):
        return NotImplemented
    dtype = storage.dtype if untyped is not storage else torch.uint8
    n = n_bytes // dtype.itemsize
    if n * dtype.itemsize != n_bytes:
        return NotImplemented
    buffer, _ = _memory(torch, untyped, dtype, 0, (n,), (1,))
    if untyped is storage:
        return _storage, (buffer,)
    return _typed_storage, (buffer, dtype)


def _typed_storage(buffer: Any, dtype: Any) -> Any:
    import torch

    # torch warns of this type unless it is told that the caller knows.
    return torch.storage.TypedStorage(
        wrap_storage=_storage(buffer, dtype.itemsize), dtype=dtype, _internal=True
    )


# Prefect


def _reduce_state(state: Any) -> Any:
    return _reduce_prefect(state, "data")


def _reduce_record(record: Any) -> Any:
    return _reduce_prefect(record, "result")


def _reduce_prefect(envelope: Any, field: str) -> Any:
    """A Prefect envelope as always, but with long bytes that are its payload out of band."""
    payload = envelope.__dict__.get(field)
    if type(payload) not in (bytes, bytearray) or len(payload) < LARGE_BYTES:
        return NotImplemented
    make, arguments, state, *rest = envelope.__reduce_ex__(5)
    contents = {**state["__dict__"], field: LargeBytes(payload)}
    return make, arguments, {**state, "__dict__": contents}, *rest


_REDUCERS: Final[dict[tuple[str, str], Reducer]] = {
    ("numpy", "ndarray"): _reduce_array,
    ("torch", "Tensor"): _reduce_tensor,
    ("torch", "UntypedStorage"): _reduce_storage,
    ("torch", "TypedStorage"): _reduce_storage,
    ("pyarrow", "Array"): _reduce_arrow,
    ("prefect", "State"): _reduce_state,
    ("prefect", "ResultRecord"): _reduce_record,
}
_WITH_SUBCLASSES: Final = frozenset(["torch", "pyarrow"])
"""Libraries whose reducers suit subclasses, too."""
