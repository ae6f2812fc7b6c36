"""The guard around everything that placement does in a scheduler: a fault costs no run its result.

What fails inside `with guard("…")` goes no further. The fault is counted and said once for each
place, and after `MAX_FAULTS` of them placement is given up for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final

__all__ = ["MAX_FAULTS", "Guard"]

logger = logging.getLogger("deepflow.placement")

MAX_FAULTS: Final = 10


class Guard:
    """Counts the faults of placement in one scheduler.

    Args:
        give_up: is called with the reason at each fault from the `MAX_FAULTS`-th on.
    """

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self.faults: list[str] = []
        self._give_up = give_up
        self._places: dict[str, _Guarded] = {}

    def __call__(self, where: str) -> _Guarded:
        """A context that keeps in whatever exception is raised in it; `where` names the place."""
        guarded = self._places.get(where)
        if guarded is None:
            guarded = self._places[where] = _Guarded(self, where)
        return guarded

    def met(self, where: str, exc: Exception) -> None:
        """Count a fault, say the first one of its place, and give up after too many."""
        if not any(fault.startswith(where) for fault in self.faults):
            logger.warning(
                "deepflow's placement met a fault in %s, and leaves the task to Dask",
                where,
                exc_info=exc,
            )
        self.faults.append(f"{where}: {exc!r}")
        if len(self.faults) >= MAX_FAULTS:
            self._give_up(f"{len(self.faults)} faults, the last in {where}: {exc!r}")


class _Guarded:
    """One guarded place; it keeps nothing, so that one serves however often it is entered."""

    __slots__ = ("_guard", "_where")

    def __init__(self, guard: Guard, where: str) -> None:
        self._guard = guard
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        self._guard.met(self._where, exc)
        return True
