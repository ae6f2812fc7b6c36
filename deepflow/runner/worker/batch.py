"""The one function that Dask tasks of deepflow call.

It is alone in its module so that a scheduler, which unpickles graphs, imports next to nothing.
"""

from __future__ import annotations

from typing import Any


def run_batch(batch: bytes, *dependencies: Any) -> Any:
    """Execute a pickled `wire.Batch` on this worker; returns `wire.Outcomes`."""
    from deepflow.runner.worker.execute import execute_batch

    return execute_batch(batch, dependencies)
