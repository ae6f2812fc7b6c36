"""Results that must not be computed twice.

A durable task's value is written to result storage before its completion is reported, together
with the record of the task run. When Dask runs the task again, because a worker died and took
the value with it, the value is read back and the run keeps the state it had.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect.client.schemas import TaskRun
from prefect.results import ResultStore, get_result_store

from deepflow.observe.text import to_json

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.tasks import Task


class Restored(NamedTuple):
    """A finished run as it was written: its value, its record and when it had finished."""

    value: Any
    task_run: TaskRun
    finished_at: datetime


def result_store_of(task: Task[Any, Any]) -> ResultStore:
    """The current result store with what `task` says about its results."""
    # `_sync` belongs to Prefect's dispatch decorator, whose annotation does not have it.
    store = get_result_store().update_for_task(task, _sync=True)  # type: ignore[call-arg]
    assert isinstance(store, ResultStore)
    return store


class DurableRecord:
    """Where one task run's durable result lies in the task's result storage.

    Must be used inside the run's contexts, which choose storage and serializer.
    """

    def __init__(self, task: Task[Any, Any], flow_run_id: UUID | None, run_id: UUID) -> None:
        self.key = f"deepflow-{flow_run_id or 'no-flow-run'}-{run_id}"
        # Prefect would keep up to 1,000 of these values in the worker's memory, unseen by Dask.
        self._store = result_store_of(task).model_copy(update={"cache_result_in_memory": False})

    def read(self) -> Restored | None:
        """What was written, or None where this run has not finished before."""
        if not self._store.exists(self.key):
            return None
        body = self._store.read(self.key).result
        return Restored(
            body["value"],
            TaskRun.model_validate_json(body["task_run"]),
            datetime.fromisoformat(body["finished_at"]),
        )

    def write(self, value: Any, task_run: TaskRun) -> None:
        """Write the value; returns when storage has it.

        Raises:
            prefect.exceptions.SerializationError: the task's serializer cannot hold the value.
        """
        body = {
            "value": value,
            "task_run": to_json(
                task_run.model_dump(mode="json", exclude={"state"}), "stored record"
            ).decode(),
            "finished_at": datetime.now(UTC).isoformat(),
        }
        self._store.write(body, key=self.key)
