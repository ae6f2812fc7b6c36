"""`deepflow explain`: where the tasks of a run went, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
from humanize import naturalsize

from deepflow.cli._journals import complete_run, journal_of
from deepflow.cli._output import Column, as_json, print_json, print_table, say, wide
from deepflow.decide.events import Moved
from deepflow.decide.trail import TaskTrail, Trail
from deepflow.errors import JournalError
from deepflow.observe.explain import (
    Reason,
    ReasonKind,
    Story,
    TaskSummary,
    Wait,
    find_runs,
    find_tasks,
    in_seconds,
    longest_wait_by_task,
    longest_waits,
    move_summaries,
    n_task_runs,
    runs_in_words,
    story_of,
    task_summaries,
)
from deepflow.observe.journal import read_journal

_MOST_RUNS: Final = 8
_MOST_TASKS: Final = 36
_MOST_WAITS: Final = 5
_MOST_STORIES: Final = 40
_MOST_WAITS_IN_FULL: Final = 10
_MEANINGS: Final[dict[ReasonKind, str]] = {
    "never ready": "a task that it needs did not finish",
    "unplaced": "no worker was chosen yet",
    "busy": "every worker that could take it was busy",
    "held": "the policy kept it back",
    "inputs": "its inputs were on the way",
    "queue": "it stood in the queue of its worker",
}


@click.command("explain", short_help="Where the tasks of a run went, and why.")
@click.argument("run", required=False, shell_complete=complete_run)
@click.argument("task", required=False)
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help="A journal, or a folder in which RUN's is looked for.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Also draw the run: a .png, .svg or .pdf."
)
@wide
@as_json
def command(
    run: str | None,
    task: str | None,
    journal: Path | None,
    plot: Path | None,
    is_wide: bool,
    is_json: bool,
) -> None:
    """Example: deepflow explain flight-delays fit

    Where the tasks of RUN went and why.

    RUN is anything that `deepflow runs` lists: the name or id of a flow run, the beginning of one,
    the name of a flow (its newest run), or the path of a journal. Without RUN, the newest run.

    Without TASK: one line for each task, the one that took most time first, and the longest waits
    with their reasons. TASK is the name of a task, or the name or id of a task run as Prefect's UI
    shows it (a part will do), or a Dask key. One task is told from end to end, with the workers
    that were candidates.

    Flow runs leave their journals in the folder journals of DEEPFLOW_STATE_DIR, which is
    ~/.deepflow unless set.
    """
    path, wanted = journal_of(run, journal)
    everything = Trail.of(read_journal(path))
    if not everything.tasks:
        raise JournalError(
            f"the journal {path} tells of no task, so there is nothing to explain: its run "
            "submitted none, or the journal was cut off; name another run (`deepflow runs`)"
        )
    trail = everything if wanted is None else everything.only(find_runs(everything, wanted))
    if plot is not None:
        from deepflow.observe.gantt import draw_gantt  # matplotlib, only where asked for

        draw_gantt(trail, plot, title=runs_in_words(trail))
    if task is None:
        _tell_run(trail, is_wide=is_wide, is_json=is_json)
        return
    # What else its worker ran, other runs' tasks too, is a reason to wait.
    found = find_tasks(trail, task)
    stories = [story_of(everything, one.key) for one in found]
    if is_json:
        print_json([asdict(story) for story in stories])
    elif len(stories) == 1:
        _tell_task(stories[0])
    else:
        _tell_tasks(found, stories, is_wide)


def _tell_run(trail: Trail, *, is_wide: bool, is_json: bool) -> None:
    summaries = task_summaries(trail)
    moves = move_summaries(trail)
    runs = list(trail.runs.values())
    if is_json:
        print_json(
            {
                "runs": [asdict(run) for run in runs],
                "makespan_s": trail.makespan_s,
                "tasks": [asdict(row) for row in summaries],
                "results_moved": [asdict(row) for row in moves],
                "longest_waits": [asdict(one) for one in longest_waits(trail, _MOST_WAITS_IN_FULL)],
            }
        )
        return
    for run in runs[:_MOST_RUNS]:
        tasks = [task for task in trail.tasks.values() if task.run == run.run]
        n_runs = n_task_runs(tasks)
        n_finished = n_task_runs(task for task in tasks if task.finished_s is not None)
        say(
            f"{run.called} of flow {run.flow}: {n_finished:,} of {n_runs:,} task runs finished, "
            f"in {in_seconds(run.completion_s)}"
        )
        if run.name:
            say(f"(id {run.run})")
    if len(runs) > _MOST_RUNS:
        say(f"… and {len(runs) - _MOST_RUNS:,} more runs of this journal")
    click.echo()
    if is_wide:
        _tell_tasks_in_full(summaries)
        _tell_moves(moves)
        _tell_waits_in_full(longest_waits(trail, _MOST_WAITS_IN_FULL))
        return
    _tell_summaries(summaries, _n_classes(trail))
    _tell_waits(longest_wait_by_task(trail, _MOST_WAITS))
    _tell_moves_in_short(moves)
    say("Name a task to see why it ran where it did. --wide tells more.")


def _n_classes(trail: Trail) -> int:
    return len({worker.worker_class for worker in trail.workers.values()})


def _tell_summaries(summaries: Sequence[TaskSummary], n_classes: int) -> None:
    shown = summaries[:_MOST_TASKS]
    print_table(
        "Tasks: times of the median run, longest in all first",
        (
            Column("task", is_cut=True),
            Column("runs", is_number=True),
            Column("failed", is_number=True, is_optional=True),
            Column("run", is_number=True),
            Column("wait", is_number=True),
            Column("longest wait", is_number=True),
            Column("ran on", is_cut=True, is_optional=True),
            Column("moved", is_number=True, is_optional=True),
        ),
        (
            (
                row.task,
                f"×{row.n_runs:,}",
                f"{row.n_failed:,}" if row.n_failed else "",
                in_seconds(row.median_each_s),
                in_seconds(row.median_wait_s),
                in_seconds(row.longest_wait_s),
                _places(row) if n_classes > 1 else "",
                naturalsize(row.moved_bytes) if row.moved_bytes else "",
            )
            for row in shown
        ),
    )
    rest = summaries[_MOST_TASKS:]
    if rest:
        total_s = sum(row.total_run_s for row in rest)
        say(f"… and {len(rest):,} more tasks, which took {in_seconds(total_s)} in all (--wide)")
        click.echo()


def _places(row: TaskSummary) -> str:
    """Worker classes, with how many finished on each where there are several."""
    if len(row.ran_on) == 1:
        return row.ran_on[0][0]
    return ", ".join(f"{name} {n:,}" for name, n in row.ran_on)


def _tell_waits(waits: Sequence[Wait]) -> None:
    if not waits:
        return
    print_table(
        "Longest waits, from ready to started, one for each task",
        (
            Column("task run", is_cut=True),
            Column("worker", is_cut=True),
            Column("waited", is_number=True),
            Column("for", is_cut=True),
        ),
        (
            (_called(wait), wait.worker or "-", in_seconds(wait.wait_s), _in_short(wait.reasons))
            for wait in waits
        ),
    )
    _tell_meanings(wait.reasons for wait in waits)


def _called(one: Wait | Story) -> str:
    """The name of its task run; of several that went as one, the first and how many."""
    if len(one.runs) < 2:
        return one.name
    return f"{one.runs[0][1]} ×{len(one.runs):,}"


def _tell_meanings(waits: Iterable[Sequence[Reason]]) -> None:
    used = {kind for reasons in waits for kind in _parts(reasons)}
    said = [f"{kind}: {meaning}" for kind, meaning in _MEANINGS.items() if kind in used]
    if said:
        say("; ".join(said) + ".")


def _tell_moves_in_short(moves: Sequence[Moved]) -> None:
    """A sentence about the bytes of results on their ways, where there were any."""
    raw, sent = sum(row.raw_bytes for row in moves), sum(row.wire_bytes for row in moves)
    shared = sum(row.shared_bytes for row in moves)
    said = []
    if raw:
        said.append(f"{naturalsize(raw)} went over the network as {naturalsize(sent)}")
    if shared:
        said.append(f"{naturalsize(shared)} were handed over in shared memory")
    if said:
        say(f"Results: {' and '.join(said)}.")


def _tell_tasks_in_full(summaries: Sequence[TaskSummary]) -> None:
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
            "longest wait",
            "all runs",
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
                in_seconds(row.longest_wait_s),
                in_seconds(row.total_run_s),
                ", ".join(f"{name} {n:,}" for name, n in row.ran_on),
                naturalsize(row.moved_bytes),
            )
            for row in summaries
        ),
        is_wide=True,
    )


def _tell_waits_in_full(waits: Sequence[Wait]) -> None:
    if not waits:
        return
    print_table(
        "Longest waits, from ready to started",
        ("task", "on", "waited", "for"),
        (
            (wait.name, wait.worker or "-", in_seconds(wait.wait_s), _in_words(wait.reasons))
            for wait in waits
        ),
        is_wide=True,
    )


def _tell_moves(moves: Sequence[Moved]) -> None:
    if not moves:
        return
    print_table(
        "Results that moved",
        ("results of", "n", "in memory", "sent", "shared", "took", "codecs: ratio"),
        (
            (
                row.task,
                f"{row.n_values:,}",
                naturalsize(row.raw_bytes),
                naturalsize(row.wire_bytes),
                naturalsize(row.shared_bytes),
                in_seconds(row.duration_s),
                ", ".join(
                    f"{name} {before / after:.1f}" for name, before, after in row.codecs if after
                ),
            )
            for row in moves
        ),
        is_wide=True,
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
            is_wide=True,
        )


def _tell_tasks(found: Sequence[TaskTrail], stories: list[Story], is_wide: bool) -> None:
    rows = sorted(stories, key=lambda story: -(story.wait_s or 0.0))
    if not is_wide:
        rows = rows[:_MOST_STORIES]
    n_runs = n_task_runs(found)
    title = f"{n_runs:,} task runs"
    if n_runs > len(stories):
        title += f", sent as {len(stories):,} Dask tasks"
    if len(rows) < len(stories):
        title += f"; the {len(rows)} that waited longest"
    n_classes = len({story.worker_class for story in stories})
    print_table(
        title,
        (
            Column("task run", is_cut=True),
            Column("worker", is_cut=True),
            Column("class", is_cut=True, is_optional=True),
            Column("run", is_number=True),
            Column("waited", is_number=True),
            Column("for", is_cut=True),
        ),
        (
            (
                story.name if is_wide else _called(story),
                story.worker or "-",
                story.worker_class if is_wide or n_classes > 1 else "",
                in_seconds(story.run_s),
                in_seconds(story.wait_s),
                _in_words(story.reasons_it_waited)
                if is_wide
                else _in_short(story.reasons_it_waited),
            )
            for story in rows
        ),
        is_wide=is_wide,
    )
    if not is_wide:
        _tell_meanings(story.reasons_it_waited for story in rows)
    say("Name one of them to see the workers that were candidates.")


def _tell_task(story: Story) -> None:
    where = f"on {story.worker} ({story.worker_class})" if story.worker else "nowhere yet"
    say(f"{story.name}: task {story.task} of run {story.run_name}, flow {story.flow}")
    if len(story.runs) == 1:
        say(f"Task run {story.runs[0][0]}, Dask key {story.key}.")
    elif story.runs:
        say(
            f"{len(story.runs)} task runs went as one Dask task, so what follows is about all of "
            f"them; Dask key {story.key}."
        )
    say(f"Ran {where} for {in_seconds(story.run_s)}.")
    marks = {
        "submitted": story.submitted_s,
        "ready": story.ready_s,
        "placed": story.placed_s,
        "started": story.started_s,
        "finished": story.finished_s,
    }
    told = ", ".join(f"{name} at {in_seconds(at_s)}" for name, at_s in marks.items())
    say(f"Since the run began: {told}.")
    say(f"Waited {in_seconds(story.wait_s)}: {_in_words(story.reasons_it_waited) or '-'}.")
    if story.transfer_bytes:
        say(
            f"Fetched {naturalsize(story.transfer_bytes)} from other workers in "
            f"{in_seconds(story.transfer_s)}."
        )
    for worker, cause in story.failures:
        say(f"Failed on {worker or 'no worker'}: {cause}.")
    if story.policy:
        why = f" ({story.reason})" if story.reason else ""
        say(f"Placed by policy {story.policy}{why}.")
    if not story.candidates:
        say("The journal has no candidates for it: Dask itself decided, or nothing did.")
        return
    click.echo()
    print_table(
        "Candidates, the chosen one first: expected times, and what the policy compared",
        (
            Column("worker", is_cut=True),
            Column("queue", is_number=True),
            Column("transfer", is_number=True),
            Column("run", is_number=True),
            Column("score", is_number=True),
        ),
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


def _parts(reasons: Sequence[Reason]) -> dict[ReasonKind, float]:
    """Each code's share of the wait, the largest first; those under a twentieth are left out."""
    total_s = sum(reason.seconds for reason in reasons)
    parts: dict[ReasonKind, float] = {}
    for reason in reasons:
        parts[reason.kind] = parts.get(reason.kind, 0.0) + reason.seconds
    return {
        kind: seconds / total_s if total_s else 1.0
        for kind, seconds in sorted(parts.items(), key=lambda part: -part[1])
        if seconds >= 0.05 * total_s
    }


def _in_short(reasons: Sequence[Reason]) -> str:
    parts = _parts(reasons)
    if len(parts) == 1:
        return next(iter(parts))
    return ", ".join(f"{kind} {share:.0%}" for kind, share in parts.items())


def _in_words(reasons: Sequence[Reason]) -> str:
    return "; ".join(f"{in_seconds(reason.seconds)} {reason.text}" for reason in reasons)
