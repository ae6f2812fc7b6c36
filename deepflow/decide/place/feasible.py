"""Which workers can take a task, and why none can."""

from __future__ import annotations

from dataclasses import dataclass

from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.task import Task
from deepflow.hints import GPU_RESOURCE

__all__ = ["Unplaceable", "has_gpu_for", "has_memory", "unplaceable"]


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """No worker of the cluster can ever take the task; one reason for each."""

    reasons: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.reasons:
            return "there is no worker"
        by_reason: dict[str, list[str]] = {}
        for worker, reason in self.reasons:
            by_reason.setdefault(reason, []).append(worker)
        return "; ".join(
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {r}"
            for r, names in by_reason.items()
        )


def unplaceable(fleet: Fleet, task: Task) -> Unplaceable | None:
    """None if some worker could take the task once it is free; else a reason for each."""
    reasons = []
    for worker in fleet:
        reason = _why_never(worker, task)
        if reason is None:
            return None
        reasons.append((worker.name, reason))
    return Unplaceable(tuple(reasons))


def has_gpu_for(worker: Worker, task: Task) -> bool:
    """Whether the part of a GPU that the task can use is free there."""
    return (
        task.soft_gpu > 0 and worker.has_gpu and worker.has_free(((GPU_RESOURCE, task.soft_gpu),))
    )


def has_memory(worker: Worker, task: Task) -> bool:
    """Whether what the task says it needs fits beside what the worker holds.

    On a worker with nothing to do it fits if it ever can: waiting would free no memory there.
    """
    if not task.memory_bytes or not worker.memory_limit_bytes:
        return True
    if not worker.assigned:
        return task.memory_bytes <= worker.memory_limit_bytes
    return worker.memory_used_bytes + task.memory_bytes <= worker.memory_limit_bytes


def _why_never(worker: Worker, task: Task) -> str | None:
    if task.only is not None and worker.id not in task.only:
        return "is none of the workers that the task is confined to"
    for name, amount in task.needs:
        offered = worker.resources.get(name, 0.0)
        if offered < amount:
            return f"offers {offered:g} of {name}, the task needs {amount:g}"
    if task.memory_bytes and 0 < worker.memory_limit_bytes < task.memory_bytes:
        return (
            f"may use {worker.memory_limit_bytes} bytes of memory, "
            f"the task needs {task.memory_bytes}"
        )
    return None
