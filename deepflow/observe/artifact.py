"""What a flow run leaves in Prefect's UI: a report in Markdown with a picture inside."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from humanize import naturalsize

from deepflow.decide.trail import Trail
from deepflow.observe.compact_svg import compact_svg, counted, short
from deepflow.observe.explain import (
    in_seconds,
    longest_wait_by_task,
    move_summaries,
    n_task_runs,
    task_summaries,
)

__all__ = ["REPORT_KEY", "Forecast", "Replay", "flow_report_markdown"]

REPORT_KEY: Final = "deepflow-placement"
"""The key of the report among a flow run's artifacts."""

_MAX_TASK_ROWS: Final = 25
_FAR_OFF: Final = 0.25
"""A simulation that misses what happened by more says little about what did not happen."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the simulator says of a flow run. Times in seconds."""

    policy: str
    """The policy that was in force."""
    happened_s: float
    replayed_s: float
    """With the same policy: how far it is from `happened_s` tells how far to trust the rest."""
    other: str
    """Another policy."""
    other_s: float
    """With the other policy."""


@dataclass(frozen=True, slots=True)
class Replay:
    """How a reader of the report can find out what other policies would have made of the run."""

    run_name: str
    policies: tuple[str, ...]
    """To be compared."""
    forecast: Forecast | None = None
    why_not: str = ""
    """Why there is no forecast, as a clause; empty where it needs no words."""


def flow_report_markdown(
    trail: Trail, notes: Sequence[str] = (), replay: Replay | None = None
) -> str:
    """The report of a flow run: a sentence, the picture, a row per task, what moving results cost,
    the longest waits, what another policy would have made of it, and `notes`, sentences of whoever
    makes it.

    Less than 50 kB whatever the size of the run.
    """
    if not trail.tasks:
        return "No task was submitted to Dask."
    picture = b64encode(compact_svg(trail).encode()).decode()
    parts = [
        _sentence(trail),
        f"![Which worker ran which task when](data:image/svg+xml;base64,{picture})",
        _task_table(trail),
        _moves(trail),
        _waits(trail),
        "" if replay is None else _other_policies(replay),
        *(note.translate(_NO_MARKUP) for note in notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _sentence(trail: Trail) -> str:
    n_done = sum(task.finished_s is not None for task in trail.tasks.values())
    n_runs = n_task_runs(trail.tasks.values())
    busy_s = sum(a.run_s or 0.0 for w in trail.workers.values() for a in w.attempts)
    capacity_s = sum(
        w.threads * w.present_s(trail.begin_s, trail.end_s) for w in trail.workers.values()
    )
    # Prefect's task runs are what people know; tiny ones share a task of Dask's.
    groups = f" in {len(trail.tasks):,} tasks of Dask's," if n_runs != len(trail.tasks) else ""
    missing = f", **{len(trail.tasks) - n_done} without a result**" * (n_done < len(trail.tasks))
    n_workers = len(trail.workers)
    share = f", busy {busy_s / capacity_s:.0%} of the time" if capacity_s else ""
    return (
        f"**{counted(n_runs, 'task run')}**{missing} took **{in_seconds(trail.makespan_s)}**"
        f"{groups} on {counted(n_workers, 'worker')}{share}."
    )


_Align = Literal["left", "right"]


def _table(headers: Sequence[tuple[str, _Align]], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; columns in which no row but the first says anything are left out."""
    kept = [
        i
        for i in range(len(headers))
        if i == 0 or any(row[i] not in ("", "-", "0", "0 s", naturalsize(0)) for row in rows)
    ]
    lines = [
        "| " + " | ".join(headers[i][0] for i in kept) + " |",
        "|" + "|".join("--:" if headers[i][1] == "right" else "---" for i in kept) + "|",
        *("| " + " | ".join(row[i] for i in kept) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _task_table(trail: Trail) -> str:
    rows = task_summaries(trail)
    has_classes = any(worker.worker_class for worker in trail.workers.values())
    told = _table(
        [
            ("task", "left"),
            ("runs", "right"),
            ("median run", "right"),
            ("median wait", "right"),
            ("longest wait", "right"),
            ("moved to it", "right"),
            ("ran on", "left"),
            ("failed tries", "right"),
        ],
        [
            (
                _cell(row.task),
                f"{row.n_runs:,}",
                in_seconds(row.median_each_s),
                in_seconds(row.median_wait_s),
                in_seconds(row.longest_wait_s),
                naturalsize(row.moved_bytes) if row.moved_bytes else "",
                ", ".join(f"{_cell(name, 24)} {n:,}" for name, n in row.ran_on[:6])
                if has_classes
                else "",
                f"{row.n_failed:,}",
            )
            for row in rows[:_MAX_TASK_ROWS]
        ],
    )
    if len(rows) > _MAX_TASK_ROWS:
        told += f"\n\n{len(rows) - _MAX_TASK_ROWS:,} more tasks took less time."
    return told


def _moves(trail: Trail) -> str:
    """What became of the bytes of results on their ways, and what was chosen why."""
    rows = move_summaries(trail)
    raw, sent = sum(row.raw_bytes for row in rows), sum(row.wire_bytes for row in rows)
    shared = sum(row.shared_bytes for row in rows)
    if not raw + shared:
        copied = sum(copy.n_bytes for copy in trail.transfers)
        return f"Results that moved: {naturalsize(copied)} between workers." if copied else ""
    said = []
    if raw:
        how = f"as {naturalsize(sent)}" if sent < raw else "uncompressed"
        saved_s = sum(row.saved_s for row in rows)
        time = f" and about {in_seconds(saved_s)}" if saved_s > 0 else ""
        saved = f"; compression saved {1 - sent / raw:.0%} of the bytes{time}" * (sent < raw)
        said.append(f"{naturalsize(raw)} were sent {how}{saved}.")
    if shared:
        said.append(f"{naturalsize(shared)} were handed over in shared memory, without being sent.")
    table = _table(
        [
            ("results of", "left"),
            ("n", "right"),
            ("size", "right"),
            ("sent", "right"),
            ("shared", "right"),
            ("codecs: ratio", "left"),
        ],
        [
            (
                _cell(row.task),
                f"{row.n_values:,}",
                naturalsize(row.raw_bytes + row.shared_bytes),
                naturalsize(row.wire_bytes) if row.raw_bytes else "",
                naturalsize(row.shared_bytes) if row.shared_bytes else "",
                _cell(
                    ", ".join(
                        f"{name} {before / after:.1f}"
                        for name, before, after in row.codecs
                        if after
                    )
                    if any(name != "raw" for name, _, _ in row.codecs)
                    else ""
                ),
            )
            for row in rows[:_MAX_TASK_ROWS]
        ],
    )
    # Sentences stand in lists: in a table one of the UIs puts each in one line, and cuts it off.
    chosen = "\n".join(
        f"- **{_cell(row.task)}**: "
        + "; ".join(f"{one.n:,} × {_cell(one.codec)}, {_cell(one.why)}" for one in row.choices[:3])
        for row in rows[:_MAX_TASK_ROWS]
        if row.choices
    )
    why = f"\n\nWhy these codecs:\n\n{chosen}" if chosen else ""
    return f"Results that moved: {' '.join(said)}\n\n{table}{why}"


def _waits(trail: Trail) -> str:
    lines = [
        f"- **{_cell(wait.name)}** waited {in_seconds(wait.wait_s)}: "
        + "; ".join(f"{in_seconds(r.seconds)} {_cell(r.text, 80)}" for r in wait.reasons[:3])
        for wait in longest_wait_by_task(trail, 5)
    ]
    if not lines:
        return ""
    return "\n".join(["Longest waits, from ready to started:\n", *lines])


def _other_policies(replay: Replay) -> str:
    """What another policy would have made of the run, how far to trust that, and how to see more"""
    # A run's name is the user's; only what the shell would take apart is quoted.
    name = shlex.quote(replay.run_name.translate(_NO_MARKUP))
    command = f"`deepflow replay {name} --policy {','.join(replay.policies)}`"
    told = replay.forecast
    if told is None:
        reason = f" ({replay.why_not})" if replay.why_not else ""
        return f"What other policies would have made of this run{reason}: {command}"
    gain = told.other_s / told.happened_s - 1
    error = told.replayed_s / told.happened_s - 1
    trust = (
        f"played with `{told.policy}`, the policy that was in force, it says "
        f"{in_seconds(told.replayed_s)} ({_longer(error)} than it was)"
    )
    if abs(error) > _FAR_OFF:
        trust += ", which is too far off to conclude anything"
    elif abs(gain) <= abs(error):
        trust += ", so the difference may be none"
    return (
        f"Under another policy: with `{told.other}` this run would have taken "
        f"{in_seconds(told.other_s)} instead of {in_seconds(told.happened_s)} "
        f"({_longer(gain)}), says the simulator. How far to trust that: {trust}. "
        f"For more: {command}"
    )


def _longer(share: float) -> str:
    return f"{abs(share):.0%} {'shorter' if share < 0 else 'longer'}"


# One of Prefect's two UIs shows character references in a table as they are written, so what could
# be taken for markup is replaced by what looks like it.
_NO_MARKUP: Final = str.maketrans(
    {
        "|": "¦",
        "<": "‹",
        ">": "›",
        "`": "'",
        "*": "∗",
        "[": "(",
        "]": ")",
        "\\": "/",
        "~": "∼",
        "\n": " ",
    }
)


def _cell(text: str, most: int = 60) -> str:
    """Text that is neither Markdown nor HTML and does not end a cell; long names are cut."""
    return short(text, most).translate(_NO_MARKUP)
