"""The picture in a flow run's report: what each worker was busy with, and how many tasks waited.

The picture is an SVG in a `data:` URL, which both UIs of Prefect 3.8 show in a Markdown artifact
(the newer one lets `data:image/` pass on purpose). An image in a page knows nothing of the page's
theme, so the picture has no ground, and its letters have a grey that reads on white and on black.
It is 640 units wide, which is what the narrower UI has for it, and its letters grow where a phone
shows it smaller: so they are always about as large as the page's. It is drawn without matplotlib
from busy time per row and bin, so that its size is bounded and the time to make it grows but
slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from deepflow.decide.trail import Attempt, Trail, WorkerTrail
from deepflow.observe.gantt import (
    FAILED,
    OTHER,
    lanes,
    task_colours,
    time_unit,
    waiting_over_time,
)

__all__ = ["compact_svg", "counted", "short"]

_MAX_NAMED_WORKERS: Final = 8
"""With more workers, rows have no name of their own."""
_MAX_ROWS: Final = 40
"""With more workers, each class has one row."""
_MAX_BOXES: Final = 1200
"""At about 16 bytes each; in base64 the picture stays well below 50 kB."""
_BINS: Final = (320, 160, 80, 40)
_LEVELS: Final = 4
"""Steps in which the height of a box shows how busy its row was."""
_WIDTH: Final = 640
_LETTERS, _LARGE_LETTERS, _PHONE = 15, 26, 460
"""Size of the letters; on a screen narrower than that many pixels, the larger one."""
_LINE: Final = 32
"""Height of a line of text."""
_NAMED_HEIGHT, _THIN_HEIGHT, _CLASS_HEIGHT, _WAITS_HEIGHT = 18, 11, 56, 44
_INK: Final = "#7c7c7c"
"""Contrast above 4 on white and on the dark grounds of both UIs."""
_WAITING: Final = "#c9a0a0"
_MAX_LEGEND: Final = 6
_MAX_MARKS: Final = 5


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the picture: a worker, or a class where there are too many workers."""

    label: str
    """Written above the row; empty: the row is one of those under the last label."""
    threads: int
    attempts: tuple[Attempt, ...]
    y: int
    """Of its lower edge."""
    height: int


_Paths = dict[str, list[str]]
"""Colour → pieces of an SVG path."""


def compact_svg(trail: Trail) -> str:
    """A picture of the trail that stands alone: rows of workers, and below them who waited.

    A row of a worker shows in each bin of time the task that took most of it, as high as the worker
    was busy. Where there are too many workers there is a row for each class, and the tasks are
    stacked. O(attempts + rows × bins).
    """
    colours = task_colours([trail], _MAX_LEGEND)
    palette = list(dict.fromkeys([*colours.values(), FAILED]))
    legend, top = _svg_legend(colours)
    rows, bottom = _rows(trail, top + _LINE)
    is_by_class = len(trail.workers) > _MAX_ROWS
    for n_bins in _BINS:
        busy = _busy(trail, rows, colours, palette, n_bins)
        paths, n_boxes = (_stacks if is_by_class else _boxes)(busy, rows, palette)
        if n_boxes <= _MAX_BOXES:
            break
    waits = _svg_waits(trail, bottom, n_bins)
    height = bottom + (_LINE + _WAITS_HEIGHT if waits else 0) + 4
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}"><style>text{{font:600 {_LETTERS}px system-ui,'
            f"sans-serif;fill:{_INK}}}@media(max-width:{_PHONE}px){{text{{font-size:"
            f"{_LARGE_LETTERS}px}}}}</style>",
            legend,
            _svg_axis(trail, top, height),
            *_svg_labels(rows),
            *(f'<path fill="{colour}" d="{"".join(of)}"/>' for colour, of in paths.items()),
            waits,
            "</svg>",
        ]
    )


def _rows(trail: Trail, top: int) -> tuple[list[_Row], int]:
    """The rows from `top` on, and where they end: by worker, thin ones, or by class."""
    if len(trail.workers) > _MAX_ROWS:
        return _class_rows(trail, top)
    # By class, then by name, numbers in their order.
    names = list(dict.fromkeys(lane.worker for lane in lanes(trail)))
    has_names = len(names) <= _MAX_NAMED_WORKERS
    n_of_class: dict[str, int] = {}
    for name in names:
        of = trail.workers[name].worker_class
        n_of_class[of] = n_of_class.get(of, 0) + 1
    rows: list[_Row] = []
    labelled: str | None = None
    y = top
    for name in names:
        worker = trail.workers[name]
        label = ""
        if has_names:
            label = _worker_label(worker)
        elif labelled != worker.worker_class:
            labelled = worker.worker_class
            label = _class_label(worker.worker_class, n_of_class[worker.worker_class])
        height = _NAMED_HEIGHT if has_names else _THIN_HEIGHT
        y += _LINE * bool(label) + height
        rows.append(_Row(label, worker.threads, worker.attempts, y, height - 2))
    return rows, y


def _worker_label(worker: WorkerTrail) -> str:
    """Its name, with its class where the name does not say it; Dask names workers by numbers."""
    name = f"worker {worker.worker}" if worker.worker.isdigit() else worker.worker
    if not worker.worker_class or worker.worker.startswith(worker.worker_class):
        return name
    return f"{name}, {worker.worker_class}"


def _class_label(name: str, n: int) -> str:
    return f"{name}: {counted(n, 'worker')}" if name else counted(n, "worker")


def _class_rows(trail: Trail, top: int) -> tuple[list[_Row], int]:
    of_class: dict[str, list[WorkerTrail]] = {}
    for worker in trail.workers.values():
        of_class.setdefault(worker.worker_class, []).append(worker)
    each = _LINE + _CLASS_HEIGHT
    rows = [
        _Row(
            _class_label(name, len(workers)),
            sum(worker.threads for worker in workers),
            tuple(attempt for worker in workers for attempt in worker.attempts),
            top + each * (i + 1),
            _CLASS_HEIGHT - 4,
        )
        for i, (name, workers) in enumerate(sorted(of_class.items())[:_MAX_ROWS])
    ]
    return rows, top + each * len(rows)


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


def _boxes(
    busy: NDArray[np.float64], rows: Sequence[_Row], palette: list[str]
) -> tuple[_Paths, int]:
    """A box for each stretch of a row that looks the same; and how many boxes there are."""
    n_bins = busy.shape[1]
    most = busy.argmax(axis=2)
    level = np.ceil(np.clip(busy.sum(axis=2), 0.0, 1.0) * _LEVELS - 1e-6).astype(int)
    looks = np.where(level > 0, most * (_LEVELS + 1) + level, 0)
    paths: _Paths = {}
    n_boxes = 0
    step = _WIDTH // n_bins
    for i, row in enumerate(rows):
        edges = [int(edge) + 1 for edge in np.flatnonzero(np.diff(looks[i]))]
        for begin, end in pairwise([0, *edges, n_bins]):
            look = int(looks[i, begin])
            if look == 0:
                continue
            colour = palette[look // (_LEVELS + 1)]
            high = max(1, row.height * (look % (_LEVELS + 1)) // _LEVELS)
            x, wide = begin * step, (end - begin) * step
            box = f"M{x} {row.y - high}h{wide}v{high}h-{wide}z"
            paths.setdefault(colour, []).append(box)
            n_boxes += 1
    return paths, n_boxes


def _stacks(
    busy: NDArray[np.float64], rows: Sequence[_Row], palette: list[str]
) -> tuple[_Paths, int]:
    """A stepped area for each row and colour, each drawn over those that are stacked on it."""
    shares = np.clip(busy.cumsum(axis=2), 0.0, 1.0)
    paths: _Paths = {}
    n_steps = 0
    for number in reversed(range(len(palette))):
        for i, row in enumerate(rows):
            if busy[i, :, number].any():
                heights = np.rint(shares[i, :, number] * row.height).astype(int)
                area = _stepped(heights, row.y)
                paths.setdefault(palette[number], []).append(area)
                n_steps += area.count("h")
    return paths, n_steps


def _stepped(heights: NDArray[np.int_], base: int) -> str:
    """The path of an area whose height is that in each bin; O(changes) long."""
    step = _WIDTH // len(heights)
    edges = [int(edge) + 1 for edge in np.flatnonzero(np.diff(heights))]
    steps = (
        f"V{base - int(heights[begin])}h{(end - begin) * step}"
        for begin, end in pairwise([0, *edges, len(heights)])
    )
    return f"M0 {base}{''.join(steps)}V{base}z"


def _svg_legend(colours: dict[str, str]) -> tuple[str, int]:
    """What the colours mean, in two columns; and where it ends."""
    own = [(name, colour) for name, colour in colours.items() if colour != OTHER]
    n_others = len(colours) - len(own)
    entries = [(short(name, 20), colour) for name, colour in own]
    if n_others:
        entries.append((f"{n_others} more", OTHER))
    parts = []
    for i, (name, colour) in enumerate(entries):
        x, y = (i % 2) * _WIDTH // 2, (i // 2) * _LINE
        parts.append(
            f'<path fill="{colour}" d="M{x} {y + 8}h16v15h-16z"/>'
            f'<text x="{x + 24}" y="{y + 23}">{escape(name)}</text>'
        )
    return "".join(parts), -(-len(entries) // 2) * _LINE


def _svg_axis(trail: Trail, top: int, height: int) -> str:
    span_s = trail.makespan_s
    if not span_s:
        return ""
    unit, unit_s = time_unit(span_s)
    span = span_s / unit_s
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.2, 0.25, 0.5, 1.0, 2.0) if span <= _MAX_MARKS * s * power)
    parts = []
    for i in range(int(span / step) + 1):
        x = _WIDTH * i * step / span
        # Marks at the edges are written inwards.
        anchor = "start" if i == 0 else "end" if x > 0.93 * _WIDTH else "middle"
        parts.append(
            f'<path stroke="{_INK}" stroke-opacity=".35" d="M{x:.1f} {top + _LINE - 4}V{height}"/>'
            f'<text x="{x:.1f}" y="{top + 23}" text-anchor="{anchor}">{i * step:g} {unit}</text>'
        )
    return "".join(parts)


def _svg_labels(rows: Sequence[_Row]) -> list[str]:
    return [
        f'<text x="0" y="{row.y - row.height - 8}">{escape(short(row.label, 44))}</text>'
        for row in rows
        if row.label
    ]


def _svg_waits(trail: Trail, bottom: int, n_bins: int) -> str:
    """The most tasks that waited in each bin, as a filled curve; nothing where none did."""
    times, undecided, queued = waiting_over_time(trail)
    span_s = trail.makespan_s or 1.0
    waiting = np.array(undecided) + np.array(queued)
    at = np.clip((np.array(times) - trail.begin_s) / span_s * n_bins, 0, n_bins - 1).astype(int)
    most = np.zeros(n_bins)
    np.maximum.at(most, at, waiting)
    # A bin begins with the number that the last change before it left.
    before = np.searchsorted(at, np.arange(n_bins), side="left") - 1
    most = np.maximum(most, np.where(before >= 0, waiting[np.maximum(before, 0)], 0))
    peak = float(most.max())
    if not peak:
        return ""
    heights = np.rint(most * (_WAITS_HEIGHT / peak)).astype(int)
    base = bottom + _LINE + _WAITS_HEIGHT
    return (
        f'<text x="0" y="{bottom + _LINE - 8}">waiting tasks: {peak:,.0f} at most</text>'
        f'<path fill="{_WAITING}" d="{_stepped(heights, base)}"/>'
    )


def short(text: str, most: int) -> str:
    """The text, cut off where it is longer than `most` letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(n: int, what: str) -> str:
    """`n` of something, in words."""
    return f"{n:,} {what}{'s' * (n != 1)}"
