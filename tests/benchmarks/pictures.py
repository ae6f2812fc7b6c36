"""The pictures of README and docs, each from a run that is made now, or from figures of one.

    python -m tests.benchmarks.pictures                     # all; some ten minutes
    python -m tests.benchmarks.pictures dispatch --from dispatch.json
    python -m tests.benchmarks.pictures placement report
    python -m tests.benchmarks.pictures look                # all, in Chromium, on two grounds

`dispatch` and `transfer` run the benchmarks of those names, small, and keep their figures beside
the pictures; `--from` takes figures that were kept, or those of a larger run of `dispatch`.
`placement` runs the simulator. `report` runs a flow on a local cluster and takes the picture of its
report in Prefect's UI (needs Chromium).

The SVGs have no ground, and their letters a grey that reads on white and on black, so that one file
does for a light and a dark page. Each says in its last line when and by which command it was made,
and has that in its metadata as well. They are 6.4 inches wide: a desktop shows them as they are,
a phone at half of that, where 12 points are still read.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chromium import CHROMIUM, Page, chromium

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deepflow.decide.trail import Trail
    from deepflow.sim.cluster import ClusterSpec
    from deepflow.sim.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
NAMES = ("dispatch", "placement", "transfer", "report")

INK, RULE = "#7c7c7c", "#7c7c7c59"
OURS, PEERS = "#3b82d6", "#9a9a9a"
LETTERS_PT, SMALL_PT, WIDTH_IN = 12.0, 8.5, 6.4
CAPTION_LETTERS = 84
"""As many of the small letters fit in a line."""

CONTENDERS = {
    "deepflow": "deepflow",
    "thread-pool": "Prefect's thread pool",
    "prefect-dask": "prefect-dask",
    "dask": "bare Dask, no Prefect",
}
DISPATCH = ("--n", "1000", "--submits", "500", "--rounds", "1", "--big", "0")
LINKS = ("--links", "0.1", "--megabytes", "16", "--repetitions", "2")
REPORT_PX = (900, 2400)
"""Narrow enough that the UI folds its menu away."""
FAMILY, FAMILY_TASKS = "bwa", 100
SAME_HOST = ("--same-host", "--megabytes", "100", "--repetitions", "3")


# -- what all drawings have in common


def figure(height_in: float) -> Figure:
    """A figure without a ground, as wide as all are."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "font.size": LETTERS_PT,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": RULE,
            "axes.titlecolor": INK,
            "svg.hashsalt": "deepflow",  # the same drawing gives the same file
        }
    )
    made = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    made.patch.set_alpha(0.0)
    return made


def bare(axes: Axes) -> None:
    """Axes with neither frame nor ground."""
    axes.patch.set_alpha(0.0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


def save(drawn: Figure, name: str, when: str, command: str) -> Path:
    """Write the SVG, with when and how it was made in its last line and its metadata."""
    told = f"{when}: {command}"
    lines = textwrap.wrap(told, CAPTION_LETTERS, break_on_hyphens=False)
    height_in = drawn.get_size_inches()[1]
    strip = (0.1 + 0.15 * len(lines)) / height_in
    engine = drawn.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, strip, 1.0, 1.0 - strip))
    drawn.text(0.008, 0.06 / height_in, "\n".join(lines), fontsize=SMALL_PT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    drawn.savefig(
        path,
        transparent=True,
        metadata={
            "Date": when.partition(",")[0],
            "Description": told,
            "Creator": "tests.benchmarks.pictures",
        },
    )
    return path


def today() -> str:
    """The day on which a figure was measured."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def machine() -> str:
    """What was measured on, and how busy it was: with other work, only ratios can be trusted."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}"


def day_of(path: Path) -> str:
    """The day on which a file of figures was written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


def bars(axes: Axes, values: Mapping[str, float], form: str, limit: float) -> None:
    """Horizontal bars with their figures behind them, ours in its colour."""
    bare(axes)
    names = list(values)
    colours = [OURS if name.startswith("deepflow") else PEERS for name in names]
    axes.barh(range(len(names)), list(values.values()), color=colours, height=0.62)
    for at, value in enumerate(values.values()):
        axes.text(value + 0.012 * limit, at, form.format(value), va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks([])
    axes.set_xlim(0, 1.16 * limit)
    axes.set_ylim(len(names) - 0.5, -0.5)


def measured(module: str, arguments: Sequence[str]) -> Any:
    """The figures that a benchmark writes, run now in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        words = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
        subprocess.run([*words, "--json", str(out)], cwd=ROOT, check=True)
        return json.loads(out.read_text())


# -- one function for each picture


def draw_dispatch(figures: Any, when: str, command: str) -> Path:
    """Tasks a second beside the neighbours, of the figures that `dispatch --json` writes."""
    rates: dict[tuple[str, int], dict[str, float]] = {}
    for row in figures["figures"]:
        name = CONTENDERS.get(row["contender"])
        if name is not None:
            rates.setdefault((row["kind"], row["n"]), {})[name] = row["tasks_per_s"]
    compared = {what: of for what, of in rates.items() if len(of) > 1}
    titles = {"map": "{:,} tasks of one map", "submit": "{:,} separate submits"}
    shown = sorted(compared, key=lambda what: (what[0] != "map", what[1]))[:2]
    n_bars = sum(len(compared[what]) for what in shown)
    drawn = figure(0.42 * n_bars + 0.55 * len(shown) + 0.6)
    drawn.suptitle("Task runs a second, to their results", x=0.0, ha="left", fontweight="bold")
    ratios = [len(compared[what]) for what in shown]
    panels = drawn.subplots(len(shown), 1, height_ratios=ratios, squeeze=False)[:, 0]
    for axes, what in zip(panels, shown, strict=True):
        of = {name: compared[what][name] for name in CONTENDERS.values() if name in compared[what]}
        bars(axes, of, "{:,.0f}", max(of.values()))
        axes.set_title(titles[what[0]].format(what[1]), loc="left", fontsize=LETTERS_PT)
    return save(drawn, "dispatch", when, command)


def draw_transfer(links: Any, same_host: Any, when: str, command: str) -> Path:
    """What moving results takes: on one host, and over links."""
    panels: list[tuple[str, dict[str, float], str]] = []
    for n_consumers, of in sorted(same_host.items(), key=lambda item: int(item[0])):
        n = int(n_consumers)
        panels.append(
            (
                f"100 MB to {n} task{'s' * (n > 1)} on one host, until read (ms)",
                {
                    name: 1e3 * of[name]["summed_s"]
                    for name in ("deepflow", "prefect-dask")
                    if name in of
                },
                "{:,.0f}",
            )
        )
    for gbit, of in links.items():
        dask = {name: share for name, share in of["mix"].items() if name not in ("deepflow", "ray")}
        best = min(dask, key=lambda name: dask[name])
        panels.append(
            (
                f"{len(of['rows'])} kinds of data over {float(gbit):g} Gbit/s, time ÷ uncompressed",
                {"deepflow": of["mix"]["deepflow"], f"Dask's best ({best})": dask[best]},
                "{:.2f}",
            )
        )
    drawn = figure(0.42 * 2 * len(panels) + 0.55 * len(panels) + 0.6)
    drawn.suptitle("Results on their way: shorter is faster", x=0.0, ha="left", fontweight="bold")
    for axes, (title, of, form) in zip(
        drawn.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
    ):
        bars(axes, of, form, max(of.values()))
        axes.set_title(title, loc="left", fontsize=LETTERS_PT)
    return save(drawn, "transfer", when, command)


def draw_placement(when: str, command: str) -> Path:
    """One workflow on one cluster: under Dask, under deepflow without history, and with one."""
    import numpy as np
    from matplotlib.patches import Patch, PathPatch
    from matplotlib.path import Path as MplPath

    from deepflow.decide.place.registry import DEFAULT_POLICY
    from deepflow.decide.trail import Trail
    from deepflow.observe.gantt import lanes, task_colours, time_unit
    from deepflow.sim.compare import experience_of, play

    workload, past, cluster = placement_case()
    plays = {
        "Dask": play(workload, cluster, "stock"),
        "deepflow, first run": play(workload, cluster, DEFAULT_POLICY),
        f"deepflow, after {len(past)} other runs": play(
            workload, cluster, DEFAULT_POLICY, experience=experience_of(past, cluster)
        ),
    }
    trails = {name: Trail.of(played.outcome.events) for name, played in plays.items()}
    colours = task_colours(list(trails.values()), 5)
    span_s = max(trail.makespan_s for trail in trails.values())
    unit, unit_s = time_unit(span_s)
    n_lanes = len(lanes(next(iter(trails.values()))))
    drawn = figure(len(trails) * (0.11 * n_lanes + 0.45) + 1.5)
    drawn.suptitle(
        f"{workload.n_tasks} tasks on {n_lanes} workers of "
        f"{len(cluster.classes)} speeds, in the simulator",
        x=0.0,
        ha="left",
        fontweight="bold",
    )
    panels = drawn.subplots(len(trails), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, trail) in zip(panels, trails.items(), strict=True):
        bare(axes)
        rows = lanes(trail)
        boxes: dict[str, list[list[tuple[float, float]]]] = {}
        gap = 0.0015 * span_s / unit_s  # parts a task from the next one
        for at, lane in enumerate(rows):
            for one in lane.attempts:
                left = (one.started_s - trail.begin_s) / unit_s
                right = ((one.stopped_s or trail.end_s) - trail.begin_s) / unit_s
                right = max(right - gap, (left + right) / 2)
                box = [(left, at), (right, at), (right, at + 0.84), (left, at + 0.84)]
                boxes.setdefault(colours[one.task], []).append(box)
        for colour, of in boxes.items():  # one path for each keeps the file small
            path = MplPath.make_compound_path_from_polys(np.array(of))
            axes.add_patch(PathPatch(path, facecolor=colour, linewidth=0))
        end = trail.makespan_s / unit_s
        axes.axvline(end, color=INK, linewidth=1.2)
        classes: dict[str, list[int]] = {}
        for at, lane in enumerate(rows):
            classes.setdefault(lane.worker_class, []).append(at)
        axes.set_yticks([sum(at) / len(at) + 0.5 for at in classes.values()], list(classes))
        for at in list(classes.values())[1:]:
            axes.axhline(at[0] - 0.08, color=RULE, linewidth=0.8)
        axes.set_ylim(n_lanes, -0.1)
        axes.set_xlim(0, 1.01 * span_s / unit_s)
        axes.set_title(f"{name}: {end:.3g} {unit}", loc="left", fontsize=LETTERS_PT)
    panels[-1].xaxis.set_major_formatter(lambda at, _: f"{at:g} {unit}")
    # On the line of the first panel's title, where a picture of any workflow has room.
    panels[0].legend(
        handles=[Patch(color=colours[name], label=name) for name in seen(trails, colours)],
        loc="lower right",
        bbox_to_anchor=(1.0, 0.97),
        ncols=5,
        fontsize=LETTERS_PT - 2,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
    )
    return save(drawn, "placement", when, command)


def seen(trails: Mapping[str, Trail], colours: Mapping[str, str]) -> list[str]:
    """The tasks that have a colour of their own and take enough of the picture to be found."""
    from deepflow.observe.gantt import OTHER

    seconds: dict[str, float] = {}
    for trail in trails.values():
        for task in trail.tasks.values():
            seconds[task.task] = seconds.get(task.task, 0.0) + (task.run_s or 0.0)
    least_s = 0.01 * sum(seconds.values())
    return [name for name, c in colours.items() if c != OTHER and seconds[name] >= least_s]


def placement_case() -> tuple[Workload, tuple[Workload, ...], ClusterSpec]:
    """A real workflow, other instances of its family, and a cluster of three speeds.

    The workflow is of a family that no policy was tuned on.
    """
    from deepflow.sim.builtin import builtin_cluster
    from tests.benchmarks.placement import families, history

    found = families("validate")
    if FAMILY not in found:
        sys.exit(
            f"no workflows of {FAMILY} (tests/sim/shared_data.py says where they are looked for)"
        )
    family = found[FAMILY]
    workload = min(family, key=lambda one: (abs(one.n_tasks - FAMILY_TASKS), one.name))
    return workload, history(workload, family, 3), builtin_cluster("three-speeds")


def take_report(when: str, path: Path | None) -> list[Path]:
    """The report of a real flow run in Prefect's UI, on a light and on a dark page.

    `path`: a report that was kept, to be shown again.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from deepflow import EmbeddedServer

    if CHROMIUM is None:
        sys.exit("the picture of the report needs Chromium (Debian package chromium)")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
        get_client(sync_client=True) as api,
    ):
        os.environ |= {"DEEPFLOW_STATE_DIR": folder, "PREFECT_API_URL": server.api_url}
        if path is None:
            run_for_report(when)
            (report,) = [a for a in api.read_artifacts() if a.key == "deepflow-placement"]
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / "report.md").write_text(f"{report.data}\n")
        else:
            shown = ArtifactCreate(key="deepflow-placement", type="markdown", data=path.read_text())
            report = api.create_artifact(shown)
        url = f"{server.ui_url}/artifacts/artifact/{report.id}"
        with chromium(Path(folder) / "profile") as page:
            return [shoot_report(page, url, theme) for theme in ("light", "dark")]


def run_for_report(when: str) -> None:
    """A flow run with real data, on workers of two classes."""
    from deepflow import DeepflowTaskRunner, WorkerClass
    from flows.flight_delays import flight_delays

    local = [WorkerClass("small", count=2), WorkerClass("large", count=1)]
    flight_delays.with_options(
        task_runner=DeepflowTaskRunner(local=local), flow_run_name=f"flights-{when}"
    )(size="small")


def shoot_report(page: Page, url: str, theme: str) -> Path:
    """The report's page, as high as it is."""
    page.resize(*REPORT_PX)
    page.open(url)
    page.until(lambda: "Longest waits" in page.text(), "the report")
    page.evaluate(  # as the setting of the theme does
        "document.documentElement.classList.remove('light', 'dark'),"
        f"document.documentElement.classList.add('{theme}')"
    )
    page.until(
        lambda: page.evaluate("[...document.images].every(one => one.complete)"), "its pictures"
    )
    page.until(lambda: page.evaluate("document.getAnimations().length === 0"), "its colours")
    bottom_px = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.markdown-renderer')]"
        ".map(one => one.getBoundingClientRect().bottom))"
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"report{'-dark' if theme == 'dark' else ''}.png"
    clip = {"x": 0, "y": 0, "width": REPORT_PX[0], "height": bottom_px + 16, "scale": 1.5}
    shot = page.call("Page.captureScreenshot", format="png", clip=clip)
    path.write_bytes(base64.b64decode(shot["data"]))
    return path


LOOK = """
<style>body{{margin:0;font:16px system-ui}}div{{padding:12px}}img{{max-width:100%;display:block}}
</style>
<div style="background:#fff;color:#24292f">{pictures}</div>
<div style="background:#0d1117;color:#c9d1d9">{pictures}</div>
"""


def look(folder: Path) -> list[Path]:
    """All pictures in Chromium, on the grounds of light and dark pages, as wide as a desktop and as
    a phone."""
    found = sorted([*FOLDER.glob("*.svg"), *FOLDER.glob("*.png")])
    pictures = "".join(f'<p>{one.name}</p><img src="{one.as_uri()}">' for one in found)
    folder.mkdir(parents=True, exist_ok=True)
    page_path = folder / "look.html"
    page_path.write_text(LOOK.format(pictures=pictures))
    taken = []
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile) / "p") as page:
        page.open(page_path.as_uri())
        for width in (830, 390):
            page.resize(width, 900)
            height = page.evaluate("document.documentElement.scrollHeight")
            page.resize(width, height)
            taken.append(folder / f"look-{width}.png")
            page.picture(taken[-1])
    return taken


# -- command line


def make(name: str, path: Path | None) -> list[Path]:
    """Make one picture; `path` has figures of a run before, where it shows figures."""
    if name == "placement":
        return [draw_placement(today(), "python -m tests.benchmarks.pictures placement")]
    if name == "report":
        return take_report(today(), path)
    found = measure(name) if path is None else json.loads(path.read_text())
    if path is not None:
        found.setdefault("date", day_of(path))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    when = found["date"]
    if name == "dispatch":
        return [draw_dispatch(found, when, dispatch_command(found["figures"]))]
    return [draw_transfer(found["links"], found["same_host"], when, found["command"])]


def measure(name: str) -> dict[str, Any]:
    """Figures of today."""
    if name == "dispatch":
        return {"date": f"{today()}, {machine()}", **measured("dispatch", DISPATCH)}
    words = [" ".join(["python -m tests.benchmarks.transfer", *of]) for of in (LINKS, SAME_HOST)]
    links, same_host = measured("transfer", LINKS), measured("transfer", SAME_HOST)
    return {
        "date": f"{today()}, {machine()}",
        "command": "; ".join(words),
        "links": links,
        "same_host": same_host,
    }


def dispatch_command(rows: Sequence[Mapping[str, Any]]) -> str:
    """The command that measured what is drawn of these figures."""
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    compared = [row for row in rows if row["kind"] == "map" and row["contender"] != names[0]]
    sizes = sorted({row["n"] for row in compared})
    only = [] if len(names) == len(CONTENDERS) else ["--only", ",".join(names)]
    words = ["--n", *map(str, sizes), "--rounds", str(max(row["rounds"] for row in rows)), *only]
    return " ".join(["python -m tests.benchmarks.dispatch", *words])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=list(NAMES), help=f"{', '.join(NAMES)}, look; default: the four"
    )
    parser.add_argument(
        "--from", dest="figures", type=Path, help="figures that were written before"
    )
    parser.add_argument("--to", type=Path, default=Path("look"), help="look: folder for its PNGs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in (*NAMES, "look")]
    if unknown:
        parser.error(f"there is no picture {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in arguments.names:
        made = look(arguments.to) if name == "look" else make(name, arguments.figures)
        for path in made:
            print(path, flush=True)


if __name__ == "__main__":
    main()
