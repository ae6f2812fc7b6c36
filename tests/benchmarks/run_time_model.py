"""How well are run times foretold, from other runs of the flow and from nothing?

    python -m tests.benchmarks.run_time_model
    python -m tests.benchmarks.run_time_model --set validate --seeds 5 --json run_times.json

Real workflows (WfCommons) in the data folder: `$SHARED_DATA`, or `../shared/data` beside the
repository. Each instance is left out in turn and foretold from the other instances of its family,
its tasks in an order their dependencies allow, on simulated classes of workers:

slow   speed 1
fast   speed 2, times a factor of its own for each task name (ln: standard deviation 0.2)
odd    speed 1, times a factor of its own for each task name (ln: standard deviation 0.8)

Six workers of the first, six of the second and four of the third; each task runs on one drawn by
chance, with log-normal noise of 30 %, and what is foretold is its noisy time on that class before
it runs. What a task took is learned only after the 16 tasks behind it have been foretold: they run
at the same time. The past is bounded as in the history (`observe.history`): the newest 200 of each
task name and class.

history      only other instances are known
both         other instances, and what has ended of this one
cold         only what has ended of this one

Compared: the model; one mean per task name and class, else per name; one mean per task name; Dask's
average (one per name, half of it the newest time; 0.5 s to begin with); and the oracle, that knows
the time without its noise. Shown: the median and the 90 % quantile of |ln(foretold ÷ taken)|; the
median of |ln| of the ratio foretold between two classes against the true one; the share of times
within the model's 90 % quantile; microseconds for learning from a run and for foretelling one.
Medians are over all tasks of a family, the last row is their mean over the families.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deepflow.decide.estimate import Estimates
from deepflow.observe.history import MAX_PER_CELL
from deepflow.sim.wfcommons import read_many
from deepflow.sim.workload import SimJob, SimTask

CLASSES = {"slow": (1.0, 0.0, 6), "fast": (2.0, 0.2, 6), "odd": (1.0, 0.8, 4)}
"""Speed, standard deviation of ln of the factor for each task name, workers."""
N_WORKERS = sum(count for _, _, count in CLASSES.values())
NOISE = 0.3
SETTINGS = ("history", "both", "cold")
Z_90 = 1.2816


@dataclass(frozen=True, slots=True)
class Run:
    """One task that ran on a worker."""

    job: str
    flow: str
    task: str
    worker_class: str
    input_bytes: int
    output_bytes: int
    true_s: dict[str, float]
    """Without noise, on each class."""
    run_s: float


class Foretells(Protocol):
    """What is compared."""

    def observe(self, run: Run) -> None: ...
    def run_s(self, run: Run, worker_class: str) -> float: ...


class Model:
    """The model of `decide.estimate`."""

    def __init__(self) -> None:
        self.estimates = Estimates()
        self.job = ""

    def observe(self, run: Run) -> None:
        if run.job != self.job:
            self.estimates.begin_run(run.flow)
            self.job = run.job
        self.estimates.observe(
            run.flow, run.task, run.worker_class, run.run_s, run.input_bytes, run.output_bytes
        )

    def run_s(self, run: Run, worker_class: str) -> float:
        if run.job != self.job:
            self.estimates.begin_run(run.flow)
            self.job = run.job
        return self.estimates.run_s(run.flow, run.task, worker_class, run.input_bytes)


class Mean:
    """The mean of each task name, or of each name and class where there is one."""

    def __init__(self, *, by_class: bool) -> None:
        self.by_class = by_class
        self.sums: dict[tuple[str, str], tuple[int, float]] = {}

    def observe(self, run: Run) -> None:
        for key in ((run.task, run.worker_class), (run.task, ""), ("", "")):
            n, total_s = self.sums.get(key, (0, 0.0))
            self.sums[key] = (n + 1, total_s + run.run_s)

    def run_s(self, run: Run, worker_class: str) -> float:
        here = (run.task, worker_class) if self.by_class else (run.task, "")
        for key in (here, (run.task, ""), ("", "")):
            if key in self.sums:
                n, total_s = self.sums[key]
                return max(total_s / n, 1e-6)
        return 0.5


class DaskAverage:
    """One exponential average per name (`TaskPrefix.duration_average`), 0.5 s where none is."""

    def __init__(self) -> None:
        self.average_s: dict[str, float] = {}

    def observe(self, run: Run) -> None:
        old_s = self.average_s.get(run.task)
        self.average_s[run.task] = run.run_s if old_s is None else (old_s + run.run_s) / 2

    def run_s(self, run: Run, worker_class: str) -> float:
        return max(self.average_s.get(run.task, 0.5), 1e-6)


class Oracle:
    """Knows the time without its noise."""

    def observe(self, run: Run) -> None:
        pass

    def run_s(self, run: Run, worker_class: str) -> float:
        return run.true_s[worker_class]


COMPARED: dict[str, Any] = {
    "model": Model,
    "mean per task and class": lambda: Mean(by_class=True),
    "mean per task": lambda: Mean(by_class=False),
    "Dask's average": DaskAverage,
    "oracle": Oracle,
}


def data_folder() -> Path:
    """Where the workflows are; ends the program where they are not."""
    given = os.environ.get("SHARED_DATA")
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = (Path(given) if given else beside) / "workflows"
    if not folder.is_dir():
        raise SystemExit(f"no workflows in {folder}; set SHARED_DATA to the data folder")
    return folder


def in_order(job: SimJob, rng: random.Random) -> list[SimTask]:
    """The tasks as a scheduler might start them: after what they depend on, else by chance."""
    waits_for = {task.key: len(task.depends_on) for task in job.tasks}
    dependents: dict[str, list[SimTask]] = defaultdict(list)
    for task in job.tasks:
        for key in task.depends_on:
            dependents[key].append(task)
    ready = [task for task in job.tasks if not task.depends_on]
    done: list[SimTask] = []
    while ready:
        at = rng.randrange(len(ready))
        ready[at], ready[-1] = ready[-1], ready[at]
        task = ready.pop()
        done.append(task)
        for dependent in dependents[task.key]:
            waits_for[dependent.key] -= 1
            if not waits_for[dependent.key]:
                ready.append(dependent)
    return done


def play(job: SimJob, seed: int) -> list[Run]:
    """The job's runs, on workers drawn by chance. Speeds depend on family and seed only."""
    rng = random.Random(f"{seed} {job.run}")
    classes = [name for name, (_, _, count) in CLASSES.items() for _ in range(count)]
    output_bytes = {task.key: task.output_bytes for task in job.tasks}
    runs: list[Run] = []
    for task in in_order(job, rng):
        true_s = {}
        for name, (speed, spread, _) in CLASSES.items():
            own = random.Random(f"{seed} {job.flow} {task.task} {name}").gauss(0, spread)
            true_s[name] = max(task.run_s, 1e-3) / (speed * math.exp(own))
        worker_class = rng.choice(classes)
        read_bytes = task.input_bytes + sum(output_bytes[key] for key in task.depends_on)
        run_s = true_s[worker_class] * math.exp(rng.gauss(0, NOISE))
        runs.append(
            Run(
                job.run,
                job.flow,
                task.task,
                worker_class,
                read_bytes,
                task.output_bytes,
                true_s,
                run_s,
            )
        )
    return runs


def bounded(past: Sequence[Run]) -> list[Run]:
    """What the history would have kept: the newest of each task name and class."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    kept: list[Run] = []
    for run in reversed(past):
        counts[run.task, run.worker_class] += 1
        if counts[run.task, run.worker_class] <= MAX_PER_CELL:
            kept.append(run)
    return kept[::-1]


@dataclass(slots=True)
class Errors:
    """Collected for one family, setting and way of foretelling."""

    absolute: list[float]
    ratio: list[float]
    n_within_90: int = 0

    def row(self) -> dict[str, float]:
        """The figures shown."""
        return {
            "median": quantile(self.absolute, 0.5),
            "p90": quantile(self.absolute, 0.9),
            "ratio": quantile(self.ratio, 0.5),
            "within_90": self.n_within_90 / len(self.absolute),
        }


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def foretell(how: Foretells, runs: Sequence[Run], errors: Errors, *, learns: bool) -> None:
    """Foretell each run before it is learned, `N_WORKERS` of them at a time."""
    under_way: deque[Run] = deque()
    for run in runs:
        ln_s = {name: math.log(how.run_s(run, name)) for name in CLASSES}
        here = run.worker_class
        errors.absolute.append(abs(ln_s[here] - math.log(run.run_s)))
        other = next(name for name in CLASSES if name != here)
        true_ratio = math.log(run.true_s[here] / run.true_s[other])
        errors.ratio.append(abs(ln_s[here] - ln_s[other] - true_ratio))
        if isinstance(how, Model):
            within_s = how.estimates.run_quantile_s(run.flow, run.task, here, run.input_bytes, 0.9)
        else:
            within_s = math.exp(ln_s[here] + Z_90 * NOISE)
        errors.n_within_90 += run.run_s <= within_s
        if learns:
            under_way.append(run)
            if len(under_way) > N_WORKERS:
                how.observe(under_way.popleft())


def evaluate(
    jobs: Sequence[SimJob], seed: int, compared: Sequence[str], settings: Sequence[str]
) -> Iterator[tuple[str, str, str, Errors]]:
    """For each instance left out: setting, what is compared, family, errors."""
    runs_of = {job.run: play(job, seed) for job in jobs}
    for job in jobs:
        others = [other for other in jobs if other.flow == job.flow and other is not job]
        random.Random(f"{seed} {job.run} past").shuffle(others)
        past = bounded([run for other in others for run in runs_of[other.run]])
        for setting in settings:
            for name in compared:
                how = COMPARED[name]()
                for run in past if setting != "cold" else []:
                    how.observe(run)
                errors = Errors([], [])
                foretell(how, runs_of[job.run], errors, learns=setting != "history")
                yield setting, name, job.flow, errors


def measure(
    jobs: Sequence[SimJob],
    seeds: int,
    compared: Sequence[str] = tuple(COMPARED),
    settings: Sequence[str] = SETTINGS,
    *,
    shows_progress: bool = False,
) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """(setting, compared) → family, or `mean` → figures."""
    gathered: dict[tuple[str, str, str], Errors] = {}
    for seed in range(seeds):
        for setting, name, family, errors in evaluate(jobs, seed, compared, settings):
            whole = gathered.setdefault((setting, name, family), Errors([], []))
            whole.absolute += errors.absolute
            whole.ratio += errors.ratio
            whole.n_within_90 += errors.n_within_90
        if shows_progress:
            print(f"seed {seed + 1} of {seeds} done", flush=True)
    table: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for (setting, name, family), errors in sorted(gathered.items()):
        table.setdefault((setting, name), {})[family] = errors.row()
    for rows in table.values():
        rows["mean"] = {
            column: sum(row[column] for row in rows.values()) / len(rows)
            for column in next(iter(rows.values()))
        }
    return table


def microseconds(jobs: Sequence[SimJob]) -> dict[str, float]:
    """What learning from a run and foretelling one cost, with all of one instance of each."""
    runs = [run for job in {job.flow: job for job in jobs}.values() for run in play(job, 0)]
    model = Model()
    begin = time.perf_counter()
    for run in runs:
        model.observe(run)
    learned = time.perf_counter()
    for run in runs:
        model.run_s(run, run.worker_class)
    foretold = time.perf_counter()
    for run in runs:
        model.observe(run)
        model.run_s(run, run.worker_class)
    both = time.perf_counter()
    return {
        "observe": (learned - begin) / len(runs) * 1e6,
        "run_s": (foretold - learned) / len(runs) * 1e6,
        "observe and run_s in turn": (both - foretold) / len(runs) * 1e6,
    }


def show(table: dict[tuple[str, str], dict[str, dict[str, float]]]) -> None:
    """Print the table of each setting."""
    families = [family for family in next(iter(table.values())) if family != "mean"]
    for setting in SETTINGS:
        print(f"\n{setting}\n{'':26}{'median':>8}{'p90':>7}{'ratio':>7}{'in 90%':>8}", end="")
        print("   median of " + " ".join(f"{family:>11}" for family in families))
        for name in COMPARED:
            rows = table[setting, name]
            mean = rows["mean"]
            print(f"{name:26}{mean['median']:8.3f}{mean['p90']:7.2f}{mean['ratio']:7.3f}", end="")
            print(f"{mean['within_90']:8.1%}" + " " * 13, end="")
            print(" ".join(f"{rows[family]['median']:11.3f}" for family in families))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=["train", "validate"], default="train")
    parser.add_argument("--seeds", type=int, default=2, help="of speeds, noise and order")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    jobs = read_many([data_folder() / options.set])
    print(f"{len(jobs)} instances, {sum(len(job.tasks) for job in jobs)} tasks", flush=True)
    table = measure(jobs, options.seeds, shows_progress=True)
    show(table)
    costs_us = microseconds(jobs)
    print("\nµs: " + ", ".join(f"{name} {us:.1f}" for name, us in costs_us.items()))
    if options.json:
        figures: dict[str, Any] = {"set": options.set, "seeds": options.seeds, "us": costs_us}
        figures["table"] = {f"{setting}: {name}": rows for (setting, name), rows in table.items()}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
