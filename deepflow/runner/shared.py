"""Large arguments travel once.

What is large (an array, a table, a tensor, bytes) is replaced in a call's pickle by a reference
to a value that is scattered to the cluster once. The same content is recognised by its hash, so
that an array changed between two calls is a new value, and passing it to a thousand calls sends it
once without anybody calling `scatter`.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from deepflow.runner.items import SharedArgument

if TYPE_CHECKING:
    from distributed import Client

_KEEP = 4

_SIZES: dict[str, str] = {
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
_kinds: dict[type, str | None] = {bytes: "len", bytearray: "len"}


def large_size(value: Any, threshold_bytes: int) -> int:
    """Bytes of `value` if it is of a kind that is shared and at least the threshold, else 0."""
    kind_of = type(value)
    try:
        kind = _kinds[kind_of]
    except KeyError:
        kind = _kinds[kind_of] = _SIZES.get(f"{kind_of.__module__}.{kind_of.__qualname__}")
    if kind is None:
        return 0
    if kind == "len":
        size = len(value)
    elif kind == "memory_usage":
        usage = value.memory_usage(deep=False)
        size = int(usage.sum() if hasattr(usage, "sum") else usage)
    elif kind == "estimated_size":
        size = int(value.estimated_size())
    else:
        if getattr(getattr(value, "dtype", None), "hasobject", False):
            return 0  # an array of Python objects: its pickle may hold futures
        size = int(value.nbytes)
    return size if size >= threshold_bytes else 0


class SharedArguments:
    """The large arguments that are on the cluster, by content."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, SharedArgument] = WeakValueDictionary()
        # The last few are kept even when no run needs them just now: a loop that submits and
        # waits would otherwise send its array anew each time.
        self._recent: OrderedDict[bytes, SharedArgument] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, value: Any, n_bytes: int, client: Client) -> SharedArgument:
        """The shared argument with this content, on the cluster when this returns.

        Hashes `value` (about 1 ms per MB). It is sent before the call that passes it returns, for
        the caller may change its array right after.
        """
        digest = content_digest(value)
        with self._lock:
            shared = self._known.get(digest)
            if shared is None:
                shared = self._known[digest] = SharedArgument(
                    value, n_bytes, digest, partial(content_digest, value)
                )
            shared.future(client)
            self._recent[digest] = shared
            self._recent.move_to_end(digest)
            while len(self._recent) > _KEEP:
                self._recent.popitem(last=False)
            return shared


def content_digest(value: Any) -> bytes:
    """Hash of a value's pickle, its buffers included."""
    state = hashlib.blake2b(digest_size=16)
    buffers: list[pickle.PickleBuffer] = []
    state.update(pickle.dumps(value, protocol=5, buffer_callback=buffers.append))
    for buffer in buffers:
        state.update(buffer.raw())
    return state.digest()
