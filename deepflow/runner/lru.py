"""A cache that forgets what was not used for longest, by what its entries weigh in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """Values under names, `limit_bytes` in all; an entry heavier than that is alone in it.

    Methods may be called from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> V | None:
        """The value under `name`, which counts as used now; None where there is none."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return None
            self._entries.move_to_end(name)
            return entry[0]

    def put(self, name: str, value: V, n_bytes: int) -> None:
        """Keep `value`, which weighs `n_bytes`; forget what was not used for longest."""
        with self._lock:
            self._drop(name)
            self._entries[name] = (value, n_bytes)
            self._n_bytes += n_bytes
            while self._n_bytes > self._limit_bytes and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))

    def find(self, claim: Callable[[V], bool]) -> V | None:
        """A value for which `claim` holds; None where there is none."""
        with self._lock:
            return next((value for value, _ in self._entries.values() if claim(value)), None)

    def drop_where(self, claim: Callable[[V], bool]) -> None:
        """Forget the values for which `claim` holds."""
        with self._lock:
            for name in [name for name, (value, _) in self._entries.items() if claim(value)]:
                self._drop(name)

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._n_bytes -= entry[1]
