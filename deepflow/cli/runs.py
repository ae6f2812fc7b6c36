"""`deepflow runs`: the recent flow runs, by the names that other commands take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from itertools import islice

import click

from deepflow.cli._journals import journals_folder
from deepflow.cli._output import Column, as_json, print_json, print_table, say, wide
from deepflow.cli._server import NoServerError, Recorded, recorded
from deepflow.errors import ConfigurationError, nearest
from deepflow.observe.explain import in_seconds
from deepflow.observe.journal import RunRecord, recent_runs


@click.command("runs", short_help="Recent flow runs, newest first.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The most to list."
)
@click.option("--flow", help="Only runs of the flow of this name.")
@click.option("--state", help="Only runs in this state, such as Completed or Failed.")
@wide
@as_json
def command(limit: int, flow: str | None, state: str | None, is_wide: bool, is_json: bool) -> None:
    """Example: deepflow runs --flow flight-delays --limit 5

    Recent flow runs with DeepflowTaskRunner, the newest first. `deepflow explain` and `deepflow
    replay` take any name that is listed here.

    Flow runs leave their journals in the folder journals of DEEPFLOW_STATE_DIR, which is
    ~/.deepflow unless set; the newest 100 are kept. State and report come from the Prefect API at
    PREFECT_API_URL; without one they are left out. A report is a page of Prefect's UI.
    """
    folder = journals_folder()
    found = recent_runs(folder) if folder.is_dir() else iter(())
    flows: set[str] = set()
    matching = (run for run in found if flow is None or _is_of(run, flow, flows))
    # The state is known only once the server was asked, so that all are looked at then.
    runs = list(matching if state is not None else islice(matching, limit))
    known: Mapping[str, Recorded] = {}
    states: Counter[str] = Counter()
    why = ""
    if runs:
        try:
            known = recorded([run.run for run in runs])
        except NoServerError as error:
            why = str(error)
    if state is not None:
        if why:
            raise ConfigurationError(
                f"--state {state}: the state of a flow run is known to the Prefect API only, and "
                f"{why}; set PREFECT_API_URL, or leave --state out"
            )
        states = Counter(known[run.run].state for run in runs if run.run in known)
        runs = [
            run
            for run in runs
            if run.run in known and known[run.run].state.lower() == state.lower()
        ][:limit]
    if is_json:
        print_json([_document(run, known.get(run.run)) for run in runs])
        return
    if not runs:
        wanted = f" of flow {flow}" if flow is not None else ""
        wanted += f" in state {state}" if state is not None else ""
        click.echo(f"No flow run{wanted} has left a journal in {folder}")
        _tell_what_there_is(flow, flows, states)
        return
    _tell(runs, known, is_wide=is_wide)
    reports = (known[run.run].report_url for run in runs if run.run in known)
    newest = next((url for url in reports if url is not None), None)
    if newest is not None and not is_wide:
        click.echo(f"Newest report (--wide tells all):\n{newest}")  # never folded
    if why:
        say(f"Without states and reports: {why}.")
    click.echo(f"Journals: {folder}")  # never folded, as all paths


def _tell_what_there_is(flow: str | None, flows: set[str], states: Counter[str]) -> None:
    """Where nothing is as wanted: what is near to it, or what to do."""
    if flow is not None and flows - {flow}:
        close = nearest(flow, sorted(flows))
        say(f"Did you mean {close}?" if close else f"There are: {', '.join(sorted(flows))}.")
    elif states:
        say(f"There are: {', '.join(f'{n:,} {name}' for name, n in states.most_common())}.")
    elif flow is None:
        say(
            "Run a flow with DeepflowTaskRunner (`deepflow demo --size tiny` is one), or name the "
            "folder of another machine or user with DEEPFLOW_STATE_DIR."
        )


def _is_of(run: RunRecord, flow: str, flows: set[str]) -> bool:
    """Whether it is of that flow; the flow it is of is remembered."""
    flows.add(run.flow)
    return run.flow == flow


def _document(run: RunRecord, known: Recorded | None) -> dict[str, object]:
    return {
        "name": run.name,
        "flow": run.flow,
        "state": None if known is None else known.state,
        "began": None if run.began_s is None else _local(run.began_s).isoformat("T", "seconds"),
        "seconds": run.took_s,
        "report": None if known is None else known.report_url,
        "page": None if known is None else known.run_url,
        "task_runs": run.n_runs,
        "task_runs_finished": run.n_finished,
        "id": run.run,
        "journal": str(run.journal),
    }


def _tell(runs: list[RunRecord], known: Mapping[str, Recorded], *, is_wide: bool) -> None:
    columns = [
        Column("name", is_cut=True),
        Column("flow", is_cut=True),
        Column("state", is_optional=True),
        Column("when"),
        Column("took", is_number=True),
        Column("tasks", is_number=True),
        Column("report", is_optional=True),
    ]
    if is_wide:
        columns += [Column("id"), Column("journal")]
    print_table(
        "",
        columns,
        ([*_cells(run, known, is_wide), run.run, str(run.journal)][: len(columns)] for run in runs),
        is_wide=is_wide,
    )


def _cells(run: RunRecord, known: Mapping[str, Recorded], is_wide: bool) -> list[str]:
    of_server = known.get(run.run)
    report = of_server.report_url if of_server is not None else None
    n_runs = f"{run.n_runs:,}"
    return [
        run.name or run.run,
        run.flow,
        ("unknown" if known else "") if of_server is None else of_server.state,
        _when(run.began_s, is_wide),
        in_seconds(run.took_s),
        n_runs if run.n_finished == run.n_runs else f"{run.n_finished:,} of {n_runs}",
        (report if is_wide else "yes") if report else ("-" if known else ""),
    ]


def _local(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s).astimezone()


def _when(at_s: float | None, is_wide: bool) -> str:
    """The time of day, with the date where that is not today."""
    if at_s is None:
        return "-"
    at, now = _local(at_s), _local(time.time())
    if is_wide:
        return at.isoformat(" ", "seconds")
    if at.date() == now.date():
        return f"{at:%H:%M}"
    return f"{at:%b %d %H:%M}" if at.year == now.year else f"{at:%Y-%m-%d}"
