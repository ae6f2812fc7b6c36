"""`deepflow demo`: real flights, real workers, a summary; the only thing to try first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from deepflow.cli._output import as_json, in_bytes, print_json, print_table

if TYPE_CHECKING:
    from deepflow.cli._demo_session import DemoSummary, Progress


@click.command("demo", short_help="Run a real flow on this machine and tell what it took.")
@click.option(
    "--size",
    type=click.Choice(["tiny", "small", "full"]),
    default="full",
    show_default=True,
    help="How many of the year's flights: seconds, half a minute, minutes of work.",
)
@click.option("--keep", is_flag=True, help="Leave the UI running afterwards, until Ctrl-C.")
@click.option(
    "--no-compare", is_flag=True, help="Leave out the second run, in one process, to compare with."
)
@as_json
def command(size: str, keep: bool, no_compare: bool, is_json: bool) -> None:
    """Example: deepflow demo --size tiny --keep

    Forecast the delays of the flights out of New York in 2013, on this machine.

    Starts what is missing (a Prefect server if PREFECT_API_URL is not set, a local cluster with two
    classes of workers), runs the flow, and prints what it took. Ends by itself.
    """
    # Prefect reads this at its import: the summary is the message here, not a line per state. Only
    # the terminal is kept quiet, for the UI shows the flow run's log.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from deepflow.cli._demo_session import Progress, api, run_demo

    with _progress(is_shown=not is_json) as tell:
        tell(Progress("starting the Prefect server"))
        with api() as (api_url, is_ours):
            summary = run_demo(
                size,
                api_url,
                is_compared=not no_compare,
                is_ui_kept=keep or not is_ours,
                tell=tell,
            )
            tell(None)
            if is_json:
                print_json(asdict(summary))
            else:
                _print_summary(summary)
            if is_ours and keep:
                click.echo("The UI runs until Ctrl-C.", err=is_json)
                _wait_for_interrupt()
            elif is_ours and not is_json:
                click.echo("The UI has ended with the demo; --keep leaves it running.")


@contextmanager
def _progress(is_shown: bool) -> Iterator[Callable[[Progress | None], None]]:
    """One line on standard error that tells the stage and how many tasks are done. None ends it."""
    if not is_shown:
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Line

    line = Line(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("tasks"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar = line.add_task("starting", total=None)

    def tell(progress: Progress | None) -> None:
        if progress is None:
            line.stop()
        else:
            line.update(
                bar,
                description=progress.stage,
                completed=progress.n_done,
                total=progress.n_known or None,
            )

    with line:
        yield tell


def _print_summary(summary: DemoSummary) -> None:
    """What it took and what came out, for a person."""
    workers = ", ".join(f"{n} × {name}" for name, n in summary.worker_classes.items())
    rows = [
        ("flow run", f"{summary.flow_run_name} ({summary.state})"),
        ("tasks", f"{summary.tasks_completed} completed of {summary.tasks_total}"),
        ("workers", f"{workers} (started in {summary.cluster_start_s:.1f} s)"),
        ("wall time", f"{summary.wall_s:.1f} s"),
    ]
    if summary.one_process_wall_s is not None and summary.speed_up is not None:
        rows.append(
            (
                "speed-up",
                f"{summary.speed_up:.2f} × over one process ({summary.one_process_wall_s:.1f} s)",
            )
        )
    rows.append(("over the wire", in_bytes(summary.wire_bytes)))
    print_table(f"Flight delays, size {summary.size}", ("", ""), rows)
    print_table(
        "Errors on held-out months (minutes)",
        ("airport", "MAE", "RMSE", "baseline MAE", "flights"),
        (
            (
                airport["airport"],
                f"{airport['mae_min']:.1f}",
                f"{airport['rmse_min']:.1f}",
                f"{airport['baseline_mae_min']:.1f}",
                f"{airport['n_held_out']:,}",
            )
            for airport in summary.flow["airports"]
        ),
    )
    if summary.speed_up is not None and summary.speed_up < 1:
        click.echo(
            "Slower than one process: fresh workers import their libraries within their time, and "
            f"at size {summary.size} on this machine that outweighs the work."
        )
    if summary.ui_url is not None:
        click.echo(f"UI: {summary.ui_url}")  # outside the table: an address must not be folded


def _wait_for_interrupt() -> None:
    """Return at Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
