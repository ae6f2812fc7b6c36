"""What fragmentation gradient descent is compared with: rival policies, and prices of shares.

FGD's measure looks one task ahead, so that it does not see which shares will fill a GPU together.
`SharePrices` does: it prices each share by the cheapest way to cut whole GPUs into the shares that
the workload asks for (the dual of the cutting-stock problem, Gilmore and Gomory 1961), and charges
a placement for what it takes from a GPU's worth beyond the price of its own share.
"""

from __future__ import annotations

import numpy as np

from deepflow.decide.place.gpus import GPU_MILLI, Floats, GpuCluster, GpuTask, GpuWorkload, Ints

__all__ = [
    "PRICE_WEIGHT",
    "SharePrices",
    "best_fit_costs",
    "dot_product_costs",
    "gpu_clustering_costs",
    "gpu_packing_costs",
    "tightest_gpus",
]

PRICE_WEIGHT = 10.0
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

    def surcharge_milli(self, idle_milli: Ints, gpu_milli: int) -> Floats:
        """`waste_milli` with its weight, as `FragmentationDescent` adds it to the growth."""
        return PRICE_WEIGHT * self.waste_milli(idle_milli, gpu_milli)

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
