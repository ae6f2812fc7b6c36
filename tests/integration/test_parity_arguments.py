"""What is passed to a task arrives as Prefect says, and the UI's graph knows where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import allow_failure, task, unmapped
from prefect.states import State
from prefect.utilities.annotations import quote

from deepflow.observe import metrics
from tests.integration.api import Api
from tests.integration.notes import note, noted_at
from tests.integration.parity import run_on


@dataclass
class Pair:
    left: Any
    right: Any


@task
def give(value: Any) -> Any:
    return value


@task
def add(left: int, right: int = 0) -> int:
    return left + right


@task
def fail(message: str = "on purpose") -> None:
    raise ValueError(message)


def by_name(api: Api, flow_run_id: Any) -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in api.task_runs(flow_run_id)}


def upstream_of(record: dict[str, Any], parameter: str) -> set[str]:
    return {entry["id"] for entry in record["task_inputs"].get(parameter, []) if "id" in entry}


def test_sync_and_async_tasks_run_and_give_their_values(cluster: LocalCluster) -> None:
    @task
    async def twice(value: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return 2 * value

    def body() -> Any:
        return [give.submit(1).result(), twice.submit(2).result(), twice.map([3, 4]).result()]

    assert run_on(cluster, body).result() == [1, 4, [6, 8]]


def test_an_async_flow_submits_and_gets_its_results(cluster: LocalCluster) -> None:
    import asyncio

    from prefect import flow

    from deepflow import DeepflowTaskRunner

    @task
    async def twice(value: int) -> int:
        return 2 * value

    @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
    async def run() -> Any:
        futures = [twice.submit(i) for i in range(3)]
        return [future.result() for future in futures]

    assert asyncio.run(run()) == [0, 2, 4]


def test_futures_inside_lists_dicts_and_dataclasses_become_values(
    cluster: LocalCluster, api: Api
) -> None:
    def body() -> Any:
        one, two, three = give.submit(1), give.submit(2), give.submit(3)
        nested = give.submit({"list": [one, (two,)], "pair": Pair(three, {"deep": one})})
        return nested.result()

    run = run_on(cluster, body)
    value = run.result()
    assert value["list"] == [1, (2,)]
    assert value["pair"] == Pair(3, {"deep": 1})
    records = by_name(api, run.id)
    assert upstream_of(records["give-3"], "value") == {
        records[f"give-{number}"]["id"] for number in range(3)
    }


def test_a_chain_has_one_edge_from_each_task_to_the_next(cluster: LocalCluster, api: Api) -> None:
    def body() -> int:
        future = give.submit(0)
        for _ in range(4):
            future = add.submit(future, 1)
        return int(future.result())

    run = run_on(cluster, body)
    assert run.result() == 4
    records = by_name(api, run.id)
    chain = ["give-0", "add-0", "add-1", "add-2", "add-3"]
    assert set(records) == set(chain)
    for before, after in pairwise(chain):
        assert upstream_of(records[after], "left") == {records[before]["id"]}
        assert upstream_of(records[after], "right") == set()


def test_a_map_over_futures_has_an_edge_for_each_item(cluster: LocalCluster, api: Api) -> None:
    def body() -> Any:
        return add.map(give.map([1, 2, 3]), unmapped(give.submit(10))).result()

    run = run_on(cluster, body)
    assert run.result() == [11, 12, 13]
    records = by_name(api, run.id)
    assert len(records) == 4 + 3
    names = {record["id"]: name for name, record in records.items()}
    for index in range(3):
        added = records[f"add-{index}"]
        assert [names[i] for i in upstream_of(added, "right")] == ["give-3"]
        assert [names[i] for i in upstream_of(added, "left")] == [f"give-{index}"]


def test_unmapped_passes_a_list_whole(cluster: LocalCluster) -> None:
    @task
    def count(item: int, everything: list[int]) -> int:
        return item * len(everything)

    assert run_on(cluster, lambda: count.map([1, 2], unmapped([7, 7, 7])).result()).result() == [
        3,
        6,
    ]


def test_quote_passes_its_value_untouched(cluster: LocalCluster, api: Api) -> None:
    def body() -> Any:
        return give.submit(quote({"a": [1, 2]})).result()

    run = run_on(cluster, body)
    assert run.result() == {"a": [1, 2]}


def test_wait_for_orders_runs_that_pass_no_data(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task
    def slow_first() -> None:
        import time

        time.sleep(0.5)
        note(path, "first is done")

    @task
    def second() -> None:
        note(path, "second begins")

    def body() -> None:
        first = slow_first.submit()
        second.submit(wait_for=[first]).wait()

    run = run_on(cluster, body)
    run.result()
    at_s = noted_at(path)
    assert at_s["first is done"] < at_s["second begins"]
    records = {record["name"]: record for record in api.task_runs(run.id)}
    assert upstream_of(records["second-0"], "wait_for") == {records["slow_first-0"]["id"]}


def test_a_task_after_a_failed_one_is_not_ready(cluster: LocalCluster, api: Api) -> None:
    def body() -> list[State[Any]]:
        failed = fail.submit()
        by_data, by_order = give.submit(failed), give.submit(1, wait_for=[failed])
        for future in (by_data, by_order):
            future.wait()
        return [by_data.state.name, by_order.state.name]

    run = run_on(cluster, body)
    assert run.result() == ["NotReady", "NotReady"]
    records = {record["name"]: record["state_name"] for record in api.task_runs(run.id)}
    assert records == {"fail-0": "Failed", "give-0": "NotReady", "give-1": "NotReady"}


def test_allow_failure_passes_the_error_on(cluster: LocalCluster) -> None:
    @task
    def look(value: Any) -> str:
        return f"{type(value).__name__}: {value}"

    def body() -> list[Any]:
        failed = fail.submit("broken")
        return [
            look.submit(allow_failure(failed)).result(),
            give.submit(1, wait_for=[allow_failure(failed)]).result(),
        ]

    seen, went_on = run_on(cluster, body).result()
    assert seen == "ValueError: broken"
    assert went_on == 1


def test_return_state_gives_the_final_state(cluster: LocalCluster) -> None:
    def body() -> list[Any]:
        good = give.submit(5, return_state=True)
        bad = fail.submit(return_state=True)
        many = give.map([1, 2], return_state=True)
        return [good.result(), bad.is_failed(), [state.result() for state in many]]

    assert run_on(cluster, body).result() == [5, True, [1, 2]]


def test_a_state_as_a_parameter_becomes_its_value(cluster: LocalCluster) -> None:
    def body() -> Any:
        return add.submit(give.submit(5, return_state=True), 1).result()

    assert run_on(cluster, body).result() == 6


def test_variadic_parameters_and_defaults_arrive(cluster: LocalCluster) -> None:
    @task
    def collect(first: int, *rest: int, scale: int = 10, **named: int) -> Any:
        return (first, rest, scale, named)

    def body() -> Any:
        return collect.submit(1, 2, 3, x=give.submit(4)).result()

    assert run_on(cluster, body).result() == (1, (2, 3), 10, {"x": 4})


def test_a_large_argument_of_a_map_travels_once(cluster: LocalCluster) -> None:
    big = np.arange(250_000.0)

    @task
    def pick(index: int, array: np.ndarray) -> float:
        return float(array[index])

    before = metrics.value("deepflow_shared_argument_bytes_total")
    result = run_on(cluster, lambda: pick.map(range(40), unmapped(big)).result()).result()
    assert result == [float(i) for i in range(40)]
    sent = metrics.value("deepflow_shared_argument_bytes_total") - before
    assert sent == pytest.approx(big.nbytes, rel=1e-3)


def test_an_array_changed_between_two_submits_is_a_new_value(cluster: LocalCluster) -> None:
    @task
    def first_of(array: np.ndarray) -> float:
        return float(array[0])

    def body() -> list[float]:
        array = np.zeros(50_000)
        before = first_of.submit(array)
        array[0] = 1.0
        after = first_of.submit(array)
        return [before.result(), after.result()]

    assert run_on(cluster, body).result() == [0.0, 1.0]


def test_a_large_result_is_passed_on_and_comes_back_whole(cluster: LocalCluster) -> None:
    @task
    def make() -> np.ndarray:
        return np.arange(500_000.0)

    @task
    def total(array: np.ndarray) -> float:
        return float(array.sum())

    def body() -> Any:
        future = make.submit()
        return total.submit(future).result(), future.result()

    expected = np.arange(500_000.0)
    got_total, got = run_on(cluster, body).result()
    assert got_total == expected.sum()
    np.testing.assert_array_equal(got, expected)


def test_names_and_dynamic_keys_are_unique_in_a_flow_run(cluster: LocalCluster, api: Api) -> None:
    @task(task_run_name="item-{value}")
    def named(value: int) -> int:
        return value

    def body() -> None:
        futures = [give.submit(i) for i in range(3)] + list(give.map(range(30)))
        futures += list(named.map([100, 200]))
        for future in futures:
            future.result()

    run = run_on(cluster, body)
    run.result()
    records = api.task_runs(run.id)
    assert len({(r["task_key"], r["dynamic_key"]) for r in records}) == len(records) == 35
    assert len({r["name"] for r in records}) == 35
    assert {r["name"] for r in records if r["name"].startswith("item")} == {"item-100", "item-200"}


@pytest.mark.parametrize("how", ["submit", "map"])
def test_a_generator_is_refused_with_words(cluster: LocalCluster, how: str) -> None:
    from deepflow.errors import GeneratorTaskError

    @task
    def numbers(n: int) -> Any:
        yield from range(n)

    def body() -> None:
        if how == "submit":
            numbers.submit(3)
        else:
            numbers.map([3])

    with pytest.raises(GeneratorTaskError, match=r"'numbers' is a generator.*Return a list"):
        run_on(cluster, body).result()
