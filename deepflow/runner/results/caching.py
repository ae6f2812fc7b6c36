"""A cache policy that hashes arrays by what they hold: `CONTENT`.

Prefect's `INPUTS` writes every input of every call as JSON or pickles it, and hashes that. Here an
array of numbers is represented by the digest of its elements, type and shape, which is an order
faster. The key depends on nothing else: it is the same in every process, under every task runner.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass, field
from typing import Any

from prefect.cache_policies import CachePolicy, Inputs
from prefect.context import TaskRunContext

__all__ = ["CONTENT", "Content"]

_DIGEST_BYTES = 16


@dataclass
class Content(CachePolicy):
    """Like Prefect's `Inputs`, but arrays of numbers are not pickled."""

    exclude: list[str] = field(default_factory=list)

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key of a call; None without inputs, as Prefect's policy has it."""
        told = dict(inputs or {})
        for name in told.keys() - self.exclude:
            # What contains itself has no end; pickle knows how to write it.
            with contextlib.suppress(RecursionError):
                told[name] = _told(told[name])
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
    """`value` with arrays replaced by their digests, in lists, tuples and dicts too."""
    kind = type(value)
    if kind is list or kind is tuple:
        return kind(map(_told, value))
    if kind is dict:
        return {name: _told(one) for name, one in value.items()}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray and not value.dtype.hasobject:
        return ("deepflow-array", _digest(value))
    return value


def _digest(array: Any) -> str:
    """A hash of what the array holds, its type and shape."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    state.update(f"{array.dtype!r} {array.dtype.str} {array.shape}".encode())
    if array.dtype.itemsize:
        plain = array if array.flags.c_contiguous else array.copy(order="C")
        state.update(plain.reshape(-1).view("u1").data)
    return state.hexdigest()
