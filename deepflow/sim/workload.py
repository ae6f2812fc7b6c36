"""What is to be run: tasks, jobs of tasks, and workloads of jobs that arrive over time.

Frozen values; times in seconds, sizes in bytes. Where they come from: `wfcommons` reads real
workflows, `generators` makes synthetic ones, the journal of a real run can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SimJob", "SimTask", "Workload"]


@dataclass(frozen=True, slots=True)
class SimTask:
    """One task of a job."""

    key: str
    """Unique within its job."""
    task: str
    """The category: what the history of run times is kept by."""
    run_s: float
    """Seconds on a worker of speed 1, without noise."""
    output_bytes: int = 0
    depends_on: tuple[str, ...] = ()
    """Keys, within the job, of the tasks whose outputs it reads whole."""
    input_bytes: int = 0
    """Bytes it reads that are no task's output; they take no time here, but tell of its size."""
    kind: str = ""
    """The kind of work, by which a worker class has its speed; empty: as `task`."""
    needs: tuple[tuple[str, float], ...] = ()
    """Dask resources it takes on its worker, sorted by name."""
    soft_gpu: float = 0.0
    """GPUs it can use; where it gets none it runs at the speed of its kind without `+gpu`."""
    memory_bytes: int = 0
    """Memory it takes while it runs, beside its inputs and output."""
    priority: int = 0
    """Higher first, as Dask's `priority=`."""


@dataclass(frozen=True, slots=True)
class SimJob:
    """One run of a flow."""

    run: str
    flow: str
    tasks: tuple[SimTask, ...]
    arrives_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs that share a cluster."""

    name: str
    jobs: tuple[SimJob, ...]

    @property
    def n_tasks(self) -> int:
        """Tasks of all jobs."""
        return sum(len(job.tasks) for job in self.jobs)
