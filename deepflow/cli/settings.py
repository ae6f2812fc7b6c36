"""`deepflow settings`: every setting as it is now, and who said so."""

from __future__ import annotations

import click

from deepflow.cli._output import (
    Column,
    as_json,
    complete_from,
    named,
    print_json,
    print_table,
    say,
    wide,
)
from deepflow.settings import Settings, load_settings, setting_sources


@click.command("settings", short_help="Every setting in force, and where it comes from.")
@click.argument("names", nargs=-1, shell_complete=complete_from(lambda: Settings.model_fields))
@wide
@as_json
def command(names: tuple[str, ...], is_wide: bool, is_json: bool) -> None:
    """Example: DEEPFLOW_INFRA_RETRIES=5 deepflow settings infra_retries

    Every setting in force in this directory and environment, where it comes from, and its meaning;
    of the settings in NAMES, the whole meaning.

    A setting called `name` is read from the variable DEEPFLOW_NAME, then from the file named by
    DEEPFLOW_CONFIG or deepflow.toml in the working directory.
    """
    values = load_settings().model_dump(mode="json")
    sources = setting_sources()
    shown = named(names, tuple(Settings.model_fields), "setting", prefix="DEEPFLOW_")
    rows = [
        (name, values[name], sources[name], Settings.model_fields[name].description or "")
        for name in shown
    ]
    if is_json:
        keys = ("name", "value", "source", "meaning")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    if names:
        for name, value, source, meaning in rows:
            say(f"{name} = {_shown(value)} (from {source}; DEEPFLOW_{name.upper()})")
            say(meaning)
            click.echo()
        return
    print_table(
        "",
        (
            Column("setting"),
            Column("value", is_cut=True),
            Column("from", is_optional=True),
            Column("meaning", is_cut=True),
        ),
        (
            (name, _shown(value), source if is_wide or source != "default" else "", meaning)
            for name, value, source, meaning in rows
        ),
        is_wide=is_wide,
    )
    if not is_wide:
        say("`deepflow settings NAME` tells the whole meaning of one, --wide of all.")


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
