"""Does Dask see how big results are, and how fast is `result()` of a large one?

    python -m tests.benchmarks.results --json results.json
    python -m tests.benchmarks.results --repetitions 3 --mb 50

First, for each kind of payload, the size that the scheduler has for a task's result against its
real size. Then `future.result()` of one large array, from the moment the task is done: deepflow and
prefect-dask in turn, in one process, on one cluster, against one server; the figure is the median
of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

SIZE_TOLERANCE = 0.05
WANTED_RATIO = 5.0
_N = 4_000_000


def payloads() -> dict[str, tuple[Callable[[], Any], int]]:
    """A maker of each kind of payload, and its real size in bytes."""
    import numpy as np

    def table() -> Any:
        import numpy as np
        import pandas as pd

        return pd.DataFrame({name: np.arange(_N / 8) for name in ("a", "b", "c")})

    def arrow() -> Any:
        import numpy as np
        import pyarrow as pa

        return pa.table({"a": np.arange(_N // 8), "b": np.arange(_N // 8)})

    def tensor() -> Any:
        import torch

        return torch.zeros(_N // 4)

    return {
        "numpy array": (lambda: np.zeros(_N // 8), _N),
        "bytes": (lambda: bytes(_N), _N),
        "bytearray": (lambda: bytearray(_N), _N),
        "pandas frame": (table, 3 * _N),
        "arrow table": (arrow, 2 * _N),
        "torch tensor": (tensor, _N),
        "list of arrays": (lambda: [np.full(_N // 80, i) for i in range(10)], _N),
        "dict of lists": (
            lambda: {"a": [np.zeros(_N // 16)], "b": {"c": (np.ones(_N // 16),)}},
            _N,
        ),
    }


class NotedSizes(SchedulerPlugin):
    """Notes the size that the scheduler has for each result, for results may be let go at once."""

    name = "noted-sizes"

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.n_bytes: dict[str, int] = {}

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Note the size of a result that is there."""
        if finish == "memory":
            self.n_bytes[str(key)] = int(self._scheduler.tasks[key].nbytes)

    def of(self, key: str) -> int:
        """The size noted under a key; Dask hears of a result a moment after the driver."""
        deadline_s = time.monotonic() + 60
        while key not in self.n_bytes:
            assert time.monotonic() < deadline_s, f"the scheduler has no result {key}"
            time.sleep(0.01)
        return self.n_bytes[key]


def sizes(cluster: Any) -> list[dict[str, Any]]:
    """What the scheduler has for each payload."""
    from prefect import flow, task

    from deepflow import DeepflowTaskRunner, hints

    kinds = payloads()
    noted = NotedSizes(cluster.scheduler)

    async def begin() -> None:
        cluster.scheduler.add_plugin(noted)

    cluster.sync(begin)

    @task
    def make(maker: Callable[[], Any]) -> Any:
        return maker()

    @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
    def run() -> dict[str, str]:
        with hints(batch=False):
            futures = {name: make.submit(maker) for name, (maker, _) in kinds.items()}
        for future in futures.values():
            future.wait()
        return {name: future.wrapped_future.key for name, future in futures.items()}

    # Not from inside the flow, for what it closes over travels to the workers.
    seen = {name: noted.of(key) for name, key in run().items()}
    return [
        {
            "payload": name,
            "real_bytes": real,
            "scheduler_bytes": seen[name],
            "off": (seen[name] - real) / real,
        }
        for name, (_, real) in kinds.items()
    ]


def times(cluster: Any, n_mb: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of `result()`, in turn."""
    import numpy as np
    from prefect import flow, task
    from prefect_dask import DaskTaskRunner

    from deepflow import DeepflowTaskRunner

    @task
    def make(mb: int) -> Any:
        import numpy as np

        return np.random.default_rng(0).random(mb * 1_000_000 // 8)

    def run(mb: int) -> float:
        future = make.submit(mb)
        # Not `wait()`: prefect-dask's downloads the value.
        deadline_s = time.monotonic() + 60
        while future.wrapped_future is None or future.wrapped_future.status != "finished":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        started_s = time.perf_counter()
        value = future.result()
        took_s = time.perf_counter() - started_s
        assert isinstance(value, np.ndarray)
        assert value.nbytes == mb * 1_000_000
        return took_s

    runners: dict[str, Any] = {
        "deepflow": DeepflowTaskRunner(cluster=cluster),
        "prefect-dask": DaskTaskRunner(address=cluster.scheduler_address),
    }
    flows = {name: flow(run, name=name, task_runner=runner) for name, runner in runners.items()}
    for timed in flows.values():
        timed(1)  # what only the first run pays
    taken: dict[str, list[float]] = {name: [] for name in flows}
    for _ in range(repetitions):
        for name, timed in flows.items():
            taken[name].append(timed(n_mb))
    return taken


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.usage = "python -m tests.benchmarks.results --json results.json"
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--mb", type=int, default=100, help="size of the timed array")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        from distributed import LocalCluster

        from deepflow import EmbeddedServer

        with EmbeddedServer() as server:
            os.environ["PREFECT_API_URL"] = server.api_url
            with LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
            ) as cluster:
                rows = sizes(cluster)
                taken = times(cluster, arguments.mb, arguments.repetitions)

    table = Table(title="size of a result, as the scheduler sees it")
    for column in ("payload", "real bytes", "scheduler's", "off"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["payload"],
            f"{row['real_bytes']:,}",
            f"{row['scheduler_bytes']:,}",
            f"{row['off']:+.1%}",
        )
    console = Console()
    console.print(table)
    pairs = zip(taken["prefect-dask"], taken["deepflow"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratio = statistics.median(ratios)
    console.print(
        f"result() of {arguments.mb} MB, median of {arguments.repetitions}: "
        f"deepflow {medians['deepflow'] * 1e3:.0f} ms, "
        f"prefect-dask {medians['prefect-dask'] * 1e3:.0f} ms; median ratio {ratio:.1f} "
        f"(from {min(ratios):.1f} to {max(ratios):.1f})"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"sizes": rows, "seconds": taken, "ratios": ratios, "median_ratio": ratio}, indent=1
            )
        )
    good = all(abs(row["off"]) <= SIZE_TOLERANCE for row in rows) and ratio >= WANTED_RATIO
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
