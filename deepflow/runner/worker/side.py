"""The worker's functions that a driver names, as `task_runner.py` hands them to it."""

from __future__ import annotations

from typing import Final

from deepflow.runner.worker.batch import run_batch
from deepflow.runner.worker.last_will import forget_driver, record_on_worker, stop_runs
from deepflow.runner.worker.plugin import DeepflowWorkerPlugin, cancel_runs, take_leave
from deepflow.runner.worker_side import WorkerSide

__all__ = ["WORKER_SIDE"]

WORKER_SIDE: Final = WorkerSide(
    plugin=DeepflowWorkerPlugin,
    run_batch=run_batch,
    cancel_runs=cancel_runs,
    take_leave=take_leave,
    stop_runs=stop_runs,
    forget_driver=forget_driver,
    record_on_worker=record_on_worker,
)
