"""Nodes with GPUs that tasks may share, and the tasks that are to be expected on them.

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
    "Bools",
    "Floats",
    "GpuCluster",
    "GpuNode",
    "GpuTask",
    "GpuWorkload",
    "Ints",
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
