"""On the scheduler: what drivers must know of workers, and the end of drivers that are gone.

Every death of a worker is told to the driver, which decides about retries.

Dask itself tries a task on `distributed.scheduler.allowed-failures` more workers before it says
anything, counts also the tasks that only waited on the worker that died, and has one number for
the whole cluster. With this plugin a task of ours that was on a worker that died errs at once, so
that the driver counts, for each run, and lets innocent ones go again (`runner.losses`).

A session introduces itself with the prefix of what it puts on the scheduler, and with its last
will: calls for the workers. When its client has been gone for a while, its Dask variables are
deleted and the will is carried out.

It overrides nothing. `backend/contract.py` lists the private parts that it uses. Where one is not
as expected, what needs it is left out.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from deepflow.backend.contract import DEATHS, LAST_WILL, may_use
from deepflow.backend.locks import LOCK, LockTable
from deepflow.backend.placement.annotation import OURS

if TYPE_CHECKING:
    from distributed import Scheduler


LOGGER = logging.getLogger("deepflow.scheduler")
INTRODUCE = "deepflow-session"
"""The name of the message by which a session introduces itself."""
_CALL_TIMEOUT_S = 60.0
AWAY_S = 20.0
"""How long a client may be gone before its sessions count as ended."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What is known of a session."""

    prefix: str
    for_all: bytes | None
    """A pickled function and its arguments, for every worker."""
    for_one: bytes | None
    """As `for_all`, for one worker after the other until the function returns True."""
    at_last: bytes | None
    """As `for_all`, after the others."""


class ReportDeaths(SchedulerPlugin):
    """Makes the first death of a worker an error of the tasks that were on it."""

    name = "deepflow-report-deaths"
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Scheduler | None = None
        self._counts_deaths = False
        """Whether the first death of a worker is an error of the tasks that were on it."""
        self._ends_sessions = False
        """Whether the sessions of a driver that is gone are ended for it."""
        self._sessions: dict[str, list[Introduction]] = {}
        self._locks = LockTable()

    async def start(self, scheduler: Scheduler) -> None:
        """Keep the scheduler, whose table of tasks the hooks look into."""
        self._scheduler = scheduler
        self._counts_deaths, self._ends_sessions = may_use(DEATHS), may_use(LAST_WILL)
        scheduler.stream_handlers[INTRODUCE] = self._introduce
        scheduler.handlers[LOCK] = self._locks.answer

    def _introduce(
        self,
        client: str,
        prefix: str,
        for_all: bytes | None = None,
        for_one: bytes | None = None,
        at_last: bytes | None = None,
        is_over: bool = False,
        **_: Any,
    ) -> None:
        """A session says who it is, or that it has ended in order."""
        others = [s for s in self._sessions.pop(client, []) if s.prefix != prefix]
        if not is_over:
            others.append(Introduction(prefix, for_all, for_one, at_last))
        if others:
            self._sessions[client] = others

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """A worker is gone: the locks that its runs held are free."""
        self._locks.drop(worker)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone: if it stays away, end its sessions for it."""
        if self._ends_sessions and client in self._sessions:
            scheduler._ongoing_background_tasks.call_later(
                AWAY_S, self._end_sessions, scheduler, client
            )

    async def _end_sessions(self, scheduler: Scheduler, client: str) -> None:
        if client in scheduler.clients:
            return  # it has come back
        for session in self._sessions.pop(client, []):
            variables = scheduler.extensions["variables"]
            left = [name for name in variables.variables if str(name).startswith(session.prefix)]
            for name in left:
                await variables.delete(name=name, client=client)
            if session.for_all is None:
                continue
            LOGGER.warning("Client %s has not come back: its flow run is ended for it", client)
            await _call(scheduler, session.for_all, list(scheduler.workers))
            for worker in list(scheduler.workers):
                if session.for_one is None:
                    break
                said = await _call(scheduler, session.for_one, [worker])
                if said.get(worker) is True:
                    break
            if session.at_last is not None:
                await _call(scheduler, session.at_last, list(scheduler.workers))

    def update_graph(
        self, scheduler: Scheduler, *, annotations: Mapping[str, Mapping[Any, Any]], **_: Any
    ) -> None:
        """New tasks: those of ours stand one death before failing."""
        for key in annotations.get(OURS, ()) if self._counts_deaths else ():
            task = scheduler.tasks.get(key)
            if task is not None:
                task.suspicious = scheduler.allowed_failures

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """A finished task has its result: should that be lost, Dask computes it as it always does.

        The driver has taken note of the run's end by then and would not send it again.
        """
        if finish == "memory" and self._counts_deaths and self._scheduler is not None:
            task = self._scheduler.tasks.get(key)
            if task is not None and task.annotations and OURS in task.annotations:
                task.suspicious = 0


async def _call(scheduler: Scheduler, call: bytes, workers: list[str]) -> dict[str, Any]:
    """Have a function called on workers; those that fail are left out."""
    function, arguments = pickle.loads(call)
    said: dict[str, Any] = {}
    for worker in workers:
        try:
            answers = await asyncio.wait_for(
                scheduler.broadcast(
                    msg={"op": "run", "function": function, "args": arguments, "wait": True},
                    workers=[worker],
                ),
                _CALL_TIMEOUT_S,
            )
            answer = answers[worker]
            if answer["status"] != "OK":
                raise RuntimeError(answer.get("exception_text", answer["status"]))
        except Exception as exc:  # noqa: BLE001 - a worker may be going, too
            LOGGER.warning("Worker %s could not be told that a driver is gone: %r", worker, exc)
            continue
        said[worker] = answer["result"]
    return said
