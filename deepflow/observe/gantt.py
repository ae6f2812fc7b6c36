"""A picture of who ran what when: a row per thread, coloured by task, and below it who waited.

`draw_gantt` draws one trail, `draw_side_by_side` several with the same time axis and colours. Needs
matplotlib, which is an extra. What other pictures share with these (rows, colours, units of time)
is here too and needs nothing.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deepflow.decide.trail import Attempt, Trail, WorkerTrail
from deepflow.errors import ConfigurationError, advice_on_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Lane",
    "check_picture",
    "draw_gantt",
    "draw_side_by_side",
    "lanes",
    "task_colours",
    "time_unit",
]

PALETTE: Final = (
    "#4477aa",
    "#ee8866",
    "#44aa77",
    "#cc6699",
    "#ddbb44",
    "#77ccee",
    "#995533",
    "#8877cc",
    "#99aa33",
    "#336655",
)
"""Told apart also with weak colour vision, and not taken by anything else in the picture."""
OTHER: Final = "#a8a8a8"
"""The colour of the tasks that have none of their own."""
FAILED: Final = "#cc0000"
_TRANSFER: Final = "#222222"
_UNDECIDED: Final = "#e0a0a0"
_QUEUED: Final = "#b8c4d8"

_SUFFIXES: Final = (".png", ".svg", ".pdf")
_NAMED_LANES: Final = 70
_MAX_SLACK_S: Final = 1e-3
_SLACK_SHARE: Final = 0.05
_MAX_INCHES: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lane:
    """One thread of a worker, and what ran there one after the other."""

    worker: str
    worker_class: str
    thread: int
    attempts: tuple[Attempt, ...]


def lanes(trail: Trail) -> tuple[Lane, ...]:
    """A lane for each thread: by class, then by name, numbers in their order.

    The log does not tell threads, so each attempt goes to the first one that is free; where more
    run at once than the worker has threads (a task that waits for others leaves its own), there are
    more lanes.
    """
    in_order = sorted(
        trail.workers.values(), key=lambda w: (_natural(w.worker_class), _natural(w.worker))
    )
    return tuple(lane for worker in in_order for lane in _lanes_of(worker, trail.end_s))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _lanes_of(worker: WorkerTrail, end_s: float) -> list[Lane]:
    threads: list[list[Attempt]] = [[] for _ in range(worker.threads)]
    for attempt in worker.attempts:
        free = next((of for of in threads if not of or _is_after(attempt, of[-1], end_s)), None)
        if free is None:
            free = []
            threads.append(free)
        free.append(attempt)
    return [
        Lane(worker.worker, worker.worker_class, i, tuple(of_thread))
        for i, of_thread in enumerate(threads)
    ]


def _is_after(later: Attempt, earlier: Attempt, end_s: float) -> bool:
    """Whether one thread can have run both. A worker's clock is set anew now and then, so a task
    may seem to begin a little before the thread's last one ended: by a part of the shorter one."""
    earlier_end_s = end_s if earlier.stopped_s is None else earlier.stopped_s
    later_end_s = end_s if later.stopped_s is None else later.stopped_s
    shorter_s = min(earlier_end_s - earlier.started_s, later_end_s - later.started_s)
    slack_s = min(_MAX_SLACK_S, _SLACK_SHARE * max(0.0, shorter_s))
    rounding_s = 2 * math.ulp(later.started_s)
    return earlier_end_s <= later.started_s + slack_s + rounding_s


def task_colours(trails: Sequence[Trail], most: int = len(PALETTE)) -> dict[str, str]:
    """A colour for each of the tasks that took most time, at most `most`; the others have `OTHER`.

    In the order of the time they took.
    """
    seconds: dict[str, float] = {}
    for trail in trails:
        for worker in trail.workers.values():
            for attempt in worker.attempts:
                seconds[attempt.task] = seconds.get(attempt.task, 0.0) + (attempt.run_s or 0.0)
    names = sorted(seconds, key=lambda name: -seconds[name])
    return {name: PALETTE[i] if i < most else OTHER for i, name in enumerate(names)}


def time_unit(span_s: float) -> tuple[str, float]:
    """The unit in which a span is read best, and its seconds."""
    for unit, seconds in (("ms", 1e-3), ("s", 1.0), ("min", 60.0)):
        if span_s < 300 * seconds:
            return unit, seconds
    return "h", 3600.0


def waiting_over_time(trail: Trail) -> tuple[list[float], list[int], list[int]]:
    """When the number of waiting tasks changed, and from then on: how many were ready and not yet
    given to a worker, and how many were given to one and had not begun."""
    changes: dict[float, list[int]] = {}
    for task in trail.tasks.values():
        if task.ready_s is None:
            continue
        start_s = trail.end_s if task.started_s is None else task.started_s
        given_s = start_s if task.placed_s is None else min(task.placed_s, start_s)
        given_s = max(given_s, task.ready_s)
        for which, from_s, to_s in ((0, task.ready_s, given_s), (1, given_s, start_s)):
            if to_s > from_s:
                changes.setdefault(from_s, [0, 0])[which] += 1
                changes.setdefault(to_s, [0, 0])[which] -= 1
    times, undecided, queued = [trail.begin_s], [0], [0]
    for at_s in sorted(changes):
        times.append(at_s)
        undecided.append(undecided[-1] + changes[at_s][0])
        queued.append(queued[-1] + changes[at_s][1])
    return times, undecided, queued


def check_picture(path: Path) -> None:
    """Raise :class:`ConfigurationError` where no picture could be drawn to `path`."""
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"no picture can be written as {path.name!r}; end the name in {' or '.join(_SUFFIXES)}"
        )
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(
            f"the picture {path} cannot be written: there is no folder {path.parent}; make it, or "
            "give a path in one that exists"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            f"the picture {path} needs matplotlib, which is not installed; "
            "pip install 'prefect-deepflow[plot]'"
        )


def draw_gantt(trail: Trail, path: Path, *, title: str = "") -> None:
    """Draw one trail to `path`, in the format of its suffix (png, svg, pdf); as the next."""
    draw_side_by_side({"": trail}, path, title=title)


def draw_side_by_side(trails: Mapping[str, Trail], path: Path, *, title: str = "") -> None:
    """Draw trails by name, one under another with the same time axis, so that ends compare.

    Raises :class:`ConfigurationError` without matplotlib, or for another suffix.
    """
    if not trails:
        raise ConfigurationError("there is no trail to draw; give at least one")
    check_picture(path)
    figure_class = _matplotlib_figure()
    rows = {name: lanes(trail) for name, trail in trails.items()}
    heights = [h for of in rows.values() for h in (max(1.2, 0.17 * len(of) + 0.1), 0.75)]
    scale = min(1.0, _MAX_INCHES / sum(heights))
    figure = figure_class(
        figsize=(13.0, scale * sum(heights) + 0.45 * len(trails) + 1.3), layout="constrained"
    )
    axes = figure.subplots(2 * len(trails), 1, sharex=True, height_ratios=heights, squeeze=False)[
        :, 0
    ]
    span_s = max(trail.makespan_s for trail in trails.values()) or 1.0
    unit, unit_s = time_unit(span_s)
    colours = task_colours(list(trails.values()))
    for i, (name, trail) in enumerate(trails.items()):
        _draw_rows(axes[2 * i], trail, rows[name], colours, unit_s, span_s)
        _draw_waits(axes[2 * i + 1], trail, unit_s)
        end = trail.makespan_s / unit_s
        for axis in axes[2 * i : 2 * i + 2]:
            axis.axvline(end, color="#555555", linestyle="--", linewidth=0.8)
        told = f"{_short(name, 60)}: " if name else ""
        axes[2 * i].set_title(
            f"{told}{len(trail.tasks):,} tasks in {end:.4g} {unit}", loc="left", fontsize=9
        )
    axes[-1].set_xlim(0, 1.01 * span_s / unit_s)
    axes[-1].set_xlabel(f"time since the first submit ({unit})", fontsize=9)
    if title:
        figure.suptitle(_short(title, 120), fontsize=12, x=0.01, ha="left", fontweight="bold")
    _draw_legend(figure, list(trails.values()), colours)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigurationError(
            f"the picture {path} cannot be written ({error.strerror}); {advice_on_place(error)}"
        ) from error


def _matplotlib_figure() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "a Gantt picture needs matplotlib, which is not installed; "
            "pip install 'prefect-deepflow[plot]'"
        ) from error
    return Figure


def _draw_rows(
    axis: Axes,
    trail: Trail,
    rows: tuple[Lane, ...],
    colours: Mapping[str, str],
    unit_s: float,
    span_s: float,
) -> None:
    first_lane = {lane.worker: i for i, lane in reversed(list(enumerate(rows)))}
    bars: list[list[tuple[float, float]]] = []
    faces: list[str] = []
    edges: list[str] = []
    widths: list[float] = []
    for i, lane in enumerate(rows):
        for attempt in lane.attempts:
            stopped_s = trail.end_s if attempt.stopped_s is None else attempt.stopped_s
            left = (attempt.started_s - trail.begin_s) / unit_s
            right = (stopped_s - trail.begin_s) / unit_s
            failed = attempt.outcome == "failed"
            if failed:  # also seen where it took no time
                right = max(right, left + 0.002 * span_s / unit_s)
            bars.append([(left, i - 0.42), (right, i - 0.42), (right, i + 0.42), (left, i + 0.42)])
            faces.append("#ffffff" if failed else colours[attempt.task])
            edges.append(FAILED if failed else "#ffffff")
            # A white edge parts neighbours, and would swallow what is but a few pixels wide.
            is_wide = (stopped_s - attempt.started_s) > 0.004 * span_s
            widths.append(1.0 if failed else 0.5 if is_wide else 0.0)
    copies: list[list[tuple[float, float]]] = []
    for copy in trail.transfers:
        if copy.target in first_lane:
            y = first_lane[copy.target] + 0.42
            left = (copy.at_s - copy.duration_s - trail.begin_s) / unit_s
            right = (copy.at_s - trail.begin_s) / unit_s
            copies.append([(left, y), (right, y), (right, y + 0.16), (left, y + 0.16)])
    _add_polygons(axis, bars, faces, edges, widths)
    _add_polygons(axis, copies, [_TRANSFER] * len(copies), ["none"], [0.0])
    _label_rows(axis, rows)
    _grey_where_absent(axis, trail, rows, unit_s, span_s)


def _add_polygons(
    axis: Axes,
    polygons: list[list[tuple[float, float]]],
    faces: list[str],
    edges: list[str],
    widths: list[float],
) -> None:
    from matplotlib.collections import PolyCollection

    if polygons:
        drawn = PolyCollection(polygons, facecolors=faces, edgecolors=edges, linewidths=widths)
        axis.add_collection(drawn)


def _label_rows(axis: Axes, rows: tuple[Lane, ...]) -> None:
    """Names of workers on the left, and left of them their classes, parted by lines."""
    axis.set_ylim(len(rows) - 0.4, -0.6)
    of_worker: dict[str, list[int]] = {}
    of_class: dict[str, list[int]] = {}
    for i, lane in enumerate(rows):
        of_worker.setdefault(lane.worker, []).append(i)
        of_class.setdefault(lane.worker_class, []).append(i)
    if len(rows) <= _NAMED_LANES:
        axis.set_yticks(
            [sum(at) / len(at) for at in of_worker.values()],
            [_short(worker, 24) for worker in of_worker],
            fontsize=7,
        )
    else:
        axis.set_yticks([])
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=False, length=0)
    for name, at in of_class.items():
        if at[0]:
            axis.axhline(at[0] - 0.5, color="#333333", linewidth=0.8)
        n = len({rows[i].worker for i in at})
        axis.text(
            1.004,
            (at[0] + at[-1]) / 2,
            f"{_short(name, 20) or 'class unknown'}\n{n} worker{'s' * (n > 1)}",
            transform=axis.get_yaxis_transform(),
            fontsize=8,
            va="center",
            ha="left",
        )
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)


def _grey_where_absent(
    axis: Axes, trail: Trail, rows: tuple[Lane, ...], unit_s: float, span_s: float
) -> None:
    from matplotlib.collections import PolyCollection

    away: list[list[tuple[float, float]]] = []
    end_s = trail.begin_s + 1.01 * span_s
    for i, lane in enumerate(rows):
        until_s = trail.begin_s
        for from_s, to_s in (*trail.workers[lane.worker].present, (end_s, None)):
            left, right = (until_s - trail.begin_s) / unit_s, (from_s - trail.begin_s) / unit_s
            if right > left:
                y = (i - 0.5, i + 0.5)
                away.append([(left, y[0]), (right, y[0]), (right, y[1]), (left, y[1])])
            until_s = max(until_s, end_s if to_s is None else to_s)
    if away:
        drawn = PolyCollection(away, facecolors="#e8e8e8", edgecolors="none", zorder=0.2)
        axis.add_collection(drawn)


def _draw_waits(axis: Axes, trail: Trail, unit_s: float) -> None:
    times_s, undecided, queued = waiting_over_time(trail)
    times = [(at_s - trail.begin_s) / unit_s for at_s in times_s]
    axis.stackplot(
        times,
        [queued, undecided],
        colors=[_QUEUED, _UNDECIDED],
        step="post",
        linewidth=0,
    )
    axis.set_ylim(bottom=0)
    axis.set_ylabel("waiting\ntasks", fontsize=8, rotation=0, ha="right", va="center")
    axis.tick_params(labelsize=7)
    axis.locator_params(axis="y", nbins=3, integer=True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.5)


def _draw_legend(figure: Figure, trails: Sequence[Trail], colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    n_of = Counter(task.task for task in trails[0].tasks.values())
    # Of several trails the counts would add up to what nobody ran.
    counts = {name: f" ({n_of[name]:,})" if len(trails) == 1 else "" for name in colours}
    entries = [
        Patch(color=colour, label=_short(name, 32) + counts[name])
        for name, colour in colours.items()
        if colour != OTHER
    ]
    n_others = sum(colour == OTHER for colour in colours.values())
    if n_others:
        entries.append(Patch(color=OTHER, label=f"{n_others:,} other tasks"))
    attempts = [a for trail in trails for task in trail.tasks.values() for a in task.attempts]
    if any(attempt.outcome == "failed" for attempt in attempts):
        entries.append(Patch(facecolor="white", edgecolor=FAILED, label="failed attempt"))
    if any(trail.transfers for trail in trails):
        entries.append(Patch(color=_TRANSFER, label="data arriving (thin)"))
    entries += [
        Patch(color=_QUEUED, label="waiting on a worker"),
        Patch(color=_UNDECIDED, label="waiting to be given to one"),
    ]
    figure.legend(handles=entries, loc="outside lower left", ncols=4, fontsize=8, frameon=False)


def _short(text: str, most: int) -> str:
    """At most so long, and nothing that matplotlib takes for a formula."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return cut.replace("$", r"\$")
