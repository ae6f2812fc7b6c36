"""What a flow run leaves in Prefect's UI: a report in Markdown with a picture inside.

The picture is an SVG in a `data:` URL, which both UIs of Prefect 3.8 show in a Markdown artifact
(the newer one lets `data:image/` pass on purpose). It is drawn without matplotlib from busy time
per row and bin, so that its size is bounded and the time to make it grows but slowly.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from deepflow.decide.trail import Attempt, Trail, WorkerTrail
from deepflow.observe.explain import in_seconds, longest_waits, move_summaries, task_summaries
from deepflow.observe.gantt import (
    FAILED,
    OTHER,
    lanes,
    task_colours,
    time_unit,
    waiting_over_time,
)

__all__ = ["compact_svg", "flow_report_markdown"]

_MAX_ROWS: Final = 40
_MAX_BOXES: Final = 1200
"""At about 16 bytes each; in base64 the picture stays well below 50 kB."""
_BINS: Final = (240, 120, 60, 30)
_LEVELS: Final = 4
"""Steps in which the height of a box shows how busy its row was."""
_LEFT, _WIDTH, _RIGHT, _TOP, _WAITS = 110, 720, 90, 44, 40
_WORKER_HEIGHT, _CLASS_HEIGHT = 14, 48
_MAX_TASK_ROWS: Final = 25
_MAX_LEGEND: Final = 6


def flow_report_markdown(trail: Trail, notes: Sequence[str] = ()) -> str:
    """The report of a flow run: a sentence, the picture, a row per task, what results cost on their
    ways, the longest waits, and `notes`, sentences of whoever makes it.

    Less than 50 kB whatever the size of the run.
    """
    if not trail.tasks:
        return "No task was submitted to Dask."
    picture = b64encode(compact_svg(trail).encode()).decode()
    parts = [
        _sentence(trail),
        f"![Who ran what when](data:image/svg+xml;base64,{picture})",
        _task_table(trail),
        _move_table(trail),
        _wait_table(trail),
        *(note.translate(_NO_MARKUP) for note in notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _sentence(trail: Trail) -> str:
    n_done = sum(task.finished_s is not None for task in trail.tasks.values())
    n_runs = sum(task.n_runs for task in trail.tasks.values())
    moved = sum(copy.n_bytes for copy in trail.transfers)
    busy_s = sum(a.run_s or 0.0 for w in trail.workers.values() for a in w.attempts)
    capacity_s = sum(
        w.threads * w.present_s(trail.begin_s, trail.end_s) for w in trail.workers.values()
    )
    groups = f" ({n_runs:,} task runs)" if n_runs != len(trail.tasks) else ""
    missing = f", **{len(trail.tasks) - n_done} without a result**" * (n_done < len(trail.tasks))
    share = f", busy {busy_s / capacity_s:.0%} of the time" if capacity_s else ""
    return (
        f"{len(trail.tasks):,} tasks{groups}{missing} in {in_seconds(trail.makespan_s)} on "
        f"{len(trail.workers)} workers{share}; {_in_bytes(moved)} moved between workers."
    )


def _task_table(trail: Trail) -> str:
    rows = task_summaries(trail)
    some_failed = any(row.n_failed for row in rows)
    lines = [
        "| task | n | median run | median wait | longest wait | moved | ran on |"
        + " failed tries |" * some_failed,
        "|---|--:|--:|--:|--:|--:|---|" + "--:|" * some_failed,
    ]
    for row in rows[:_MAX_TASK_ROWS]:
        where = ", ".join(f"{_cell(name, 24)} {n:,}" for name, n in row.ran_on[:6])
        failed = f" {row.n_failed:,} |" * some_failed
        lines.append(
            f"| {_cell(row.task)} | {row.n:,} | {in_seconds(row.median_run_s)} "
            f"| {in_seconds(row.median_wait_s)} | {in_seconds(row.longest_wait_s)} "
            f"| {_in_bytes(row.moved_bytes)} | {where} |{failed}"
        )
    if len(rows) > _MAX_TASK_ROWS:
        lines.append(f"\n{len(rows) - _MAX_TASK_ROWS:,} more tasks took less time.")
    return "\n".join(lines)


def _move_table(trail: Trail) -> str:
    """What became of the bytes of results on their ways, and what was chosen why."""
    rows = move_summaries(trail)
    raw, sent = sum(row.raw_bytes for row in rows), sum(row.wire_bytes for row in rows)
    shared = sum(row.shared_bytes for row in rows)
    if not raw + shared:
        return ""
    said = []
    if raw:
        saved_s = sum(row.saved_s for row in rows)
        time = f", about {in_seconds(saved_s)} less than raw" if saved_s > 0 else ""
        said.append(
            f"{_in_bytes(raw)} went over the network as {_in_bytes(sent)} "
            f"(compression saved {1 - sent / raw:.0%}{time})"
        )
    if shared:
        said.append(f"{_in_bytes(shared)} were handed over in shared memory without being sent")
    lines = [
        f"Results on their ways: {'; '.join(said)}.\n",
        "| results of | n | in memory | sent | shared | codecs: ratio | chosen |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for row in rows[:_MAX_TASK_ROWS]:
        codecs = ", ".join(
            f"{name} {before / after:.1f}" for name, before, after in row.codecs if after
        )
        chosen = "; ".join(f"{one.n:,} × {one.codec}: {one.why}" for one in row.choices[:3])
        lines.append(
            f"| {_cell(row.task)} | {row.n_values:,} | {_in_bytes(row.raw_bytes)} "
            f"| {_in_bytes(row.wire_bytes)} | {_in_bytes(row.shared_bytes)} | {_cell(codecs)} "
            f"| {_cell(chosen, 120)} |"
        )
    return "\n".join(lines)


def _wait_table(trail: Trail) -> str:
    waits = longest_waits(trail, 5)
    if not waits:
        return ""
    lines = ["Longest waits, from ready to started:\n", "| waited | for | task |", "|--:|---|---|"]
    for wait in waits:
        reasons = "; ".join(f"{in_seconds(r.seconds)} {_cell(r.text)}" for r in wait.reasons[:3])
        lines.append(f"| {in_seconds(wait.wait_s)} | {reasons} | {_cell(wait.name)} |")
    return "\n".join(lines)


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
    return _short(text, most).translate(_NO_MARKUP)


def _in_bytes(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the picture: a worker, or a class where there are too many workers."""

    label: str
    worker_class: str
    """To be written at the right; empty where it is the label."""
    threads: int
    attempts: tuple[Attempt, ...]


_Paths = dict[str, list[str]]
"""Colour → pieces of an SVG path."""


def compact_svg(trail: Trail) -> str:
    """A picture of the trail that stands alone: rows of workers, and below them who waited.

    A row of a worker shows in each bin of time the task that took most of it, as high as the worker
    was busy. Where there are too many workers there is a row for each class, and the tasks are
    stacked. O(attempts + rows × bins).
    """
    is_by_class = len(trail.workers) > _MAX_ROWS
    rows = _class_rows(trail) if is_by_class else _worker_rows(trail)
    row_height = _CLASS_HEIGHT if is_by_class else _WORKER_HEIGHT
    colours = task_colours([trail], _MAX_LEGEND)
    palette = list(dict.fromkeys([*colours.values(), FAILED]))
    for n_bins in _BINS:
        busy = _busy(trail, rows, colours, palette, n_bins)
        paths, n_boxes = (_stacks if is_by_class else _boxes)(busy, palette)
        if n_boxes <= _MAX_BOXES:
            break
    bottom = _TOP + row_height * len(rows)
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + _WAITS + 14
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="10" '
            f'fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>',
            _svg_legend(colours),
            _svg_axis(trail, bottom),
            *_svg_labels(rows, row_height),
            *(f'<path fill="{colour}" d="{"".join(of)}"/>' for colour, of in paths.items()),
            _svg_waits(trail, bottom, n_bins),
            "</svg>",
        ]
    )


def _worker_rows(trail: Trail) -> list[_Row]:
    threads: dict[str, int] = {}
    for lane in lanes(trail):
        threads[lane.worker] = max(threads.get(lane.worker, 0), lane.thread + 1)
    return [
        _Row(name, trail.workers[name].worker_class, n, trail.workers[name].attempts)
        for name, n in threads.items()
    ]


def _class_rows(trail: Trail) -> list[_Row]:
    of_class: dict[str, list[WorkerTrail]] = {}
    for worker in trail.workers.values():
        of_class.setdefault(worker.worker_class, []).append(worker)
    return [
        _Row(
            f"{len(workers):,} × {name or 'unknown'}",
            "",
            sum(worker.threads for worker in workers),
            tuple(attempt for worker in workers for attempt in worker.attempts),
        )
        for name, workers in sorted(of_class.items())
    ][:_MAX_ROWS]


def _busy(
    trail: Trail, rows: Sequence[_Row], colours: dict[str, str], palette: list[str], n_bins: int
) -> NDArray[np.float64]:
    """Share of its row's time that each colour took: shape (rows, bins, colours)."""
    number = {colour: i for i, colour in enumerate(palette)}
    span_s = trail.makespan_s or 1.0
    found = [
        (
            i,
            a.started_s,
            trail.end_s if a.stopped_s is None else a.stopped_s,
            number[FAILED if a.outcome == "failed" else colours[a.task]],
        )
        for i, row in enumerate(rows)
        for a in row.attempts
    ]
    seconds = np.zeros((len(rows), n_bins + 1, len(palette)))
    if not found:
        return seconds[:, :-1]
    table = np.array(found, dtype=np.float64)
    row, colour = table[:, 0].astype(int), table[:, 3].astype(int)
    # In bins since the begin: parts of the first and last bin, and whole ones between by a sum of
    # differences.
    start = np.clip((table[:, 1] - trail.begin_s) / span_s * n_bins, 0, n_bins)
    stop = np.clip((table[:, 2] - trail.begin_s) / span_s * n_bins, start, n_bins)
    first, last = start.astype(int), stop.astype(int)
    differences = np.zeros((len(rows), n_bins + 2, len(palette)))
    np.add.at(differences, (row, first, colour), 1.0)
    np.add.at(differences, (row, last, colour), -1.0)
    seconds += differences.cumsum(axis=1)[:, : n_bins + 1]
    np.add.at(seconds, (row, first, colour), first - start)
    np.add.at(seconds, (row, last, colour), stop - last)
    threads = np.array([max(1, one.threads) for one in rows])
    busy: NDArray[np.float64] = seconds[:, :-1] / threads[:, None, None]
    return busy


def _boxes(busy: NDArray[np.float64], palette: list[str]) -> tuple[_Paths, int]:
    """A box for each stretch of a row that looks the same; and how many boxes there are."""
    n_rows, n_bins, _ = busy.shape
    most = busy.argmax(axis=2)
    level = np.ceil(np.clip(busy.sum(axis=2), 0.0, 1.0) * _LEVELS - 1e-6).astype(int)
    looks = np.where(level > 0, most * (_LEVELS + 1) + level, 0)
    paths: _Paths = {}
    n_boxes = 0
    step = _WIDTH / n_bins
    for i in range(n_rows):
        edges = [int(edge) + 1 for edge in np.flatnonzero(np.diff(looks[i]))]
        for begin, end in pairwise([0, *edges, n_bins]):
            look = int(looks[i, begin])
            if look == 0:
                continue
            colour = palette[look // (_LEVELS + 1)]
            high = (_WORKER_HEIGHT - 2) * (look % (_LEVELS + 1)) // _LEVELS
            y = _TOP + _WORKER_HEIGHT * (i + 1) - 1 - high
            x, wide = f"{_LEFT + begin * step:g}", f"{(end - begin) * step:g}"
            paths.setdefault(colour, []).append(f"M{x} {y}h{wide}v{high}h-{wide}z")
            n_boxes += 1
    return paths, n_boxes


def _stacks(busy: NDArray[np.float64], palette: list[str]) -> tuple[_Paths, int]:
    """A stepped area for each row and colour, each drawn over those that are stacked on it."""
    n_rows = len(busy)
    heights = np.rint(np.clip(busy.cumsum(axis=2), 0.0, 1.0) * (_CLASS_HEIGHT - 4)).astype(int)
    paths: _Paths = {}
    n_steps = 0
    for number in reversed(range(len(palette))):
        for i in range(n_rows):
            if busy[i, :, number].any():
                base = _TOP + _CLASS_HEIGHT * (i + 1) - 2
                area = _stepped(heights[i, :, number], base)
                paths.setdefault(palette[number], []).append(area)
                n_steps += area.count("h")
    return paths, n_steps


def _stepped(heights: NDArray[np.int_], base: int) -> str:
    """The path of an area whose height is that in each bin; O(changes) long."""
    step = _WIDTH / len(heights)
    edges = [int(edge) + 1 for edge in np.flatnonzero(np.diff(heights))]
    steps = (
        f"V{base - int(heights[begin])}h{(end - begin) * step:g}"
        for begin, end in pairwise([0, *edges, len(heights)])
    )
    return f"M{_LEFT} {base}{''.join(steps)}V{base}z"


def _svg_legend(colours: dict[str, str]) -> str:
    own = [(name, colour) for name, colour in colours.items() if colour != OTHER]
    n_others = len(colours) - len(own)
    entries = [(_short(name, 18), colour) for name, colour in own]
    if n_others:
        entries.append((f"{n_others} more", OTHER))
    each = (_LEFT + _WIDTH + _RIGHT - 16) // (_MAX_LEGEND + 1)
    return "".join(
        f'<path fill="{colour}" d="M{8 + i * each} 8h9v9h-9z"/>'
        f'<text x="{20 + i * each}" y="16">{escape(name)}</text>'
        for i, (name, colour) in enumerate(entries)
    )


def _svg_axis(trail: Trail, bottom: int) -> str:
    span_s = trail.makespan_s
    if not span_s:
        return ""
    unit, unit_s = time_unit(span_s)
    span = span_s / unit_s
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.1, 0.2, 0.5, 1.0, 2.0) if span <= 8 * s * power)
    parts = []
    for i in range(int(span / step) + 1):
        x = f"{_LEFT + _WIDTH * i * step / span:.1f}"
        parts.append(
            f'<path stroke="#ddd" d="M{x} {_TOP - 4}V{bottom + _WAITS + 10}"/>'
            f'<text x="{x}" y="{_TOP - 8}" text-anchor="middle">{i * step:g} {unit}</text>'
        )
    return "".join(parts)


def _svg_labels(rows: Sequence[_Row], row_height: int) -> list[str]:
    parts = []
    for i, row in enumerate(rows):
        y = _TOP + row_height * i + row_height // 2 + 4
        label = escape(_short(row.label, 18))
        parts.append(f'<text x="{_LEFT - 5}" y="{y}" text-anchor="end">{label}</text>')
        if row.worker_class and (i == 0 or row.worker_class != rows[i - 1].worker_class):
            name = escape(_short(row.worker_class, 14))
            parts.append(f'<text x="{_LEFT + _WIDTH + 6}" y="{y}">{name}</text>')
            if i:
                line = f"M{_LEFT} {_TOP + row_height * i}h{_WIDTH + _RIGHT}"
                parts.append(f'<path stroke="#999" d="{line}"/>')
    return parts


def _svg_waits(trail: Trail, bottom: int, n_bins: int) -> str:
    """The most tasks that waited in each bin, as a filled curve."""
    times, undecided, queued = waiting_over_time(trail)
    span_s = trail.makespan_s or 1.0
    waiting = np.array(undecided) + np.array(queued)
    at = np.clip((np.array(times) - trail.begin_s) / span_s * n_bins, 0, n_bins - 1).astype(int)
    most = np.zeros(n_bins)
    np.maximum.at(most, at, waiting)
    # A bin begins with the number that the last change before it left.
    before = np.searchsorted(at, np.arange(n_bins), side="left") - 1
    most = np.maximum(most, np.where(before >= 0, waiting[np.maximum(before, 0)], 0))
    base, peak = bottom + _WAITS + 8, float(most.max())
    heights = np.rint(most * (_WAITS / peak if peak else 0.0)).astype(int)
    return (
        f'<text x="{_LEFT - 5}" y="{base - _WAITS // 2 + 4}" text-anchor="end">waiting</text>'
        f'<text x="{_LEFT + _WIDTH + 6}" y="{base - _WAITS + 9}">{peak:,.0f} at most</text>'
        f'<path fill="#c9a0a0" d="{_stepped(heights, base)}"/>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
