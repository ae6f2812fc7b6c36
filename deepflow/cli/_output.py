"""How a command answers: a table for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table

as_json = click.option("--json", "is_json", is_flag=True, help="Print one JSON document instead.")
"""The option that every command takes."""


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, default=str))


def print_table(
    title: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    console: Console | None = None,
) -> None:
    """Rows under `headers`, folded to the terminal's width; text as it is, never as markup."""
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for i, header in enumerate(headers):
        drawn.add_column(header, no_wrap=i == 0, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    (console or Console()).print(drawn)


def in_bytes(n_bytes: float) -> str:
    """`n_bytes` as a person reads it, in powers of 1000: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
