"""Graphs of unusual shape: wide, deep, and deep behind something that has to wait."""

from __future__ import annotations

from typing import Any

from distributed import LocalCluster
from prefect import task
from prefect.runtime import task_run

from tests.integration.parity import run_on


@task
def increment(x: int) -> int:
    return x + 1


@task
def total(values: list[int]) -> int:
    return sum(values)


@task(retries=1, retry_delay_seconds=1)
def second_time_lucky(x: int) -> int:
    if task_run.run_count < 2:
        raise ValueError("not yet")
    return x


def test_a_run_takes_hundreds_of_mapped_results(cluster: LocalCluster) -> None:
    def wide() -> Any:
        return total.submit(increment.map(range(600))).result()

    assert run_on(cluster, wide).result() == sum(range(1, 601))


def test_a_map_takes_the_results_of_a_map(cluster: LocalCluster) -> None:
    def stacked() -> Any:
        return increment.map(increment.map(range(100))).result()

    assert run_on(cluster, stacked).result() == list(range(2, 102))


def test_a_long_chain_goes_once_the_retry_before_it_is_through(cluster: LocalCluster) -> None:
    """All of it is held meanwhile, and set free link by link: deeper than Python may recurse."""

    def deep() -> Any:
        link: Any = second_time_lucky.submit(0)
        for _ in range(400):
            link = increment.submit(link)
        return link.result()

    assert run_on(cluster, deep).result() == 400
