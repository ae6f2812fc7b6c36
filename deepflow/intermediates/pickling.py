"""Pickle protocol 5 with large data out of band: what Dask's frames and ours are made from.

Pickle already hands out contiguous arrays, frames and Arrow tables as buffers of their own, without
a copy. What it does not is added: tensors, strided and broadcast arrays, and long `bytes` and
`bytearray` that are the result itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final

import cloudpickle

__all__ = ["LARGE_BYTES", "EnvelopePickler", "LargeBytes"]

LARGE_BYTES: Final = 65_536
"""Byte strings from this length on are sent as a frame of their own."""


class EnvelopePickler(cloudpickle.Pickler):
    """Pickles by value what cannot be imported, and large data out of band."""

    def reducer_override(self, obj: Any) -> Any:
        """Called for every object of no built-in type; NotImplemented leaves it to cloudpickle."""
        kind = type(obj)
        reduce = _reducer_of(kind)
        if reduce is not None:
            return reduce(obj)
        module, name = kind.__module__.partition(".")[0], kind.__name__.partition("[")[0]
        if module == "prefect" and name in ("State", "ResultRecord"):
            return _reduce_prefect(obj, "data" if name == "State" else "result")
        return super().reducer_override(obj)


_REDUCERS: Final[dict[tuple[str, str], str]] = {
    ("numpy", "ndarray"): "_reduce_array",
    ("torch", "Tensor"): "_reduce_tensor",
    ("torch", "Parameter"): "_reduce_tensor",
    ("pyarrow", "Table"): "_reduce_arrow",
    ("pyarrow", "RecordBatch"): "_reduce_arrow",
}


def _reducer_of(kind: type) -> Callable[[Any], Any] | None:
    """What reduces objects of exactly this type; types are known by name.

    Looking into a library's module for its types instead would fail while another thread is in
    the middle of importing it, which happens on a worker: one task imports torch while another
    one's result is being sent.
    """
    name = _REDUCERS.get((kind.__module__.partition(".")[0], kind.__name__))
    if name is None:
        return None
    reducer: Callable[[Any], Any] = globals()[name]
    return reducer


def _reduce_array(array: Any) -> Any:
    """Strided arrays as a contiguous copy, broadcast ones as their distinct elements."""
    import numpy

    if array.flags.c_contiguous or array.flags.f_contiguous or array.dtype.hasobject:
        return NotImplemented
    if 0 in array.strides:
        distinct = array[tuple(slice(None) if s else slice(1) for s in array.strides)]
        return numpy.broadcast_to, (numpy.ascontiguousarray(distinct), array.shape)
    return numpy.asarray, (numpy.ascontiguousarray(array),)


def _reduce_arrow(table: Any) -> Any:
    """A slice as an IPC stream, since pickle would send the whole table it was cut from."""
    import pyarrow as arrow

    if table.get_total_buffer_size() <= 1.05 * table.nbytes + LARGE_BYTES:
        return NotImplemented
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return _arrow_slice, (sink.getvalue(), isinstance(table, arrow.RecordBatch))


def _arrow_slice(stream: Any, is_batch: bool) -> Any:
    import pyarrow

    with pyarrow.ipc.open_stream(stream) as reader:
        return reader.read_next_batch() if is_batch else reader.read_all()


_AS_IN_NUMPY: Final = frozenset(["float16", "float32", "float64", "int16", "int32", "int64"])


def _reduce_tensor(tensor: Any) -> Any:
    """Plain tensors in this machine's memory as numpy arrays, the others as torch does."""
    import torch

    plain = (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.grad is None
        and (tensor.is_leaf or not tensor.requires_grad)
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
        and not tensor.__dict__
        and tensor._backward_hooks is None
        and tensor.numel() > 0
        and not _is_rearranged(tensor)
    )
    if not plain:
        return NotImplemented
    flat = tensor.detach()
    if not flat.is_contiguous():
        flat = flat.contiguous()
    flat = flat.reshape(-1)
    if tensor.dtype is torch.bfloat16:  # has no numpy type
        flat = flat.view(torch.int16)
    elif str(tensor.dtype).removeprefix("torch.") not in _AS_IN_NUMPY:
        flat = flat.view(torch.uint8)
    octets = flat.numpy()
    is_parameter = type(tensor) is torch.nn.Parameter
    return _tensor, (octets, tensor.dtype, tuple(tensor.shape), tensor.requires_grad, is_parameter)


def _is_rearranged(tensor: Any) -> bool:
    """Whether a contiguous copy would lose a memory format, or blow up an expanded tensor."""
    whole = tensor.untyped_storage().nbytes() <= tensor.nbytes
    return not tensor.is_contiguous() and (whole or 0 in tensor.stride())


def _tensor(
    octets: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool, is_parameter: bool
) -> Any:
    import torch

    plain = torch.from_numpy(octets).view(dtype).reshape(shape)
    if is_parameter:
        return torch.nn.Parameter(plain, requires_grad=requires_grad)
    return plain.requires_grad_(requires_grad)


class LargeBytes:
    """Stands in a pickle for bytes that travel as a frame of their own."""

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._content), (pickle.PickleBuffer(self._content),)


def _reduce_prefect(envelope: Any, field: str) -> Any:
    """A Prefect envelope as always, but with long bytes that are its payload out of band."""
    payload = envelope.__dict__.get(field)
    if type(payload) not in (bytes, bytearray) or len(payload) < LARGE_BYTES:
        return NotImplemented
    make, arguments, state, *rest = envelope.__reduce_ex__(5)
    contents = {**state["__dict__"], field: LargeBytes(payload)}
    return make, arguments, {**state, "__dict__": contents}, *rest
