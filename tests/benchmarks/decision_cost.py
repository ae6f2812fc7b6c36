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

Aims with 100 workers and 1 to 3 inputs: a decision p50 ≤ 20 µs and p99 ≤ 100 µs where the
deciding modules are compiled (`make compiled`), ≤ 40 and ≤ 200 where not; for a trivial task the
plugin takes ≤ 0.25 of the scheduler's time (≤ 0.5 where not compiled); tasks per second with it
≥ 0.97 times those without. Measured on 2026-11-25 on two busy cores by `--only pure,scheduler
--workers 100`: p50 20 and p99 157 µs compiled, 52 and 355 µs not; 0.52 and 0.60 of the scheduler's
time (`--tasks 4000`). All but the first fall short. To measure what is compiled:
`PYTHONPATH=build/compiled:. python -P -m tests.benchmarks.decision_cost`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import statistics
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
from deepflow.decide.place.run_times import Kinds
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


# -- the decisions alone --------------------------------------------------------------------------


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
    kinds = Kinds(estimates)
    jobs = [Job(f"run-{n}", "flow", float(n), 1000.0) for n in range(N_JOBS)]
    for n in range(n_tasks):
        name = f"name-{n % N_NAMES}"
        inputs = inputs_of(kind, n, workers, rng)
        n_bytes = sum(size for size, _ in inputs)

        yield Task(
            f"task-{n}",
            name,
            jobs[n % N_JOBS],
            run_s=kinds.times("flow", name, n_bytes),
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


# -- in the scheduler -----------------------------------------------------------------------------


class Stopwatch:
    """Adds up this thread's processor time in functions; those within another count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **more: Any) -> Any:
            if self._depth:
                return function(*args, **more)
            self._depth = 1
            began = thread_time()
            try:
                return function(*args, **more)
            finally:
                self.seconds += thread_time() - began
                self._depth = 0

        return timed

    def wrap(self, owner: Any, *names: str) -> None:
        """Time these methods of one object."""
        for name in names:
            setattr(owner, name, self.around(getattr(owner, name)))


def scheduler_share(
    policy: str, n_workers: int, n_tasks: int, kind: str = "seconds"
) -> dict[str, Any]:
    """The plugin's time beside the scheduler's in a simulation: pairs of tasks, one after another.

    `kind`: tasks of about a second each, or `trivial` ones of a tenth of a millisecond.
    """
    from deepflow.backend.placement.plugin import Placement
    from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
    from deepflow.sim.engine import simulate
    from deepflow.sim.workload import SimJob, SimTask, Workload

    rng = np.random.default_rng(1)
    n_chains = n_tasks // 2
    tasks = []
    typical_s, n_bytes = (1.0, 1_000_000) if kind == "seconds" else (1e-4, 100)
    for n in range(n_chains):
        first_s, second_s = (typical_s * float(rng.lognormal(0.0, 0.3)) for _ in range(2))
        tasks.append(SimTask(f"a{n}", "load", first_s, n_bytes))
        tasks.append(SimTask(f"b{n}", "work", second_s, 1000, depends_on=(f"a{n}",)))
    cluster = ClusterSpec(
        "four-classes",
        tuple(
            SimWorkerClass(name, max(1, n_workers // len(SPEEDS)), speed=speed)
            for name, speed in SPEEDS.items()
        ),
    )
    whole, ours = Stopwatch(), Stopwatch()
    placements = []

    def install(scheduler: Any, clock: Any) -> None:
        plugin = Placement(policy, clock=clock, call_later=clock.call_later)
        ours.wrap(plugin, "update_graph", "transition", "add_worker")
        placement = plugin.attach(scheduler)
        # What stands in for Dask's transitions was bound when it was put in place.
        table = vars(scheduler)["_TRANSITIONS_TABLE"]
        for change in (("waiting", "processing"), ("waiting", "queued")):
            table[change] = ours.around(table[change])
        ours.wrap(placement.passes, "_refresh", "_decide", "_set_timer")
        scheduler.plugins[plugin.name] = plugin
        placements.append(placement)
        whole.wrap(
            scheduler,
            *("_create_taskstate_from_graph", "transitions"),
            *("stimulus_queue_slots_maybe_opened", "_transitions"),
        )
        for name, handler in scheduler.stream_handlers.items():
            scheduler.stream_handlers[name] = whole.around(handler)

    simulate(
        Workload("short", (SimJob("run", "flow", tuple(tasks)),)),
        cluster,
        install=install,
        stealing=False,
    )
    (placement,) = placements
    assert not placement.guard.faults, placement.guard.faults
    return {
        "part": "scheduler",
        "policy": policy,
        "kind": kind,
        "workers": n_workers,
        "tasks": n_tasks,
        "scheduler_us_per_task": whole.seconds / n_tasks * 1e6,
        "plugin_us_per_task": ours.seconds / n_tasks * 1e6,
        "share": ours.seconds / whole.seconds,
        "decision": quantiles_us(list(placement.record.decision_s)),
    }


# -- live -----------------------------------------------------------------------------------------


def live(policy: str, n_tasks: int, n_rounds: int, n_workers: int) -> dict[str, Any]:
    """Tasks per second of a cluster in this process, with the plugin and without it in turn."""
    from distributed import Client, LocalCluster

    from deepflow.backend.placement.plugin import Placement

    def increment(x: int) -> int:
        return x + 1

    def rate(client: Client, n: int) -> float:
        began = perf_counter()
        values = client.gather(client.map(increment, range(n), pure=False))
        seconds = perf_counter() - began
        assert values == list(range(1, n + 1))
        return n / seconds

    rates: dict[str, list[float]] = {"on": [], "off": []}
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        rate(client, n_tasks // 10)
        for n in range(2 * n_rounds):
            # Neighbours are compared, each first in every other pair.
            is_on = n % 4 in (0, 3)
            if is_on:
                client.register_plugin(Placement(policy))
            rates["on" if is_on else "off"].append(rate(client, n_tasks))
            if is_on:
                client.unregister_scheduler_plugin(Placement.name)
            print(f"  live {'on ' if is_on else 'off'} {rates['on' if is_on else 'off'][-1]:.0f}")
    ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    return {
        "part": "live",
        "policy": policy,
        "workers": n_workers,
        "tasks": n_tasks,
        "tasks_per_s_on": statistics.median(rates["on"]),
        "tasks_per_s_off": statistics.median(rates["off"]),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }


def show(figure: dict[str, Any]) -> None:
    """One line for one figure."""
    said = [f"{figure['part']:<10} {figure['policy']} {figure['workers']:>4} workers"]
    for name, value in figure.items():
        if isinstance(value, dict):
            said.append(f"{name} p50 {value['p50_us']:.1f} p99 {value['p99_us']:.1f} us")
        elif isinstance(value, float):
            said.append(f"{name} {value:.3g}")
        elif name == "kind":
            said.append(f"{value:<10}")
    print("  ".join(said), flush=True)


def python_us() -> float:
    """Microseconds of a thousand dictionary look-ups and additions: how fast this machine is."""
    table = {str(n): float(n) for n in range(1000)}
    taken = []
    for _ in range(200):
        began = thread_time()
        total = 0.0
        for key in table:
            total += table[key]
        taken.append(thread_time() - began)
    return statistics.median(taken) * 1e6


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
    parser.add_argument("--rounds", type=int, default=5, help="pairs of live runs")
    parser.add_argument("--live-workers", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    policy, n_tasks, parts = arguments.policy, arguments.tasks, arguments.only.split(",")
    figures: list[dict[str, Any]] = []

    def add(figure: dict[str, Any]) -> None:
        figures.append(figure)
        show(figure)

    speed_us = python_us()
    print(f"a thousand look-ups and additions: {speed_us:.0f} us")
    for n_workers in arguments.workers:
        if "pure" in parts:
            for kind in arguments.kinds.split(","):
                add(pure(policy, kind, n_workers, n_tasks))
        if "scheduler" in parts:
            add(scheduler_share(policy, n_workers, n_tasks))
            add(scheduler_share(policy, n_workers, n_tasks, "trivial"))
    if "live" in parts:
        add(live(policy, n_tasks, arguments.rounds, arguments.live_workers))
    if arguments.json:
        said = {"machine": platform.platform(), "python_us": speed_us, "figures": figures}
        arguments.json.write_text(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()
