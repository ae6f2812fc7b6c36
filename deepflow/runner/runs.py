"""The record of a task run: made before it begins, and taken from state to state.

That is done on the worker, or on the driver for a run that no worker will ever speak for (cancelled
in the queue, lost with its workers).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect._internal.result_records import ResultRecord
from prefect.client.schemas import TaskRun
from prefect.client.schemas.objects import State, StateDetails, TaskRunPolicy
from prefect.states import Pending
from prefect.utilities.engine import link_state_to_task_run_result

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


def advance(task_run: TaskRun, state: State[Any]) -> State[Any]:
    """Put `task_run` in `state` and keep its denormalized fields; returns the state before."""
    last = task_run.state
    assert last is not None
    if state.timestamp <= last.timestamp:
        # The server keeps the newest; two states of a run must not share a timestamp.
        state.timestamp = last.timestamp + timedelta(microseconds=1)
    state.state_details.task_run_id = task_run.id
    state.state_details.flow_run_id = task_run.flow_run_id
    task_run.state = state
    task_run.state_id = state.id
    task_run.state_type = state.type
    task_run.state_name = state.name
    if last.is_running():
        task_run.total_run_time += state.timestamp - last.timestamp
    if state.is_running():
        task_run.run_count += 1
    if state.is_final():
        if task_run.start_time and not task_run.end_time:
            # Prefect annotates one moment as `datetime` in a state and as `DateTime` in a run.
            task_run.end_time = state.timestamp  # type: ignore[assignment]
        value = state.data.result if isinstance(state.data, ResultRecord) else state.data
        link_state_to_task_run_result(state, value)
    return last
