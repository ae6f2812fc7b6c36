"""How many task runs a second, beside prefect-dask, Prefect's thread pool and bare Dask.

    python -m tests.benchmarks.dispatch --json dispatch.json
    python -m tests.benchmarks.dispatch --n 1000 --rounds 3 --only deepflow,thread-pool

One Prefect server for all, one contender at a time in a process of its own (so that each has a
fresh driver), in turn, several rounds. Every contender first runs a small flow that is not counted,
so that no figure holds a cold start; clusters have the same two processes of one thread. Counted:

- `map`: N trivial tasks through one `task.map`, until all results are there;
- `submit`: 500 separate submits (`--submits`), half of them a chain, half a fan-out;
- `flow`: the same, until the flow function's call returns (deepflow: with the server up to date);
- `recorded`: seconds from the flow's return until the API says `Completed` for every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONTENDERS = ("deepflow", "thread-pool", "prefect-dask", "dask")
ROOT = Path(__file__).resolve().parents[2]


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def final_count(api_url: str, flow_run_id: str) -> tuple[int, int]:
    """How many task runs of a flow run the API has: all, and those Completed."""
    import httpx

    runs = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    completed = {**runs, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    counts = [
        httpx.post(f"{api_url}/task_runs/count", json=body, timeout=60).json()
        for body in (runs, completed)
    ]
    return counts[0], counts[1]


def run_dask(kind: str, n: int) -> dict[str, Any]:
    """Bare Dask: the same work with no Prefect."""
    from distributed import Client, LocalCluster

    def increment(x: int) -> int:
        return x + 1

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(increment, range(50), pure=False))
        before, started = resident_bytes(), time.perf_counter()
        if kind == "map":
            values = client.gather(client.map(increment, range(n), pure=False))
            assert values == list(range(1, n + 1))
        else:
            link: Any = 0
            n_chain, n_fan_out = n // 2, n - n // 2
            for _ in range(n_chain):
                link = client.submit(increment, link, pure=False)
            fan = [client.submit(increment, i, pure=False) for i in range(n_fan_out)]
            assert link.result() == n_chain
            assert client.gather(fan) == list(range(1, n_fan_out + 1))
        seconds = time.perf_counter() - started
        return {
            "tasks_s": seconds,
            "flow_s": seconds,
            "bytes_per_task": (resident_bytes() - before) / n,
        }


def run_prefect(contender: str, kind: str, n: int, wait_s: float) -> dict[str, Any]:
    """One contender on the server that PREFECT_API_URL names."""
    from distributed import LocalCluster
    from prefect import flow, task
    from prefect.runtime import flow_run

    @task
    def increment(x: int) -> int:
        return x + 1

    seen: dict[str, Any] = {}

    def work(how: str, count: int) -> None:
        before, started = resident_bytes(), time.perf_counter()
        if how == "map":
            futures = increment.map(range(count))
            values = [future.result() for future in futures]
            assert values == list(range(1, count + 1))
        else:
            link: Any = 0
            n_chain, n_fan_out = count // 2, count - count // 2
            for _ in range(n_chain):
                link = increment.submit(link)
            fan = [increment.submit(i) for i in range(n_fan_out)]
            assert link.result() == n_chain
            assert [future.result() for future in fan] == list(range(1, n_fan_out + 1))
        seen["tasks_s"] = time.perf_counter() - started
        seen["bytes_per_task"] = (resident_bytes() - before) / count
        seen["flow_run_id"] = str(flow_run.id)

    def measure(runner: Any) -> dict[str, Any]:
        counted = flow(work, name=f"dispatch-{contender}", task_runner=runner)
        counted("map", 50)
        started = time.perf_counter()
        counted(kind, n)
        flow_s = time.perf_counter() - started
        api_url = os.environ["PREFECT_API_URL"]
        returned = time.perf_counter()
        while True:
            total, completed = final_count(api_url, seen["flow_run_id"])
            waited = time.perf_counter() - returned
            if completed >= n or waited > wait_s:
                break
            time.sleep(0.05)
        return {
            "tasks_s": seen["tasks_s"],
            "flow_s": flow_s,
            "recorded_s": waited if completed >= n else None,
            "runs_in_api": total,
            "completed_in_api": completed,
            "bytes_per_task": seen["bytes_per_task"],
        }

    if contender == "thread-pool":
        from prefect.task_runners import ThreadPoolTaskRunner

        return measure(ThreadPoolTaskRunner(max_workers=8))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        if contender == "deepflow":
            from deepflow import DeepflowTaskRunner

            return measure(DeepflowTaskRunner(address=cluster.scheduler_address))
        from prefect_dask import DaskTaskRunner

        return measure(DaskTaskRunner(address=cluster.scheduler_address))


def child(contender: str, kind: str, n: int, wait_s: float) -> None:
    """Run one contender once and print its figures as the last line."""
    figures = run_dask(kind, n) if contender == "dask" else run_prefect(contender, kind, n, wait_s)
    print("FIGURES " + json.dumps(figures))


def measure_apart(contender: str, kind: str, n: int, wait_s: float, env: dict[str, str]) -> Any:
    """Run one contender in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.dispatch",
        "--child",
        contender,
        kind,
        str(n),
    ]
    done = subprocess.run(
        [*command, "--wait", str(wait_s)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        raise RuntimeError(f"{contender} {kind} {n} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(lines[-1].removeprefix("FIGURES "))


def summary(samples: list[dict[str, Any]], n: int) -> dict[str, Any]:
    """Medians over rounds, and rates."""
    out: dict[str, Any] = {"rounds": len(samples)}
    for key in ("tasks_s", "flow_s", "recorded_s", "bytes_per_task"):
        values = [s[key] for s in samples if s.get(key) is not None]
        out[key] = statistics.median(values) if values else None
    out["missing_in_api"] = max((n - s.get("completed_in_api", n) for s in samples), default=0)
    out["tasks_per_s"] = n / out["tasks_s"]
    out["flow_tasks_per_s"] = n / out["flow_s"]
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 5000], help="sizes of the map")
    parser.add_argument("--submits", type=int, default=500, help="separate submits")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds at the first size; 1 at others"
    )
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, by comma")
    parser.add_argument("--big", type=int, default=20000, help="deepflow alone, once; 0: not")
    parser.add_argument("--peer-limit", type=int, default=5000, help="largest map for prefect-dask")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for the API")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        contender, kind, n = arguments.child
        child(contender, kind, int(n), arguments.wait)
        return

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from deepflow.runner.server import EmbeddedServer

    only = [c for c in CONTENDERS if c in arguments.only.split(",")]
    plan = [("submit", arguments.submits, r) for r in range(arguments.rounds)]
    for position, n in enumerate(arguments.n):
        plan += [("map", n, r) for r in range(arguments.rounds if position == 0 else 1)]
    jobs = [
        (c, kind, n)
        for kind, n, _ in plan
        for c in only
        if not (c == "prefect-dask" and kind == "map" and n > arguments.peer_limit)
    ]
    if arguments.big and "deepflow" in only:
        jobs.append(("deepflow", "map", arguments.big))
    samples: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    console = Console(stderr=True)
    with EmbeddedServer() as server, Progress(console=console) as progress:
        env = {
            **os.environ,
            "PREFECT_API_URL": server.api_url,
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        bar = progress.add_task("dispatch", total=len(jobs))
        for contender, kind, n in jobs:
            progress.update(bar, description=f"{kind} {n}: {contender}")
            figures = measure_apart(contender, kind, n, arguments.wait, env)
            samples.setdefault((kind, contender, n), []).append(figures)
            progress.advance(bar)
    result = [
        {"kind": kind, "contender": contender, "n": n, **summary(found, n)}
        for (kind, contender, n), found in samples.items()
    ]
    table = Table(
        "what", "n", "runner", "tasks/s", "flow/s", "API up to date after", "missing", "B/task"
    )
    rates = {(r["kind"], r["n"], r["contender"]): r["tasks_per_s"] for r in result}
    for row in result:
        recorded = row["recorded_s"]
        table.add_row(
            row["kind"],
            str(row["n"]),
            row["contender"],
            f"{row['tasks_per_s']:.1f}",
            f"{row['flow_tasks_per_s']:.1f}",
            "-" if recorded is None else f"{recorded:.2f} s",
            str(row["missing_in_api"]),
            f"{row['bytes_per_task']:.0f}",
        )
    Console().print(table)
    ratios = {}
    for (kind, n, contender), rate in rates.items():
        if contender == "deepflow":
            for peer in only:
                if peer != "deepflow" and (kind, n, peer) in rates:
                    ratios[f"{kind} {n}: deepflow / {peer}"] = rate / rates[kind, n, peer]
    for name, ratio in ratios.items():
        print(f"{name} = {ratio:.2f}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"machine": platform.platform(), "figures": result, "ratios": ratios}, indent=2
            )
        )


if __name__ == "__main__":
    main()
