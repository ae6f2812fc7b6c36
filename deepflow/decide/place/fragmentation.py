"""How much idle GPU is of no use to the tasks that are to be expected, and placing by its growth.

Fragmentation Gradient Descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023). An idle
share of a GPU is a fragment for a type of task that cannot be started on it:

- a type that needs GPUs, on a node where it fits: the GPUs whose idle share is below its own;
- a type that does not fit on the node, for want of CPU, of GPUs, of both, or of the right model
  (the paper's quadrants 1, 2 and 4): all that is idle on the node;
- a type that needs no GPU: all that is idle on the node, whether or not it fits.

A node's fragmentation is the mean of that over the types, weighted by popularity. A task goes where
it makes this grow least. As in the authors' simulator, memory decides whether a task fits when it
is placed, but is no part of the measure.

The measure looks one task ahead, so that it does not see which shares will fill a GPU together.
`SharePrices` does: it prices each share by the cheapest way to cut whole GPUs into the shares that
the workload asks for (the dual of the cutting-stock problem, Gilmore and Gomory 1961), and charges
a placement for what it takes from a GPU's worth beyond the price of its own share.

CPU and GPU are counted in thousandths (`_milli`), so that sums are exact; a Dask resource of
``GPU: 0.5`` is `gpu_milli=500`. A task of several GPUs takes whole ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepflow.errors import ConfigurationError

__all__ = [
    "GPU_MILLI",
    "GpuCluster",
    "GpuNode",
    "GpuTask",
    "GpuWorkload",
    "FragmentationDescent",
    "FragmentationMeasure",
    "SharePrices",
    "best_fit_costs",
    "dot_product_costs",
    "fragmentation",
    "fragmentation_increase",
    "gpu_clustering_costs",
    "gpu_packing_costs",
    "tightest_gpus",
]

GPU_MILLI = 1000
"""A whole GPU."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GpuTask:
    """What a task, or a type of task, needs of one node."""

    cpu_milli: int = 0
    num_gpu: int = 0
    gpu_milli: int = 0
    """Of each of its GPUs: 1 to 1000 for one GPU, 1000 for several, 0 for none."""
    gpu_models: frozenset[str] = frozenset()
    """Any of these; empty: any model at all."""
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if min(self.cpu_milli, self.num_gpu, self.gpu_milli, self.memory_bytes) < 0:
            raise ConfigurationError(f"{self} asks for less than nothing; no need may be negative")
        if (self.num_gpu == 0) != (self.gpu_milli == 0):
            raise ConfigurationError(
                f"num_gpu={self.num_gpu} with gpu_milli={self.gpu_milli}: "
                "give both, or neither for a task without GPU"
            )
        if self.gpu_milli > GPU_MILLI or (self.num_gpu > 1 and self.gpu_milli < GPU_MILLI):
            raise ConfigurationError(
                f"num_gpu={self.num_gpu} with gpu_milli={self.gpu_milli}: one GPU may be shared "
                f"(1 to {GPU_MILLI}), several are whole (gpu_milli={GPU_MILLI})"
            )

    @property
    def is_shared(self) -> bool:
        """Whether it takes a part of one GPU."""
        return 0 < self.gpu_milli < GPU_MILLI


@dataclass(frozen=True, slots=True)
class GpuNode:
    """What is free on a node (or a Dask worker), GPU by GPU."""

    cpu_milli: int
    gpu_free_milli: tuple[int, ...] = ()
    gpu_model: str = ""
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if any(not 0 <= free <= GPU_MILLI for free in self.gpu_free_milli):
            raise ConfigurationError(
                f"gpu_free_milli={self.gpu_free_milli}: each GPU has 0 to {GPU_MILLI} free"
            )


@dataclass(frozen=True, slots=True)
class GpuWorkload:
    """The types of task that are to be expected, and how popular each is (sums to 1)."""

    types: tuple[GpuTask, ...]
    popularity: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.types) != len(self.popularity) or not self.types:
            raise ConfigurationError(
                f"{len(self.types)} types with {len(self.popularity)} popularities: "
                "give one popularity for each type, and at least one type"
            )
        if min(self.popularity) < 0 or abs(sum(self.popularity) - 1) > 1e-6:
            raise ConfigurationError(
                f"popularities sum to {sum(self.popularity):g}; they must be shares that sum to 1"
            )

    @classmethod
    def observed(cls, tasks: Iterable[GpuTask], *, coverage: float = 1.0) -> GpuWorkload:
        """The most frequent types of `tasks` that together make up at least `coverage` of them.

        Memory does not tell types apart. Among equally frequent types the larger come first.
        """
        counts = Counter(replace(task, memory_bytes=0) for task in tasks)
        if not counts:
            raise ConfigurationError("a workload of no tasks has no types; give at least one task")
        ranked = sorted(
            counts.items(),
            key=lambda item: (
                item[1],
                item[0].cpu_milli,
                item[0].gpu_milli,
                item[0].num_gpu,
                sorted(item[0].gpu_models),
            ),
            reverse=True,
        )
        wanted = coverage * counts.total()
        kept, covered = 0, 0
        while kept < len(ranked) and covered < wanted:
            covered += ranked[kept][1]
            kept += 1
        return cls(
            tuple(task for task, _ in ranked[:kept]),
            tuple(count / covered for _, count in ranked[:kept]),
        )


class GpuCluster:
    """The free resources of all nodes, as arrays in the order given.

    `cpu_milli`, `memory_bytes`: `(n,)`. `gpu_milli`: `(n, most GPUs on a node)`, 0 where a node has
    fewer. `model`: index into `models`. `hosted[n, k]`: tasks of k whole GPUs placed on node n, and
    of a shared one for k = 0. `changed_at[n]`: the number of the last placement or release there.
    """

    def __init__(self, nodes: Sequence[GpuNode]) -> None:
        if not nodes:
            raise ConfigurationError("a cluster of no nodes places nothing; give at least one node")
        most = max(1, max(len(node.gpu_free_milli) for node in nodes))
        self.cpu_milli: Ints = np.array([node.cpu_milli for node in nodes], dtype=np.int64)
        self.memory_bytes: Ints = np.array([node.memory_bytes for node in nodes], dtype=np.int64)
        self.gpu_milli: Ints = np.array(
            [node.gpu_free_milli + (0,) * (most - len(node.gpu_free_milli)) for node in nodes],
            dtype=np.int64,
        )
        self.num_gpus: Ints = np.array([len(node.gpu_free_milli) for node in nodes], dtype=np.int64)
        self.models = tuple(sorted({node.gpu_model for node in nodes}))
        self.model: Ints = np.array([self.models.index(n.gpu_model) for n in nodes], dtype=np.int64)
        self.hosted: Ints = np.zeros((len(nodes), most + 1), dtype=np.int64)
        self.changed_at: Ints = np.zeros(len(nodes), dtype=np.int64)
        self.changes = 0
        self.largest_cpu_milli = int(self.cpu_milli.max())
        self.largest_gpu_milli = most * GPU_MILLI

    def has_model(self, task: GpuTask) -> Bools:
        """Per model of the cluster: whether the task may use it."""
        return np.array([not task.gpu_models or m in task.gpu_models for m in self.models])

    def fits(self, task: GpuTask) -> Bools:
        """Per node: whether the task fits in what is free. `(n,)`."""
        fits = (self.cpu_milli >= task.cpu_milli) & (self.memory_bytes >= task.memory_bytes)
        if task.num_gpu:
            fits &= (self.gpu_milli >= task.gpu_milli).sum(axis=1) >= task.num_gpu
            if task.gpu_models:
                fits &= self.has_model(task)[self.model]
        return fits

    def place(self, task: GpuTask, node: int, gpu: int = -1) -> tuple[int, ...]:
        """Take the task's needs from a node; which GPUs it got.

        A shared GPU is the one named by `gpu`; whole ones are the first free ones. Raises
        `ConfigurationError`, and takes nothing, where the task does not fit.
        """
        free = self.gpu_milli[node]
        gpus: tuple[int, ...]
        if task.is_shared:
            gpus = (gpu,) if 0 <= gpu < self.num_gpus[node] and free[gpu] >= task.gpu_milli else ()
        else:
            whole = np.flatnonzero(free >= GPU_MILLI) if task.num_gpu else ()
            gpus = tuple(int(index) for index in whole[: task.num_gpu])
        if len(gpus) < task.num_gpu or not self.fits(task)[node]:
            raise ConfigurationError(
                f"{task} does not fit on node {node} (gpu {gpu}): free are "
                f"cpu_milli={self.cpu_milli[node]}, memory_bytes={self.memory_bytes[node]}, "
                f"gpu_milli={free.tolist()}; place it where `fits` is true"
            )
        self._take(task, node, gpus, 1)
        return gpus

    def release(self, task: GpuTask, node: int, gpus: tuple[int, ...]) -> None:
        """Give back what `place` took."""
        self._take(task, node, gpus, -1)

    def _take(self, task: GpuTask, node: int, gpus: tuple[int, ...], sign: int) -> None:
        self.cpu_milli[node] -= sign * task.cpu_milli
        self.memory_bytes[node] -= sign * task.memory_bytes
        for gpu in gpus:
            self.gpu_milli[node, gpu] -= sign * task.gpu_milli
        if task.num_gpu:
            self.hosted[node, 0 if task.is_shared else task.num_gpu] += sign
        self.changes += 1
        self.changed_at[node] = self.changes


class FragmentationMeasure:
    """The expected fragmentation of nodes in any state, for one workload and set of GPU models.

    Types that differ only in CPU are one demand for GPUs; per model, a table over the CPU need
    holds how popular a demand's types are that still find enough CPU. A node in a given state then
    costs a look-up and O(demands + shares × GPUs).
    """

    def __init__(self, workload: GpuWorkload, models: Sequence[str]) -> None:
        demand_of = {
            (task.gpu_milli, task.num_gpu, task.gpu_models): 0
            for task in workload.types
            if task.num_gpu
        }
        demands = sorted(demand_of, key=lambda d: (d[0], d[1], sorted(d[2])))
        self._shares: Ints = np.array(sorted({d[0] for d in demands}), dtype=np.int64)
        self._share_of: Ints = np.searchsorted(self._shares, [d[0] for d in demands])
        self._num: Ints = np.array([d[1] for d in demands], dtype=np.int64)
        self._cpu_needs: Ints = np.unique(
            np.array([task.cpu_milli for task in workload.types], dtype=np.int64)
        )
        self._popularity: Floats = np.zeros((len(models), len(self._cpu_needs) + 1, len(demands)))
        for task, share in zip(workload.types, workload.popularity, strict=True):
            if task.num_gpu == 0:
                continue
            demand = demands.index((task.gpu_milli, task.num_gpu, task.gpu_models))
            least = int(np.searchsorted(self._cpu_needs, task.cpu_milli)) + 1
            for index, model in enumerate(models):
                if not task.gpu_models or model in task.gpu_models:
                    self._popularity[index, least:, demand] += share

    def milli(self, model: Ints, cpu_milli: Ints, gpu_milli: Ints) -> Floats:
        """Fragments per row, in thousandths of a GPU: `(n,)` from `(n,)`, `(n,)`, `(n, g)`."""
        fits = gpu_milli[:, None, :] >= self._shares[:, None]
        amount = np.where(fits, gpu_milli[:, None, :], 0).sum(axis=2)[:, self._share_of]
        enough = fits.sum(axis=2)[:, self._share_of] >= self._num
        level = np.searchsorted(self._cpu_needs, cpu_milli, side="right")
        usable = (self._popularity[model, level] * np.where(enough, amount, 0)).sum(axis=1)
        # Rounded so that the same fragmentation, reached through other sums, is the same number.
        fragments: Floats = np.round(gpu_milli.sum(axis=1) - usable, 6)
        return fragments


DEFAULT_PRICE_WEIGHT = 10.0
"""So high that waste decides, and growth among equals."""
_UNIT_MILLI = 10
"""Shares are priced in steps of a hundredth of a GPU, needs rounded up and idle shares down."""


class SharePrices:
    """What shares of a GPU are worth to a workload, in whole GPUs.

    The price of a share that the workload asks for is how much GPU one more of it costs where all
    are packed as well as can be; an idle share is worth what the best set of shares that fits in it
    costs. Both are exact for a packing with fractional numbers of GPUs and without regard to CPU.
    O(iterations × shares × 100), once a workload: some ten milliseconds for 20 different shares.
    """

    def __init__(self, workload: GpuWorkload) -> None:
        asked: dict[int, float] = {}
        for task, share in zip(workload.types, workload.popularity, strict=True):
            if task.is_shared and share > 0:
                size = -(-task.gpu_milli // _UNIT_MILLI)
                asked[size] = asked.get(size, 0.0) + share
        self._sizes = sorted(asked, reverse=True)
        self._prices = self._solve([asked[size] for size in self._sizes])
        worth, _ = self._knapsack(self._prices)
        worth[-1] = max(worth[-1], 1.0)  # a whole GPU is worth one to a task that takes it whole
        self._worth = worth

    def price(self, gpu_milli: int) -> float:
        """GPUs that one more share of this size costs; 0 for one that is not asked for."""
        size = -(-gpu_milli // _UNIT_MILLI)
        return float(self._prices[self._sizes.index(size)]) if size in self._sizes else 0.0

    def waste_milli(self, idle_milli: Ints, gpu_milli: int) -> Floats:
        """Thousandths of a GPU made worthless by taking `gpu_milli` out of each idle share.

        0 where the share is cut as in the best packing. A share that the workload does not ask for
        has no price, so that it is charged all that it takes.
        """
        before = self._worth[idle_milli // _UNIT_MILLI]
        after = self._worth[(idle_milli - gpu_milli) // _UNIT_MILLI]
        waste: Floats = np.round(GPU_MILLI * (before - after - self.price(gpu_milli)), 6)
        return waste

    def _solve(self, wanted: list[float]) -> Floats:
        """Duals of the least number of GPUs that gives at least `wanted` of each share.

        Column generation: the basis holds ways to cut a GPU, and surpluses of a share at no cost.
        """
        whole = GPU_MILLI // _UNIT_MILLI
        n = len(wanted)
        basis = np.diag([float(whole // size) for size in self._sizes])
        costs = np.ones(n)
        amounts = np.array(wanted) / np.diag(basis) if n else np.zeros(0)
        prices: Floats = np.zeros(n)
        for _ in range(100 * n):
            prices = np.linalg.solve(basis.T, costs).astype(np.float64)
            worth, column = self._knapsack(prices)
            if prices.min() < -1e-9:  # one share has a surplus that is worth leaving
                cost, column = 0.0, -np.eye(n)[prices.argmin()]
            elif worth[-1] > 1 + 1e-9:
                cost = 1.0
            else:
                break
            change = np.linalg.solve(basis, column)
            steps = np.full(n, np.inf)
            np.divide(amounts, change, out=steps, where=change > 1e-9)
            leaving = int(steps.argmin())
            step = steps[leaving]
            amounts = np.maximum(amounts - step * change, 0.0)
            amounts[leaving], costs[leaving] = step, cost
            basis[:, leaving] = column
        return np.maximum(prices, 0.0)

    def _knapsack(self, prices: Floats) -> tuple[Floats, Floats]:
        """The worth of each idle share, `(101,)`, and the best way to cut a whole GPU."""
        whole = GPU_MILLI // _UNIT_MILLI
        worth = [0.0] * (whole + 1)
        cut = [-1] * (whole + 1)
        for idle in range(1, whole + 1):
            worth[idle] = worth[idle - 1]
            for index, size in enumerate(self._sizes):
                if size <= idle and worth[idle - size] + prices[index] > worth[idle] + 1e-12:
                    worth[idle], cut[idle] = worth[idle - size] + prices[index], index
        pattern = np.zeros(len(self._sizes))
        idle = whole
        while idle > 0:
            if cut[idle] < 0:
                idle -= 1
            else:
                pattern[cut[idle]] += 1
                idle -= self._sizes[cut[idle]]
        return np.array(worth), pattern


class FragmentationDescent:
    """What placing a task on each node adds to the expected fragmentation.

    Remembers the answer per type of task, and asks again only for nodes that have changed since: a
    decision costs a pass over the nodes plus O(changed nodes × GPUs).

    Unless `exact`, growth counts as the authors' scheduler counts it: as a whole score from 0 to
    100, 50 for no growth, so that growths within about 0.04 GPU are equal. That is no mere detail:
    if the same nodes then win all ties, less is fragmented than by exact descent.

    With `prices`, `price_weight` times the waste by them is added to the growth; without: FGD as
    published.
    """

    def __init__(
        self,
        cluster: GpuCluster,
        workload: GpuWorkload,
        *,
        exact: bool = False,
        prices: SharePrices | None = None,
        price_weight: float = DEFAULT_PRICE_WEIGHT,
    ) -> None:
        self._cluster = cluster
        self._exact = exact
        self._price_weight = price_weight
        self._prices = prices
        self._measure = FragmentationMeasure(workload, cluster.models)
        self._known: dict[GpuTask, tuple[int, Floats, Ints]] = {}
        self._now = self._measure.milli(cluster.model, cluster.cpu_milli, cluster.gpu_milli)
        self._now_at = cluster.changes

    def milli(self) -> Floats:
        """Each node's expected fragmentation, in thousandths of a GPU. `(n,)`."""
        cluster = self._cluster
        if self._now_at < cluster.changes:
            rows = np.flatnonzero(cluster.changed_at > self._now_at)
            self._now[rows] = self._measure.milli(
                cluster.model[rows], cluster.cpu_milli[rows], cluster.gpu_milli[rows]
            )
            self._now_at = cluster.changes
        return self._now

    def costs(self, task: GpuTask) -> tuple[Floats, Ints]:
        """The cost per node, and the GPU for it; the node of least cost is the steepest descent.

        Both `(n,)`. If `exact`, the growth in thousandths of a GPU (negative: it shrinks);
        otherwise 100 less the whole score. `inf` where the task does not fit; the GPU is -1 unless
        the task shares one, and the first of those that are equally good.
        """
        cluster = self._cluster
        kind = replace(task, memory_bytes=0)
        if kind not in self._known:
            n = len(cluster.cpu_milli)
            self._known[kind] = (-1, np.full(n, np.inf), np.full(n, -1, dtype=np.int64))
        seen_at, cost, gpu = self._known[kind]
        changed = np.flatnonzero(cluster.changed_at > seen_at)
        if changed.size:
            cost[changed] = np.inf
            rows = changed[cluster.fits(kind)[changed]]
            if rows.size:
                cost[rows], gpu[rows] = self._evaluate(kind, rows)
            self._known[kind] = (cluster.changes, cost, gpu)
        return np.where(cluster.memory_bytes >= task.memory_bytes, cost, np.inf), gpu.copy()

    def _evaluate(self, task: GpuTask, rows: Ints) -> tuple[Floats, Ints]:
        cluster = self._cluster
        option, gpu = _options(cluster.gpu_milli[rows], task)
        of_row = rows[option]
        after = cluster.gpu_milli[of_row].copy()
        if task.is_shared:
            after[np.arange(len(option)), gpu] -= task.gpu_milli
        elif task.num_gpu:
            whole = after >= GPU_MILLI
            after[whole & (whole.cumsum(axis=1) <= task.num_gpu)] = 0
        growth = (
            self._measure.milli(
                cluster.model[of_row], cluster.cpu_milli[of_row] - task.cpu_milli, after
            )
            - self.milli()[of_row]
        )
        if self._prices is not None and task.is_shared:
            idle = cluster.gpu_milli[of_row, gpu]
            growth += self._price_weight * self._prices.waste_milli(idle, task.gpu_milli)
        growth = np.round(growth, 6)
        cost = growth
        if not self._exact:
            cost = 100 - np.floor(100 / (1 + np.exp(growth / GPU_MILLI)))
        # By row, then by what it costs, then by GPU: the first of each row is its best. As
        # published, equal scores tie between a node's GPUs too; with prices the growth decides.
        order = np.lexsort((gpu, cost if self._prices is None else growth, option))
        best = order[np.r_[True, np.diff(option[order]) > 0]]
        return cost[best], gpu[best]


def _options(gpu_milli: Ints, task: GpuTask) -> tuple[Ints, Ints]:
    """Pairs of a row and a GPU (-1: not one shared GPU) where the task can go.

    GPUs of a row with the same idle share are the same choice; the first stands for all.
    """
    if not task.is_shared:
        return np.arange(len(gpu_milli)), np.full(len(gpu_milli), -1, dtype=np.int64)
    able = gpu_milli >= task.gpu_milli
    for index in range(1, gpu_milli.shape[1]):
        able[:, index] &= (gpu_milli[:, :index] != gpu_milli[:, index : index + 1]).all(axis=1)
    rows, gpus = np.nonzero(able)
    return rows, gpus


def fragmentation(nodes: Sequence[GpuNode], workload: GpuWorkload) -> Floats:
    """The expected fragmentation of each node, in GPUs. Float64 `(n,)`."""
    cluster = GpuCluster(nodes)
    measure = FragmentationMeasure(workload, cluster.models)
    return measure.milli(cluster.model, cluster.cpu_milli, cluster.gpu_milli) / GPU_MILLI


def fragmentation_increase(node: GpuNode, task: GpuTask, workload: GpuWorkload) -> float:
    """By how many GPUs the node's expected fragmentation grows if the task is placed on it.

    On the best of its GPUs where the task shares one. Negative where it shrinks, `inf` where the
    task does not fit.
    """
    growth, _ = FragmentationDescent(GpuCluster([node]), workload, exact=True).costs(task)
    return float(growth[0]) / GPU_MILLI


def tightest_gpus(cluster: GpuCluster, task: GpuTask) -> Ints:
    """Per node the GPU with the least idle share that still holds a shared task. `(n,)`.

    The first of equals; meaningless where the task does not fit, or shares no GPU.
    """
    able = cluster.gpu_milli >= task.gpu_milli
    tightest: Ints = np.where(able, cluster.gpu_milli, 2 * GPU_MILLI).argmin(axis=1)
    return tightest


def best_fit_costs(cluster: GpuCluster, task: GpuTask) -> Floats:
    """What stays free: the mean of CPU and GPU as shares of the largest node, 0 to 1. `(n,)`.

    Best fit of the FGD paper's comparison. `inf` where the task does not fit.
    """
    cpu = (cluster.cpu_milli - task.cpu_milli) / cluster.largest_cpu_milli
    gpu = cluster.gpu_milli.sum(axis=1) - task.num_gpu * task.gpu_milli
    return np.where(cluster.fits(task), (cpu + gpu / cluster.largest_gpu_milli) / 2, np.inf)


def dot_product_costs(cluster: GpuCluster, task: GpuTask) -> Floats:
    """The product of what is free and what is asked, CPU and GPU, as in the paper's comparison.

    Shares of the largest node, their sum halved, 0 to 1; the least aligned node is taken. `inf`
    where the task does not fit.
    """
    cpu = cluster.cpu_milli * task.cpu_milli / cluster.largest_cpu_milli**2
    asked = task.num_gpu * task.gpu_milli
    gpu = cluster.gpu_milli.sum(axis=1) * asked / cluster.largest_gpu_milli**2
    return np.where(cluster.fits(task), (cpu + gpu) / 2, np.inf)


def gpu_packing_costs(cluster: GpuCluster, task: GpuTask) -> Floats:
    """GPUs already in use first, then free ones of nodes in use, then untouched nodes.

    Within these, the least idle share on the GPUs taken, the fewest free GPUs taken, and the fewest
    GPUs on the node. `inf` where the task does not fit; 0 everywhere for a task without GPU. After
    MLaaS in the wild (NSDI'22), as in the FGD paper's comparison.
    """
    fits = cluster.fits(task)
    if task.num_gpu == 0:
        return np.where(fits, 0.0, np.inf)
    free = (cluster.gpu_milli == GPU_MILLI).sum(axis=1)
    on_shared = np.where(
        (cluster.gpu_milli >= task.gpu_milli) & (cluster.gpu_milli < GPU_MILLI),
        cluster.gpu_milli,
        2 * GPU_MILLI,
    ).min(axis=1)
    cost = np.where(
        on_shared < GPU_MILLI,
        on_shared * 100 // GPU_MILLI // 10,  # tenths, so that near equals are ties
        50 + task.num_gpu,
    )
    untouched = free == cluster.num_gpus
    return np.where(fits, np.where(untouched, 67 + free, cost), np.inf).astype(np.float64)


def gpu_clustering_costs(cluster: GpuCluster, task: GpuTask) -> Floats:
    """Nodes that host tasks of the same number of GPUs first, and only those; then fuller nodes.

    After Gandiva (OSDI'18), as in the FGD paper's comparison: nodes with only the same kind, nodes
    that also have others, empty nodes, nodes with only others. `inf` where the task does not fit; 0
    everywhere for a task without GPU.
    """
    fits = cluster.fits(task)
    if task.num_gpu == 0:
        return np.where(fits, 0.0, np.inf)
    kinds = (cluster.hosted > 0).sum(axis=1)
    has_same = cluster.hosted[:, 0 if task.is_shared else task.num_gpu] > 0
    group = np.select([has_same & (kinds == 1), has_same, kinds == 0], [0, 1, 2], default=3)
    idle = cluster.gpu_milli.sum(axis=1) / cluster.largest_gpu_milli
    return np.where(fits, 2 * group + idle, np.inf)
