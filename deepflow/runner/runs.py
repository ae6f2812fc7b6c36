"""The record of a task run that has not begun: built on the worker, or on the driver for a run
that no worker will ever speak for (cancelled in the queue, lost with its workers)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State, StateDetails, TaskRunPolicy
from prefect.states import Pending

from deepflow.observe.text import clean

if TYPE_CHECKING:
    from prefect.tasks import Task
    from prefect.types import DateTime


def new_task_run(
    task: Task[Any, Any],
    *,
    run_id: UUID,
    name: str,
    dynamic_key: str,
    flow_run_id: UUID | None,
    tags: tuple[str, ...],
    inputs: dict[str, Any],
) -> TaskRun:
    """A task run in state Pending, as Prefect's engine would create it."""
    state: State[Any] = Pending(
        state_details=StateDetails(task_run_id=run_id, flow_run_id=flow_run_id)
    )
    # Prefect annotates the same moment as `datetime` in a state and as `DateTime` in a run.
    now = cast("DateTime", state.timestamp)
    return TaskRun(
        id=run_id,
        name=name,
        flow_run_id=flow_run_id,
        task_key=task.task_key,
        dynamic_key=dynamic_key,
        task_version=task.version,
        empirical_policy=TaskRunPolicy(
            retries=task.retries,
            retry_delay=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
        ),
        # Prefect's engine asks the server for slots under these names.
        tags=list({clean(tag, "tag") for tag in (*task.tags, *tags)}),
        task_inputs=inputs,
        expected_start_time=now,
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
        state=state,
        created=now,
        updated=now,
    )
