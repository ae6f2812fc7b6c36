"""Pipelines whose middle step can use a GPU or a CPU, on workers of which some have a GPU.

    python -m tests.benchmarks.soft_gpu --json soft_gpu.json

Decode (CPU), inference (GPU or CPU, ten times as fast on a GPU), post-processing (CPU), under every
policy and stock Dask, which has no word for "can use" and runs such a step wherever it comes to
lie. What is known of run times beforehand comes from smaller runs played by stock Dask, and
so says nothing of GPUs: that is learned in the run.

    python -m tests.benchmarks.soft_gpu --live 3

plays the first width on a real local cluster instead, stock Dask and the default policy in turn,
so many times. There a task sleeps for as long as it takes in the judge, times `--scale`. The work
is the same in both, so the ratio of useful utilisation is the inverse one of the makespans.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepflow.decide.experience import Experience
from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK
from deepflow.sim.builtin import builtin_cluster
from deepflow.sim.generators import pipelines
from deepflow.sim.report import Summary, summarise
from deepflow.sim.workload import Workload
from tests.benchmarks._live import real_makespan_s
from tests.benchmarks.placement import Round, play_all, write_json

LEAST_UTILISATION = 1.31


def rounds(n_items: Sequence[int], n_seeds: int, n_past: int) -> Iterator[Round]:
    """Runs of several widths, each after narrow ones."""
    cluster = builtin_cluster("gpu-mixed")
    past = tuple(
        Workload(f"past-{n}", (pipelines(f"past-{n}", n_items=40, spread=0.3, seed=1_000_000 + n),))
        for n in range(n_past)
    )
    for n in n_items:
        for seed in range(n_seeds):
            name = f"pipelines-{n}"
            job = pipelines(name, n_items=n, spread=0.3, seed=seed)
            yield Round(Workload(name, (job,)), past, cluster, seed)


def table(summary: Summary) -> Iterator[str]:
    """Useful utilisation and makespan, one line a policy."""
    yield f"{'policy':<22} {'useful utilisation':>18} {'÷ stock':>24} {'makespan ÷ stock':>24}"
    for policy in summary.policies:
        line = f"{policy.policy:<22} {policy.means['utilisation'].mean:18.3f}"
        for name in ("utilisation", "makespan_s"):
            ratio = policy.ratios[name]
            text = f"{ratio.mean:.3f}"
            if ratio.low is not None:
                text += f" ({ratio.low:.2f} – {ratio.high:.2f})"
            line += f" {text:>24}"
        yield line


def play_live(arguments: argparse.Namespace) -> None:
    """Play pairs on real workers; print each and the median."""
    ratios = []
    spent: list[dict[str, float]] = []
    for now in rounds(arguments.items[:1], arguments.live, arguments.past):
        (job,) = now.workload.jobs
        seconds = {}
        for policy in (STOCK, DEFAULT_POLICY):
            # Nothing known beforehand of run times that are scaled.
            seconds[policy] = real_makespan_s(
                job, now.cluster, policy, now.seed, Experience(), scale=arguments.scale
            )
        spent.append(seconds)
        ratios.append(seconds[STOCK] / seconds[DEFAULT_POLICY])
        print({name: round(s, 2) for name, s in seconds.items()}, f"{ratios[-1]:.3f}", flush=True)
    figure = statistics.median(ratios)
    print(f"{DEFAULT_POLICY}, real workers: {figure:.3f}, at least {LEAST_UTILISATION:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"median": figure, "rounds": spent}, indent=2))


def main() -> None:
    """Play, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[60, 200, 400])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--past", type=int, default=3, help="runs in the history")
    parser.add_argument(
        "--policies", nargs="+", default=["random", "best-fit", "eft", "heft", DEFAULT_POLICY]
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write summary and runs there")
    parser.add_argument("--live", type=int, default=0, help="pairs on a real local cluster")
    parser.add_argument("--scale", type=float, default=0.1, help="of run times there")
    arguments = parser.parse_args()
    if arguments.live:
        play_live(arguments)
        return
    todo = list(rounds(arguments.items, arguments.seeds, arguments.past))
    policies = list(dict.fromkeys([STOCK, *arguments.policies]))
    cells = play_all(policies, todo, arguments.processes)
    summary = summarise(cells, baseline=STOCK, rng=np.random.default_rng(0))
    print(*table(summary), sep="\n")
    for policy in summary.policies:
        if policy.policy == DEFAULT_POLICY:
            figure = policy.ratios["utilisation"].mean
            short = (
                "holds"
                if figure >= LEAST_UTILISATION
                else f"falls short by {LEAST_UTILISATION - figure:.3f}"
            )
            print(f"{policy.policy}: {figure:.3f}, at least {LEAST_UTILISATION:.2f}: {short}")
    if arguments.json:
        write_json(arguments.json, summary, cells)


if __name__ == "__main__":
    main()
