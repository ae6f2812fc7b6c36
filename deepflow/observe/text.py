"""Text as it can be sent and stored, whatever it was made of.

Python's text may hold what UTF-8 cannot: the halves of surrogate pairs by which `os.fsdecode`
stands for bytes that are no UTF-8. JSON encoders, message packs and databases refuse those, and
PostgreSQL refuses NUL. Both are shown as backslash escapes (``caf\\udce9.csv``, ``a\\x00b``), in
what is sent and stored only: the user's own values stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson

from deepflow.observe.fallbacks import Fallback, fell_back

__all__ = ["CleanFormatter", "clean", "cleaned", "to_json"]

_NUL: Final = "\x00"
_NUL_IN_JSON: Final = b"\\u0000"
_MAX_DEPTH: Final = 100

_log = logging.getLogger(__name__)


def clean(text: str, kind: str = "text") -> str:
    """`text` with what cannot be sent shown as escapes; itself where there is nothing of that.

    `kind` is what it is part of (``event``, ``log``, …): said in the log once for each.
    """
    if text.isascii() and _NUL not in text:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        if _NUL not in text:
            return text
    _count(kind)
    return text.encode(errors="backslashreplace").decode().replace(_NUL, "\\x00")


def cleaned(tree: Any, kind: str = "text") -> Any:
    """A tree of dicts, lists and plain values with every text in it clean, keys included."""
    return _cleaned(tree, kind, _MAX_DEPTH)


def _cleaned(tree: Any, kind: str, depth: int) -> Any:
    if isinstance(tree, str):
        return clean(str(tree), kind)
    if depth and isinstance(tree, Mapping):
        return {
            _cleaned(name, kind, depth - 1): _cleaned(value, kind, depth - 1)
            for name, value in tree.items()
        }
    if depth and isinstance(tree, (list, tuple)):
        return [_cleaned(value, kind, depth - 1) for value in tree]
    return tree


def to_json(tree: Any, kind: str = "text") -> bytes:
    """A tree of plain values as JSON, its texts clean. Costs nothing where they are clean already.

    Raises:
        TypeError: it holds something that JSON has no word for.
    """
    try:
        encoded = orjson.dumps(tree)
        if _NUL_IN_JSON not in encoded:
            return encoded
    except TypeError:
        pass
    return orjson.dumps(cleaned(tree, kind))


class CleanFormatter(logging.Formatter):
    """Another formatter's lines, clean."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """The line; of arguments that do not print, what was to be said of them."""
        try:
            line = self.inner.format(record)
        except Exception:  # noqa: BLE001 - formatting runs the user's `__str__`
            line = f"{record.msg!s:.1000} (this line's arguments do not print)"
        return clean(line, "log")


def _count(kind: str) -> None:
    fell_back(
        Fallback.UNENCODABLE_TEXT,
        _log,
        "Text that is not UTF-8, or holds NUL, is shown with backslash escapes (first: %s).",
        kind,
        cause=kind,
    )
