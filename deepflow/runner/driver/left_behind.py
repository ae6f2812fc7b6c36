"""What is left of a driver that was killed: who cleans up, and what they do.

On a cluster that outlives the driver, the scheduler notices that its connection has broken. After a
while, for a connection may come back, it has the driver's last will carried out
(`backend.scheduler_plugin`): every worker stops the driver's runs, and one of them, which knows the
way to the server from the driver's context, says there what became of them; then they all forget
what they kept for the driver. A cluster inside the
driver dies with it. So a driver also leaves a note in the state directory of its machine; the next
driver there that speaks to the same server finds the notes of processes that are no more. What the
will has workers do is in `worker/last_will.py`.

In the server, runs that had not ended become `Crashed`, with words that say so. Not covered: a
driver on another machine with a cluster of its own, until a driver starts there; and what a run did
after the last event of it that the server had.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import threading
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.open_runs import record_end
from deepflow.runner.worker_side import WorkerSide

if TYPE_CHECKING:
    import logging


# -- a driver's last will --------------------------------------------------------------------------


def will_of(topic: str, flow_run_id: UUID | None, worker_side: WorkerSide) -> dict[str, bytes]:
    """What the scheduler is to have workers do if the driver of `topic` is lost.

    Pickled calls by when they are due; see `backend.scheduler_plugin.Introduction`.
    """
    of_driver = pickle.dumps((topic,))
    will = {
        "for_all": pickle.dumps((pickle.dumps(worker_side.stop_runs), of_driver)),
        "at_last": pickle.dumps((pickle.dumps(worker_side.forget_driver), of_driver)),
    }
    if flow_run_id is not None:
        record = pickle.dumps(worker_side.record_on_worker)
        will["for_one"] = pickle.dumps((record, pickle.dumps((topic, flow_run_id))))
    return will


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


def leave_note(
    folder: Path, flow_run_id: UUID, logger: logging.Logger | logging.LoggerAdapter[Any]
) -> Note | None:
    """Leave a driver's note in `folder`, and clean up after drivers whose notes lie there.

    None where no note can be left, which is said and counted.
    """
    server = PREFECT_API_URL.value() or f"ephemeral in {PREFECT_HOME.value()}"
    try:
        clean_up(folder, server, logger)
        return Note(folder, flow_run_id, server)
    except OSError as exc:
        fell_back(Fallback.NO_NOTE_OF_DRIVER)
        logger.warning(
            "Should this process be killed, its open runs stay Running, since no note of "
            "it can be left in %s (%s); make room there or allow writing, or name another "
            "folder with DEEPFLOW_STATE_DIR",
            folder,
            exc,
        )
        return None


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
                fell_back(Fallback.LEFT_BEHIND_NOT_RECORDED)
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
