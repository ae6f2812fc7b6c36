"""What is left of a driver that was killed: who cleans up, and what they do.

On a cluster that outlives the driver, the scheduler notices that its connection has broken. After a
while, for a connection may come back, it has the driver's last will carried out
(`backend.scheduler_plugin`): every worker stops the driver's runs, and one of them, which knows the
way to the server from the driver's context, says there what became of them; then they all forget
what they kept for the driver. A cluster inside the
driver dies with it. So a driver also leaves a note in the state directory of its machine; the next
driver there that speaks to the same server finds the notes of processes that are no more.

In the server, runs that had not ended become `Crashed`, with words that say so. Not covered: a
driver on another machine with a cluster of its own, until a driver starts there; and what a run did
after the last event of it that the server had.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from deepflow.observe import metrics

if TYPE_CHECKING:
    import logging

    from distributed import Worker

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


# -- a driver's last will, carried out on workers --------------------------------------------------


async def stop_runs(topic: str, dask_worker: Worker) -> None:
    """Stop what this worker does for the driver of `topic`, which is no more."""
    from deepflow.runner.agent import agent_of
    from deepflow.runner.session import close_nested

    agent_of(dask_worker).cancel_driver(topic)
    await asyncio.get_running_loop().run_in_executor(None, close_nested, topic)


async def forget_driver(topic: str, dask_worker: Worker) -> None:
    """Keep nothing more for the driver of `topic`; what its runs still say goes nowhere."""
    from deepflow.runner.agent import agent_of

    agent_of(dask_worker).depart(topic)


async def record_on_worker(topic: str, flow_run_id: UUID, dask_worker: Worker) -> bool:
    """Say in the server what became of the runs; False where this worker does not know the way."""
    from prefect.context import SettingsContext

    from deepflow.runner.agent import agent_of

    scope = agent_of(dask_worker).context_of(topic)
    if scope is None:
        return False

    def record() -> None:
        SettingsContext.__var__.set(scope.settings)  # in a context of this call's own
        record_end(flow_run_id)

    await asyncio.get_running_loop().run_in_executor(None, copy_context().run, record)
    return True


# -- notes in the state directory ------------------------------------------------------------------


class Note:
    """A driver's note that it runs a flow run; taken away when it ends in order."""

    def __init__(self, folder: Path, flow_run_id: UUID, server: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{flow_run_id}-{os.getpid()}.json"
        note = {
            "flow_run": str(flow_run_id),
            "server": server,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_s": psutil.Process().create_time(),
        }
        unfinished = self._path.with_suffix(".new")
        unfinished.write_text(json.dumps(note))
        unfinished.replace(self._path)

    def take_away(self) -> None:
        """The driver has ended in order."""
        self._path.unlink(missing_ok=True)


def is_abandoned(note: dict[str, Any], server: str) -> bool:
    """Whether the process that left this note on this machine, for this server, is no more."""
    if note.get("host") != socket.gethostname() or note.get("server") != server:
        return False
    try:
        started_s = float(psutil.Process(int(note["pid"])).create_time())
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return abs(started_s - float(note["started_s"])) > 1.0


def clean_up(
    folder: Path, server: str, logger: logging.Logger | logging.LoggerAdapter[Any]
) -> threading.Thread | None:
    """Record the end of flow runs whose drivers are no more, in a thread; None: there are none."""
    found: list[tuple[Path, UUID]] = []
    for path in folder.glob("*.json"):
        try:
            note = json.loads(path.read_text())
            if is_abandoned(note, server):
                found.append((path, UUID(note["flow_run"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else takes it away just now, or it is none of ours
    if not found:
        return None

    def record() -> None:
        for path, flow_run_id in found:
            claimed = path.with_suffix(".taken")
            try:
                path.replace(claimed)
            except FileNotFoundError:
                continue  # another driver cleans up after it
            try:
                n_ended = record_end(flow_run_id)
            except Exception as exc:  # noqa: BLE001 - the next driver tries again
                from prefect.exceptions import ObjectNotFound

                if isinstance(exc, ObjectNotFound):
                    claimed.unlink(missing_ok=True)  # the server has forgotten it
                    continue
                metrics.inc("deepflow_fallbacks_total", kind="left_behind_not_recorded")
                claimed.replace(path)
                continue
            claimed.unlink(missing_ok=True)
            if n_ended:
                logger.info(
                    "Flow run %s was left behind by a process that was killed: %d of its runs are "
                    "Crashed now",
                    flow_run_id,
                    n_ended,
                )

    # In the context of the flow run: its settings say where the server is.
    thread = threading.Thread(
        target=copy_context().run, args=(record,), name="deepflow-left-behind", daemon=True
    )
    thread.start()
    return thread
