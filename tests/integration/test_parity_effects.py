"""Caching, persistence, transactions, hooks and tags: what a task has beside its value."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import tags, task
from prefect.cache_policies import INPUTS
from prefect.transactions import IsolationLevel, transaction

from tests.integration.api import Api
from tests.integration.notes import names, note, notes
from tests.integration.parity import run_on

# -- caching and persistence -------------------------------------------------------------------


def test_a_second_run_with_the_same_inputs_is_cached(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task(cache_policy=INPUTS, persist_result=True)
    def slow(value: int, where: str) -> int:
        note(where, value)
        return value * 2

    def body() -> Any:
        return [slow.submit(value, path).result() for value in (1, 1, 2)]

    run = run_on(cluster, body)
    assert run.result() == [2, 2, 4]
    again = run_on(cluster, body)
    assert again.result() == [2, 2, 4]
    assert names(path) == ["1", "2"]
    states = {r["name"]: r["state_name"] for r in api.task_runs(run.id)}
    assert states == {"slow-0": "Completed", "slow-1": "Cached", "slow-2": "Completed"}
    assert {r["state_name"] for r in api.task_runs(again.id)} == {"Cached"}


def test_refresh_cache_runs_again(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    @task(cache_policy=INPUTS, persist_result=True)
    def slow(where: str) -> int:
        note(where, "ran")
        return 1

    def body() -> None:
        slow.submit(path).result()
        slow.with_options(refresh_cache=True).submit(path).result()

    run_on(cluster, body).result()
    assert names(path) == ["ran", "ran"]


def test_a_persisted_result_lies_under_its_storage_key_and_in_the_state(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    from prefect.filesystems import LocalFileSystem

    LocalFileSystem(basepath=str(tmp_path)).save("parity-results", overwrite=True)

    @task(
        persist_result=True,
        result_storage_key="{flow_run.id}-{parameters[name]}.json",
        result_serializer="json",
        result_storage="local-file-system/parity-results",
    )
    def stored(name: str) -> dict[str, str]:
        return {"name": name}

    run = run_on(cluster, lambda: stored.submit("first").result())
    assert run.result() == {"name": "first"}
    (file,) = [p for p in tmp_path.iterdir() if p.suffix == ".json"]
    assert file.name == f"{run.id}-first.json"
    assert json.loads(json.loads(file.read_text())["result"]) == {"name": "first"}
    (record,) = api.task_runs(run.id)
    assert record["state"]["data"]["storage_key"] == file.name


# -- transactions ------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [True, False], ids=["rollback", "commit"])
def test_a_transaction_inside_a_task_commits_or_rolls_back(
    cluster: LocalCluster, tmp_path: Path, fails: bool
) -> None:
    path = str(tmp_path / "notes")

    @task
    def write() -> str:
        return "written"

    @write.on_rollback
    def undo(_: Any) -> None:
        note(path, "rolled back")

    @write.on_commit
    def done(_: Any) -> None:
        note(path, "committed")

    @task
    def outer() -> None:
        with transaction(isolation_level=IsolationLevel.READ_COMMITTED):
            write()
            note(path, "written")
            if fails:
                raise ValueError("after the write")

    def body() -> Any:
        state = outer.submit(return_state=True)
        return state.type.value

    run = run_on(cluster, body)
    assert run.result() == ("FAILED" if fails else "COMPLETED")
    assert names(path) == ["written", "rolled back" if fails else "committed"]


def test_a_submitted_tasks_own_commit_hook_runs_on_the_worker(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task
    def write() -> None:
        note(path, "ran")

    @write.on_commit
    def done(_: Any) -> None:
        note(path, "committed")

    run_on(cluster, lambda: write.submit().result()).result()
    assert names(path) == ["ran", "committed"]
    assert len({entry.pid for entry in notes(path)}) == 1


# -- state-change hooks ------------------------------------------------------------------------


def test_state_change_hooks_run_on_the_worker_with_the_run_and_its_state(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    import os

    path = str(tmp_path / "notes")

    def hook(event: str) -> Any:
        def call(task: Any, task_run: Any, state: Any) -> None:
            note(path, f"{event} {task_run.name} {state.name}")

        return call

    @task(
        on_running=[hook("running")],
        on_completion=[hook("completion")],
        on_failure=[hook("failure")],
    )
    def step(fails: bool) -> None:
        if fails:
            raise ValueError("on purpose")

    def body() -> None:
        step.submit(False).wait()
        step.submit(True).wait()

    run_on(cluster, body)
    assert names(path) == [
        "running step-0 Running",
        "completion step-0 Completed",
        "running step-1 Running",
        "failure step-1 Failed",
    ]
    assert os.getpid() not in {entry.pid for entry in notes(path)}


# -- tags --------------------------------------------------------------------------------------


def test_tags_of_task_and_context_are_on_the_run(cluster: LocalCluster, api: Api) -> None:
    @task(tags=["own"])
    def step() -> None:
        pass

    def body() -> None:
        with tags("around"):
            step.submit().wait()
        step.submit().wait()

    run = run_on(cluster, body)
    run.result()
    found = {r["name"]: set(r["tags"]) for r in api.task_runs(run.id)}
    assert found == {"step-0": {"own", "around"}, "step-1": {"own"}}


def test_a_tag_limit_of_one_lets_one_run_at_a_time(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    tag = f"one-at-a-time-{time.time_ns()}"
    api.post("/concurrency_limits/", {"tag": tag, "concurrency_limit": 1})

    @task(tags=[tag])
    def alone(number: int) -> None:
        note(path, "enter")
        time.sleep(0.3)
        note(path, "leave")

    def body() -> None:
        for future in [alone.submit(i) for i in range(4)]:
            future.result()

    try:
        run_on(cluster, body).result()
    finally:
        api.delete(f"/concurrency_limits/tag/{tag}")
    assert names(path) == ["enter", "leave"] * 4
    assert len({entry.pid for entry in notes(path)}) == 2, "they never could have overlapped"
