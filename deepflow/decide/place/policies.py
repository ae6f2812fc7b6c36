"""The policies that come with deepflow; each is a plain object over the same table.

`stock` is not here: it leaves every decision to Dask (see `registry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from deepflow.decide.place.policy import Candidates, Policy

if TYPE_CHECKING:
    from numpy.random import Generator

    from deepflow.decide.place.task import Job, Task

__all__ = [
    "BestFit",
    "EarliestFinish",
    "JobOrder",
    "Random",
    "RollingHeft",
    "RoundRobin",
]


class RoundRobin(Policy):
    """Each task to the free worker that was given one longest ago."""

    name = "round-robin"

    def __init__(self) -> None:
        self._turn = 0
        self._last: dict[str, int] = {}

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """The turn at which each worker was last chosen."""
        turns = [float(self._last.get(worker.id, 0)) for worker in candidates.workers]
        chosen = candidates.workers[turns.index(min(turns))]
        self._turn += 1
        self._last[chosen.id] = self._turn
        return turns


class Random(Policy):
    """Each task to a free worker by lot."""

    name = "random"

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """A number by lot for each."""
        return [float(x) for x in rng.random(len(candidates))]


class BestFit(Policy):
    """Bin packing over threads, memory and resources: the worker that is left with least.

    What is left of each dimension counts in shares of what the worker has, so that big holes stay
    whole for big tasks.
    """

    name = "best-fit"

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """The mean share of the worker that would be left free, over its dimensions."""
        scores = []
        for worker in candidates.workers:
            left = [(worker.threads - worker.n_busy - 1) / worker.threads]
            if worker.memory_limit_bytes:
                used = worker.memory_used_bytes + task.memory_bytes
                left.append(1.0 - used / worker.memory_limit_bytes)
            needs = dict(task.needs)
            for name, amount in worker.resources.items():
                if ":" not in name and amount > 0:
                    free = amount - worker.used[name] - needs.get(name, 0.0)
                    left.append(free / amount)
            scores.append(sum(left) / len(left))
        return scores


class EarliestFinish(Policy):
    """Earliest finish time: the worker on which the task is expected to end first, busy or not."""

    name = "eft"
    looks_at: ClassVar[Literal["free", "shortlist"]] = "shortlist"

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """Seconds from now until it would be done there."""
        return candidates.finish_s()


_MOVING: Final = 1.0
_NEAR_FIRST: Final = 0.5


class RollingHeft(EarliestFinish):
    """HEFT with late binding: the task with the longest way to the end of its job goes first, to
    the worker where it is expected to end earliest.

    Source: Topcuoglu et al. 2002, with ranks renewed as run times are learned, and each decision
    made when a worker is free rather than ahead of time.

    Args:
        moving: The price of moving inputs. To a worker that holds none of them it is this many
            times the task's shortest run time, and a share of that to one that holds some.
        near_first: See `Policy.near_first`.

    Both were chosen by `python -m tests.benchmarks.placement`: without them more bytes move than
    under stock Dask, for no gain in time.
    """

    name = "heft"

    def __init__(self, moving: float = _MOVING, near_first: float = _NEAR_FIRST) -> None:
        self.moving = moving
        self.near_first = near_first

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """Finish time, and a price on moving inputs."""
        finish_s = candidates.finish_s()
        if not task.inputs or not self.moving:
            return finish_s
        price_s = self.moving * min(candidates.run_s)
        return [f + price_s * m for f, m in zip(finish_s, candidates.missing_share, strict=True)]

    def task_order(self, task: Task) -> tuple[object, ...]:
        """By upward rank, then as Dask would."""
        return (-task.rank_s, task.dask_order)


_AGEING: Final = 16.0
"""Chosen by `python -m tests.benchmarks.streams`, on one stream: work is in seconds of one worker,
of which a cluster does many in a second, so that a small number would never change the order."""


class JobOrder(RollingHeft):
    """Within a job as `heft`; of several jobs, the one with least work left goes first.

    A job (a flow run) gains weight as it waits: the more often it could have been done since it
    came, the less its work counts. So a large job behind a stream of small ones has its turn.
    """

    name = "srw-heft"

    def __init__(
        self,
        ageing: float = _AGEING,
        moving: float = _MOVING,
        near_first: float = _NEAR_FIRST,
    ) -> None:
        super().__init__(moving, near_first)
        self.ageing = ageing

    def job_order(self, job: Job, now_s: float) -> float:
        """Seconds of work left, discounted by age."""
        age = (now_s - job.arrived_s) / max(job.work_s, 1e-3)
        return job.remaining_s / (1.0 + self.ageing * age)
