"""The one function that Dask tasks of deepflow call.

It is alone in its module so that a scheduler, which unpickles graphs, imports next to nothing.
"""

from __future__ import annotations

from typing import Any


def run_job(job: bytes, *dependencies: Any) -> Any:
    """Execute a pickled `wire.Job` on this worker; returns `wire.Outcomes`."""
    from deepflow.runner.worker.execute import execute_job

    return execute_job(job, dependencies)
