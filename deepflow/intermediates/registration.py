"""Makes Dask see into envelopes: the size of Prefect's and ours, and the frames ours travel as.

Every process that holds results calls `register`:
worker plugin, driver, preload. Prefect's own types are registered when Dask first meets one of
them, so Prefect is not imported here.

Frames: pickle protocol 5 already sends contiguous arrays, frames and Arrow tables as buffers of
their own, without a copy. What it does not is added: tensors, strided and broadcast arrays, and
long `bytes` and `bytearray` that are the result itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, Final

from dask.sizeof import sizeof
from distributed.protocol.serialize import dask_deserialize, dask_serialize, pickle_loads

from deepflow.intermediates import sizes
from deepflow.intermediates.pickling import LARGE_BYTES, EnvelopePickler

__all__ = ["LARGE_BYTES", "register"]

_PREFECT_ENVELOPES: Final = (
    ("prefect.client.schemas.objects", "State"),
    ("prefect.results", "ResultRecord"),
)
_registered: set[object] = set()

Header = dict[str, Any]
Frames = list[Any]


def register(*envelopes: type) -> None:
    """Let this process's Dask see the size of Prefect's values, and send `envelopes` as frames.

    Idempotent. Types with ``__deepflow_payload__`` are measured by their payload without being
    given here. Who receives an envelope must have registered it too, so Prefect's own types are
    left to pickle: other programs on the same cluster exchange them as well.
    """
    if "prefect" not in _registered:
        _registered.add("prefect")
        sizeof.register_lazy("prefect", _register_prefect)
        _measure_payloads(sizeof.dispatch(object))
    for envelope in envelopes:
        if envelope not in _registered:
            _registered.add(envelope)
            sizeof.register(envelope, sizes.measure)
            dask_serialize.register(envelope, _to_frames)
            dask_deserialize.register(envelope, _from_frames)


def _register_prefect() -> None:
    from importlib import import_module

    for module, name in _PREFECT_ENVELOPES:
        sizeof.register(getattr(import_module(module), name), sizes.measure)


def _measure_payloads(default: Callable[[object], int]) -> None:
    """Let Dask's default, for objects that say what their payload is, measure that."""

    def size(value: object) -> int:
        if hasattr(type(value), "__deepflow_payload__"):
            return sizes.measure(value)
        return default(value)

    sizeof.register(object, size)


def _to_frames(envelope: object) -> tuple[Header, Frames]:
    """A pickle and the buffers it refers to; large data is not copied."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        EnvelopePickler(file, protocol=5, buffer_callback=buffers.append).dump(envelope)
    except Exception as exc:
        # Dask takes only this error as "try the next way", which is plain pickle; any other one
        # would reach the receiver in place of the value.
        raise NotImplementedError(f"{type(envelope).__name__} cannot travel as frames") from exc
    views = [memoryview(buffer) for buffer in buffers]
    header = {"writeable": tuple(not view.readonly for view in views)}
    return header, [file.getbuffer(), *views]


def _from_frames(header: Header, frames: Frames) -> object:
    return pickle_loads(header, frames)
