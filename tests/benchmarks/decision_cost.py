"""What placing costs: per decision, of the scheduler's time, and in tasks per second.

    python -m tests.benchmarks.decision_cost --json decision_cost.json
    python -m tests.benchmarks.decision_cost --only pure --workers 100 --policy heft

- `pure`: the decisions alone, without Dask, on workers of four classes with virtual time. All
  tasks are ready at the beginning; whenever a worker gets free, one pass is made. *Decision*: from
  when the binder is asked until a task is placed in the table, looks at tasks that are held on the
  way included. *Pass*: all of it, the one that finds nothing to do included. In seconds of this
  thread's processor time, so that what else runs on the machine does not count.
- `scheduler`: the real scheduler in virtual time plays short tasks. The share of its own time (its
  event handlers) that goes to the plugin: arrival of graphs, transitions and passes.
- `live`: trivial tasks on a `LocalCluster` in this process, with the plugin and without it in turn;
  the ratio of each pair of neighbours, and its median.

Budget (`decide.place`): a decision p50 ≤ 15 µs and p99 ≤ 50 µs with 100 workers, the plugin ≤ 5 %
of the scheduler's time, tasks per second with it ≥ 0.9 times those without.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from deepflow.decide.estimate import Estimates
from deepflow.decide.place.binder import Binder
from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.links import Links
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.registry import DEFAULT_POLICY, policy_named
from deepflow.decide.place.task import Job, Task
from deepflow.hints import CLASS_LABEL, label_resource

PARTS = ("pure", "scheduler", "live")
KINDS = ("no inputs", "1-3 inputs", "100 inputs", "mixed")
SPEEDS = {"slow": 0.5, "plain": 1.0, "quick": 2.0, "quickest": 4.0}
N_JOBS = 4
N_NAMES = 5


def quantiles_us(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and mean, in microseconds."""
    found = np.array(seconds) * 1e6
    return {
        "p50_us": float(np.median(found)),
        "p99_us": float(np.quantile(found, 0.99)),
        "mean_us": float(found.mean()),
    }


# -- the decisions alone ----------------------------------------------------------------------------


def fleet_of(n_workers: int) -> Fleet:
    """Workers of one thread, four classes in turn, eight to a host."""
    fleet = Fleet()
    classes = list(SPEEDS)
    for n in range(n_workers):
        fleet.join(
            Worker(
                f"tcp://host-{n // 8}:{9000 + n}",
                resources={label_resource(CLASS_LABEL, classes[n % len(classes)]): 1.0},
                host=f"host-{n // 8}",
                memory_limit_bytes=8 << 30,
            )
        )
    return fleet


def learned(rng: np.random.Generator) -> Estimates:
    """Run times of every name on every class, from 20 runs each."""
    estimates = Estimates()
    for n in range(N_NAMES):
        for name, speed in SPEEDS.items():
            for _ in range(20):
                run_s = (0.5 + n) / speed * rng.lognormal(0.0, 0.3)
                estimates.observe("flow", f"name-{n}", name, run_s, 1e6, 1e6)
    return estimates


def inputs_of(
    kind: str, number: int, workers: list[str], rng: np.random.Generator
) -> list[tuple[int, list[str]]]:
    """Inputs of 1 to 20 MB, each on one worker drawn by lot."""
    if kind == "mixed":
        kind = KINDS[0] if number % 20 < 10 else KINDS[1] if number % 20 < 19 else KINDS[2]
    n_inputs = {"no inputs": 0, "1-3 inputs": 1 + number % 3, "100 inputs": 100}[kind]
    return [
        (int(rng.integers(1_000_000, 20_000_000)), [workers[rng.integers(len(workers))]])
        for _ in range(n_inputs)
    ]


def tasks_of(
    kind: str, n_tasks: int, fleet: Fleet, estimates: Estimates, rng: np.random.Generator
) -> Iterator[Task]:
    """Tasks of several jobs and names; ranks by name, and a little by lot."""
    workers = list(fleet.workers)
    jobs = [Job(f"run-{n}", "flow", float(n), 1000.0) for n in range(N_JOBS)]
    for n in range(n_tasks):
        name = f"name-{n % N_NAMES}"
        inputs = inputs_of(kind, n, workers, rng)
        n_bytes = sum(size for size, _ in inputs)

        def run_s(worker_class: str, name: str = name, n_bytes: int = n_bytes) -> float:
            return estimates.run_s("flow", name, worker_class, n_bytes)

        yield Task(
            f"task-{n}",
            name,
            jobs[n % N_JOBS],
            run_s=run_s,
            rank_s=10.0 * (n % N_NAMES) + float(rng.exponential(2.0)),
            dask_order=(0, n),
            inputs=inputs,
            input_bytes=n_bytes,
        )


def pure(policy_name: str, kind: str, n_workers: int, n_tasks: int) -> dict[str, Any]:
    """Place all tasks on workers that get free one after the other."""
    rng = np.random.default_rng(1)
    policy = policy_named(policy_name)
    assert policy is not None, "stock Dask makes no decisions here"
    fleet, ready = fleet_of(n_workers), Ready(policy)
    binder = Binder(fleet, ready, Links(), policy, rng)
    arrivals = []
    for task in tasks_of(kind, n_tasks, fleet, learned(rng), rng):
        began = thread_time()
        ready.add(task)
        arrivals.append(thread_time() - began)
    ends: list[tuple[float, str, str]] = []
    decisions: list[float] = []
    passes: list[float] = []
    now_s = 0.0
    while len(ready) or ends:
        was_ready = len(ready)
        took_s = 0.0
        n_before = len(decisions)
        found = binder.decide(now_s)
        while True:
            began = thread_time()
            decision = next(found, None)
            if decision is not None:
                i, task, worker = decision.chosen, decision.task, decision.worker
                start_s = now_s + decision.candidates.queue_s[i] + decision.candidates.transfer_s[i]
                end_s = start_s + decision.candidates.run_s[i]
                fleet.assign(worker, task.key, start_s, end_s, task.needs)
                ready.remove(task.key)
            seconds = thread_time() - began
            took_s += seconds
            if decision is None:
                break
            decisions.append(seconds)
            real_s = (end_s - start_s) * float(rng.lognormal(0.0, 0.3))
            heapq.heappush(ends, (start_s + real_s, worker.id, task.key))
        if was_ready > n_workers and len(decisions) - n_before <= 2:
            passes.append(took_s)
        if ends and (not len(ready) or binder.look_again_s >= ends[0][0]):
            now_s, worker_id, key = heapq.heappop(ends)
            fleet.unassign(worker_id, key)
        elif len(ready):
            now_s = max(binder.look_again_s, now_s + 0.002)
    return {
        "part": "pure",
        "policy": policy_name,
        "kind": kind,
        "workers": n_workers,
        "tasks": n_tasks,
        "decision": quantiles_us(decisions),
        "pass": quantiles_us(passes),
        "arrival": quantiles_us(arrivals),
        "makespan_s": now_s,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma")
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of tasks in `pure`, by comma")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    figures: list[dict[str, Any]] = []
    for n_workers in arguments.workers:
        for kind in arguments.kinds.split(","):
            f = pure(arguments.policy, kind, n_workers, arguments.tasks)
            figures.append(f)
            print(
                kind,
                n_workers,
                {
                    k: f"{v['p50_us']:.1f}/{v['p99_us']:.1f}"
                    for k, v in f.items()
                    if isinstance(v, dict)
                },
                round(f["makespan_s"], 1),
                flush=True,
            )


if __name__ == "__main__":
    main()
