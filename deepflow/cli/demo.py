"""`deepflow demo`: real flights, real workers, a summary; the only thing to try first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from humanize import naturalsize

from deepflow.cli._output import as_json, print_json, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from deepflow.cli._demo_session import DemoSummary, Phases, Progress

_TOLD_EVERY_S = 10.0
"""Between two lines about one flow run, where lines cannot be written over."""


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
    "--no-compare",
    is_flag=True,
    help="Leave out the runs to compare with: in one process, and with prefect-dask where that is "
    "installed.",
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
    with _Stages.shown(is_shown=not is_json) as stages:
        stages.begin("importing Prefect")
        from deepflow.cli._demo_session import api, run_demo
        from deepflow.cli._flows import load_libraries

        stages.begin("starting a Prefect server" if _needs_server() else "asking the Prefect API")
        began_s = time.perf_counter()
        with api() as (api_url, is_ours):
            server_s = time.perf_counter() - began_s
            stages.begin("importing Dask, pandas and torch")
            load_libraries()
            summary = run_demo(
                size,
                api_url,
                server_start_s=server_s if is_ours else None,
                is_compared=not no_compare,
                is_ui_kept=keep or not is_ours,
                tell=stages.tell,
            )
            stages.end()
            if is_json:
                print_json(asdict(summary))
            else:
                _print_summary(summary)
            if is_ours and keep:
                click.echo("The UI runs until Ctrl-C.", err=is_json)
                _wait_for_interrupt()


def _needs_server() -> bool:
    from prefect.settings import PREFECT_API_URL

    return not PREFECT_API_URL.value()


class _Stages:
    """Says on standard error what is being done: a line for each stage, with the seconds since the
    beginning; and, while a flow run is under way, how far it is.

    On a terminal that is a line that changes; elsewhere a line now and then.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._stage = ""
        self._status: Status | None = None
        self._told_s = 0.0
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def shown(cls, is_shown: bool) -> Iterator[_Stages]:
        """Stages that are told, or not; what is left on the terminal is cleared at the end."""
        from rich.console import Console

        stages = cls(Console(stderr=True, highlight=False) if is_shown else None)
        try:
            yield stages
        finally:
            stages.end()

    def begin(self, stage: str) -> None:
        """The next stage begins."""
        with self._lock:
            self._begin(stage)

    def _begin(self, stage: str) -> None:
        self._end()
        self._stage = stage
        if self._console is None:
            return
        now_s = time.monotonic()
        self._told_s = now_s
        self._console.print(f"{now_s - self._began_s:6.1f} s  {stage}", markup=False)
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()

    def tell(self, progress: Progress) -> None:
        """What is done now; called from several threads."""
        with self._lock:
            if progress.stage != self._stage:
                self._begin(progress.stage)
            if self._console is None or not progress.n_known:
                return
            said = f"{progress.n_done} of {progress.n_known} tasks done"
            if progress.running:
                said += f"; running: {', '.join(progress.running)}"
            if self._status is not None:
                self._status.update(said)
            elif time.monotonic() - self._told_s >= _TOLD_EVERY_S:
                self._told_s = time.monotonic()
                self._console.print(f"{'':10}{said}", markup=False)

    def end(self) -> None:
        """Nothing more is to be said."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _print_summary(summary: DemoSummary) -> None:
    """What it took, against what, where the time went, what came out, and where to look."""
    print_table(
        f"Flight delays, size {summary.size}: {summary.tasks_completed} of {summary.tasks_total} "
        "task runs completed",
        ("libraries loaded and workers there", "seconds", "speed ÷ one process"),
        _contenders(summary),
    )
    click.echo(f"{click.wrap_text(_verdict(summary), 79)}\n")
    print_table("Where the time went", ("", "seconds", ""), _where(summary))
    print_table(
        "What the flow found (minutes)",
        ("airport", "mean error", "without a model", "flights not seen in training"),
        (
            (
                airport["airport"],
                f"{airport['mae_min']:.1f}",
                f"{airport['baseline_mae_min']:.1f}",
                f"{airport['n_held_out']:,}",
            )
            for airport in summary.flow["airports"]
        ),
    )
    click.echo(f"In the UI, flow run {summary.flow_run_name} has its logs and these artifacts:")
    for one in summary.artifacts:
        click.echo(f"  {one.key:21} {one.description.partition('.')[0]}")
    if summary.journals is not None:
        click.echo(
            f"Where each task ran and why: deepflow explain {summary.flow_run_name}\n"
            f"(from the run's journal in {summary.journals})"
        )
    if summary.ui_url is not None:
        click.echo(f"UI: {summary.ui_url}")  # on a line of its own: an address must not be folded
    else:
        click.echo(
            "The Prefect server and its UI have ended with the demo. To look at all this:\n"
            "`deepflow demo --keep` (`make demo KEEP=1`) leaves them running until Ctrl-C."
        )


def _contenders(summary: DemoSummary) -> list[tuple[str, str, str]]:
    workers = " + ".join(f"{n} {name}" for name, n in summary.worker_classes.items())
    walls = [
        ("one process, one task at a time", summary.one_process_wall_s),
        (f"prefect-dask {summary.prefect_dask_version}, {workers}", summary.prefect_dask_wall_s),
        (f"deepflow, {workers}", summary.wall_s),
    ]
    one_s = summary.one_process_wall_s
    return [
        (name, f"{wall_s:.1f}", f"{one_s / wall_s:.2f}" if one_s else "")
        for name, wall_s in walls
        if wall_s is not None
    ]


def _verdict(summary: DemoSummary) -> str:
    """What the figures say in words, also where they are not to our credit."""
    peers = (
        ("prefect-dask", summary.prefect_dask_wall_s),
        ("one process", summary.one_process_wall_s),
    )
    said = [_against(name, wall_s / summary.wall_s) for name, wall_s in peers if wall_s is not None]
    verdict = f"With deepflow the flow took {summary.wall_s:.1f} s"
    verdict += f": {' and '.join(said)}." if said else "."
    one_s = summary.one_process_wall_s
    if one_s is not None and one_s < summary.wall_s:
        n_workers = sum(summary.worker_classes.values())
        verdict += (
            f" Task runs of {one_s / max(1, summary.tasks_total):.2f} s each leave little to gain "
            f"on {n_workers} workers; larger sizes have longer ones."
        )
    if said and summary.prefect_dask_version is None:
        verdict += " To compare with prefect-dask too: pip install prefect-dask"
    return verdict


def _against(peer: str, ratio: float) -> str:
    if ratio >= 1:
        return f"{ratio:.1f} times as fast as {peer}"
    return f"{1 / ratio:.1f} times as long as {peer}"


def _where(summary: DemoSummary) -> list[tuple[str, str, str]]:
    start_up, phases = summary.start_up, summary.phases
    rows = _phase_rows(phases, summary) if phases is not None else []
    apart = [
        ("start-up: Prefect server", start_up.server_s),
        ("start-up: worker processes", start_up.workers_s),
        ("start-up: imports on workers", start_up.libraries_s),
    ]
    rows += [
        (name, f"{seconds:.1f}", "not in the figures above")
        for name, seconds in apart
        if seconds is not None
    ]
    return rows


def _phase_rows(phases: Phases, summary: DemoSummary) -> list[tuple[str, str, str]]:
    n_workers = sum(summary.worker_classes.values())
    return [
        ("until the first submit", f"{phases.before_s:.1f}", "flow run made, workers connected"),
        (
            "tasks",
            f"{phases.tasks_s:.1f}",
            f"{phases.work_s:.1f} s of work on {n_workers} workers, busy {phases.busy_share:.0%}; "
            f"{naturalsize(summary.wire_bytes)} moved",
        ),
        ("after the last task", f"{phases.after_s:.1f}", "the server's records, the report"),
    ]


def _wait_for_interrupt() -> None:
    """Return at Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
