"""What a placement policy is, and the candidates it is shown.

A policy says three things: in which order jobs go, in which order the ready tasks of a job go, and
how good each candidate worker is for a task. All have defaults, so that a policy of a user's own
is a few lines::

    class Quietest(Policy):
        name = "quietest"

        def score(self, task, candidates, rng):
            return [worker.n_busy / worker.threads for worker in candidates.workers]

Everything else (filters, late binding, data locations, records) is the binder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from deepflow.decide.place.candidates import Candidates

if TYPE_CHECKING:
    from numpy.random import Generator

    from deepflow.decide.place.task import Job, Task

__all__ = ["Candidates", "Policy"]


class Policy:
    """The base of all policies: jobs in order of arrival, tasks in Dask's order, any worker."""

    name: ClassVar[str] = "first-free"
    version: ClassVar[str] = "1"
    looks_at: ClassVar[Literal["free", "shortlist"]] = "free"
    """`free`: every worker that can begin at once. `shortlist`: of each group of like workers the
    first to be free, busy or not, and the holders of the task's data. A task whose best candidate
    is busy is held for it."""

    near_first: float = 0.0
    """A worker that is free goes on with a task of the job whose inputs it holds, rather than one
    that goes before it, where the rank of that task is at least this share of the highest. 0:
    never."""

    def job_order(self, job: Job, now_s: float) -> float:
        """Lower goes first. Asked for each job with ready tasks, in every pass."""
        return job.arrived_s

    def task_order(self, task: Task) -> tuple[object, ...]:
        """Lower goes first, within a job and a priority. Asked once, when the task is ready."""
        return (task.dask_order,)

    def score(self, task: Task, candidates: Candidates, rng: Generator) -> Sequence[float]:
        """A number for each candidate; the lowest wins, the first of equals."""
        return [0.0] * len(candidates)
