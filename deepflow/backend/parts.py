"""One private part of another package: where it is, what it is for, and what it must look like.

Nothing is imported before it is asked for: a part is known by its dotted name, so a table of parts
may be read where neither Dask nor Prefect is installed.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Final

__all__ = [
    "Kind",
    "Part",
    "digest_of",
    "exactly",
    "held",
    "parameters_of",
    "source",
    "takes",
    "there",
]

ANY_VERSION: Final = "all"
"""The range of versions of a form that does not differ between those that were tested."""
_P = inspect.Parameter
_STARS: Final[Mapping[Any, str]] = {_P.VAR_POSITIONAL: "*", _P.VAR_KEYWORD: "**"}
_MISSING: Final = object()


class Kind(Enum):
    """What is looked at of a part."""

    THERE = "there"
    """The name leads to something."""
    HELD = "held"
    """Instances of the class have the attribute, also where only `__init__` sets it."""
    TAKES = "takes"
    """It can be called with these arguments; what else it takes has defaults."""
    EXACTLY = "exactly"
    """It has these parameters and no others, since something stands in for it or overrides it."""
    SOURCE = "source"
    """Its source is, to the letter, one that was read."""


@dataclass(frozen=True, slots=True)
class Part:
    """A private part that a feature leans on."""

    name: str
    """Dotted: module, then class, then attribute."""
    purpose: str
    """What the feature uses it for."""
    kind: Kind
    written_for: Mapping[str, str]
    """Parameters or digest of the source, by the range of versions that has them."""

    def difference(self) -> str:
        """How the installed part is not as expected; empty where it is."""
        if self.kind is Kind.HELD:
            return "" if _is_held(self.name) else f"{self.name} is missing"
        try:
            found = _resolved(self.name)
        except (ImportError, AttributeError):
            return f"{self.name} is missing"
        wanted = tuple(self.written_for.values())
        if self.kind is Kind.SOURCE and (digest := digest_of(found)) not in wanted:
            return f"{self.name} is another one ({digest or 'without a source'})"
        if self.kind in (Kind.TAKES, Kind.EXACTLY):
            return self._unlike_parameters(found, wanted)
        return ""

    def _unlike_parameters(self, found: Any, wanted: tuple[str, ...]) -> str:
        try:
            parameters = list(inspect.signature(found).parameters.values())
        except (TypeError, ValueError):
            return f"{self.name} cannot be called"
        is_like = _accepts if self.kind is Kind.TAKES else _is_exactly
        if any(is_like(parameters, one) for one in wanted):
            return ""
        return f"{self.name} takes ({_written(parameters)}), not ({' or '.join(wanted)})"


def there(name: str, purpose: str) -> Part:
    """A part of which nothing more than that it is there counts."""
    return Part(name, purpose, Kind.THERE, {})


def held(name: str, purpose: str) -> Part:
    """An attribute that instances of a class have."""
    return Part(name, purpose, Kind.HELD, {})


def takes(name: str, purpose: str, parameters: str) -> Part:
    """Something that is called with `parameters`, written as in a signature without defaults."""
    return Part(name, purpose, Kind.TAKES, {ANY_VERSION: parameters})


def exactly(name: str, purpose: str, parameters: str) -> Part:
    """Something that is overridden or replaced: it has `parameters` and no others."""
    return Part(name, purpose, Kind.EXACTLY, {ANY_VERSION: parameters})


def source(name: str, purpose: str, digests: str | Mapping[str, str]) -> Part:
    """Something of which every line counts: `digests` of its source, by range of versions."""
    by_versions = {ANY_VERSION: digests} if isinstance(digests, str) else digests
    return Part(name, purpose, Kind.SOURCE, by_versions)


def digest_of(method: Callable[..., Any]) -> str:
    """A short digest of a function's source; empty where the source is not to be had."""
    try:
        text = inspect.getsource(method)
    except (OSError, TypeError):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def parameters_of(thing: Callable[..., Any]) -> str:
    """The parameters of something callable, as a part has them written: `self, key, *, worker`."""
    return _written(list(inspect.signature(thing).parameters.values()))


def _resolved(name: str) -> Any:
    """What a dotted name leads to.

    Raises:
        ImportError: no module of that name can be imported.
        AttributeError: the module, or the class in it, has no such attribute.
    """
    names = name.split(".")
    for n in range(len(names), 0, -1):
        module_name = ".".join(names[:n])
        try:
            found: Any = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and module_name.startswith(error.name):
                continue
            raise  # it is there, and what it needs is not
        for attribute in names[n:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(f"no module leads to {name}", name=names[0])


def _is_held(name: str) -> bool:
    owner_name, _, attribute = name.rpartition(".")
    try:
        owner = _resolved(owner_name)
    except (ImportError, AttributeError):
        return False
    if getattr(owner, attribute, _MISSING) is not _MISSING:
        return True
    return any(
        attribute in getattr(one, "__annotations__", {}) or attribute in _set_by_init(one)
        for one in inspect.getmro(owner)
    )


def _set_by_init(owner: type) -> Iterator[str]:
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    if code is not None:
        yield from (one.argval for one in dis.get_instructions(code) if one.opname == "STORE_ATTR")


def _is_exactly(parameters: list[_P], wanted: str) -> bool:
    return _written(parameters) == wanted


def _accepts(parameters: list[_P], wanted: str) -> bool:
    """Whether a call with the parameters named in `wanted` is taken."""
    positional, _, named = wanted.partition("*, ")
    in_order = [one for one in re.split(r",\s*", positional) if one]
    by_name = [one for one in re.split(r",\s*", named) if one]
    try:
        bound = inspect.Signature(parameters).bind(*in_order, **dict.fromkeys(by_name))
    except TypeError:
        return False
    has_rest = any(one.kind is _P.VAR_POSITIONAL for one in parameters)
    return has_rest or list(bound.arguments)[: len(in_order)] == in_order


def _written(parameters: list[_P]) -> str:
    """`self, key, *, worker` for these parameters: names and kinds, no defaults."""
    words: list[str] = []
    for i, one in enumerate(parameters):
        if one.kind is _P.KEYWORD_ONLY and not any(
            other.kind in (_P.KEYWORD_ONLY, _P.VAR_POSITIONAL) for other in parameters[:i]
        ):
            words.append("*")
        words.append(_STARS.get(one.kind, "") + one.name)
        following = parameters[i + 1].kind if i + 1 < len(parameters) else None
        if one.kind is _P.POSITIONAL_ONLY and following is not _P.POSITIONAL_ONLY:
            words.append("/")
    return ", ".join(words)
