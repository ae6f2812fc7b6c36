"""Runs of a flow that nobody will end any more: the server is told that they have crashed."""

from __future__ import annotations

from uuid import UUID

__all__ = ["LOST_MESSAGE", "record_end"]

LOST_MESSAGE = (
    "The process that ran the flow run has ended without a word; what this run did after that was "
    "not recorded."
)
_PAGE = 200


def record_end(flow_run_id: UUID) -> int:
    """Set the flow run and its task runs that had not ended to Crashed; returns how many those are.

    The current Prefect settings say where the server is.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    open_types = [StateType.PENDING, StateType.RUNNING, StateType.SCHEDULED, StateType.CANCELLING]
    n_ended = 0
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
                task_run_filter=TaskRunFilter(
                    state=TaskRunFilterState(type=TaskRunFilterStateType(any_=open_types))
                ),
                limit=_PAGE,
            )
            for run in runs:
                client.set_task_run_state(run.id, Crashed(message=LOST_MESSAGE), force=True)
            n_ended += len(runs)
            if len(runs) < _PAGE:
                break
        flow_run = client.read_flow_run(flow_run_id)
        if flow_run.state is not None and flow_run.state.type in open_types:
            client.set_flow_run_state(flow_run_id, Crashed(message=LOST_MESSAGE), force=True)
            n_ended += 1
    return n_ended
