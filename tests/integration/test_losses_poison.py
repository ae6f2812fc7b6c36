"""A task that kills whatever runs it ends in a state that says so, and takes nothing along."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.states import State

from deepflow import DeepflowTaskRunner, hints
from deepflow.errors import InfrastructureError
from tests.integration.api import Api
from tests.integration.notes import note, times_noted


def assert_says_why(message: str | None) -> None:
    assert message is not None
    assert "worker" in message
    assert "died" in message
    assert "tcp://" in message


def test_a_task_that_kills_its_workers_crashes_with_the_cause_in_words(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    tries = str(tmp_path / "tries")

    @task
    def poison() -> int:
        note(tries, "poison")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    @task
    def after(value: int) -> int:
        return value

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, State[Any], State[Any], BaseException | None]:
        from prefect.runtime import flow_run

        bad = poison.submit()
        next_one = after.submit(bad)
        bad.wait()
        next_one.wait()
        try:
            bad.result()
        except Exception as exc:  # noqa: BLE001 - the test looks at what it is
            return flow_run.id, bad.state, next_one.state, exc
        return flow_run.id, bad.state, next_one.state, None

    flow_run_id, bad, next_one, error = run()
    assert bad.is_crashed()
    assert_says_why(bad.message)
    assert isinstance(error, InfrastructureError)
    assert_says_why(str(error))
    assert next_one.name == "NotReady"
    assert times_noted(tries) == {"poison": 4}, "the first try and three retries"
    runs = {run["name"]: run for run in api.task_runs(flow_run_id)}
    assert {name: run["state_name"] for name, run in runs.items()} == {
        "poison-0": "Crashed",
        "after-0": "NotReady",
    }
    assert_says_why(runs["poison-0"]["state"]["message"])


def test_the_tasks_own_retries_apply_when_the_infrastructure_gave_up(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    tries = str(tmp_path / "tries")

    @task(retries=2, retry_delay_seconds=0.1)
    def poison_at_first() -> str:
        note(tries, "poison")
        if sum(times_noted(tries).values()) <= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, str]:
        from prefect.runtime import flow_run

        return flow_run.id, poison_at_first.submit().result()

    flow_run_id, answer = run()
    assert answer == "survived"
    assert times_noted(tries) == {"poison": 6}
    (record,) = api.task_runs(flow_run_id)
    assert record["state_type"] == "COMPLETED"
    assert "AwaitingRetry" in [state["name"] for state in api.states(record["id"])]


@pytest.mark.parametrize("batched", [True, False])
def test_in_a_map_only_the_poisonous_item_crashes(
    breakable: LocalCluster, api: Api, tmp_path: Path, batched: bool
) -> None:
    @task
    def maybe(number: int) -> int:
        if number == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, list[State[Any]]]:
        from prefect.runtime import flow_run

        with hints(batch=None if batched else False):
            futures = maybe.map(range(40))
        futures.wait()
        return flow_run.id, [future.state for future in futures]

    flow_run_id, states = run()
    assert [i for i, state in enumerate(states) if not state.is_completed()] == [25]
    assert states[25].is_crashed()
    assert_says_why(states[25].message)
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 40
    assert {run["name"] for run in runs if run["state_type"] != "COMPLETED"} == {"maybe-25"}
    assert next(r for r in runs if r["name"] == "maybe-25")["state_type"] == "CRASHED"


def test_infra_retries_of_zero_means_none(
    breakable: LocalCluster, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_INFRA_RETRIES", "0")
    tries = str(tmp_path / "tries")

    @task
    def maybe(number: int) -> int:
        note(tries, number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> list[State[Any]]:
        with hints(batch=False):
            futures = maybe.map(range(8))
        futures.wait()
        return [future.state for future in futures]

    states = run()
    assert times_noted(tries)["3"] == 1
    assert [i for i, state in enumerate(states) if not state.is_completed()] == [3]
    assert_says_why(states[3].message)
