"""What a flow run leaves on workers and scheduler when it is over: nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from prefect import task

from deepflow.observe import metrics
from tests.integration.notes import await_note, note
from tests.integration.parity import run_on


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client beside the flow runs'."""
    with Client(cluster, set_as_default=False) as watching:
        yield watching


def kept_for_drivers(dask_worker: Any) -> set[str]:
    """What a worker has that belongs to flow runs: their topics, and dispatchers."""
    from deepflow.runner.worker.agent import agent_of

    agent = agent_of(dask_worker)
    contexts = {scope.captured.events_topic for scope, _ in agent._contexts._entries.values()}
    dispatchers = {t.name for t in threading.enumerate() if t.name == "deepflow-dispatcher"}
    return contexts | set(agent._drivers) | dispatchers


def left_behind(client: Client, before: dict[str, set[str]]) -> set[str]:
    """What the workers keep that they did not keep before."""
    kept = client.run(kept_for_drivers)
    return set().union(*(kept[worker] - before[worker] for worker in kept))


@task
def double(number: int) -> int:
    return 2 * number


@task
def outer(number: int) -> int:
    return int(double.submit(number).result())


def test_a_flow_run_that_is_over_leaves_nothing(cluster: LocalCluster, client: Client) -> None:
    @task
    def endless() -> None:
        import time

        while True:
            time.sleep(0.01)

    def body() -> list[int]:
        results = outer.map(range(6)).result()
        stopped = endless.submit()
        stopped.cancel()
        stopped.wait()
        return results

    variables = cluster.scheduler.extensions["variables"].variables
    variables_before = set(variables)
    before = client.run(kept_for_drivers)
    assert run_on(cluster, body).result() == [0, 2, 4, 6, 8, 10]
    assert not left_behind(client, before)
    assert set(variables) <= variables_before


def test_flow_runs_that_fail_leave_nothing_either(cluster: LocalCluster, client: Client) -> None:
    def body() -> None:
        outer.map(range(6)).result()
        raise RuntimeError("the flow fails")

    before = client.run(kept_for_drivers)
    assert run_on(cluster, body).state.is_failed()
    assert not left_behind(client, before)


def reports_missing() -> float:
    """How often a report did not come, in this process."""
    return metrics.value("deepflow_fallbacks_total", kind="report_missing")


def test_flow_runs_that_submit_from_the_same_worker_each_hear_of_their_own(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    """The two share the worker's client: the second must not take the first one's reports."""
    path = str(tmp_path / "notes")
    home, away = client.nthreads()

    @task
    def slow() -> int:
        await_note(path, "the second has submitted")
        return 7

    @task
    def first_outer() -> int:
        with dask.annotate(workers=[away]):
            future = slow.submit()
        note(path, "the first has submitted")
        return int(future.result())

    @task
    def second_outer() -> int:
        with dask.annotate(workers=[home]):
            return int(double.submit(4).result())

    def first() -> int:
        with dask.annotate(workers=[home]):
            answer = int(first_outer.submit().result())
        note(path, "the first is over")
        return answer

    def second() -> int:
        with dask.annotate(workers=[home]):
            answer = int(second_outer.submit().result())
        note(path, "the second has submitted")
        await_note(path, "the first is over")
        return answer

    answers: list[int] = []
    before = client.run(reports_missing)
    beside = threading.Thread(
        target=copy_context().run,  # the settings say where the server is
        args=(lambda: answers.append(run_on(cluster, first).result()),),
    )
    beside.start()
    await_note(path, "the first has submitted")
    answers.append(run_on(cluster, second).result())
    beside.join()
    assert sorted(answers) == [7, 8]
    assert client.run(reports_missing) == before
