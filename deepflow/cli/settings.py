"""`deepflow settings`: every setting as it is now, and who said so."""

from __future__ import annotations

import click

from deepflow.cli._output import as_json, print_json, print_table
from deepflow.settings import Settings, load_settings, setting_sources


@click.command("settings", short_help="Every setting in force, and where it comes from.")
@as_json
def command(is_json: bool) -> None:
    """Example: DEEPFLOW_INFRA_RETRIES=5 deepflow settings

    Every setting in force in this directory and environment, where it comes from, and its meaning.

    A setting called `name` is read from the variable DEEPFLOW_NAME, then from the file named by
    DEEPFLOW_CONFIG or deepflow.toml in the working directory.
    """
    values = load_settings().model_dump(mode="json")
    sources = setting_sources()
    rows = [
        (name, values[name], sources[name], field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    if is_json:
        keys = ("name", "value", "source", "meaning")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(
        "Settings",
        ("name", "value", "from", "meaning"),
        (
            (name, "none" if value is None else str(value), source, meaning)
            for name, value, source, meaning in rows
        ),
    )
