"""Many flow runs that share a cluster: how long each takes, under every policy and stock Dask.

    python -m tests.benchmarks.streams
    python -m tests.benchmarks.streams --load 0.9 --jobs 48 --policies heft srw-heft

Workflows of all families, train and validate, arrive as a Poisson process at a given share of what
the cluster could do at best. What is known of run times beforehand comes from instances that are
not in the stream, played alone by stock Dask.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np

from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK
from deepflow.sim.builtin import BUILTIN_CLUSTERS
from deepflow.sim.generators import stream
from deepflow.sim.report import Summary, summarise
from deepflow.sim.workload import SimJob, Workload
from tests.benchmarks.placement import (
    CLUSTERS,
    Round,
    cluster_for,
    families,
    holds,
    play_all,
    write_json,
)
from tests.sim.shared_data import DATA, WORKFLOWS

MOST = {
    "completion_mean_s": 0.5,
    "slowdown_mean": 0.3,
    "wait_p99_s": 0.8,
    "slowdown_max": 1.0,
}
_SEED_OF_SPLIT = 7


def split_off_history(
    by_family: dict[str, list[Workload]], n_past: int, most_tasks: int
) -> tuple[list[SimJob], tuple[Workload, ...]]:
    """The jobs to draw a stream from, and those that went before; no instance is in both."""
    chance = Random(_SEED_OF_SPLIT)
    jobs: list[SimJob] = []
    past: list[Workload] = []
    for family in by_family.values():
        small = [one for one in family if one.n_tasks <= most_tasks]
        chance.shuffle(small)
        past += small[:n_past]
        jobs += [job for one in small[n_past:] for job in one.jobs]
    return jobs, tuple(past)


def rounds(
    clusters: Sequence[str],
    *,
    load: float,
    n_jobs: int,
    n_seeds: int,
    n_past: int,
    most_tasks: int,
) -> Iterator[Round]:
    """Streams to play: each seed draws other jobs, arrivals and noise."""
    by_family = {**families("train"), **families("validate")}
    jobs, past = split_off_history(by_family, n_past, most_tasks)
    every = [job for family in by_family.values() for one in family for job in one.jobs]
    for name in clusters:
        cluster = cluster_for(name, every)
        for seed in range(n_seeds):
            yield Round(stream(jobs, load, cluster, seed, n_jobs), past, cluster, seed)


def table(summary: Summary) -> Iterator[str]:
    """Each figure ÷ stock's, one line a policy."""
    names = (*MOST, "makespan_s", "moved_bytes")
    yield f"{'policy':<22}" + "".join(f" {name:>24}" for name in names)
    for policy in summary.policies:
        line = f"{policy.policy:<22}"
        for name in names:
            ratio = policy.ratios.get(name)
            if ratio is None:
                line += f" {'–':>24}"
            elif ratio.low is None:
                line += f" {ratio.mean:>24.3f}"
            else:
                line += f" {f'{ratio.mean:.3f} ({ratio.low:.2f} – {ratio.high:.2f})':>24}"
        yield line


def main() -> None:
    """Play, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--past", type=int, default=3, help="instances of each family in the past")
    parser.add_argument("--most-tasks", type=int, default=500, help="of a workflow in the stream")
    parser.add_argument("--clusters", nargs="+", choices=BUILTIN_CLUSTERS, default=CLUSTERS)
    parser.add_argument("--policies", nargs="+", default=["eft", "heft", DEFAULT_POLICY])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write summary and runs there")
    arguments = parser.parse_args()
    if not WORKFLOWS.is_dir():
        parser.error(f"no workflows at {DATA}; set SHARED_DATA")
    todo = list(
        rounds(
            arguments.clusters,
            load=arguments.load,
            n_jobs=arguments.jobs,
            n_seeds=arguments.seeds,
            n_past=arguments.past,
            most_tasks=arguments.most_tasks,
        )
    )
    policies = list(dict.fromkeys([STOCK, *arguments.policies]))
    cells = play_all(policies, todo, arguments.processes)
    summary = summarise(cells, baseline=STOCK, rng=np.random.default_rng(0))
    print("Figures ÷ stock Dask's, with 95 % intervals:", *table(summary), sep="\n")
    for policy in summary.policies:
        if policy.policy == DEFAULT_POLICY:
            print(f"{policy.policy}:")
            for name, most in MOST.items():
                print(holds(f"  {name}", policy.ratios[name].mean, most))
    if arguments.json:
        write_json(arguments.json, summary, cells)


if __name__ == "__main__":
    main()
