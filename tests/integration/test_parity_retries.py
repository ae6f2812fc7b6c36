"""Retries: as Prefect promises them, and without holding a worker slot while waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task

from tests.integration.api import Api
from tests.integration.notes import await_note, names, note, noted_at
from tests.integration.parity import run_on

DELAY_S = 2.0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_that_waits_for_its_retry_leaves_its_slot_to_others(
    one_slot: LocalCluster, api: Api, tmp_path: Path, kind: str
) -> None:
    path = str(tmp_path / "notes")

    def attempt() -> str:
        from prefect.runtime import task_run

        note(path, f"flaky-{task_run.run_count}")
        if task_run.run_count == 1:
            raise ValueError("not yet")
        return "second time"

    async def attempt_async() -> str:
        return attempt()

    flaky: Any = task(
        attempt if kind == "sync" else attempt_async,
        name="flaky",
        retries=1,
        retry_delay_seconds=DELAY_S,
    )

    @task
    def other() -> None:
        note(path, "other")

    def body() -> Any:
        future = flaky.submit()
        await_note(path, "flaky-1")
        other.submit().wait()
        return future.result()

    run = run_on(one_slot, body)
    assert run.result() == "second time"
    at_s = noted_at(path)
    assert at_s["flaky-1"] < at_s["other"] < at_s["flaky-2"]
    assert at_s["flaky-2"] - at_s["flaky-1"] >= DELAY_S
    record = next(r for r in api.task_runs(run.id) if r["name"].startswith("flaky"))
    assert record["run_count"] == 2
    assert record["state_type"] == "COMPLETED"
    states = [state["name"] for state in api.states(record["id"])]
    assert states == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]


def test_a_retry_without_delay_happens_at_once_and_is_on_record(
    cluster: LocalCluster, api: Api
) -> None:
    @task(retries=2)
    def flaky() -> int:
        from prefect.runtime import task_run

        if task_run.run_count < 3:
            raise ValueError("not yet")
        return int(task_run.run_count)

    run = run_on(cluster, lambda: flaky.submit().result())
    assert run.result() == 3
    (record,) = api.task_runs(run.id)
    assert record["run_count"] == 3
    states = [state["name"] for state in api.states(record["id"])]
    assert states == ["Pending", "Running", "Retrying", "Retrying", "Completed"]


def test_retries_used_up_end_in_failed_with_the_error(cluster: LocalCluster, api: Api) -> None:
    @task(retries=2, retry_delay_seconds=0.1)
    def hopeless() -> None:
        raise ValueError("never")

    run = run_on(cluster, lambda: hopeless.submit().result())
    with pytest.raises(ValueError, match="never"):
        run.result()
    (record,) = api.task_runs(run.id)
    assert (record["state_type"], record["run_count"]) == ("FAILED", 3)
    assert "never" in record["state"]["message"]


def test_the_retry_condition_is_asked_and_can_say_no(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    def only_value_errors(_task: Any, _run: Any, state: Any) -> bool:
        try:
            state.result()
        except ValueError:
            return True
        except KeyError:
            return False
        return False

    @task(retries=2, retry_condition_fn=only_value_errors)
    def picky(error: type[Exception]) -> None:
        note(path, error.__name__)
        raise error("as told")

    def body() -> list[Any]:
        futures = [picky.submit(ValueError), picky.submit(KeyError)]
        return [future.state for future in futures if future.wait() is None]

    assert not run_on(cluster, body).state.is_completed()
    assert names(path).count("ValueError") == 3
    assert names(path).count("KeyError") == 1


def test_each_retry_waits_for_its_own_delay(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    @task(retries=2, retry_delay_seconds=[0.3, 1.0])
    def flaky() -> None:
        from prefect.runtime import task_run

        note(path, f"attempt-{task_run.run_count}")
        if task_run.run_count < 3:
            raise ValueError("not yet")

    run_on(cluster, lambda: flaky.submit().result()).result()
    at_s = noted_at(path)
    assert at_s["attempt-2"] - at_s["attempt-1"] >= 0.3
    assert at_s["attempt-3"] - at_s["attempt-2"] >= 1.0


def test_jitter_spreads_the_retries_within_its_bounds(cluster: LocalCluster, api: Api) -> None:
    @task(retries=1, retry_delay_seconds=1, retry_jitter_factor=1)
    def flaky() -> None:
        from prefect.runtime import task_run

        if task_run.run_count == 1:
            raise ValueError("not yet")

    run = run_on(cluster, lambda: [f.result() for f in [flaky.submit() for _ in range(6)]])
    run.result()
    delays = set()
    for record in api.task_runs(run.id):
        waiting = next(s for s in api.states(record["id"]) if s["name"] == "AwaitingRetry")
        delays.add(waiting["state_details"]["scheduled_time"])
        assert record["run_count"] == 2
    assert len(delays) == 6
