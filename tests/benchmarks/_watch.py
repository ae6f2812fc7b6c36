"""What ran where and when, as Dask's scheduler saw it: the same picture for any task runner.

A scheduler plugin notes what workers report with each finished task, as events of
`deepflow.decide.events`. One event per Dask task: deepflow may send several runs in one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from deepflow.decide.events import Event, Failed, Finished, Started, Submitted, WorkerJoined


def task_name(key: object) -> str:
    """The task that a Dask key belongs to: what stands before its first dash.

    So for the keys of deepflow and of prefect-dask alike, for tasks without a dash in their name.
    """
    return str(key).partition("-")[0]


class Watch(SchedulerPlugin):
    """Notes events until they are taken; times are Unix seconds of the workers."""

    name = "watch"

    def __init__(self, flow: str) -> None:
        self.flow = flow
        self._events: list[Event] = []
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Keep the scheduler, whose tables the hooks look into."""
        self._scheduler = scheduler

    def take(self, run: str) -> list[Event]:
        """The workers that there are, and all that was noted since the last time, by time.

        Call it when nothing runs. `run` becomes that of the events.
        """
        noted, self._events = self._events, []
        first_s = min((event.at_s for event in noted), default=time.time())
        joined: list[Event] = [
            WorkerJoined(
                first_s, str(ws.name), str(ws.name).rpartition("-")[0], ws.nthreads,
                ws.memory_limit or 0,
            )
            for ws in self._scheduler.workers.values()
        ]  # fmt: skip
        of_run = [
            Submitted(e.at_s, e.key, e.task, e.flow, run, e.depends_on)
            if isinstance(e, Submitted)
            else e
            for e in noted
        ]
        return joined + sorted(of_run, key=lambda event: event.at_s)

    def transition(
        self,
        key: Any,
        start: str,
        finish: str,
        *_: Any,
        worker: str = "",
        startstops: Iterable[Any] = (),
        nbytes: int | None = None,
        **__: Any,
    ) -> None:
        """Note a task that is new, finished or failed."""
        now_s = time.time()
        if start == "released" and finish == "waiting":
            depends_on = tuple(str(ts.key) for ts in self._scheduler.tasks[key].dependencies)
            self._events.append(
                Submitted(now_s, str(key), task_name(key), self.flow, "", depends_on)
            )
        elif start == "processing" and finish == "memory":
            for part in startstops:
                if part["action"] == "compute":
                    name, began_s, ended_s = self._name(worker), part["start"], part["stop"]
                    self._events.append(Started(began_s, str(key), name))
                    self._events.append(
                        Finished(ended_s, str(key), name, began_s, ended_s, nbytes or 0)
                    )
        elif start == "processing" and finish == "erred":
            self._events.append(Failed(now_s, str(key), self._name(worker), "erred"))

    def _name(self, worker: str) -> str:
        state = self._scheduler.workers.get(worker)
        return str(state.name) if state is not None else worker


def makespan_s(events: Iterable[Event]) -> float:
    """Seconds from the first start to the last end."""
    done = [event for event in events if isinstance(event, Finished)]
    return max(e.stopped_s for e in done) - min(e.started_s for e in done)
