"""Results of four times the workers' memory: does the flow end, how fast, and is a worker killed?

    python -m tests.benchmarks.tiers --json tiers.json
    python -m tests.benchmarks.tiers --workers 2 --memory 1GB --times 4 --repetitions 3

A flow makes arrays (prices, integers, a smooth curve, noise that does not shrink; 32 MB each) and
keeps them all, adds each to its neighbour, and sums what comes out. It runs with deepflow and with
prefect-dask, interleaved, each on a fresh local cluster whose nannies watch the memory; every sum
is compared with what numpy says. Deaths are counted from the nannies' restarts. Asked: no death,
and 0.7 of stock Dask's time or less.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ARRAY_BYTES = 32_000_000
LIMIT = 0.7


def array_of(number: int) -> Any:
    """One of four kinds, the same for each number."""
    rng, n = np.random.default_rng(number), ARRAY_BYTES // 8
    kind = number % 4
    if kind == 0:
        return rng.integers(0, 100_000, n) / 100
    if kind == 1:
        return rng.integers(0, 1_000_000, n)
    if kind == 2:
        return np.linspace(0, 60 + number, n)
    return rng.random(n)


def wanted(n: int) -> float:
    """What the flow has to return."""
    sums = [float(array_of(number).sum()) for number in range(n)]
    return 2 * sum(sums)


def run_flow(peer: str, arguments: argparse.Namespace, n: int, folder: str) -> dict[str, Any]:
    """One run on a cluster of its own: seconds, deaths, and the answer."""
    import dask
    from distributed import LocalCluster
    from prefect import flow, task
    from prefect_dask import DaskTaskRunner

    from deepflow import DeepflowTaskRunner

    @task
    def make(number: int) -> Any:
        return array_of(number)

    @task
    def add(one: Any, other: Any) -> Any:
        return one + other

    @task
    def total(array: Any) -> float:
        return float(array.sum())

    def body() -> float:
        made = [make.submit(number) for number in range(n)]
        for future in made:
            future.wait()
        added = [add.submit(made[i], made[(i + 1) % n]) for i in range(n)]
        for future in added:
            future.wait()
        return sum(future.result() for future in [total.submit(one) for one in added])

    with (
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(
            n_workers=arguments.workers,
            threads_per_worker=1,
            memory_limit=arguments.memory,
            dashboard_address=None,
        ) as cluster,
    ):
        pids = {worker.process.pid for worker in cluster.workers.values()}
        address = cluster.scheduler_address
        made = DaskTaskRunner if peer == "prefect-dask" else DeepflowTaskRunner
        runner = made(address=address)
        pipeline = flow(name=peer, task_runner=runner)(body)
        flow(name=f"{peer}-warm", task_runner=runner)(lambda: total.submit(np.ones(3)).result())()
        began = time.perf_counter()
        try:
            answer: float | None = pipeline()
            error = ""
        except Exception as exc:  # noqa: BLE001 - a peer may fail; that is what is measured
            answer, error = None, repr(exc)[:200]
        seconds = time.perf_counter() - began
        left = {w.process.pid for w in cluster.workers.values() if w.process is not None}
        return {"s": seconds, "deaths": len(pids - left), "answer": answer, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1GB", help="of each worker")
    parser.add_argument("--times", type=float, default=4.0, help="data over the workers' memory")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=["prefect-dask", "deepflow"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    from dask.utils import parse_bytes
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from deepflow.runner.server import EmbeddedServer

    total_bytes = arguments.times * arguments.workers * parse_bytes(arguments.memory)
    n = int(total_bytes / 2 / ARRAY_BYTES)  # the sums are kept as well
    right = wanted(n)
    print(f"{2 * n} arrays of {ARRAY_BYTES / 1e6:g} MB on {arguments.workers} workers", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in arguments.peers}
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(home=Path(folder) / "s") as server:
        os.environ["PREFECT_API_URL"] = server.api_url
        os.environ["PREFECT_HOME"] = f"{folder}/client"
        os.environ["DEEPFLOW_STATE_DIR"] = f"{folder}/state"
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            for repetition in range(arguments.repetitions):
                order = arguments.peers[:: 1 if repetition % 2 else -1]
                for peer in order:
                    found = run_flow(peer, arguments, n, folder)
                    answer = found["answer"]
                    if answer is not None and abs(answer / right - 1) > 1e-9:
                        raise AssertionError(f"{peer} computed {answer}, not {right}")
                    runs[peer].append(found)
                    print(
                        f"{peer:13} {found['s']:6.1f} s, {found['deaths']} deaths {found['error']}",
                        flush=True,
                    )
    report: dict[str, Any] = {"runs": runs}
    ended = {p: [r["s"] for r in several if not r["error"]] for p, several in runs.items()}
    if all(ended.values()) and len(ended) == 2:
        ratio = statistics.median(ended["deepflow"]) / statistics.median(ended["prefect-dask"])
        verdict = "holds" if ratio <= LIMIT else "SHORT"
        print(f"deepflow takes {ratio:.2f} of stock Dask's time (asked {LIMIT}: {verdict})")
        report["ratio"] = ratio
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    if any(found["error"] or found["deaths"] for found in runs.get("deepflow", [])):
        sys.exit(1)


if __name__ == "__main__":
    main()
