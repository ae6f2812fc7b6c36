"""What a driver's last will has workers do, once the scheduler has lost the driver.

`driver/left_behind.py` says when the scheduler carries the will out, and for what.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING
from uuid import UUID

from deepflow.runner.nested import close_nested
from deepflow.runner.open_runs import record_end
from deepflow.runner.worker.agent import agent_of

if TYPE_CHECKING:
    from distributed import Worker


async def stop_runs(topic: str, dask_worker: Worker) -> None:
    """Stop what this worker does for the driver of `topic`, which is no more."""
    agent_of(dask_worker).cancel_driver(topic)
    await asyncio.get_running_loop().run_in_executor(None, close_nested, topic)


async def forget_driver(topic: str, dask_worker: Worker) -> None:
    """Keep nothing more for the driver of `topic`; what its runs still say goes nowhere."""
    agent_of(dask_worker).depart(topic)


async def record_on_worker(topic: str, flow_run_id: UUID, dask_worker: Worker) -> bool:
    """Say in the server what became of the runs; False where this worker does not know the way."""
    from prefect.context import SettingsContext

    scope = agent_of(dask_worker).context_of(topic)
    if scope is None:
        return False

    def record() -> None:
        SettingsContext.__var__.set(scope.settings)  # in a context of this call's own
        record_end(flow_run_id)

    await asyncio.get_running_loop().run_in_executor(None, copy_context().run, record)
    return True
