"""Fragmented and allocated GPUs on the openb trace, beside the published results, seed by seed.

    python -m tests.benchmarks.gpu_fragmentation
    python -m tests.benchmarks.gpu_fragmentation --policies fgd,best-fit --seeds 42-44
    python -m tests.benchmarks.gpu_fragmentation --json out.json --plot fragmentation.png

The protocol of Weng et al. (USENIX ATC 2023), after their simulator's public source: the 1,213
nodes with GPUs (6,212 of them); the 8,152 pods, shuffled, then pods drawn from the same list with
replacement until the arrived GPU requests would exceed 130 % of the cluster; pods never end, and
one that does not fit is dropped. CPU, memory and GPU decide whether a pod fits. After every arrival
the cluster's expected fragmentation is taken over the most popular types of pod that make up 95 %
of the trace; a figure at a load of x % is the mean over the arrivals at which the arrived share
rounds to x. The order of arrival for a seed is the published one, draw for draw (`go_random`), and
so is the order in which nodes win ties. The authors' scheduler compares whole scores from 0 to 100,
so that near equals are ties as well; the policies of the comparison are scored likewise. All of
them but random then meet the published figures to 0.01; random draws from numpy's generator.

Two more: `fgd-exact` compares growths without that rounding, and is worse; `fgd-priced` adds the
waste by `SharePrices` (of the whole trace, which FGD's measure sees as well). Its weight, 10, was
chosen on seeds 142 to 149 (on the published ones only a weight of 1 had been tried before: 4.45 %).
On the published seeds it leaves 4.24 % of the GPUs fragmented at 130 %, and FGD 4.57 %: a
difference of 0.33 (95 % bootstrap interval over seeds 0.27 to 0.39), less on every seed.

What 4.0 % would need. At 130 % nearly all that is idle is a fragment, so 4.0 % fragmented means
96 % allocated. Cutting whole GPUs as well as can be into the shared pods of the trace, all known
beforehand and with no regard to CPU, leaves 3.75 % of the cluster's GPUs idle (the last line that
this prints). 2.9 % are the rests of pods of 0.81 GPU, which only the few of 0.16 and less can use.
On seed 42 `fgd-priced` loses another 0.3 % to pairs that came in the wrong order, and 0.2 % are
whole GPUs on nodes without CPU for them. 4.0 % takes nearly half of these two, which means moving
running pods or knowing arrivals ahead, unless a better policy online is found. Below 3.7 % it takes
refusing pods of 0.81 that fit, or more small pods than the trace has.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from deepflow.decide.place.fragmentation import FragmentationDescent
from deepflow.decide.place.gpus import GPU_MILLI, GpuCluster, GpuNode, GpuTask, GpuWorkload
from tests.benchmarks.go_random import GoRandom
from tests.benchmarks.gpu_rivals import (
    SharePrices,
    best_fit_costs,
    dot_product_costs,
    gpu_clustering_costs,
    gpu_packing_costs,
    tightest_gpus,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data")) / "gpu_cluster"
LOAD = 1.3
COVERAGE = 0.95
MIB = 2**20
BACKGROUND_DRAWS = 10
"""Numbers the published runs drew for other ends (timers) before they ranked the nodes; found by
trying 0 to 39 on best fit's figures for seed 42, and met by every policy and seed since."""
LOADS = (80, 90, 100, 130)
PUBLISHED = {
    "random": "01-Random",
    "dot-product": "02-DotProd",
    "clustering": "03-GpuClustering",
    "packing": "04-GpuPacking",
    "best-fit": "05-BestFit",
    "fgd": "06-FGD",
}


def rows(name: str) -> list[dict[str, str]]:
    """The rows of one of the trace's compressed tables."""
    with (DATA / name).open("rb") as packed:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), "utf-8")
        return list(csv.DictReader(text))


def load_trace() -> tuple[list[GpuNode], list[GpuTask]]:
    """The nodes with GPUs, and the pods in the order of their names."""
    nodes = [
        GpuNode(
            cpu_milli=int(row["cpu_milli"]),
            gpu_free_milli=(GPU_MILLI,) * int(row["gpu"]),
            gpu_model=row["model"],
            memory_bytes=int(row["memory_mib"]) * MIB,
        )
        for row in rows("openb_node_list_gpu_node.csv.zst")
    ]
    pods = sorted(rows("openb_pod_list_default.csv.zst"), key=lambda row: row["name"])
    return nodes, [
        GpuTask(
            cpu_milli=int(row["cpu_milli"]),
            num_gpu=int(row["num_gpu"]),
            gpu_milli=int(row["gpu_milli"]) if int(row["num_gpu"]) else 0,
            gpu_models=frozenset(filter(None, row["gpu_spec"].split("|"))),
            memory_bytes=int(row["memory_mib"]) * MIB,
        )
        for row in pods
    ]


def arrivals(
    tasks: Sequence[GpuTask], nodes: Sequence[GpuNode], seed: int
) -> tuple[list[GpuTask], list[int]]:
    """A published seed's order of arrival, and the rank of each node among equals.

    All pods shuffled, then draws up to the load; then the nodes are ranked at random.
    """
    total_milli = GPU_MILLI * sum(len(node.gpu_free_milli) for node in nodes)
    random = GoRandom(seed)
    random.int63()  # the simulator logs one number before it shuffles
    order = list(tasks)
    random.shuffle(order)
    arrived = sum(task.num_gpu * task.gpu_milli for task in order)
    while True:
        task = tasks[random.intn(len(tasks))]
        # As published: the check counts one GPU of the pod, the sum all of them.
        if arrived + task.gpu_milli > LOAD * total_milli:
            break
        arrived += task.num_gpu * task.gpu_milli
        order.append(task)
    for _ in range(BACKGROUND_DRAWS):
        random.int63()
    return order, random.permutation(len(nodes))


Choice = tuple[np.ndarray, np.ndarray]
"""Scores per node (the highest wins, -inf: no fit), and the GPU per node for a shared task."""


class Policies:
    """Scores of each policy for the next task on one cluster."""

    def __init__(
        self,
        cluster: GpuCluster,
        workload: GpuWorkload,
        prices: SharePrices,
        random: np.random.Generator,
    ) -> None:
        self.cluster = cluster
        self.random = random
        self.priced_descent = FragmentationDescent(
            cluster, workload, surcharge_milli=prices.surcharge_milli
        )
        self.descent = FragmentationDescent(cluster, workload)
        self.exact_descent = FragmentationDescent(cluster, workload, exact=True)

    def random_node(self, task: GpuTask) -> Choice:
        able = self.cluster.gpu_milli >= task.gpu_milli
        gpus = np.where(able, self.random.random(able.shape), -1.0).argmax(axis=1)
        return np.where(self.cluster.fits(task), 0.0, -np.inf), gpus

    def best_fit(self, task: GpuTask) -> Choice:
        costs = best_fit_costs(self.cluster, task)
        return np.floor(100 * (1 - costs)), tightest_gpus(self.cluster, task)

    def dot_product(self, task: GpuTask) -> Choice:
        costs = dot_product_costs(self.cluster, task)
        return np.floor(100 * (1 - costs)), tightest_gpus(self.cluster, task)

    def packing(self, task: GpuTask) -> Choice:
        return -gpu_packing_costs(self.cluster, task), tightest_gpus(self.cluster, task)

    def clustering(self, task: GpuTask) -> Choice:
        costs = gpu_clustering_costs(self.cluster, task)
        # A quarter of the scale for each of the four groups of nodes.
        group, idle = np.divmod(np.minimum(costs, 1e9), 2)
        scores = np.where(np.isinf(costs), -np.inf, np.floor(25 * (1 - idle)) - 25 * group)
        return scores, tightest_gpus(self.cluster, task)

    def fgd(self, task: GpuTask) -> Choice:
        costs, gpus = self.descent.costs(task)
        return -costs, gpus

    def fgd_exact(self, task: GpuTask) -> Choice:
        costs, gpus = self.exact_descent.costs(task)
        return -costs, gpus

    def fgd_priced(self, task: GpuTask) -> Choice:
        costs, gpus = self.priced_descent.costs(task)
        return -costs, gpus


POLICIES: dict[str, Callable[[Policies, GpuTask], Choice]] = {
    "random": Policies.random_node,
    "dot-product": Policies.dot_product,
    "clustering": Policies.clustering,
    "packing": Policies.packing,
    "best-fit": Policies.best_fit,
    "fgd": Policies.fgd,
    "fgd-exact": Policies.fgd_exact,
    "fgd-priced": Policies.fgd_priced,
}


@dataclass(frozen=True)
class Replay:
    """One policy on one seed. Percent of the cluster's GPUs, by percent of GPUs arrived."""

    policy: str
    seed: int
    fragmented: dict[int, float]
    allocated: dict[int, float]
    dropped: int
    decision_us: float


def replay(policy: str, seed: int) -> Replay:
    """Places one seed's arrivals."""
    nodes, tasks = load_trace()
    cluster = GpuCluster(nodes)
    workload = GpuWorkload.observed(tasks, coverage=COVERAGE)
    random = np.random.default_rng(seed)
    policies = Policies(cluster, workload, SharePrices(GpuWorkload.observed(tasks)), random)
    score = POLICIES[policy]
    total = int(cluster.num_gpus.sum()) * GPU_MILLI
    order, ranking = arrivals(tasks, nodes, seed)
    ranks = np.array(ranking)
    arrived = allocated = dropped = 0
    fragmented = 100 * policies.descent.milli().sum() / total
    by_load: dict[int, list[tuple[float, float]]] = {}
    started = time.perf_counter()
    for task in order:
        asked = task.num_gpu * task.gpu_milli
        arrived += asked
        scores, gpus = score(policies, task)
        best = scores.max()
        if best == -np.inf:
            dropped += 1
        else:
            equals = np.flatnonzero(scores == best)
            node = int(
                random.choice(equals) if policy == "random" else equals[ranks[equals].argmin()]
            )
            cluster.place(task, node, int(gpus[node]))
            allocated += asked
            fragmented = 100 * policies.descent.milli().sum() / total
        load = round(100 * arrived / total)
        by_load.setdefault(load, []).append((fragmented, 100 * allocated / total))
    seconds = time.perf_counter() - started
    means = {load: np.mean(values, axis=0) for load, values in by_load.items()}
    return Replay(
        policy,
        seed,
        {load: float(mean[0]) for load, mean in means.items()},
        {load: float(mean[1]) for load, mean in means.items()},
        dropped,
        1e6 * seconds / len(order),
    )


def published() -> dict[tuple[str, str, int, int], float]:
    """The authors' figure by metric, policy (as they call it), load and seed."""
    with (DATA / "openb_published_results.csv").open(newline="") as table:
        return {
            (
                row["metric"],
                row["policy"],
                int(row["arrived_load_percent"]),
                int(row["seed"]),
            ): float(row["percent_of_cluster_gpus"])
            for row in csv.DictReader(table)
        }


def summary(replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """Per policy, metric and load: our mean and spread over seeds, and the published ones."""
    theirs = published()
    lines: list[dict[str, Any]] = []
    for policy in dict.fromkeys(replay.policy for replay in replays):
        ours = sorted((r for r in replays if r.policy == policy), key=lambda r: r.seed)
        for metric in ("fragmented", "allocated"):
            for load in LOADS:
                mine = np.array([getattr(replay, metric)[load] for replay in ours])
                keys = [
                    (f"{metric}_gpus", PUBLISHED.get(policy, ""), load, replay.seed)
                    for replay in ours
                ]
                known = np.array([theirs[key] for key in keys if key in theirs])
                line: dict[str, Any] = {
                    "policy": policy,
                    "metric": metric,
                    "load": load,
                    "seeds": len(mine),
                    "mean": float(mine.mean()),
                    "sd": float(mine.std(ddof=1)) if len(mine) > 1 else 0.0,
                }
                if len(known) == len(mine):
                    line["published_mean"] = float(known.mean())
                    line["published_sd"] = float(known.std(ddof=1)) if len(mine) > 1 else 0.0
                    line["largest_difference"] = float(abs(mine.round(2) - known).max())
                lines.append(line)
    return lines


def show(lines: Sequence[dict[str, Any]], replays: Sequence[Replay]) -> None:
    """Prints the table."""
    print(
        "\npercent of the cluster's GPUs, mean ± sd over seeds; Δ: largest difference on one seed"
    )
    print(f"{'policy':<12} {'metric':<11} {'load':>4}  {'ours':>13}  {'published':>13}  {'Δ':>5}")
    for line in lines:
        text = f"{line['policy']:<12} {line['metric']:<11} {line['load']:>4}"
        text += f"  {line['mean']:>6.2f} ± {line['sd']:<4.2f}"
        if "published_mean" in line:
            text += f"  {line['published_mean']:>6.2f} ± {line['published_sd']:<4.2f}"
            text += f"  {line['largest_difference']:>5.2f}"
        print(text)
    for policy in dict.fromkeys(replay.policy for replay in replays):
        spent = np.mean([replay.decision_us for replay in replays if replay.policy == policy])
        print(f"{policy}: {spent:.0f} µs a pod, the measuring included")
    print(f"idle however the trace's shared pods are packed: {unavoidable_percent():.2f} %")


def unavoidable_percent() -> float:
    """GPUs idle, in percent of the cluster, if the trace's shared pods are packed as can be.

    Each price is what one more pod costs in the best packing, so that together they are that
    packing's GPUs (with fractional numbers of each way to cut one: a bound from below).
    """
    nodes, tasks = load_trace()
    prices = SharePrices(GpuWorkload.observed(tasks))
    shared = [task.gpu_milli for task in tasks if task.is_shared]
    idle = sum(prices.price(share) for share in shared) - sum(shared) / GPU_MILLI
    return 100 * idle / sum(len(node.gpu_free_milli) for node in nodes)


def draw(replays: Sequence[Replay], path: Path) -> None:
    """Fragmentation and allocation against the arrived load, mean over seeds; published: points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    theirs = published()
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for panel, metric in zip(panels, ("fragmented", "allocated"), strict=True):
        for policy in dict.fromkeys(replay.policy for replay in replays):
            ours = [getattr(r, metric) for r in replays if r.policy == policy]
            loads = sorted(set.intersection(*(set(figures) for figures in ours)))
            (line,) = panel.plot(
                loads,
                [np.mean([figures[load] for figures in ours]) for load in loads],
                label=policy,
            )
            seeds = [r.seed for r in replays if r.policy == policy]
            keys = [(f"{metric}_gpus", PUBLISHED.get(policy, ""), load) for load in LOADS]
            points = [
                (key[2], np.mean([theirs[(*key, seed)] for seed in seeds]))
                for key in keys
                if all((*key, seed) in theirs for seed in seeds)
            ]
            panel.plot(
                [load for load, _ in points], [y for _, y in points], "o", color=line.get_color()
            )
        panel.set_xlabel("GPUs arrived, % of the cluster")
        panel.set_ylabel(f"GPUs {metric}, % of the cluster")
        panel.grid(alpha=0.3)
    panels[0].legend(title="points: published")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default=",".join(POLICIES), help="names, with commas")
    parser.add_argument("--seeds", default="42-51", help="first-last, or one (default: published)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="draw against the arrived load, as PNG or SVG")
    options = parser.parse_args(argv)
    chosen = options.policies.split(",")
    unknown = [name for name in chosen if name not in POLICIES]
    if unknown:
        parser.error(f"no policy {', '.join(unknown)}; there are {', '.join(POLICIES)}")
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if not DATA.is_dir():
        print(f"no trace at {DATA}; set SHARED_DATA to the folder that has gpu_cluster/")
        return 2

    started = time.perf_counter()
    replays: list[Replay] = []
    with ProcessPoolExecutor(options.processes) as pool:
        waiting = [pool.submit(replay, name, seed) for name in chosen for seed in seeds]
        for done in as_completed(waiting):
            result = done.result()
            replays.append(result)
            print(
                f"[{len(replays)}/{len(waiting)}, {time.perf_counter() - started:.0f} s] "
                f"{result.policy} seed {result.seed}: at {LOADS[-1]} % "
                f"{result.fragmented[LOADS[-1]]:.2f} % fragmented, "
                f"{result.allocated[LOADS[-1]]:.2f} % allocated",
                flush=True,
            )
    replays.sort(key=lambda r: (chosen.index(r.policy), r.seed))
    lines = summary(replays)
    show(lines, replays)
    if options.json:
        document = {"summary": lines, "replays": [asdict(result) for result in replays]}
        options.json.write_text(json.dumps(document, indent=1))
    if options.plot:
        draw(replays, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
