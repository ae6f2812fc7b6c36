"""What the parity tests share: running a flow on a given cluster, and notes that tasks leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State

from deepflow import DeepflowTaskRunner


class Run(NamedTuple):
    """A finished flow run."""

    id: UUID
    state: State[Any]

    def result(self) -> Any:
        """What the flow returned; raises what it raised."""
        return self.state.result()


def run_on(where: Any, body: Callable[..., Any], *arguments: Any, **options: Any) -> Run:
    """Run `body` as a flow on a cluster (or on a given runner) to its final state."""
    runner = where if isinstance(where, DeepflowTaskRunner) else DeepflowTaskRunner(cluster=where)
    state = flow(body, task_runner=runner, **options)(*arguments, return_state=True)
    assert state.state_details.flow_run_id is not None
    return Run(state.state_details.flow_run_id, state)


def note(path: str | Path, name: object) -> None:
    """Append `name` and the time in one write, which the system keeps whole between processes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{time.time()!r} {os.getpid()} {name}\n".encode())
    finally:
        os.close(descriptor)


class Note(NamedTuple):
    """One line of `note`."""

    at_s: float
    pid: int
    name: str


def notes(path: str | Path) -> list[Note]:
    """All notes so far, in the order of writing."""
    if not Path(path).exists():
        return []
    parts = (line.split(" ", 2) for line in Path(path).read_text().splitlines())
    return [Note(float(at_s), int(pid), name) for at_s, pid, name in parts]


def names(path: str | Path) -> list[str]:
    """The names noted so far."""
    return [entry.name for entry in notes(path)]


def noted_at(path: str | Path) -> dict[str, float]:
    """When each name was noted last, in seconds since the epoch."""
    return {entry.name: entry.at_s for entry in notes(path)}


def await_note(path: str | Path, name: str, deadline_s: float = 20.0) -> None:
    """Wait until `name` is noted; fail at the deadline."""
    end_s = time.monotonic() + deadline_s
    while name not in names(path):
        assert time.monotonic() < end_s, f"{name!r} not noted within {deadline_s} s"
        time.sleep(0.02)
