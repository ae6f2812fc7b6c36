"""`deepflow metrics`: the table of everything that is counted."""

from __future__ import annotations

from dataclasses import asdict

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
from deepflow.observe import metrics

_PREFIX = "deepflow_"


def _names() -> list[str]:
    return [row.name for row in metrics.table()]


@click.command("metrics", short_help="The table of everything that is counted.")
@click.argument("names", nargs=-1, shell_complete=complete_from(_names))
@wide
@as_json
def command(names: tuple[str, ...], is_wide: bool, is_json: bool) -> None:
    """Example: deepflow metrics deepflow_fallbacks_total

    Every metric that deepflow exports for Prometheus: name, type, unit, labels and meaning; of the
    metrics in NAMES, the whole meaning.

    The driver serves them on the port given by DEEPFLOW_METRICS_PORT, Dask's workers and scheduler
    on their dashboard ports, each at /metrics.
    """
    by_name = {row.name: row for row in metrics.table()}
    rows = [by_name[name] for name in named(names, tuple(by_name), "metric", prefix=_PREFIX)]
    if is_json:
        print_json([asdict(row) for row in rows])
        return
    if names:
        for row in rows:
            say(f"{row.name} ({row.type}, {row.unit})")
            say(row.meaning)
            for label in row.labels:
                values = ", ".join(label.values) if label.values else "any"
                say(f"Label {label.name}: {values}")
            click.echo()
        return
    if is_wide:
        print_table(
            "",
            ("metric", "type", "unit", "labels", "meaning"),
            ((row.name, row.type, row.unit, _labels(row), row.meaning) for row in rows),
            is_wide=True,
        )
    else:
        print_table(
            "",
            (Column("metric"), Column("meaning", is_cut=True)),
            ((row.name, row.meaning) for row in rows),
        )
        say("`deepflow metrics NAME` tells one in full, --wide all.")


def _labels(row: metrics.Metric) -> str:
    return ", ".join(
        label.name + (f": {', '.join(label.values)}" if label.values else "")
        for label in row.labels
    )
