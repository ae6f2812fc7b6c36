"""What the parity tests share: running a flow on a given cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from deepflow import DeepflowTaskRunner


class Run(NamedTuple):
    """A finished flow run."""

    id: UUID
    state: State[Any]

    def result(self) -> Any:
        """What the flow returned; raises what it raised."""
        return self.state.result()


def run_on(where: Any, body: Callable[..., Any], *arguments: Any, **options: Any) -> Run:
    """Run `body` as a flow on a cluster (or on a given runner) to its final state."""
    runner = where if isinstance(where, DeepflowTaskRunner) else DeepflowTaskRunner(cluster=where)
    state = flow(body, task_runner=runner, **options)(*arguments, return_state=True)
    assert state.state_details.flow_run_id is not None
    return Run(state.state_details.flow_run_id, state)
