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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from deepflow.decide.place.gpus import (
    GPU_MILLI,
    Floats,
    GpuCluster,
    GpuNode,
    GpuTask,
    GpuWorkload,
    Ints,
)

__all__ = [
    "FragmentationDescent",
    "FragmentationMeasure",
    "fragmentation",
    "fragmentation_increase",
]


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


class FragmentationDescent:
    """What placing a task on each node adds to the expected fragmentation.

    Remembers the answer per type of task, and asks again only for nodes that have changed since: a
    decision costs a pass over the nodes plus O(changed nodes × GPUs).

    Unless `exact`, growth counts as the authors' scheduler counts it: as a whole score from 0 to
    100, 50 for no growth, so that growths within about 0.04 GPU are equal. That is no mere detail:
    if the same nodes then win all ties, less is fragmented than by exact descent.

    `surcharge_milli` takes the idle share of each GPU in question and the share of a task, and
    gives what is added to the growth, all in thousandths. Without it this is FGD as published.
    """

    def __init__(
        self,
        cluster: GpuCluster,
        workload: GpuWorkload,
        *,
        exact: bool = False,
        surcharge_milli: Callable[[Ints, int], Floats] | None = None,
    ) -> None:
        self._cluster = cluster
        self._exact = exact
        self._surcharge_milli = surcharge_milli
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
        if self._surcharge_milli is not None and task.is_shared:
            growth += self._surcharge_milli(cluster.gpu_milli[of_row, gpu], task.gpu_milli)
        growth = np.round(growth, 6)
        cost = growth
        if not self._exact:
            cost = 100 - np.floor(100 / (1 + np.exp(growth / GPU_MILLI)))
        # By row, then by what it costs, then by GPU: the first of each row is its best. As
        # published, equal scores tie between a node's GPUs too; with a surcharge growth decides.
        order = np.lexsort((gpu, cost if self._surcharge_milli is None else growth, option))
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
