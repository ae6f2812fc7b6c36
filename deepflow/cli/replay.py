"""`deepflow replay`: what would have happened under other policies."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from humanize import naturalsize

from deepflow.cli._journals import complete_run, journal_of
from deepflow.cli._judge import (
    Judged,
    check_outputs,
    judge,
    plot_option,
    policies_option,
    seeds_option,
    split_policies,
)
from deepflow.cli._output import Column, as_json, print_json, print_table, say, wide
from deepflow.decide.trail import Trail
from deepflow.observe.explain import in_seconds, runs_in_words
from deepflow.observe.journal import read_journal


@click.command("replay", short_help="What would have happened under other policies.")
@click.argument("run", required=False, shell_complete=complete_run)
@policies_option
@seeds_option
@click.option(
    "--history",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Journals of runs before this one, for policies to learn from; may be given again.",
)
@plot_option
@wide
@as_json
def command(
    run: str | None,
    policies: str,
    seeds: int,
    history: tuple[Path, ...],
    plot: Path | None,
    is_wide: bool,
    is_json: bool,
) -> None:
    """Example: deepflow replay flight-delays --policy stock,eft --seeds 5

    Simulate RUN on workers of the same speeds, under each policy, and show that beside what did
    happen.

    RUN is anything that `deepflow runs` lists: the name or id of a flow run, the beginning of one,
    the name of a flow (its newest run), the path of a journal, or of a folder of which the newest
    journal is taken. Without RUN, the newest run.

    The policy that was in force tells how far the simulation can be trusted: its row should be near
    to what happened.

    Flow runs leave their journals in the folder journals of DEEPFLOW_STATE_DIR, which is
    ~/.deepflow unless set.
    """
    from deepflow.sim.replay import cluster_of, workload_of

    names = split_policies(policies)
    check_outputs(plot)
    events = read_journal(journal_of(run)[0])
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
    _tell(title, happened, judged, is_wide=is_wide, is_json=is_json)


def _tell(title: str, happened: Trail, judged: Judged, *, is_wide: bool, is_json: bool) -> None:
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
    say(title)
    click.echo()
    rows = [("as it was", was)]
    for one in judged.summary.policies:
        cells = [asdict(cell.metrics) for cell in judged.cells if cell.policy == one.policy]
        rows.append((one.policy, {name: _mean([cell[name] for cell in cells]) for name in was}))
    n = judged.summary.n_seeds
    print_table(
        f"What happened, and what would have: means over {n} seed{'s' * (n > 1)}",
        (
            Column("policy", is_cut=True),
            Column("makespan", is_number=True),
            Column("ratio", is_number=True),
            Column("wait", is_number=True),
            Column("wait p99", is_number=True),
            Column("completion", is_number=True),
            Column("moved", is_number=True),
        ),
        (
            (
                name,
                in_seconds(told["makespan_s"]),
                f"{told['makespan_s'] / was['makespan_s']:.3f}" if was["makespan_s"] else "-",
                in_seconds(told["wait_mean_s"]),
                in_seconds(told["wait_p99_s"]),
                in_seconds(told["completion_mean_s"]),
                naturalsize(told["moved_bytes"]),
            )
            for name, told in rows
        ),
        is_wide=is_wide,
    )
    say("ratio: makespan against what happened; completion: of a flow run, the mean.")
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
