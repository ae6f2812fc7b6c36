"""`deepflow metrics`: the table of everything that is counted."""

from __future__ import annotations

from dataclasses import asdict

import click

from deepflow.cli._output import as_json, print_json, print_table
from deepflow.observe import metrics


@click.command("metrics", short_help="The table of everything that is counted.")
@as_json
def command(is_json: bool) -> None:
    """Example: deepflow metrics --json

    Every metric that deepflow exports for Prometheus: name, type, unit, labels and meaning.

    The driver serves them on the port given by DEEPFLOW_METRICS_PORT, Dask's workers and scheduler
    on their dashboard ports, each at /metrics.
    """
    rows = metrics.table()
    if is_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        "Metrics",
        ("name", "type", "unit", "labels", "meaning"),
        (
            (
                row.name,
                row.type,
                row.unit,
                ", ".join(
                    label.name + (f": {', '.join(label.values)}" if label.values else "")
                    for label in row.labels
                ),
                row.meaning,
            )
            for row in rows
        ),
    )
