"""Runs on workers are part of the flow's transaction, as in Prefect's thread pool."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task
from prefect.cache_policies import INPUTS
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import get_transaction, transaction

from deepflow import DeepflowTaskRunner
from tests.integration.parity import run_on

CALLED: list[tuple[str, Any]] = []
"""The hooks that were called in this process, and what they found in their transaction."""


@task
def first(value: int) -> int:
    held = get_transaction()
    assert held is not None
    held.set("made", value)
    return value


@task
async def second(value: int) -> int:
    held = get_transaction()
    assert held is not None
    held.set("made", value)
    return value


for one in (first, second):

    @one.on_rollback
    def undo(held: Any) -> None:
        CALLED.append(("rollback", held.get("made")))

    @one.on_commit
    def done(held: Any) -> None:
        CALLED.append(("commit", held.get("made")))


@pytest.fixture(params=["deepflow", "threads"])
def runner(request: pytest.FixtureRequest, cluster: LocalCluster) -> Any:
    """Ours, and Prefect's own, which says what is right."""
    CALLED.clear()
    if request.param == "threads":
        return ThreadPoolTaskRunner()
    return DeepflowTaskRunner(cluster=cluster)


def run_body(runner: Any, body: Any) -> Any:
    from prefect import flow

    return flow(body, task_runner=runner)(return_state=True)


def test_completed_runs_are_rolled_back_in_reverse_order(runner: Any) -> None:
    def body() -> None:
        with transaction():
            first.submit(1).result()
            second.submit(2).result()
            first.map([3])[0].result()
            raise ValueError("too late")

    assert run_body(runner, body).is_failed()
    assert CALLED == [("rollback", 3), ("rollback", 2), ("rollback", 1)]


def test_runs_commit_when_the_transaction_does(runner: Any) -> None:
    def body() -> list[Any]:
        with transaction():
            first.submit(1).result()
            second.submit(2).result()
            return list(CALLED)

    assert run_body(runner, body).result() == []
    assert CALLED == [("commit", 1), ("commit", 2)]


def test_a_result_is_written_when_the_transaction_commits_only(cluster: LocalCluster) -> None:
    made = first.with_options(cache_policy=INPUTS, persist_result=True)

    def body(value: int, fails: bool) -> str:
        with transaction():
            future = made.submit(value)
            future.result()
            if fails:
                raise ValueError("too late")
        return future.state.name

    value = 4711
    assert run_on(cluster, lambda: body(value, True)).state.is_failed()
    assert run_on(cluster, lambda: body(value, False)).result() == "Completed"
    assert run_on(cluster, lambda: body(value, False)).result() == "Cached"


def test_a_run_outside_of_a_transaction_commits_on_its_worker(cluster: LocalCluster) -> None:
    made = first.with_options(cache_policy=INPUTS, persist_result=True)

    def body() -> str:
        with transaction():
            made.submit(815).result()
        made.submit(816).result()
        return str(made.submit(816, return_state=False).state.name)

    CALLED.clear()
    run_on(cluster, body).result()
    assert CALLED == [("commit", 815)], "the others commit where they run"
