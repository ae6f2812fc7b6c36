"""Placement policies against stock Dask on real workflows: the judge that chooses the default.

    python -m tests.benchmarks.placement                      # the validate set
    python -m tests.benchmarks.placement --split train --instances 2
    python -m tests.benchmarks.placement --cold               # nothing known beforehand
    python -m tests.benchmarks.placement --clusters homogeneous gpu-mixed

The real Dask scheduler plays instances of each family of workflows, in virtual time, on clusters of
three shapes, under every policy and with the same noise on run times. What is known of run times
beforehand comes from *other* instances of the family, played by stock Dask on the same cluster.
Figures are paired by seed, with bootstrap intervals; `oracle:` before a policy means that it was
told the true run times, which nobody has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np

from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK, policy_names
from deepflow.sim.builtin import BUILTIN_CLUSTERS, builtin_cluster
from deepflow.sim.cluster import ClusterSpec
from deepflow.sim.compare import ORACLE, TUNED_DASK, compare
from deepflow.sim.report import Cell, PolicySummary, Summary, summarise, to_json
from deepflow.sim.wfcommons import read_workflow
from deepflow.sim.workload import SimJob, Workload
from tests.sim.shared_data import DATA, GAVEL_FILE, WORKFLOWS

CLUSTERS = ("three-speeds", "gavel", "edge")
MOST_MAKESPAN, MOST_WORST, MOST_COLD, MOST_BYTES = 0.65, 1.02, 1.0, 1.0
_HISTORY_TASKS = 450
"""Instances with more tasks are not played for the history where there are smaller ones."""
_HEADERS = (
    f"{'policy':<22} {'÷ bound':>7} {'÷ stock':>7} {'95 % interval':>15} {'wins':>7} "
    f"{'worst cell':>38} {'bytes':>6} {'wait':>6} {'µs p50':>7} {'µs p99':>7}"
)


@dataclass(frozen=True, slots=True)
class Round:
    """One workflow on one cluster with one seed, under every policy."""

    workload: Workload
    past: tuple[Workload, ...]
    cluster: ClusterSpec
    seed: int


def families(split: str) -> dict[str, list[Workload]]:
    """The workflows of a set by family, each alone in a workload."""
    by_family: dict[str, list[Workload]] = {}
    for path in sorted((WORKFLOWS / split).glob("*.json*")):
        job = read_workflow(path)
        by_family.setdefault(job.flow, []).append(Workload(job.run, (job,)))
    return by_family


def cluster_for(name: str, jobs: Sequence[SimJob]) -> ClusterSpec:
    """A built-in cluster that has a speed for every kind of work of these jobs."""
    kinds = sorted({task.kind or task.task for job in jobs for task in job.tasks})
    return builtin_cluster(name, gavel_file=GAVEL_FILE if name == "gavel" else None, kinds=kinds)


def history(workload: Workload, family: Sequence[Workload], n: int) -> tuple[Workload, ...]:
    """`n` other instances of the family, always the same for the same workload."""
    others = [one for one in family if one.name != workload.name]
    small = [one for one in others if one.n_tasks < _HISTORY_TASKS] or others
    return tuple(Random(crc32(workload.name.encode())).sample(small, min(n, len(small))))


def rounds(
    split: str, clusters: Sequence[str], n_instances: int, n_seeds: int, n_past: int
) -> Iterator[Round]:
    """What is to be played; instances are drawn, always the same ones."""
    for name, family in families(split).items():
        chosen = Random(crc32(name.encode())).sample(family, min(n_instances, len(family)))
        for cluster_name in clusters:
            cluster = cluster_for(cluster_name, [job for one in family for job in one.jobs])
            for workload in chosen:
                past = history(workload, family, n_past)
                for seed in range(n_seeds):
                    yield Round(workload, past, cluster, seed)


def play_round(policies: Sequence[str], one: Round) -> list[Cell]:
    """All policies on one round."""
    return compare([one.workload], [one.cluster], policies, [one.seed], history=lambda _: one.past)


def play_all(policies: Sequence[str], todo: Sequence[Round], n_processes: int) -> list[Cell]:
    """Every round, in several processes; progress goes to stderr."""
    cells: list[Cell] = []
    began_s = time.monotonic()
    with get_context("spawn").Pool(n_processes, maxtasksperchild=50) as pool:
        for n, found in enumerate(pool.imap_unordered(partial(play_round, policies), todo), 1):
            cells += found
            took_s = time.monotonic() - began_s
            print(
                f"\r{n} of {len(todo)} rounds, {took_s:.0f} s, about "
                f"{took_s / n * (len(todo) - n):.0f} s to go ",
                end="\n" if n == len(todo) else "",
                file=sys.stderr,
                flush=True,
            )
    return sorted(cells, key=lambda c: (c.workflow, c.cluster, c.seed))


def table(summary: Summary) -> Iterator[str]:
    """One line a policy."""
    yield _HEADERS
    for policy in summary.policies:
        ratio = policy.ratios["makespan_s"]
        between = f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio.low is not None else "one seed"
        worst = f"{policy.worst.ratio:.2f} {policy.worst.workflow[:22]} {policy.worst.cluster[:12]}"
        yield (
            f"{policy.policy:<22} {policy.means['makespan_over_bound'].mean:7.3f} "
            f"{ratio.mean:7.3f} {between:>15} {policy.wins:>3}/{len(policy.cells):<3} "
            f"{worst:>38} {_ratio(policy, 'moved_bytes'):>6} {_ratio(policy, 'wait_mean_s'):>6} "
            f"{_mean(policy, 'decision_p50_us'):>7} {_mean(policy, 'decision_p99_us'):>7}"
        )


def by_place(policy: PolicySummary) -> Iterator[str]:
    """Makespan ÷ stock's by family and cluster."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell in policy.cells:
        family = cell.workflow.split("-")[0]
        found.setdefault((family, cell.cluster), []).append(cell.ratio)
    for (family, cluster), ratios in sorted(found.items()):
        mean = float(np.exp(np.log(ratios).mean()))
        yield f"  {family:<12} {cluster:<13} {mean:.3f}  ({min(ratios):.2f} to {max(ratios):.2f})"


def holds(name: str, figure: float, most: float) -> str:
    """A line that says whether a figure is as low as it must be."""
    short = "holds" if figure <= most else f"falls short by {figure - most:.3f}"
    return f"{name}: {figure:.3f}, at most {most:.2f}: {short}"


def _ratio(policy: PolicySummary, name: str) -> str:
    return f"{policy.ratios[name].mean:.2f}" if name in policy.ratios else "–"


def _mean(policy: PolicySummary, name: str) -> str:
    return f"{policy.means[name].mean:.0f}" if name in policy.means else "–"


def write_json(path: Path, summary: Summary, cells: Sequence[Cell]) -> None:
    """The summary, and every run."""
    path.write_text(
        json.dumps({"summary": to_json(summary), "runs": [asdict(cell) for cell in cells]})
    )


def main() -> None:
    """Play, print tables, write JSON."""
    known = [*policy_names(), *TUNED_DASK]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("train", "validate"), default="validate")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=4, help="of each family")
    parser.add_argument("--past", type=int, default=6, help="instances in the history")
    parser.add_argument("--clusters", nargs="+", choices=BUILTIN_CLUSTERS, default=CLUSTERS)
    parser.add_argument(
        "--policies",
        nargs="+",
        default=[*TUNED_DASK, *known[1 : len(policy_names())], f"{ORACLE}heft"],
        help=f"of {', '.join(known)}; with {ORACLE} before it, told the true run times",
    )
    parser.add_argument("--cold", action="store_true", help="without any history")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write summary and runs there")
    arguments = parser.parse_args()
    if not WORKFLOWS.is_dir():
        parser.error(f"no workflows at {DATA}; set SHARED_DATA")
    n_past = 0 if arguments.cold else arguments.past
    todo = list(
        rounds(arguments.split, arguments.clusters, arguments.instances, arguments.seeds, n_past)
    )
    policies = list(dict.fromkeys([STOCK, *arguments.policies]))
    cells = play_all(policies, todo, arguments.processes)
    summary = summarise(cells, baseline=STOCK, rng=np.random.default_rng(0))
    print(*table(summary), sep="\n")
    for policy in summary.policies:
        if policy.policy == DEFAULT_POLICY or (len(policies) == 2 and policy.policy != STOCK):
            print(f"{policy.policy}, makespan ÷ stock's:", *by_place(policy), sep="\n")
            makespan = policy.ratios["makespan_s"].mean
            if arguments.cold:
                print(holds("cold start", makespan, MOST_COLD))
            else:
                print(holds("makespan ÷ stock's", makespan, MOST_MAKESPAN))
                print(holds("worst cell", policy.worst.ratio, MOST_WORST))
                print(holds("bytes ÷ stock's", policy.ratios["moved_bytes"].mean, MOST_BYTES))
    if arguments.json:
        write_json(arguments.json, summary, cells)


if __name__ == "__main__":
    main()
