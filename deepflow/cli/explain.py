"""`deepflow explain`: where the tasks of a run went, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from deepflow.cli._journals import journals_folder
from deepflow.cli._output import as_json, in_bytes, print_json, print_table
from deepflow.decide.events import Moved
from deepflow.decide.trail import TaskTrail, Trail
from deepflow.observe.explain import (
    Reason,
    Story,
    find_runs,
    find_tasks,
    in_seconds,
    longest_waits,
    move_summaries,
    runs_in_words,
    story_of,
    task_summaries,
)
from deepflow.observe.journal import find_journal, read_journal

_MOST_ROWS = 40
_MOST_WAITS = 10


@click.command("explain", short_help="Where the tasks of a run went, and why.")
@click.argument("run")
@click.argument("task", required=False)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="A journal, or a directory in which RUN's is looked for; unless given, where flow runs "
    "leave theirs.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Also draw the run: a .png, .svg or .pdf."
)
@as_json
def command(
    run: str, task: str | None, journal: Path | None, plot: Path | None, is_json: bool
) -> None:
    """Example: deepflow explain flight-delays fit

    Where the tasks of RUN went and why, told from a journal.

    RUN is the name or id of a flow run, the beginning of one, or the name of a flow, of which the
    newest run is taken. Without TASK: a summary for each name of a task, and the longest waits with
    their reasons. TASK is the name of a task, or the name or id of a task run as Prefect's UI shows
    it (a part will do), or a Dask key; one task is told from end to end, with the workers that were
    candidates.
    """
    everything = Trail.of(read_journal(find_journal(journal or journals_folder(), run)))
    trail = everything.only(find_runs(everything, run))
    if plot is not None:
        from deepflow.observe.gantt import draw_gantt  # matplotlib, only where asked for

        draw_gantt(trail, plot, title=runs_in_words(trail))
    if task is None:
        _tell_run(trail, is_json)
        return
    found = find_tasks(trail, task)
    # What else its worker ran, other runs' tasks too, is a reason to wait.
    stories = [story_of(everything, one.key) for one in found]
    if is_json:
        print_json([asdict(story) for story in stories])
    elif len(stories) == 1:
        _tell_task(stories[0])
    else:
        _tell_tasks(found, stories)


def _tell_run(trail: Trail, is_json: bool) -> None:
    summaries = task_summaries(trail)
    moves = move_summaries(trail)
    waits = longest_waits(trail, _MOST_WAITS)
    runs = list(trail.runs.values())
    if is_json:
        print_json(
            {
                "runs": [asdict(run) for run in runs],
                "makespan_s": trail.makespan_s,
                "tasks": [asdict(row) for row in summaries],
                "results_moved": [asdict(row) for row in moves],
                "longest_waits": [asdict(wait) for wait in waits],
            }
        )
        return
    for run in runs[:_MOST_ROWS]:
        click.echo(
            f"{run.called} of flow {run.flow}: {run.n_finished:,} of {run.n_tasks:,} tasks "
            f"finished, in {in_seconds(run.completion_s)}" + f" (id {run.run})" * bool(run.name)
        )
    some_grouped = any(row.n_runs > row.n for row in summaries)
    print_table(
        "Tasks, where several runs went as one" if some_grouped else "Tasks",
        (
            "task",
            *("runs",) * some_grouped,
            "n",
            "failed tries",
            "median run",
            "median wait",
            "ran on",
            "moved",
        ),
        (
            (
                row.task,
                *(f"{row.n_runs:,}",) * some_grouped,
                f"{row.n:,}",
                f"{row.n_failed:,}",
                in_seconds(row.median_run_s),
                in_seconds(row.median_wait_s),
                ", ".join(f"{name} {n:,}" for name, n in row.ran_on),
                in_bytes(row.moved_bytes),
            )
            for row in summaries
        ),
    )
    if moves:
        _tell_moves(moves)
    print_table(
        "Longest waits, from ready to started",
        ("task", "on", "waited", "for"),
        (
            (wait.name, wait.worker or "-", in_seconds(wait.wait_s), _in_words(wait.reasons))
            for wait in waits
        ),
    )


def _tell_moves(moves: Sequence[Moved]) -> None:
    print_table(
        "Results on their ways",
        ("results of", "n", "in memory", "sent", "shared", "took", "codecs: ratio"),
        (
            (
                row.task,
                f"{row.n_values:,}",
                in_bytes(row.raw_bytes),
                in_bytes(row.wire_bytes),
                in_bytes(row.shared_bytes),
                in_seconds(row.duration_s),
                ", ".join(
                    f"{name} {before / after:.1f}" for name, before, after in row.codecs if after
                ),
            )
            for row in moves
        ),
    )
    chosen = [(row.task, choice) for row in moves for choice in row.choices]
    if chosen:
        print_table(
            "How large buffers were sent, in sum",
            ("results of", "codec", "n", "predicted", "raw predicted", "took", "for"),
            (
                (
                    task,
                    one.codec,
                    f"{one.n:,}",
                    in_seconds(one.predicted_s or None),
                    in_seconds(one.raw_s or None),
                    in_seconds(one.actual_s),
                    one.why,
                )
                for task, one in chosen
            ),
        )


def _tell_tasks(found: tuple[TaskTrail, ...], stories: list[Story]) -> None:
    rows = sorted(stories, key=lambda story: -(story.wait_s or 0.0))[:_MOST_ROWS]
    print_table(
        f"{len(found):,} tasks" + (f", the {_MOST_ROWS} that waited longest" * (len(found) > 40)),
        ("task", "on", "class", "run", "waited", "for"),
        (
            (
                story.name,
                story.worker or "-",
                story.worker_class,
                in_seconds(story.run_s),
                in_seconds(story.wait_s),
                _in_words(story.reasons_it_waited),
            )
            for story in rows
        ),
    )
    click.echo("Name one of them to see the candidates.")


def _tell_task(story: Story) -> None:
    where = f"on {story.worker} ({story.worker_class})" if story.worker else "nowhere yet"
    click.echo(f"{story.name}: task {story.task} of run {story.run_name}, flow {story.flow}")
    if len(story.runs) == 1:
        click.echo(f"Task run {story.runs[0][0]}, Dask key {story.key}.")
    elif story.runs:
        click.echo(
            f"{len(story.runs)} task runs went as one Dask task, so what follows is about all of "
            f"them; Dask key {story.key}."
        )
    click.echo(f"Ran {where} for {in_seconds(story.run_s)}.")
    marks = {
        "submitted": story.submitted_s,
        "ready": story.ready_s,
        "placed": story.placed_s,
        "started": story.started_s,
        "finished": story.finished_s,
    }
    told = ", ".join(f"{name} at {in_seconds(at_s)}" for name, at_s in marks.items())
    click.echo(f"Since the run began: {told}.")
    click.echo(f"Waited {in_seconds(story.wait_s)}: {_in_words(story.reasons_it_waited) or '-'}.")
    if story.transfer_bytes:
        click.echo(
            f"Fetched {in_bytes(story.transfer_bytes)} from other workers in "
            f"{in_seconds(story.transfer_s)}."
        )
    for worker, cause in story.failures:
        click.echo(f"Failed on {worker or 'no worker'}: {cause}.")
    if story.policy:
        why = f" ({story.reason})" if story.reason else ""
        click.echo(f"Placed by policy {story.policy}{why}.")
    if not story.candidates:
        click.echo("The journal has no candidates for it: Dask itself decided, or nothing did.")
        return
    print_table(
        "Candidates, the chosen one first",
        ("worker", "queue", "transfer", "run", "score"),
        (
            (
                candidate.worker,
                in_seconds(candidate.queue_s),
                in_seconds(candidate.transfer_s),
                in_seconds(candidate.run_s),
                f"{candidate.score:.4g}",
            )
            for candidate in story.candidates
        ),
    )


def _in_words(reasons: tuple[Reason, ...]) -> str:
    return "; ".join(f"{in_seconds(reason.seconds)} {reason.text}" for reason in reasons)
