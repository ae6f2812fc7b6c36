"""A driver that is killed leaves nothing on the scheduler, and no run that seems to go on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import Client, LocalCluster
from prefect.client.orchestration import get_client

from deepflow.backend import scheduler_plugin
from deepflow.runner import open_runs
from deepflow.runner.driver import left_behind
from tests.integration.api import Api
from tests.integration.notes import names, until

PATIENCE_S = 60.0

DRIVER = """
import sys, time
from prefect import flow, task
from deepflow import DeepflowTaskRunner
from tests.integration.notes import note

path, address = sys.argv[1:]

@task
def endless():
    from tests.integration.notes import note
    import time
    note(path, "begins")
    try:
        end_s = time.monotonic() + 120
        while time.monotonic() < end_s:
            time.sleep(0.01)
    finally:
        note(path, "stopped")

@flow(task_runner=DeepflowTaskRunner(address=address))
def run():
    from prefect.runtime import flow_run
    note(path, "flow-" + str(flow_run.id))
    [future.wait() for future in [endless.submit() for _ in range(3)]]

if __name__ == "__main__":
    run()
"""


def kill_a_driver(
    cluster: LocalCluster, path: Path, state_dir: Path, is_recorded: Callable[[UUID], bool]
) -> UUID:
    """Run a driver up to its first task as the server knows it, and kill it; its flow run."""
    script = path.with_suffix(".py")
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script), str(path), cluster.scheduler_address],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "DEEPFLOW_STATE_DIR": str(state_dir),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as driver:
        try:
            until(lambda: "begins" in names(path) or driver.poll() is not None, PATIENCE_S)
            assert driver.poll() is None, driver.communicate()[0].decode()
            flow_run_id = UUID(next(n for n in names(path) if n.startswith("flow-"))[5:])
            until(lambda: is_recorded(flow_run_id), PATIENCE_S)
        finally:
            driver.kill()
    return flow_run_id


def kept_for_drivers(dask_worker: Any) -> tuple[int, int]:
    """How many contexts and drivers a worker keeps something for."""
    from deepflow.runner.worker.agent import agent_of

    agent = agent_of(dask_worker)
    return len(agent._contexts), len(agent._drivers)


def test_the_scheduler_ends_the_runs_of_a_driver_that_was_killed(
    cluster: LocalCluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_plugin, "AWAY_S", 0.5)
    path = tmp_path / "notes"
    variables = cluster.scheduler.extensions["variables"].variables

    def is_recorded(flow_run_id: UUID) -> bool:
        return any(r["state_type"] == "RUNNING" for r in api.task_runs(flow_run_id))

    before = set(variables)
    flow_run_id = kill_a_driver(cluster, path, tmp_path / "state", is_recorded)
    runs = api.until(
        lambda: api.task_runs(flow_run_id),
        lambda found: {r["state_type"] for r in found} == {"CRASHED"},
    )
    assert open_runs.LOST_MESSAGE in {r["state"]["message"] for r in runs}
    with get_client(sync_client=True) as client:
        until(lambda: client.read_flow_run(flow_run_id).state.name == "Crashed", PATIENCE_S)
    assert set(variables) <= before
    begun = names(path).count("begins")
    until(lambda: names(path).count("stopped") == begun, PATIENCE_S)
    with Client(cluster, set_as_default=False) as watching:
        until(lambda: set(watching.run(kept_for_drivers).values()) == {(0, 0)}, PATIENCE_S)


def test_the_next_driver_ends_the_runs_of_one_that_was_killed_with_its_cluster(
    server: object, tmp_path: Path
) -> None:
    """The note alone, as where the cluster has died with its driver."""
    from prefect import flow
    from prefect.states import Running

    flow_run_ids: list[UUID] = []
    with get_client(sync_client=True) as client:

        @flow
        def left() -> None:
            pass

        made = client.create_flow_run(left, state=Running())
        flow_run_ids.append(made.id)
        folder = tmp_path / "running"
        note = left_behind.Note(folder, made.id, "the server")
        logger = logging.getLogger("deepflow.tests")
        assert left_behind.clean_up(folder, "the server", logger) is None, "this process lives"
        (file,) = folder.glob("*.json")
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "started_s": said["started_s"] - 1000}))
        assert left_behind.clean_up(folder, "another server", logger) is None
        thread = left_behind.clean_up(folder, "the server", logger)
        assert thread is not None
        thread.join(PATIENCE_S)
        state = client.read_flow_run(made.id).state
        assert state is not None
        assert (state.name, state.message) == ("Crashed", open_runs.LOST_MESSAGE)
    assert list(folder.iterdir()) == []
    note.take_away()
