"""A cache policy whose key is made of content that is known already: `CONTENT`.

Prefect's `INPUTS` pickles and hashes every input of every call. A result that was persisted has the
digest of its stored bytes; an input that is such a result is represented by that.
"""

from __future__ import annotations

import sys
import threading
import weakref
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prefect.cache_policies import CachePolicy, Inputs
from prefect.context import TaskRunContext

__all__ = ["CONTENT", "Content"]


class _Addressed(NamedTuple):
    """What is known of one live object."""

    alive: weakref.ref[Any]
    address: str
    sum: int


_known: dict[int, _Addressed] = {}
_lock = threading.Lock()


def remember(value: Any, address: str) -> None:
    """Note that `value` is what was stored under `address`, for as long as it lives unchanged.

    Only arrays of numpy are noted: of them it is cheap to see later that nobody has changed them.
    """
    if not _is_plain_array(value):
        return
    key = id(value)

    def forget(gone: weakref.ref[Any]) -> None:
        # No lock: this may run while the lock is held, wherever memory is collected.
        if (one := _known.get(key)) is not None and one.alive is gone:
            _known.pop(key, None)

    noted = _Addressed(weakref.ref(value, forget), address, _sum(value))
    with _lock:
        _known[key] = noted


def address_of(value: Any) -> str | None:
    """The address of a stored result that `value` is, None if it is none or was changed since."""
    one = _known.get(id(value))
    if one is None or one.alive() is not value or one.sum != _sum(value):
        return None
    return one.address


@dataclass
class Content(CachePolicy):
    """Like Prefect's `Inputs`, but inputs that are stored results are not pickled and hashed."""

    exclude: list[str] = field(default_factory=list)

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key of a call; None without inputs, as Prefect's policy has it."""
        told = {name: _told(value) for name, value in (inputs or {}).items()}
        return Inputs(
            exclude=self.exclude,
            key_storage=self.key_storage,
            isolation_level=self.isolation_level,
            lock_manager=self.lock_manager,
        ).compute_key(task_ctx, told, flow_parameters, **kwargs)

    def __sub__(self, other: str) -> Content:
        return Content(
            exclude=[*self.exclude, other],
            key_storage=self.key_storage,
            isolation_level=self.isolation_level,
            lock_manager=self.lock_manager,
        )


CONTENT = Content()
"""Use it alone or added to others: `cache_policy=CONTENT + TASK_SOURCE`."""


def _told(value: Any) -> Any:
    """`value` with stored results replaced by their addresses, in lists, tuples and dicts too."""
    if (address := address_of(value)) is not None:
        return ("deepflow-address", address)
    if type(value) in (list, tuple):
        return type(value)(map(_told, value))
    if type(value) is dict:
        return {name: _told(one) for name, one in value.items()}
    return value


def _is_plain_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def _sum(array: Any) -> int:
    """A check sum of what the array holds now, an order faster than pickling and hashing it."""
    plain = array if array.flags.c_contiguous else array.copy(order="C")
    shape = repr((array.dtype.str, array.shape)).encode()
    return zlib.crc32(plain.reshape(-1).view("u1").data, zlib.crc32(shape))
