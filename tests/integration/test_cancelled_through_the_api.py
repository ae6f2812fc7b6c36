"""Cancelling the flow run of a plain script through Prefect's API stops its tasks."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling

from deepflow import DeepflowTaskRunner
from deepflow.runner.driver import watching
from tests.integration.api import Api
from tests.integration.notes import await_note, names, note
from tests.integration.parity import run_on

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.2)


@task
def endless(path: str) -> None:
    note(path, "begins")
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        time.sleep(0.01)
    note(path, "ran to its end")


def cancel_once_begun(path: str) -> threading.Thread:
    """Cancel the flow run that `path` names once a task of it has begun."""

    def cancel() -> None:
        await_note(path, "begins", PATIENCE_S)
        flow_run_id = next(n for n in names(path) if n.startswith("flow-"))[5:]
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, Cancelling())  # type: ignore[arg-type]

    # In this context: its settings say where the server is.
    thread = threading.Thread(target=copy_context().run, args=(cancel,), daemon=True)
    thread.start()
    return thread


def note_flow_run(path: str) -> None:
    from prefect.runtime import flow_run

    note(path, f"flow-{flow_run.id}")


def test_its_tasks_are_stopped_and_it_ends_cancelled(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    def body() -> Any:
        note_flow_run(path)
        futures = [endless.submit(path) for _ in range(5)]
        return [future.result() for future in futures]

    thread = cancel_once_begun(path)
    run = run_on(cluster, body)
    thread.join(PATIENCE_S)
    assert run.state.name == "Cancelled"
    with pytest.raises(CancelledRun):
        run.state.result()
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run.id).state.name == "Cancelled"  # type: ignore[union-attr]
    assert {r["state_type"] for r in api.task_runs(run.id)} == {"CANCELLED"}
    assert "ran to its end" not in names(path)


def test_a_flow_that_goes_on_after_it_was_cancelled_may_submit_nothing_more(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    def body() -> Any:
        note_flow_run(path)
        endless.submit(path).wait()
        endless.submit(path)

    thread = cancel_once_begun(path)
    run = run_on(cluster, body)
    thread.join(PATIENCE_S)
    assert run.state.name == "Cancelled"
    assert names(path).count("begins") == 1


def test_a_subflow_is_stopped_with_the_flow_that_called_it(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    runner = DeepflowTaskRunner(cluster=cluster)

    @flow(task_runner=runner)
    def inner() -> None:
        endless.submit(path).result()

    def outer() -> None:
        note_flow_run(path)
        inner()

    thread = cancel_once_begun(path)
    state: Any = flow(outer)(return_state=True)
    thread.join(PATIENCE_S)
    assert not state.is_completed()
    assert "ran to its end" not in names(path)
