"""Mapped tiny tasks share Dask tasks, and nobody can tell from what becomes of each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task

from deepflow import hints
from deepflow.observe import metrics
from tests.integration.api import Api
from tests.integration.notes import names, note, until
from tests.integration.parity import run_on


@task
def square(value: int) -> int:
    return value * value


def warm(step: Any) -> None:
    """Let the runner learn how long a task takes: what is not known yet is not grouped."""
    step.map(range(8)).result()


@pytest.fixture(autouse=True)
def _grouped_however_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine even these tasks take a tenth of a second, up to which they are grouped."""
    monkeypatch.setenv("DEEPFLOW_BATCH_TARGET_S", "10")


def batches() -> float:
    return metrics.value("deepflow_batches_total")


def test_each_mapped_item_has_its_own_run_state_and_future(cluster: LocalCluster, api: Api) -> None:
    before = batches()

    def body() -> Any:
        warm(square)
        futures = square.map(range(200))
        ids = [str(future.task_run_id) for future in futures]
        return ids, futures.result()

    run = run_on(cluster, body)
    ids, values = run.result()
    assert values == [i * i for i in range(200)]
    assert batches() > before, "nothing was grouped, so this shows nothing"
    records = {record["id"]: record for record in api.task_runs(run.id)}
    assert set(ids) <= set(records)
    assert len(records) == 200 + 8
    assert {r["state_type"] for r in records.values()} == {"COMPLETED"}
    assert {r["run_count"] for r in records.values()} == {1}
    assert all(r["start_time"] and r["end_time"] for r in records.values())


def test_a_failing_item_fails_alone(cluster: LocalCluster, api: Api) -> None:
    @task
    def picky(value: int) -> int:
        if value % 25 == 17:
            raise ValueError(f"no {value}")
        return value

    before = batches()

    def body() -> Any:
        warm(picky)
        futures = picky.map(range(100))
        return [future.result(raise_on_failure=False) for future in futures]

    run = run_on(cluster, body)
    values = run.result()
    assert batches() > before
    for value, got in enumerate(values):
        if value % 25 == 17:
            assert isinstance(got, ValueError)
            assert str(got) == f"no {value}"
        else:
            assert got == value
    states = [record["state_type"] for record in api.task_runs(run.id)]
    assert (states.count("FAILED"), states.count("COMPLETED")) == (4, 96 + 8)


def test_each_item_of_a_batch_has_its_own_retries(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task(retries=1, retry_delay_seconds=0.2)
    def flaky(value: int) -> int:
        from prefect.runtime import task_run

        note(path, value)
        if value % 20 == 3 and task_run.run_count == 1:
            raise ValueError("not yet")
        return value

    def body() -> Any:
        warm(flaky.with_options(retry_delay_seconds=0))
        return flaky.map(range(100, 160)).result()

    run = run_on(cluster, body)
    assert run.result() == list(range(100, 160))
    attempts = [names(path).count(str(value)) for value in range(100, 160)]
    assert attempts == [2 if value % 20 == 3 else 1 for value in range(100, 160)]
    counts = sorted(record["run_count"] for record in api.task_runs(run.id))
    assert counts == [1] * (57 + 7) + [2] * (3 + 1)


def test_each_item_of_a_batch_has_its_own_cache_key(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    prefix = f"batch-{time.time_ns()}"

    @task(
        cache_key_fn=lambda _, parameters: f"{prefix}-{parameters['value'] % 10}",
        persist_result=True,
    )
    def cached(value: int) -> int:
        note(path, value % 10)
        return value % 10

    def body() -> Any:
        first = cached.map(range(10)).result()
        again = cached.map(range(10, 40)).result()
        return first, again

    run = run_on(cluster, body)
    first, again = run.result()
    assert first == list(range(10))
    assert again == [i % 10 for i in range(10, 40)]
    assert sorted(map(int, names(path))) == list(range(10))
    states = [record["state_name"] for record in api.task_runs(run.id)]
    assert (states.count("Completed"), states.count("Cached")) == (10, 30)


@pytest.mark.parametrize("how", ["batch=False", "isolate"])
def test_batching_can_be_turned_off(cluster: LocalCluster, how: str) -> None:
    before = batches()

    def body() -> Any:
        with hints(batch=False) if how == "batch=False" else hints(isolate=True):
            futures = square.map(range(30 if how == "batch=False" else 3))
        values = futures.result()
        return values, {future.wrapped_future.key for future in futures}

    values, keys = run_on(cluster, body).result()
    assert len(keys) == len(values)
    assert batches() == before


def test_items_behind_a_straggler_finish_long_before_it(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """The straggler waits for all others, so that it would for ever if one waited for it."""
    path = str(tmp_path / "notes")

    @task
    def step(value: int) -> int:
        if value == 40:
            until(lambda: len(set(names(path))) == 199)
        note(path, value)
        return value

    before = batches()

    def body() -> Any:
        warm(step)
        return step.map(range(200)).result()

    assert run_on(cluster, body).result() == list(range(200))
    assert batches() > before
    assert names(path)[-1] == "40"


@pytest.mark.parametrize("events", ["all", "coalesce"])
def test_the_states_between_are_sent_one_by_one_or_not_as_set(
    cluster: LocalCluster, api: Api, monkeypatch: pytest.MonkeyPatch, events: str
) -> None:
    monkeypatch.setenv("DEEPFLOW_EVENTS", events)
    monkeypatch.setenv("DEEPFLOW_COALESCE_AFTER", "10")
    before = metrics.value("deepflow_events_coalesced_total")

    def body() -> Any:
        warm(square)
        return square.map(range(150)).result()

    run = run_on(cluster, body)
    run.result()
    coalesced = metrics.value("deepflow_events_coalesced_total") - before
    records = api.task_runs(run.id)
    assert len(records) == 150 + 8
    assert {record["state_type"] for record in records} == {"COMPLETED"}
    if events == "all":
        assert coalesced == 0
        for record in records[::30]:
            seen = [state["name"] for state in api.states(record["id"])]
            assert seen == ["Pending", "Running", "Completed"]
    else:
        assert coalesced > 0
        assert all(record["start_time"] for record in records)


def test_a_cancelled_map_leaves_no_item_running(cluster: LocalCluster, api: Api) -> None:
    @task
    def slow(value: int) -> int:
        end_s = time.monotonic() + 60
        while value and time.monotonic() < end_s:
            time.sleep(0.005)
        return value

    def body() -> Any:
        futures = slow.map(range(300))
        futures[0].result()
        for future in futures:
            future.cancel()
        for future in futures:
            future.wait(60)
        return [future.state.type.value for future in futures]

    run = run_on(cluster, body)
    states = run.result()
    assert states == ["COMPLETED"] + ["CANCELLED"] * 299
    recorded = [record["state_type"] for record in api.task_runs(run.id)]
    assert sorted(recorded) == sorted(states)
