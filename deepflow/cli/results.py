"""`deepflow results`: what can be done with persisted results."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from humanize import naturalsize

from deepflow.cli._output import Column, as_json, print_json, print_table, wide
from deepflow.errors import ConfigurationError


@click.group("results", short_help="Convert persisted results between layouts.")
def command() -> None:
    """Example: deepflow results convert ~/.prefect/storage

    What can be done with the results that tasks have persisted. Each command takes --json.
    """


@command.command("convert", short_help="Bring records into one layout.")
@click.argument("source")
@click.argument("dest", required=False)
@click.option(
    "--to",
    "layout",
    type=click.Choice(["deepflow", "prefect"]),
    default="deepflow",
    show_default=True,
    help="deepflow: compressed bytes; prefect: one JSON document with a pickle.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the file system, such as endpoint_url=http://host:9000; may be given again.",
)
@wide
@as_json
def convert_command(
    source: str,
    dest: str | None,
    layout: Any,
    options: tuple[str, ...],
    is_wide: bool,
    is_json: bool,
) -> None:
    """Example: deepflow results convert s3://bucket/results s3://bucket/compact

    Bring every record under SOURCE into one layout, in place or into DEST; both are paths or URLs
    that fsspec knows. Each record is whole at every moment; the command may be stopped and given
    again. Damaged records, and files that are no records, are named and left; the exit code is 1
    then. Records are unpickled: convert only what you trust.

    The states of runs that are over name the serializer that their results were written with:
    where results are still read through such states (`flow_run.state.result()`), convert into DEST
    and keep SOURCE.
    """
    said = dict(_pair(option) for option in options)
    if "://" not in source and not Path(source).expanduser().exists():
        raise _missing(source)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from deepflow.runner.results.converting import Folder, convert

    folder = Folder(source, said)
    if not folder.exists():
        raise _missing(source)
    target = Folder(dest, said) if dest is not None else folder
    done = []
    console = Console(stderr=True)
    with ExitStack() as stack:
        progress = Progress(
            TextColumn("converting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[name]}", markup=False),
            console=console,
            disable=is_json or not console.is_terminal,
        )
        stack.enter_context(progress)
        bar = progress.add_task("", total=len(folder.names()), name="")
        for one in convert(folder, target, layout):
            done.append(one)
            progress.update(bar, advance=1, name=one.name[-40:])
    damaged = [one for one in done if one.became == "damaged"]
    converted = [one for one in done if one.became == "converted"]
    before = sum(one.bytes_before for one in converted)
    after = sum(one.bytes_after for one in converted)
    if is_json:
        print_json(
            {
                "converted": len(converted),
                "kept": len(done) - len(converted) - len(damaged),
                "bytes_before": before,
                "bytes_after": after,
                "damaged": [{"name": one.name, "why": one.why} for one in damaged],
            }
        )
    else:
        click.echo(
            f"{len(converted)} converted ({naturalsize(before)} to {naturalsize(after)}), "
            f"{len(done) - len(converted) - len(damaged)} kept, {len(damaged)} damaged"
        )
        if damaged:
            print_table(
                "Left as they are",
                (Column("record", is_cut=True), Column("why", is_cut=True)),
                ((one.name, one.why) for one in damaged),
                is_wide=is_wide,
            )
    if damaged:
        raise SystemExit(1)


def _missing(source: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no folder {source!r}; give the folder or URL that holds the results, such as "
        "that of PREFECT_LOCAL_STORAGE_PATH (`prefect config view --show-defaults` tells it)"
    )


def _pair(option: str) -> tuple[str, str]:
    name, separator, value = option.partition("=")
    if not separator:
        raise ConfigurationError(f"--option {option!r} has no value; write NAME=VALUE")
    return name, value
