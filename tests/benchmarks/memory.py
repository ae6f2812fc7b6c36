"""Does memory grow with the number of flow runs on one long-lived scheduler?

    python -m tests.benchmarks.memory --json memory.json --png memory.png
    python -m tests.benchmarks.memory --runs 12 --tasks 200

One `dask scheduler` and two workers in processes of their own, one driver process, one embedded
server. After each flow run (mapped trivial tasks, a chain and one large argument) the resident
memory of scheduler, driver and workers is read, after a garbage collection in each. Growth per run
is the slope of a least-squares line through the runs after the warm-up (the first fifth).
Status 1 if the scheduler or the driver grows by 1 MB a run or more. 50 runs take about 4 minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_MB_PER_RUN = 1.0
MB = 1e6


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    import psutil

    return float(psutil.Process(pid).memory_info().rss) / MB


def growth(values: list[float], warm_up: int) -> float:
    """MB per run: the slope of a line through what follows the warm-up."""
    tail = values[warm_up:]
    if len(tail) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(tail)), tail, 1)[0])


def run_all(n_runs: int, n_tasks: int) -> dict[str, list[float]]:
    """The memory of each process after each flow run."""
    from distributed import Client
    from prefect import flow, task, unmapped
    from rich.progress import Progress

    from deepflow import DeepflowTaskRunner
    from tests.integration.losses import external_cluster

    @task
    def step(number: int, table: Any) -> int:
        return number + int(table[0])

    @task
    def add(one: int, other: int) -> int:
        return one + other

    curve: dict[str, list[float]] = {"scheduler": [], "driver": [], "workers": []}
    with tempfile.TemporaryDirectory() as folder, external_cluster(Path(folder)) as outside:

        @flow(task_runner=DeepflowTaskRunner(address=outside.address))
        def run(offset: int) -> int:
            shared = np.full(50_000, offset)
            values = step.map(range(n_tasks - 10), table=unmapped(shared))
            last: Any = values[0]
            for _ in range(10):
                last = add.submit(last, 1)
            return sum(values.result()) + last.result()

        with Client(outside.address, set_as_default=False) as watcher, Progress() as progress:
            bar = progress.add_task("flow runs", total=n_runs)
            for index in range(n_runs):
                run(index)
                gc.collect()
                watcher.run_on_scheduler(gc.collect)
                watcher.run(gc.collect)
                curve["scheduler"].append(resident_mb(outside.scheduler.pid))
                curve["driver"].append(resident_mb(os.getpid()))
                curve["workers"].append(sum(resident_mb(w.pid) for w in outside.workers))
                progress.advance(bar)
    return curve


def draw(curve: dict[str, list[float]], slopes: dict[str, float], path: Path) -> None:
    """The curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in curve.items():
        axes.plot(range(1, len(values) + 1), values, label=f"{name}: {slopes[name]:+.2f} MB a run")
    axes.set_xlabel("flow runs on one scheduler")
    axes.set_ylabel("resident memory (MB)")
    axes.set_ylim(bottom=0)
    axes.set_title("Memory by number of flow runs")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.usage = "python -m tests.benchmarks.memory --json memory.json --png memory.png"
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for the picture")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        from deepflow import EmbeddedServer

        with EmbeddedServer() as server:
            os.environ["PREFECT_API_URL"] = server.api_url
            curve = run_all(arguments.runs, arguments.tasks)
    warm_up = max(2, arguments.runs // 5)
    slopes = {name: growth(values, warm_up) for name, values in curve.items()}
    print(f"{arguments.runs} flow runs of {arguments.tasks} tasks; after {warm_up} to warm up:")
    for name, values in curve.items():
        print(
            f"  {name:<10} {values[warm_up]:7.1f} MB -> {values[-1]:7.1f} MB, "
            f"{slopes[name]:+.3f} MB a run"
        )
    if arguments.png:
        draw(curve, slopes, arguments.png)
    if arguments.json:
        figures = {"runs": arguments.runs, "tasks": arguments.tasks, "warm_up": warm_up}
        arguments.json.write_text(
            json.dumps(figures | {"mb_per_run": slopes, "curve_mb": curve}, indent=1)
        )
    return 0 if max(slopes["scheduler"], slopes["driver"]) < LIMIT_MB_PER_RUN else 1


if __name__ == "__main__":
    sys.exit(main())
