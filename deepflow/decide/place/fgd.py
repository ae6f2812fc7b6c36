"""Fragmentation gradient descent as a placement policy: for clusters whose GPUs are shared.

Source: Weng et al., "Beware of Fragmentation", ATC'23; the measure is `fragmentation`. The workload
that pieces of GPUs are kept for is what has been placed so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from deepflow.decide.place.fragmentation import fragmentation_increase
from deepflow.decide.place.gpus import GpuNode, GpuTask, GpuWorkload
from deepflow.decide.place.policy import Candidates, Policy
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from numpy.random import Generator

    from deepflow.decide.place.fleet import Worker
    from deepflow.decide.place.task import Task

__all__ = ["FragmentationGradientDescent"]

_MILLI: Final = 1000
_REMEMBERED: Final = 512
_WORKLOAD_EVERY: Final = 32


class FragmentationGradientDescent(Policy):
    """The free worker on which the task leaves the fewest GPUs in pieces that nobody can use.

    Dask counts a worker's GPUs as one amount: what is free of it is taken to be whole GPUs and one
    rest. Ties go to the worker that joined first, which the quality of the method depends on.
    """

    name = "fgd"

    def __init__(self) -> None:
        self._seen: deque[GpuTask] = deque(maxlen=_REMEMBERED)
        self._n_seen = 0
        self._workload: GpuWorkload | None = None

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """By how many GPUs each worker's expected fragmentation would grow."""
        wanted = _gpu_task(dict(task.needs).get(GPU_RESOURCE, 0.0))
        self._seen.append(wanted)
        if self._workload is None or self._n_seen % _WORKLOAD_EVERY == 0:
            self._workload = GpuWorkload.observed(self._seen)
        self._n_seen += 1
        known: dict[GpuNode, float] = {}
        scores = []
        for worker in candidates.workers:
            node = _node(worker)
            if node not in known:
                known[node] = fragmentation_increase(node, wanted, self._workload)
            scores.append(known[node])
        order = sorted(range(len(scores)), key=lambda i: candidates.workers[i].number)
        best = min(order, key=scores.__getitem__)
        return [-1e9 if i == best else score for i, score in enumerate(scores)]


def _gpu_task(gpus: float) -> GpuTask:
    """One thread, and this much of a GPU; of more than one, whole GPUs."""
    if gpus <= 0:
        return GpuTask(_MILLI)
    if gpus < 1:
        return GpuTask(_MILLI, 1, max(1, round(gpus * _MILLI)))
    return GpuTask(_MILLI, -int(-gpus // 1), _MILLI)


def _node(worker: Worker) -> GpuNode:
    total = round(worker.resources.get(GPU_RESOURCE, 0.0) * _MILLI)
    free = max(0, total - round(worker.used.get(GPU_RESOURCE, 0.0) * _MILLI))
    whole, rest = divmod(free, _MILLI)
    gpus = [_MILLI] * whole + ([rest] if rest else [])
    gpus += [0] * (-(-total // _MILLI) - len(gpus))
    return GpuNode((worker.threads - worker.n_busy) * _MILLI, tuple(gpus))
