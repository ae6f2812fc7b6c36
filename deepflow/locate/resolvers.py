"""What a resolver is, and how one is added for a storage that deepflow does not know."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from typing import Final, Protocol, runtime_checkable

from deepflow.decide.location import Location
from deepflow.errors import ConfigurationError
from deepflow.hints import Near

__all__ = ["ENTRY_POINTS", "Resolver", "added_resolvers", "register_resolver"]

_log = logging.getLogger("deepflow.locate.resolvers")

ENTRY_POINTS: Final = "deepflow.resolvers"
"""The group of entry points in which a package offers resolvers: each a class or function without
arguments, or the resolver itself."""


@runtime_checkable
class Resolver(Protocol):
    """Says where inputs of some kind lie.

    Subclass it, or have the same three members::

        class Tape(Resolver):
            schemes = ("tape",)

            def resolve(self, near):    # tape://library-2/reel
                return Location(zones=(urlsplit(near.value).netloc,))

        register_resolver(Tape())
    """

    schemes: Collection[str]
    """The URL schemes it answers for; `host` and `path` stand for things to be near of those
    kinds."""

    def key(self, near: Near) -> str:
        """What the answer depends on: things to be near with the same key are asked about once."""
        return near.value

    def resolve(self, near: Near) -> Location:
        """Where it lies; an empty location where every worker is equally far.

        Called in a thread of the locator, several at once. It may block and may raise anything:
        after the locator's deadline nobody waits, and an error costs one line in the log. A text of
        the error that names the remedy is seen by the user.
        """
        ...


_registered: dict[str, Resolver] = {}


def register_resolver(resolver: Resolver) -> None:
    """Use `resolver` for its schemes in this process, in locators made from now on.

    It wins over resolvers from entry points and over built-in ones; the last one registered for a
    scheme wins. Raises :class:`ConfigurationError` for what is no resolver.
    """
    _registered.update(_by_scheme(resolver))


def added_resolvers() -> Mapping[str, Resolver]:
    """Scheme → resolver, from entry points and :func:`register_resolver`.

    An entry point that cannot be loaded costs a line in the log.
    """
    found: dict[str, Resolver] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            made = point.load()
            if isinstance(made, type) or not isinstance(made, Resolver):
                made = made()
            found.update(_by_scheme(made))
        except Exception as error:  # noqa: BLE001 - another package's code: it may raise anything
            _log.warning("Resolver %r (%s) is left out: %s", point.name, point.value, error)
    return {**found, **_registered}


def _by_scheme(resolver: object) -> dict[str, Resolver]:
    if (
        isinstance(resolver, type)
        or not isinstance(resolver, Resolver)
        or isinstance(resolver.schemes, str)
    ):
        raise ConfigurationError(
            f"{resolver!r} is no resolver; it must be an object with `schemes` (a collection "
            "of text), `key(near)` and `resolve(near)`, as deepflow.locate.resolvers.Resolver has"
        )
    return dict.fromkeys(resolver.schemes, resolver)
