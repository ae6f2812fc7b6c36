"""The scheduler gone: the flow run ends in bounded time, and says why.

Dask's scheduler keeps its state in memory only, so a run cannot go on without it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.states import State

from deepflow import DeepflowTaskRunner, hints
from tests.integration.api import Api
from tests.integration.losses import external_cluster, meanwhile
from tests.integration.notes import note, times_noted, until

RECONNECT_S = 5
"""Seconds for which the client looks for its scheduler; Dask's default is 30."""


def test_a_killed_scheduler_ends_the_flow_with_crashed_runs_that_say_why(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_SHUTDOWN_S", "3")
    done = str(tmp_path / "done")

    @task
    def step(number: int) -> int:
        import time

        time.sleep(0.3)
        note(done, number)
        return number

    @task
    def after(values: list[int]) -> int:
        return sum(values)

    with external_cluster(tmp_path) as outside:

        @flow(
            task_runner=DeepflowTaskRunner(
                address=outside.address, client_kwargs={"timeout": RECONNECT_S}
            )
        )
        def run() -> tuple[str, list[State[Any]], State[Any]]:
            from prefect.runtime import flow_run

            with hints(batch=False):
                futures = step.map(range(60))
            last = after.submit(list(futures))  # of all: some may be done by then
            futures.wait()
            last.wait()
            return flow_run.id, [future.state for future in futures], last.state

        killed_at_s: list[float] = []

        def break_it() -> None:
            until(lambda: len(times_noted(done)) >= 4, 60)
            os.kill(outside.scheduler.pid, signal.SIGKILL)
            killed_at_s.append(time.monotonic())

        with meanwhile(break_it):
            flow_run_id, states, last = run()
        took_s = time.monotonic() - killed_at_s[0]
    assert took_s < RECONNECT_S + 40
    crashed = [state for state in states if state.is_crashed()]
    assert crashed
    assert all(state.is_completed() or state.is_crashed() for state in states)
    assert all("scheduler" in (state.message or "") for state in crashed)
    assert last.name == "NotReady" or last.is_crashed()
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 61
    assert {run["state_name"] for run in runs} <= {"Completed", "Crashed", "NotReady"}
