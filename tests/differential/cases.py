"""What one case of the suite is, and how the chapters in `flows/` are read.

A chapter is run as if it were the user's script, its module being `__main__`: what it defines then
travels by value, globals included, as it does for most users. It is read anew for each run of its
cases, so that no run sees what an earlier one left in a global.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = [
    "BOTH",
    "LARGE",
    "SMALL",
    "Case",
    "Chapter",
    "as_main",
    "case",
    "chapters",
    "listed",
    "script",
]

SMALL, LARGE = 10, 20_000
BOTH = (SMALL, LARGE)
"""Numbers of elements: as 8-byte numbers, far below and far above what is sent apart."""

_FOLDER = Path(__file__).with_name("flows")
_MARK = "__differential_case__"


@dataclass(frozen=True, slots=True)
class _Mark:
    expected: Any
    sizes: tuple[int, ...]
    is_whole: bool


def case(
    expected: Any, *, sizes: tuple[int, ...] = (), is_whole: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function of a chapter as a case.

    `expected`: the right value; or a function of the value that returns what is wrong with it, in
    words, or None. With `sizes` the function is called once for each size. A whole case
    runs flows itself: it is called outside of any flow, with a function that makes a task runner.
    """

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _MARK, _Mark(expected, sizes, is_whole))
        return function

    return marked


@dataclass(frozen=True, slots=True)
class Case:
    """One small flow, and what it has to give."""

    chapter: str
    function: str
    size: int | None
    is_whole: bool

    @property
    def name(self) -> str:
        """What the case is called in reports, and the tag of its task runs."""
        return f"{self.chapter}.{self.function}" + (f"[{self.size}]" if self.size else "")


class Chapter:
    """A file of `flows/`, read once: its module and its cases."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = script(_FOLDER / f"{name}.py")
        self.cases = list(self._cases())

    def _cases(self) -> Iterator[Case]:
        for name, found in vars(self.module).items():
            mark: _Mark | None = getattr(found, _MARK, None)
            if mark is not None and callable(found):
                for size in mark.sizes or (None,):
                    yield Case(self.name, name, size, mark.is_whole)

    def call(self, case: Case, *arguments: Any) -> Any:
        """Run the case's function."""
        sized = () if case.size is None else (case.size,)
        return getattr(self.module, case.function)(*arguments, *sized)

    def expected(self, case: Case) -> Any:
        """What the case was marked with."""
        mark: _Mark = getattr(getattr(self.module, case.function), _MARK)
        return mark.expected


def script(path: Path) -> ModuleType:
    """What a file defines, read anew as if it were the user's script."""
    module = ModuleType("__main__")
    module.__file__ = str(path)
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    with as_main(module):
        exec(code, module.__dict__)
    return module


@contextmanager
def as_main(module: ModuleType) -> Iterator[None]:
    """The module stands in `sys.modules` as `__main__`, so that pickle finds what is in it."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def chapters() -> list[str]:
    """The names of all chapters."""
    return sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))


def listed() -> list[Case]:
    """All cases of all chapters."""
    return [case for name in chapters() for case in Chapter(name).cases]
