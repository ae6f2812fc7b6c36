"""What the driver names of the worker's code, in one value that it is handed.

The driver has workers call these, and imports none of them: `task_runner.py` puts the two halves
together.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

__all__ = ["WorkerSide"]

_Call = Callable[..., Coroutine[Any, Any, Any]]
"""A coroutine function of a module, so that Dask can send it by its name and need not wait for it.
Dask adds the argument `dask_worker`."""


@dataclass(frozen=True, slots=True)
class WorkerSide:
    """The worker's functions that the driver names."""

    plugin: Callable[..., WorkerPlugin]
    """Makes the plugin that each worker of the cluster gets."""
    run_batch: Callable[..., Any]
    """The function of every Dask task: takes a pickled `wire.Batch` and what it depends on."""
    cancel_runs: _Call
    """Takes the driver's topic and ids of runs to stop."""
    take_leave: _Call
    """Takes the driver's process and topic, and the flow run; returns what the worker has to say
    last."""
    stop_runs: _Call
    forget_driver: _Call
    record_on_worker: _Call
    """The last three are a driver's last will; see `worker/last_will.py`."""
