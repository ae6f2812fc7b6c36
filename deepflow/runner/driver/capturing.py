"""The current Prefect context, captured to be shipped once.

Prefect's `serialize_context` dumps every setting for every task, and `hydrated_context` validates
them again on the worker: 13-70 ms and 23 ms a task. Here the context is captured once per flow run
(and once per parent task that submits from a worker) and put on the scheduler under a name; each
worker process fetches it once (`worker/scope.py`).
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import cloudpickle
from prefect.context import FlowRunContext, SettingsContext, TaskRunContext
from prefect.context import _deployment_id as deployment_id_var
from prefect.context import _deployment_parameters as deployment_parameters_var

from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.captured import CapturedContext
from deepflow.runner.driver.transactions import open_transaction

__all__ = ["capture", "persist_as_deepflow", "to_blob"]

_log = logging.getLogger(__name__)


def capture(api_url: str, results_topic: str, events_topic: str) -> CapturedContext:
    """The current Prefect context. Takes milliseconds; do it once per flow run."""
    settings = SettingsContext.get()
    assert settings is not None, "Prefect enters a settings context when it is imported"
    flow_run, parent = FlowRunContext.get(), TaskRunContext.get()
    deployment_id = deployment_id_var.get()
    return CapturedContext(
        settings=settings.settings,
        profile=settings.profile,
        api_url=api_url,
        flow_run=flow_run.serialize() if flow_run else None,
        parent_task_run=_of_parent(parent),
        deployment_id=str(deployment_id) if deployment_id else None,
        deployment_parameters=deployment_parameters_var.get(),
        results_topic=results_topic,
        events_topic=events_topic,
        in_transaction=open_transaction() is not None,
    )


def persist_as_deepflow(captured: CapturedContext) -> None:
    """Persist with the serializer `deepflow` where neither task nor flow names one."""
    run = captured.flow_run
    if run is not None and run["flow"].result_serializer is None:
        for context in filter(None, (run, captured.parent_task_run)):
            context.setdefault("result_store", {})["serializer"] = {"type": "deepflow"}


def to_blob(captured: CapturedContext) -> tuple[str, bytes]:
    """`(digest, cloudpickle)` of a context that is to be shipped once.

    Parameters of the flow that cannot be pickled are left out, which is counted and said: no task
    is given them, it could only look at them through `prefect.runtime`.
    """
    try:
        blob = cloudpickle.dumps(captured, protocol=5)
    except Exception:
        names = _leave_out_odd_parameters(captured)
        if not names:
            raise
        fell_back(
            Fallback.FLOW_PARAMETERS_LEFT_OUT,
            _log,
            "The flow's parameters %s cannot be pickled, so tasks do not see them in "
            "`prefect.runtime`; what they need of them is to be passed to them",
            ", ".join(names),
            cause=names,
        )
        blob = cloudpickle.dumps(captured, protocol=5)
    return hashlib.blake2b(blob, digest_size=16).hexdigest(), blob


def _leave_out_odd_parameters(captured: CapturedContext) -> tuple[str, ...]:
    """Take those of the flow's parameters away that cannot be pickled; their names."""
    odd = []
    parameters = {} if captured.flow_run is None else captured.flow_run["parameters"]
    for name, value in list(parameters.items()):
        try:
            cloudpickle.dumps(value, protocol=5)
        except Exception:  # noqa: BLE001 - pickling runs the user's code
            odd.append(name)
            del parameters[name]
    return tuple(odd)


def _of_parent(parent: TaskRunContext | None) -> dict[str, Any] | None:
    """The context of the run that submits, without its arguments: those are its own alone."""
    return None if parent is None else {**parent.serialize(), "parameters": {}}
