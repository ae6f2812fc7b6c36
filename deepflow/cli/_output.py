"""How a command answers: a table for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepflow.errors import ConfigurationError, nearest

as_json = click.option("--json", "is_json", is_flag=True, help="Print one JSON document instead.")
"""The option that every command takes."""
wide = click.option(
    "--wide", "is_wide", is_flag=True, help="Print every column in full, however long the lines."
)
"""The option of commands whose tables are cut to the terminal's width."""

_ANY_WIDTH: Final = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    header: str
    is_number: bool = False
    """Its cells stand at the right."""
    is_cut: bool = False
    """Its cells are cut, with an ellipsis, where the table is wider than the terminal."""
    is_optional: bool = False
    """Left out where every cell is empty."""


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, default=str))


def print_table(
    title: str,
    headers: Sequence[str | Column],
    rows: Iterable[Sequence[str]],
    console: Console | None = None,
    *,
    is_wide: bool = False,
) -> None:
    """Rows under `headers`, one line each, then an empty line; text as it is, never as markup.

    As wide as the terminal; 80 columns where there is none. What does not fit is cut in columns
    with `is_cut`; in those given as text it is folded. `is_wide`: nothing is cut or folded.
    """
    columns = [Column(one) if isinstance(one, str) else one for one in headers]
    is_folded = [isinstance(one, str) and i > 0 for i, one in enumerate(headers)]
    cells = [tuple(cell.replace("\n", " ") for cell in row) for row in rows]
    kept = [
        i
        for i, column in enumerate(columns)
        if not column.is_optional or any(row[i] for row in cells)
    ]
    drawn = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        show_header=any(column.header for column in columns),
    )
    for i in kept:
        column = columns[i]
        drawn.add_column(
            Text(column.header, no_wrap=True, overflow="ellipsis"),
            justify="right" if column.is_number else "left",
            no_wrap=not (column.is_cut or is_folded[i]),
            overflow="fold" if is_folded[i] else "ellipsis",
        )
    for row in cells:
        drawn.add_row(
            *(
                Text(row[i]) if is_folded[i] else Text(row[i], no_wrap=True, overflow="ellipsis")
                for i in kept
            )
        )
    chosen = console or Console(width=_ANY_WIDTH if is_wide else None)
    if title:
        _print(chosen, Text(title, style="bold"))
    _print(chosen, drawn)
    _print(chosen, "")


def _print(console: Console, what: Table | Text | str) -> None:
    """Without the blanks with which rich fills each line."""
    with console.capture() as drawing:
        console.print(what)
    for line in drawing.get().splitlines():
        console.file.write(line.rstrip() + "\n")


def say(text: str) -> None:
    """A sentence, folded between words to the terminal's width."""
    _print(Console(), Text(text))


def named(
    wanted: Sequence[str], known: Sequence[str], what: str, *, prefix: str = ""
) -> tuple[str, ...]:
    """The known names that are meant: all for none; each in any case, with or without `prefix`.

    Raises :class:`ConfigurationError`, with the nearest, for one that is not known.
    """
    if not wanted:
        return tuple(known)
    folded = {_folded(name, prefix): name for name in known}
    for name in wanted:
        if _folded(name, prefix) not in folded:
            close = nearest(_folded(name, prefix), list(folded))
            meant = f"did you mean {folded[close]!r}?" if close else f"`deepflow {what}s` lists all"
            raise ConfigurationError(f"there is no {what} {name!r}; {meant}")
    return tuple(folded[_folded(name, prefix)] for name in wanted)


def _folded(name: str, prefix: str) -> str:
    return name.lower().replace("-", "_").removeprefix(prefix.lower())


def complete_from(
    names: Callable[[], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For shells: those of `names` that begin as what is typed."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete
