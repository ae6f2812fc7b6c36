"""What people call the task runs in each Dask task, for the journal and the report.

Dask's keys count the tasks that were sent, Prefect's names count the runs of a task, and one Dask
task may carry many runs. So the driver keeps which runs it sent under which key, at the price of a
few table entries a run, and tells it as events when the flow run is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from deepflow.decide.events import TasksNamed
from deepflow.runner.driver.items import Item
from deepflow.runner.wire import EventRecord

__all__ = ["RunNames"]

_MAX_RUNS: Final = 200_000


class RunNames:
    """Dask key → task runs, and the name of each run. Methods may be called from any thread.

    Bounded: runs beyond the first 200,000 of a flow run keep their Dask key as their only name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: list[tuple[str, tuple[UUID, ...]]] = []
        self._names: dict[UUID, str] = {}

    def sent(self, key: str, items: Iterable[Item]) -> None:
        """These runs are sent as one Dask task."""
        with self._lock:
            names = self._names
            if len(names) >= _MAX_RUNS:
                return
            run_ids = []
            for item in items:
                run_ids.append(item.run_id)
                names.setdefault(item.run_id, item.name)
            self._sent.append((key, tuple(run_ids)))

    def heard(self, records: Iterable[EventRecord]) -> None:
        """Workers say how the runs are called in the end: a task may make up names of its own."""
        with self._lock:
            names = self._names
            for record in records:
                if record.name and (record.run_id in names or len(names) < _MAX_RUNS):
                    names[record.run_id] = record.name

    def events(self) -> list[TasksNamed]:
        """An event for each Dask task that was sent."""
        now_s = time.time()
        with self._lock:
            names = self._names
            return [
                TasksNamed(now_s, key, tuple((str(run_id), names[run_id]) for run_id in run_ids))
                for key, run_ids in self._sent
            ]

    def corrected(self, told: Iterable[TasksNamed]) -> list[TasksNamed]:
        """What a session inside a task has told, with the names that this driver has heard of."""
        with self._lock:
            names = self._names
            return [
                TasksNamed(
                    event.at_s,
                    event.key,
                    tuple((run_id, names.get(UUID(run_id), name)) for run_id, name in event.runs),
                )
                for event in told
            ]
