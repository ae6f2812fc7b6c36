"""The judge against reality: the same workload on a real local cluster of unlike workers.

    python -m tests.benchmarks.reality
    python -m tests.benchmarks.reality --policies stock,eft,heft --rounds 3 --json reality.json

A random layered graph runs on real Dask workers (eight, of three classes, each a `Worker` with a
thread of its own, over TCP) and in the judge. A task sleeps for as long as its class of worker
takes in the judge, noise included, so that two cores are enough for eight workers; outputs are
small, so that the network plays no part. Asked for: makespans within 10 %, and the same order of
policies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from deepflow.decide.place.registry import STOCK
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.compare import experience_of, play
from deepflow.sim.generators import layered
from deepflow.sim.workload import SimJob, Workload
from tests.benchmarks._live import real_makespan_s

CLUSTER = ClusterSpec(
    "local",
    (
        SimWorkerClass("fast", 2, speed=2.0, nic_bytes_per_s=1.25e9),
        SimWorkerClass("plain", 4, speed=1.0, nic_bytes_per_s=1.25e9),
        SimWorkerClass("slow", 2, speed=0.4, nic_bytes_per_s=1.25e9),
    ),
    noise=0.3,
)
MOST_OFF = 0.10


def job_of(seed: int, n_tasks: int) -> SimJob:
    """A layered graph of tasks of about a second."""
    return layered(
        f"run-{seed}",
        n_tasks=n_tasks,
        n_layers=6,
        typical_s=0.8,
        typical_bytes=2000,
        seed=seed,
    )


def main() -> int:
    """Run it; 1 where the judge is off by more than `MOST_OFF` or the order is another one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", default=f"{STOCK},first-free,heft")
    parser.add_argument("--rounds", type=int, default=3, help="graphs, each with its own noise")
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policies = options.policies.split(",")
    rows: dict[str, list[tuple[float, float]]] = {policy: [] for policy in policies}
    for seed in range(options.rounds):
        job = job_of(seed, options.tasks)
        past = [Workload("past", (job_of(100 + seed, options.tasks),))]
        experience = experience_of(past, CLUSTER, seed=seed)
        for policy in policies:
            played = play(
                Workload("now", (job,)), CLUSTER, policy, seed=seed, experience=experience
            )
            simulated = played.outcome.makespan_s
            real = real_makespan_s(job, CLUSTER, policy, seed, experience)
            rows[policy].append((simulated, real))
            print(
                f"{policy:12} graph {seed}: judge {simulated:6.2f} s, real {real:6.2f} s, "
                f"judge ÷ real {simulated / real:.3f}",
                flush=True,
            )
    summary = {
        policy: {
            "judge_s": statistics.geometric_mean(s for s, _ in of),
            "real_s": statistics.geometric_mean(r for _, r in of),
            "judge_over_real": statistics.geometric_mean(s / r for s, r in of),
        }
        for policy, of in rows.items()
    }
    for policy, figures in summary.items():
        print(f"{policy:12}", {name: round(value, 3) for name, value in figures.items()})
    by_judge = sorted(policies, key=lambda p: summary[p]["judge_s"])
    by_reality = sorted(policies, key=lambda p: summary[p]["real_s"])
    is_close = all(abs(s["judge_over_real"] - 1) <= MOST_OFF for s in summary.values())
    print(f"order in the judge {by_judge}, in reality {by_reality}; within 10 %: {is_close}")
    if options.json:
        options.json.write_text(json.dumps({"summary": summary, "rounds": rows}, indent=2))
    return 0 if is_close and by_judge == by_reality else 1


if __name__ == "__main__":
    raise SystemExit(main())
