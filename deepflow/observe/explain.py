"""Why things ran where and when they did: summaries and stories told from a trail.

Values first (`task_summaries`, `longest_waits`, `story_of`), for programs and for any way of
showing them; the commands and artifacts print these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise
from statistics import median
from typing import Final, Literal

from deepflow.decide.events import Candidate, CodecChoice, Moved, RunNamed
from deepflow.decide.place.binder import ALL_BUSY
from deepflow.decide.trail import TaskTrail, Trail, count_task_runs
from deepflow.errors import JournalError, nearest
from deepflow.observe.journal import match_runs

__all__ = [
    "Reason",
    "ReasonKind",
    "Story",
    "TaskSummary",
    "Wait",
    "find_runs",
    "find_tasks",
    "in_seconds",
    "longest_wait_by_task",
    "longest_waits",
    "move_summaries",
    "n_task_runs",
    "reasons_it_waited",
    "runs_in_words",
    "story_of",
    "task_summaries",
]

_SHOWN_NAMES: Final = 8
_TITLED_RUNS: Final = 3
_LEAST_OF_AN_ID: Final = 6
"""Characters; less is not taken for the beginning of an id, but for a part of a name."""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """All tasks of one name in a trail. Times in seconds."""

    task: str
    n: int
    """Dask tasks, each of one run or a group of runs."""
    n_runs: int
    n_finished: int
    n_attempts: int
    n_failed: int
    """Attempts that failed: not those that still run, or that made a lost result anew."""
    median_run_s: float | None
    """None: none finished."""
    median_wait_s: float | None
    """None: none began."""
    longest_wait_s: float | None
    total_run_s: float
    """Of all attempts, also those that failed."""
    median_each_s: float | None
    """As `median_run_s`, for one task run: those of a group run one after another."""
    ran_on: tuple[tuple[str, int], ...]
    """Worker class and how many finished there, most first."""
    moved_bytes: int
    """Copied from worker to worker for them."""


ReasonKind = Literal["never ready", "unplaced", "busy", "held", "inputs", "queue"]
"""What a task waited for, in a word: the output of a task that did not end; a decision about it;
any worker that could take it; whatever else the policy kept it back for; its inputs on the wire;
the tasks before it on its worker."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A part of a wait, and what it was spent on."""

    seconds: float
    text: str
    kind: ReasonKind


@dataclass(frozen=True, slots=True)
class Wait:
    """One task that waited."""

    key: str
    name: str
    """What people call it; see `TaskTrail.name`."""
    task: str
    run: str
    worker: str | None
    wait_s: float
    reasons: tuple[Reason, ...]
    runs: tuple[tuple[str, str], ...] = ()
    """Id and name of each task run in it: they waited together."""


@dataclass(frozen=True, slots=True)
class Story:
    """One task, told from end to end. Times in seconds since the first submit of its run."""

    key: str
    name: str
    """What people call it; see `TaskTrail.name`."""
    task: str
    flow: str
    run: str
    run_name: str
    """What people call the flow run: its name, else its id."""
    runs: tuple[tuple[str, str], ...]
    """Id and name of each task run in it: they share what is told here."""
    worker: str | None
    worker_class: str
    submitted_s: float
    ready_s: float | None
    placed_s: float | None
    started_s: float | None
    finished_s: float | None
    wait_s: float | None
    run_s: float | None
    transfer_s: float
    transfer_bytes: int
    policy: str
    reason: str
    """Why it was placed there, where the scores do not say it."""
    candidates: tuple[Candidate, ...]
    reasons_it_waited: tuple[Reason, ...]
    failures: tuple[tuple[str, str], ...]
    """Worker and cause of each attempt that failed."""


def move_summaries(trail: Trail) -> tuple[Moved, ...]:
    """For each name of a task whose results travelled the sum of all workers, the largest first."""
    by_name: dict[str, list[Moved]] = {}
    for one in trail.moved:
        by_name.setdefault(one.task, []).append(one)
    rows = (_sum_of(moved) for moved in by_name.values())
    return tuple(sorted(rows, key=lambda row: -(row.raw_bytes + row.shared_bytes)))


def _sum_of(moved: Sequence[Moved]) -> Moved:
    """Of one task; codecs with most bytes and choices made most often come first."""
    codecs: dict[str, tuple[int, int]] = {}
    choices: dict[str, CodecChoice] = {}
    for one in moved:
        for codec, raw, stored in one.codecs:
            before = codecs.get(codec, (0, 0))
            codecs[codec] = (before[0] + raw, before[1] + stored)
        for choice in one.choices:
            known = choices.get(choice.codec)
            choices[choice.codec] = choice if known is None else known.plus(choice)
    runs = {one.run for one in moved}
    return Moved(
        at_s=max(one.at_s for one in moved),
        run=runs.pop() if len(runs) == 1 else "",
        task=moved[0].task,
        worker="",
        n_values=sum(one.n_values for one in moved),
        raw_bytes=sum(one.raw_bytes for one in moved),
        wire_bytes=sum(one.wire_bytes for one in moved),
        shared_bytes=sum(one.shared_bytes for one in moved),
        copied_bytes=sum(one.copied_bytes for one in moved),
        duration_s=sum(one.duration_s for one in moved),
        codecs=tuple(
            (codec, *sizes) for codec, sizes in sorted(codecs.items(), key=lambda c: -c[1][0])
        ),
        choices=tuple(sorted(choices.values(), key=lambda choice: -choice.n)),
    )


def task_summaries(trail: Trail) -> tuple[TaskSummary, ...]:
    """One row for each name of a task, the one that took most time first."""
    by_name: dict[str, list[TaskTrail]] = {}
    for task in trail.tasks.values():
        by_name.setdefault(task.task, []).append(task)
    rows = (_summary(trail, name, tasks) for name, tasks in by_name.items())
    return tuple(sorted(rows, key=lambda row: -row.total_run_s))


def _summary(trail: Trail, name: str, tasks: Sequence[TaskTrail]) -> TaskSummary:
    runs_s = _known(task.run_s for task in tasks)
    waits_s = _known(task.wait_s for task in tasks)
    each_s = [
        run_s / task.n_runs
        for task in tasks
        if (run_s := task.run_s) is not None
        for _ in range(task.n_runs)
    ]
    ran_on = Counter(_class_of(trail, task) for task in tasks if task.finished_s is not None)
    return TaskSummary(
        task=name,
        n=len(tasks),
        n_runs=n_task_runs(tasks),
        n_finished=len(runs_s),
        n_attempts=sum(len(task.attempts) for task in tasks),
        n_failed=sum(a.outcome == "failed" for task in tasks for a in task.attempts),
        median_run_s=median(runs_s) if runs_s else None,
        median_wait_s=median(waits_s) if waits_s else None,
        longest_wait_s=max(waits_s, default=None),
        total_run_s=sum(a.run_s or 0.0 for task in tasks for a in task.attempts),
        median_each_s=median(each_s) if each_s else None,
        ran_on=tuple(ran_on.most_common()),
        moved_bytes=sum(task.transfer_bytes for task in tasks),
    )


def n_task_runs(tasks: Iterable[TaskTrail]) -> int:
    """How many task runs are in these tasks, as `count_task_runs` counts them."""
    return count_task_runs(((run_id for run_id, _ in task.runs), task.n_runs) for task in tasks)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _class_of(trail: Trail, task: TaskTrail) -> str:
    worker = trail.workers.get(task.worker or "")
    return (worker.worker_class if worker else "") or "class unknown"


def longest_waits(trail: Trail, most: int) -> tuple[Wait, ...]:
    """The tasks that waited longest from ready to start, those that did not wait left out."""
    return _waits(trail, trail.tasks.values(), most)


def longest_wait_by_task(trail: Trail, most: int) -> tuple[Wait, ...]:
    """As `longest_waits`, of the tasks of one name only the one that waited longest."""
    longest: dict[str, TaskTrail] = {}
    for task in trail.tasks.values():
        known = longest.get(task.task)
        if known is None or (task.wait_s or 0.0) > (known.wait_s or 0.0):
            longest[task.task] = task
    return _waits(trail, longest.values(), most)


def _waits(trail: Trail, tasks: Iterable[TaskTrail], most: int) -> tuple[Wait, ...]:
    longest = nlargest(most, tasks, key=lambda task: task.wait_s or 0.0)
    return tuple(
        Wait(
            task.key,
            task.name,
            task.task,
            task.run,
            task.worker,
            task.wait_s,
            reasons_it_waited(trail, task),
            task.runs,
        )
        for task in longest
        if task.wait_s
    )


def reasons_it_waited(trail: Trail, task: TaskTrail) -> tuple[Reason, ...]:
    """What its wait was spent on, the longest part first. O(attempts of its worker).

    From ready until it was given to a worker: what the policy said when it held it back. From then
    until it began: its inputs on the wire, and the rest of the time in the worker's queue. Inputs
    that travelled while it was in the queue anyway count as travel.
    """
    if task.ready_s is None:
        missing = [
            trail.tasks[key].name
            for key in task.depends_on
            if key in trail.tasks and trail.tasks[key].finished_s is None
        ]
        text = f"it never became ready: {_some(missing)} did not finish"
        return (Reason(0.0, text, "never ready"),)
    until_s = trail.end_s if task.started_s is None else task.started_s
    given_s = until_s if task.placed_s is None else min(max(task.placed_s, task.ready_s), until_s)
    parts = _before_placing(task, task.ready_s, given_s)
    travel_s = min(task.transfer_s, until_s - given_s)
    if travel_s > 0:
        parts.append(Reason(travel_s, "its inputs were on the way", "inputs"))
    if until_s - given_s - travel_s > 0:
        parts.append(_in_queue(trail, task, given_s, until_s, travel_s))
    parts.sort(key=lambda part: -part.seconds)
    # A hundredth of the wait explains nothing.
    return tuple(part for part in parts if part.seconds >= 0.01 * parts[0].seconds)


def _before_placing(task: TaskTrail, ready_s: float, given_s: float) -> list[Reason]:
    """Each hold lasts until the next one."""
    spans: dict[str, float] = {}
    marks = [(max(at_s, ready_s), why) for at_s, why in task.holds]
    marks = [(ready_s, ""), *marks, (given_s, "")]
    for (from_s, why), (to_s, _) in pairwise(marks):
        seconds = min(to_s, given_s) - min(from_s, given_s)
        if seconds > 0:
            spans[why] = spans.get(why, 0.0) + seconds
    return [_held(seconds, why) for why, seconds in spans.items()]


def _held(seconds: float, why: str) -> Reason:
    if not why:
        return Reason(seconds, "not yet given to a worker", "unplaced")
    return Reason(seconds, f"held back: {why}", "busy" if why.startswith(ALL_BUSY) else "held")


def _in_queue(
    trail: Trail, task: TaskTrail, given_s: float, until_s: float, travel_s: float
) -> Reason:
    worker = trail.workers.get(task.attempts[0].worker) if task.attempts else None
    ahead = sum(
        a.key != task.key and a.stopped_s is not None and given_s < a.stopped_s <= until_s
        for a in (worker.attempts if worker else ())
    )
    where = f"in the queue of {worker.worker}" if worker else "in the queue of a worker"
    behind = f", behind {ahead} task{'s' * (ahead != 1)}" if ahead else ""
    return Reason(until_s - given_s - travel_s, where + behind, "queue")


def story_of(trail: Trail, key: str) -> Story:
    """One task from end to end; `key` is a key of the trail."""
    task = trail.tasks[key]
    begin_s = trail.runs[task.run].first_submit_s

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else at_s - begin_s

    return Story(
        key=task.key,
        name=task.name,
        task=task.task,
        flow=task.flow,
        run=task.run,
        run_name=trail.runs[task.run].called,
        runs=task.runs,
        worker=task.worker,
        worker_class=_class_of(trail, task) if task.worker else "",
        submitted_s=task.submitted_s - begin_s,
        ready_s=since(task.ready_s),
        placed_s=since(task.placed_s),
        started_s=since(task.started_s),
        finished_s=since(task.finished_s),
        wait_s=task.wait_s,
        run_s=task.run_s,
        transfer_s=task.transfer_s,
        transfer_bytes=task.transfer_bytes,
        policy=task.policy,
        reason=task.reason,
        candidates=task.candidates,
        reasons_it_waited=reasons_it_waited(trail, task),
        failures=tuple((a.worker, a.cause) for a in task.attempts if a.outcome == "failed"),
    )


def find_runs(trail: Trail, wanted: str) -> tuple[str, ...]:
    """The ids of the runs that are called so, as `observe.journal.match_runs` finds them.

    Raises :class:`JournalError` for none, or where a beginning fits several runs.
    """
    in_order = sorted(trail.runs.values(), key=lambda run: run.first_submit_s)
    runs = [RunNamed(run.first_submit_s, run.run, run.name, run.flow) for run in in_order]
    return tuple(run.run for run in match_runs(runs, wanted))


def find_tasks(trail: Trail, wanted: str) -> tuple[TaskTrail, ...]:
    """The tasks that are called so: by Dask key; by the name of a task, or the name or id of a task
    run; else by the beginning of one task run's id; else by a part of a name or key.

    Raises :class:`JournalError` for none, or where the beginning of an id fits several.
    """
    if wanted in trail.tasks:
        return (trail.tasks[wanted],)
    tasks = trail.tasks.values()
    found = [task for task in tasks if wanted == task.task or _has_run(task, wanted)]
    if found:
        return tuple(found)
    if len(wanted) >= _LEAST_OF_AN_ID:
        begun = {
            run_id: task for task in tasks for run_id, _ in task.runs if run_id.startswith(wanted)
        }
        if len(begun) == 1:
            return tuple(begun.values())
        if begun:
            raise JournalError(
                f"{wanted!r} begins the ids of {len(begun)} task runs ({_some(list(begun))}); "
                "say more of it"
            )
    found = [
        task for task in tasks if wanted in task.key or any(wanted in name for _, name in task.runs)
    ]
    if found:
        return tuple(found)
    names = list(dict.fromkeys(task.task for task in tasks))
    close = nearest(wanted, [*names, *(name for task in tasks for _, name in task.runs)])
    advice = f"did you mean {close!r}?" if close else f"its tasks are: {_some(names)}"
    raise JournalError(f"no task of the run is called {wanted!r}; {advice}")


def _has_run(task: TaskTrail, wanted: str) -> bool:
    return any(wanted in named for named in task.runs)


def runs_in_words(trail: Trail) -> str:
    """What a picture of the trail is about: flow and flow run, of many runs the first few."""
    told = [f"{run.flow}, run {run.called}" for run in trail.runs.values()]
    more = len(told) - _TITLED_RUNS
    return "; ".join(told[:_TITLED_RUNS]) + (f" and {more} more" if more > 0 else "")


def in_seconds(seconds: float | None) -> str:
    """A time as a person reads it: `12 ms`, `3.4 s`, `5.2 min`, `1.3 h`; `-` for None."""
    if seconds is None:
        return "-"
    for unit, size, below in (("µs", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 180.0)):
        if abs(seconds) < 0.9995 * below:  # what rounds up to it is told in the next unit
            return f"{seconds / size:.3g} {unit}" if seconds else "0 s"
    return f"{seconds / 60:.3g} min" if abs(seconds) < 10_800 else f"{seconds / 3600:.3g} h"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
