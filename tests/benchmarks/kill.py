"""Does a run survive a worker that is killed, and does what had finished run twice?

    python -m tests.benchmarks.kill --json kill.json
    python -m tests.benchmarks.kill --repetitions 3 --peer

Each repetition: 40 tasks of 0.3 s on two worker processes of one thread each; when half of them
have finished one worker gets SIGKILL. A task marks a file when its work is done. Counted are right
answers, tasks that ran twice, and among those the ones *reported as finished to the driver* before
the kill. Tasks are `durable` (and, with --peer, the same flow on prefect-dask, which has no such
word). The server is embedded. A repetition takes about 12 s.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def one_run(kind: str, n_tasks: int, task_s: float) -> dict[str, Any]:
    """One flow run with one kill in the middle; runs in a process of its own."""
    from distributed import LocalCluster
    from prefect import flow, task

    folder = tempfile.TemporaryDirectory()
    marks = Path(folder.name) / "marks"
    marks.touch()
    finished_before_kill: list[int] = []
    killed: list[int] = []

    @task
    def work(number: int, marks_path: str) -> int:
        time.sleep(task_s)
        descriptor = os.open(marks_path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{number} {os.getpid()}\n".encode())
        os.close(descriptor)
        return number * number

    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    )
    if kind == "deepflow":
        from deepflow import DeepflowTaskRunner, hints

        runner: Any = DeepflowTaskRunner(cluster=cluster)
        work = hints(durable=True)(work)
    else:
        from prefect_dask import DaskTaskRunner

        runner = DaskTaskRunner(address=cluster.scheduler_address)
    pids = [nanny.pid for nanny in cluster.workers.values()]

    def run() -> list[int]:
        futures = work.map(range(n_tasks), marks_path=str(marks))
        done: set[int] = set()
        lock = threading.Lock()

        def finished(index: int) -> None:
            with lock:
                done.add(index)
                if len(done) == n_tasks // 2:
                    finished_before_kill.extend(done)
                    pid = pids[len(done) % 2]
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

        for index, future in enumerate(futures):
            future.add_done_callback(lambda _, i=index: finished(i))
        return futures.result()

    started_s = time.perf_counter()
    error, answer = None, None
    try:
        answer = flow(task_runner=runner, name="kill")(run)()
    except Exception as exc:  # noqa: BLE001 - a run that fails is a figure, not an end
        error = repr(exc)
    wall_s = time.perf_counter() - started_s
    counts = Counter(int(line.split()[0]) for line in marks.read_text().splitlines())
    cluster.close()
    folder.cleanup()
    twice = [number for number, count in counts.items() if count > 1]
    return {
        "kind": kind,
        "right": answer == [number * number for number in range(n_tasks)],
        "error": error,
        "killed": bool(killed),
        "executed": sum(counts.values()),
        "ran_twice": len(twice),
        "finished_and_ran_twice": len(set(twice) & set(finished_before_kill)),
        "wall_s": round(wall_s, 2),
    }


def main() -> int:
    """Run the repetitions and print a table; status 1 if deepflow failed in one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.usage = "python -m tests.benchmarks.kill --json kill.json"
    parser.add_argument("--repetitions", type=int, default=20, help="runs of deepflow")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--task-s", type=float, default=0.3, help="seconds of sleep in each task")
    parser.add_argument("--peer", action="store_true", help="a quarter as many of prefect-dask")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("RESULT " + json.dumps(one_run(arguments.child, arguments.tasks, arguments.task_s)))
        return 0

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from deepflow import EmbeddedServer

    plan = ["deepflow"] * arguments.repetitions
    if arguments.peer:
        plan += ["prefect-dask"] * max(1, arguments.repetitions // 4)
    runs: list[dict[str, Any]] = []
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": home,
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
            "PYTHONPATH": str(ROOT),
        }
        for kind in track(plan, description="runs"):
            child = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.benchmarks.kill", "--child", kind),
                    *("--tasks", str(arguments.tasks), "--task-s", str(arguments.task_s)),
                ],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            lines = [line for line in child.stdout.splitlines() if line.startswith("RESULT ")]
            if lines:
                runs.append(json.loads(lines[-1].removeprefix("RESULT ")))
            else:
                runs.append({"kind": kind, "right": False, "error": child.stderr[-2000:]})

    table = Table(title=f"{arguments.tasks} tasks of {arguments.task_s} s, a worker of two killed")
    for column in ("", "runs", "right answers", "tasks run twice", "finished and run twice", "s"):
        table.add_column(column, justify="right")
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(plan):
        mine = [run for run in runs if run["kind"] == kind]
        summary[kind] = {
            "runs": len(mine),
            "right": sum(run["right"] for run in mine),
            "killed": sum(run.get("killed", False) for run in mine),
            "ran_twice": sum(run.get("ran_twice", 0) for run in mine),
            "finished_and_ran_twice": sum(run.get("finished_and_ran_twice", 0) for run in mine),
            "median_wall_s": sorted(run.get("wall_s", 0.0) for run in mine)[len(mine) // 2],
        }
        row = summary[kind]
        table.add_row(
            kind,
            str(row["runs"]),
            str(row["right"]),
            str(row["ran_twice"]),
            str(row["finished_and_ran_twice"]),
            str(row["median_wall_s"]),
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"summary": summary, "runs": runs}, indent=1))
    ours = summary.get("deepflow", {"runs": 0})
    good = (
        ours["runs"] == ours["right"] == ours["killed"] and ours["finished_and_ran_twice"] == 0
        if ours["runs"]
        else True
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
