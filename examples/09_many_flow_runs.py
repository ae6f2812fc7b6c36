"""Many flow runs on one cluster: the urgent one does not wait behind the long one.

    python examples/09_many_flow_runs.py

A long flow run has the cluster to itself when short ones begin to arrive, as from a schedule. Tasks
of all flow runs wait in one queue. What a flow run still has to do decides its place there, so the
short ones pass; `hints(priority=…)` puts a flow run before all others.

At the end, look at the table: the short runs took seconds, though the long run began first.
"""

import threading
import time
from contextvars import copy_context

from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints
from deepflow.backend.clusters.local import local_cluster


@task(task_run_name="{label}-{number}")
def step(label: str, number: int, seconds: float) -> int:
    """Some work."""
    time.sleep(seconds)
    return number


def run(label: str, n_steps: int, priority: int, address: str, took_s: dict[str, float]) -> None:
    """One flow run, from its beginning to its end."""

    @flow(name=label, task_runner=DeepflowTaskRunner(address=address))
    def work() -> int:
        with hints(priority=priority):
            numbers = range(n_steps)
            return len(step.map(label, numbers, 0.2).result())

    began_s = time.monotonic()
    work()
    took_s[label] = time.monotonic() - began_s


RUNS = [("long", 60, 0), ("short-1", 6, 0), ("short-2", 6, 0), ("urgent", 6, 10)]
"""Name, number of steps of 0.2 s, and priority; each begins a second after the one before."""

if __name__ == "__main__":
    took_s: dict[str, float] = {}
    with (
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
        local_cluster([WorkerClass("cpu", count=2)]) as cluster,
    ):
        address = cluster.scheduler_address
        threads = []
        for label, n_steps, priority in RUNS:
            # A thread begins without the settings above, unless it is given this context.
            arguments = (run, label, n_steps, priority, address, took_s)
            threads.append(threading.Thread(target=copy_context().run, args=arguments))
            threads[-1].start()
            time.sleep(1)
        for thread in threads:
            thread.join()
    print(f"{'flow run':10} {'steps':>5} {'priority':>8} {'took':>8}")
    for label, n_steps, priority in RUNS:
        print(f"{label:10} {n_steps:5} {priority:8} {took_s[label]:6.1f} s")
    first = all(took_s[label] < took_s["long"] for label, _, _ in RUNS[1:])
    print(f"Every short run ended before the long one: {first}.")
