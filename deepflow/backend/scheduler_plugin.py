"""On the scheduler: every death of a worker is told to the driver, which decides about retries.

Dask itself tries a task on `distributed.scheduler.allowed-failures` more workers before it says
anything, counts also the tasks that only waited on the worker that died, and has one number for
the whole cluster. With this plugin a task of ours that was on a worker that died errs at once, so
that the driver counts, for each run, and lets innocent ones go again (`runner.losses`).

It uses `TaskState.suspicious` and `Scheduler.allowed_failures` (distributed 2026.8,
`Scheduler.remove_worker`) and overrides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from deepflow.backend.placement.annotation import OURS

if TYPE_CHECKING:
    from distributed import Scheduler


class ReportDeaths(SchedulerPlugin):
    """Makes the first death of a worker an error of the tasks that were on it."""

    name = "deepflow-report-deaths"
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Scheduler | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Keep the scheduler, whose table of tasks the hooks look into."""
        self._scheduler = scheduler

    def update_graph(
        self, scheduler: Scheduler, *, annotations: Mapping[str, Mapping[Any, Any]], **_: Any
    ) -> None:
        """New tasks: those of ours stand one death before failing."""
        for key in annotations.get(OURS, ()):
            task = scheduler.tasks.get(key)
            if task is not None:
                task.suspicious = scheduler.allowed_failures

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """A finished task has its result: should that be lost, Dask computes it as it always does.

        The driver has taken note of the run's end by then and would not send it again.
        """
        if finish == "memory" and self._scheduler is not None:
            task = self._scheduler.tasks.get(key)
            if task is not None and task.annotations and OURS in task.annotations:
                task.suspicious = 0
