"""`deepflow replay`: what would have happened under other policies."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deepflow.cli._journals import journals_folder
from deepflow.cli._judge import (
    Judged,
    judge,
    plot_option,
    policies_option,
    seeds_option,
    split_policies,
)
from deepflow.cli._output import as_json, in_bytes, print_json, print_table
from deepflow.decide.trail import Trail
from deepflow.observe.explain import in_seconds, runs_in_words
from deepflow.observe.journal import SUFFIXES, find_journal, newest_journal, read_journal


@click.command("replay", short_help="What would have happened under other policies.")
@click.argument("run")
@policies_option
@seeds_option
@click.option(
    "--history",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Journals of runs before this one, for policies to learn from; may be given again.",
)
@plot_option
@as_json
def command(
    run: str,
    policies: str,
    seeds: int,
    history: tuple[Path, ...],
    plot: Path | None,
    is_json: bool,
) -> None:
    """Example: deepflow replay flight-delays --policy stock,eft --seeds 5

    Simulate RUN on workers of the same speeds, under each policy, and show that beside what did
    happen. RUN is a journal, a directory of which the newest journal is taken, or what `deepflow
    explain` takes: the name or id of a flow run, the beginning of one, or the name of a flow. The
    policy that was in force tells how far the simulation can be trusted: its row should be near to
    what happened.
    """
    from deepflow.sim.replay import cluster_of, workload_of

    names = split_policies(policies)
    events = read_journal(_journal_of(run))
    happened = Trail.of(events)
    title = runs_in_words(happened)
    judged = judge(
        [workload_of(events, name=title)],
        [cluster_of(events)],
        names,
        seeds,
        history=[workload_of(read_journal(path), name=path.name) for path in history],
        is_silent=is_json,
    )
    if plot is not None:
        from deepflow.observe.gantt import draw_side_by_side  # matplotlib, only where asked for

        draw_side_by_side({"as it was": happened, **judged.trails}, plot, title=title)
    _tell(happened, judged, is_json=is_json)


def _journal_of(run: str) -> Path:
    """The journal that is named by its path, by its directory, or by its run."""
    path = Path(run).expanduser()
    if path.exists() or run.endswith(SUFFIXES) or os.sep in run:
        return newest_journal(path)
    return find_journal(journals_folder(), run)


def _tell(happened: Trail, judged: Judged, *, is_json: bool) -> None:
    from deepflow.sim.report import to_json

    was = _figures(happened)
    if is_json:
        print_json(
            {
                "happened": was,
                "summary": to_json(judged.summary),
                "runs": [to_json(cell) for cell in judged.cells],
            }
        )
        return
    rows = [("as it was", was)]
    for one in judged.summary.policies:
        cells = [asdict(cell.metrics) for cell in judged.cells if cell.policy == one.policy]
        rows.append((one.policy, {name: _mean([cell[name] for cell in cells]) for name in was}))
    n = judged.summary.n_seeds
    print_table(
        f"What happened, and what would have: means over {n} seed{'s' * (n > 1)}",
        ("", "makespan", "against what was", "wait", "wait p99", "job completion", "moved"),
        (
            (
                name,
                in_seconds(told["makespan_s"]),
                f"{told['makespan_s'] / was['makespan_s']:.3f}" if was["makespan_s"] else "-",
                in_seconds(told["wait_mean_s"]),
                in_seconds(told["wait_p99_s"]),
                in_seconds(told["completion_mean_s"]),
                in_bytes(told["moved_bytes"]),
            )
            for name, told in rows
        ),
    )
    unfinished = sum(one.n_unfinished for one in judged.summary.policies)
    if unfinished:
        click.echo(f"{unfinished:,} tasks did not finish in the simulation.", err=True)


def _figures(trail: Trail) -> dict[str, Any]:
    """Those of the metrics that need no bound, since a real run has none that is known."""
    from deepflow.sim.report import Yardstick, measure

    bounds = Yardstick(0.0, dict.fromkeys(trail.tasks, 0.0), dict.fromkeys(trail.runs, 1.0))
    told = asdict(measure(trail, bounds))
    names = ("makespan_s", "wait_mean_s", "wait_p99_s", "completion_mean_s", "moved_bytes")
    return {name: told[name] for name in names}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
