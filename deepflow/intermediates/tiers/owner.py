"""What a store asks and tells its owner, whose faults must not become the store's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from deepflow.decide.fallbacks import Fallback

__all__ = ["Hooks", "Owner", "Use", "said_by"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Use(NamedTuple):
    """What is known of a key: seconds to compute it again, and how soon it is wanted."""

    recompute_s: float
    next_use: int | None


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a store asks and tells; called from its threads.

    `uses` of keys; `over_bytes`: by how much the process is too large, whatever its values say;
    `wanted`: keys that will be asked for soon, the first first; `left`: a value has
    left the heap; `lost`: a value is lost;
    `moved`: so many bytes went ``to`` or came ``from`` a tier, by name; `waited`: seconds that a
    thread was held back; `fallback`: its kind.
    """

    uses: Callable[[Iterable[Any]], dict[Any, Use]]
    over_bytes: Callable[[], int]
    wanted: Callable[[], list[Any]]
    left: Callable[[Any], None]
    lost: Callable[[Any], None]
    moved: Callable[[str, str, int], None]
    waited: Callable[[float], None]
    fallback: Callable[[Fallback], None]


class Owner:
    """The hooks, behind a guard."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self._said: set[str] = set()

    def ask(self, hook: Callable[..., _T], otherwise: _T, *arguments: Any) -> _T:
        """What the owner answers; `otherwise` where it fails."""
        try:
            return hook(*arguments)
        except Exception:  # noqa: BLE001 - the owner's trouble must not become the store's
            self.note_fault("asking a store's owner failed")
            return otherwise

    def tell(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook, or whatever else must not fail."""
        self.ask(hook, None, *arguments)

    def note_fallback(self, kind: Fallback) -> None:
        """Count that a better way has failed."""
        self.tell(self.hooks.fallback, kind)

    def note_fault(self, what: str) -> None:
        """Count a fault of what should not fail; logged once, with the exception being handled."""
        with suppress(Exception):  # counting is the owner's, too
            self.hooks.fallback(Fallback.SERVICE_FAULT)
        if self.is_new(what):
            _log.exception("%s", what)

    def is_new(self, what: str) -> bool:
        """Whether something is to be said, for the first time."""
        if what in self._said:
            return False
        self._said.add(what)
        return True


def said_by(exc: BaseException) -> str:
    """An exception in words, also where its own code fails."""
    try:
        return f"{type(exc).__name__}: {exc}"
    except Exception:  # noqa: BLE001 - an exception's `__str__` is the user's code
        return type(exc).__name__
