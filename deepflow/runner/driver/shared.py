"""Large arguments travel once.

What is large (an array, a table, a tensor, bytes) is replaced in a call's pickle by a reference
to its parcel, which is put on the cluster once; each run opens it anew. The same content is
recognised by its hash, so that an array changed between two calls is a new value, and passing it
to a thousand calls sends it once without anybody calling `scatter`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from deepflow.intermediates.parcel import Parcel
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.items import SharedArgument

if TYPE_CHECKING:
    from distributed import Client

_KEEP = 4

_SIZES: dict[str, str] = {
    "builtins.bytes": "len",
    "builtins.bytearray": "len",
    "numpy.ndarray": "nbytes",
    "pyarrow.lib.Table": "nbytes",
    "pyarrow.lib.RecordBatch": "nbytes",
    "torch.Tensor": "nbytes",
    "polars.dataframe.frame.DataFrame": "estimated_size",
    "pandas.DataFrame": "memory_usage",
    "pandas.Series": "memory_usage",
    "pandas.core.frame.DataFrame": "memory_usage",
    "pandas.core.series.Series": "memory_usage",
}


def is_shared_kind(kind: type) -> bool:
    """Whether objects of this type are shared if they are large."""
    return _measure_of(kind) is not None


def _measure_of(kind: type) -> str | None:
    return _SIZES.get(f"{kind.__module__}.{kind.__qualname__}")


def large_size(value: Any, threshold_bytes: int) -> int:
    """Bytes of `value` if it is of a kind that is shared and at least the threshold, else 0."""
    measure = _measure_of(type(value))
    if measure is None:
        return 0
    try:
        size = _size(value, measure)
    except Exception:  # noqa: BLE001 - such as sparse tensors: they go with the call
        fell_back(Fallback.ARGUMENT_NOT_SHAREABLE)
        return 0
    return size if size >= threshold_bytes else 0


def _size(value: Any, measure: str) -> int:
    if measure == "len":
        return len(value)
    if measure == "memory_usage":
        usage = value.memory_usage(deep=False)
        return int(usage.sum() if hasattr(usage, "sum") else usage)
    if measure == "estimated_size":
        return int(value.estimated_size())
    if getattr(getattr(value, "dtype", None), "hasobject", False):
        return 0  # an array of Python objects: its pickle may hold futures
    return int(value.nbytes)


class SharedArguments:
    """The large arguments that are on the cluster, by content."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, SharedArgument] = WeakValueDictionary()
        # The last few are kept even when no run needs them just now: a loop that submits and
        # waits would otherwise send its array anew each time.
        self._recent: OrderedDict[bytes, SharedArgument] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, value: Any, parcel: Parcel, client: Client) -> SharedArgument:
        """The shared argument with this content, on the cluster when this returns.

        Hashes `parcel`, which is `value` taken apart (about 1 ms per MB). It is sent before the
        call that passes it returns, for the caller may change its array right after.
        """
        digest = content_digest(parcel)
        with self._lock:
            shared = self._known.get(digest)
            if shared is None:
                shared = self._known[digest] = SharedArgument(
                    value, parcel, digest, lambda: content_digest(Parcel.of(value))
                )
            shared.put(client)
            self._recent[digest] = shared
            self._recent.move_to_end(digest)
            while len(self._recent) > _KEEP:
                self._recent.popitem(last=False)
            return shared


def content_digest(parcel: Parcel) -> bytes:
    """Hash of a value's pickle, its buffers included."""
    state = hashlib.blake2b(digest_size=16)
    state.update(parcel.pickled)
    for buffer, is_readonly in zip(parcel.buffers, parcel.readonly, strict=True):
        state.update(b"r" if is_readonly else b"w")
        state.update(buffer)
    return state.digest()
