"""Tasks that submit tasks and call flows, on a cluster with one slot: nobody starves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import flow, task

from deepflow import DeepflowTaskRunner, hints
from deepflow.observe import metrics
from tests.integration.api import Api
from tests.integration.parity import run_on

PATIENCE_S = 60
"""A deadlock shows as a TimeoutError after this long."""


@task
def leaf(value: int) -> int:
    return value + 1


@task
def middle(value: int) -> int:
    return sum(leaf.map([value, value + 1]).result(timeout=PATIENCE_S))


@task
async def leaf_async(value: int) -> int:
    return value + 1


def all_completed(api: Api, run: Any, n_runs: int) -> list[dict[str, Any]]:
    records = api.until(lambda: api.task_runs(run.id), lambda found: len(found) == n_runs)
    assert {record["state_type"] for record in records} == {"COMPLETED"}
    return records


def test_a_task_submits_and_waits_on_a_full_cluster(one_slot: LocalCluster, api: Api) -> None:
    @task
    def outer() -> int:
        return leaf.submit(1).result(timeout=PATIENCE_S)

    run = run_on(one_slot, lambda: [f.result() for f in [outer.submit() for _ in range(3)]])
    assert run.result() == [2, 2, 2]
    all_completed(api, run, 6)


def test_two_levels_of_map_inside_a_task(one_slot: LocalCluster, api: Api) -> None:
    @task
    def top() -> int:
        return sum(middle.map([10, 20]).result(timeout=PATIENCE_S))

    run = run_on(one_slot, lambda: top.submit().result())
    assert run.result() == (11 + 12) + (21 + 22)
    all_completed(api, run, 1 + 2 + 4)


def test_a_task_with_a_timeout_leaves_its_slot_too(one_slot: LocalCluster) -> None:
    @task(timeout_seconds=PATIENCE_S)
    def outer() -> int:
        return leaf.submit(1).result(timeout=PATIENCE_S)

    assert run_on(one_slot, lambda: outer.submit().result()).result() == 2


def test_an_async_task_submits_sync_and_async_tasks(one_slot: LocalCluster) -> None:
    @task
    async def outer() -> int:
        one = leaf.submit(1).result(timeout=PATIENCE_S)
        two = leaf_async.submit(one).result(timeout=PATIENCE_S)
        return int(sum(leaf_async.map([one, two]).result(timeout=PATIENCE_S)))

    assert run_on(one_slot, lambda: outer.submit().result()).result() == 3 + 4


def test_waiting_with_as_completed_and_wait_leaves_the_slot(one_slot: LocalCluster) -> None:
    @task
    def outer() -> tuple[int, int]:
        from prefect.futures import as_completed, wait

        futures = [leaf.submit(i) for i in range(3)]
        first = sum(future.result() for future in as_completed(futures, timeout=PATIENCE_S))
        again = [leaf.submit(i) for i in range(3)]
        done, not_done = wait(again, timeout=PATIENCE_S)
        return first, len(done) - len(not_done)

    assert run_on(one_slot, lambda: outer.submit().result()).result() == (6, 3)


def test_a_nested_run_names_its_parent(one_slot: LocalCluster, api: Api) -> None:
    @task
    def outer() -> int:
        return leaf.submit(1).result(timeout=PATIENCE_S)

    run = run_on(one_slot, lambda: outer.submit().result())
    records = {r["name"].split("-")[0]: r for r in all_completed(api, run, 2)}
    parents = records["leaf"]["task_inputs"]["__parents__"]
    assert [parent["id"] for parent in parents] == [records["outer"]["id"]]


def test_a_failure_in_a_nested_task_is_the_outer_tasks_to_handle(one_slot: LocalCluster) -> None:
    @task
    def bad() -> None:
        raise ValueError("inner trouble")

    @task
    def outer() -> str:
        try:
            bad.submit().result(timeout=PATIENCE_S)
        except ValueError as exc:
            return f"handled: {exc}"
        return "nothing happened"

    assert run_on(one_slot, lambda: outer.submit().result()).result() == "handled: inner trouble"


def test_a_task_called_directly_inside_a_task_runs_there(one_slot: LocalCluster, api: Api) -> None:
    @task
    def outer() -> int:
        return leaf(leaf(0))

    run = run_on(one_slot, lambda: outer.submit().result())
    assert run.result() == 2
    all_completed(api, run, 3)


def test_a_subflow_in_the_flow_has_its_own_runner_and_runs(
    one_slot: LocalCluster, api: Api
) -> None:
    address = one_slot.scheduler_address

    def body() -> int:
        from deepflow import DeepflowTaskRunner

        @flow(task_runner=DeepflowTaskRunner(address=address))
        def inner(value: int) -> int:
            return int(leaf.submit(value).result())

        return inner(1) + int(leaf.submit(10).result())

    assert run_on(one_slot, body).result() == 2 + 11


def test_a_subflow_in_a_task_runs_with_its_tasks_on_the_cluster(
    cluster: LocalCluster, api: Api
) -> None:
    address = cluster.scheduler_address

    @task
    def outer() -> tuple[str, int]:
        from prefect.runtime import flow_run

        from deepflow import DeepflowTaskRunner

        @flow(task_runner=DeepflowTaskRunner(address=address))
        def inner() -> tuple[str, int]:
            return str(flow_run.id), int(leaf.submit(1).result(timeout=PATIENCE_S))

        return inner()

    run = run_on(cluster, lambda: outer.submit().result())
    inner_id, value = run.result()
    assert value == 2
    assert api.flow_run(inner_id)["state_type"] == "COMPLETED"
    assert api.flow_run(inner_id)["parent_task_run_id"] is not None
    (record,) = api.until(lambda: api.task_runs(inner_id), lambda found: len(found) == 1)
    assert record["state_type"] == "COMPLETED"


def test_a_nested_run_waits_for_its_retry_without_the_slot(
    one_slot: LocalCluster, tmp_path: Path
) -> None:
    @task(retries=1, retry_delay_seconds=1)
    def flaky() -> int:
        from prefect.runtime import task_run

        if task_run.run_count == 1:
            raise ValueError("not yet")
        return int(task_run.run_count)

    @task
    def outer() -> tuple[int, int]:
        slow, quick = flaky.submit(), leaf.submit(1)
        return slow.result(timeout=PATIENCE_S), quick.result(timeout=PATIENCE_S)

    assert run_on(one_slot, lambda: outer.submit().result()).result() == (2, 2)


@pytest.mark.parametrize("n_outer", [6])
def test_more_waiting_tasks_than_slots_all_get_through(
    one_slot: LocalCluster, api: Api, n_outer: int
) -> None:
    @task
    def outer(number: int) -> int:
        future = leaf.submit(number)
        time.sleep(0.05)
        return future.result(timeout=PATIENCE_S)

    def body() -> Any:
        with hints(batch=False):
            return outer.map(range(n_outer)).result(timeout=2 * PATIENCE_S)

    run = run_on(one_slot, body)
    assert run.result() == [i + 1 for i in range(n_outer)]
    all_completed(api, run, 2 * n_outer)


def test_a_task_that_was_given_an_iterator_submits_and_so_does_one_of_such_a_flow(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The context of nested runs travels, and an iterator cannot."""

    @task
    def outer(passed: Any, n: int) -> int:
        return leaf.submit(n).result(timeout=PATIENCE_S)

    @flow(task_runner=DeepflowTaskRunner(cluster=cluster), validate_parameters=False)
    def run(given: Any) -> int:
        return outer.submit(iter([1, 2]), 3).result()

    before = metrics.value("deepflow_fallbacks_total", kind="flow_parameters_left_out")
    assert run(1) == 4
    assert metrics.value("deepflow_fallbacks_total", kind="flow_parameters_left_out") == before
    assert run(iter([7])) == 4
    assert metrics.value("deepflow_fallbacks_total", kind="flow_parameters_left_out") == before + 1
    assert "The flow's parameters given cannot be pickled" in caplog.text
