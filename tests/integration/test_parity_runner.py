"""The runner as an object, and its futures: what DaskTaskRunner's users build on."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.futures import as_completed, wait

from deepflow import DeepflowFuture, DeepflowTaskRunner, WorkerClass
from deepflow.errors import ClusterUnreachableError, ConfigurationError
from deepflow.runner.server import _free_port
from tests.integration.notes import await_note, note
from tests.integration.parity import run_on


@task
def give(value: Any) -> Any:
    return value


# -- the runner --------------------------------------------------------------------------------


def test_a_duplicate_is_equal_and_keeps_its_cluster(cluster: LocalCluster) -> None:
    runner = DeepflowTaskRunner(cluster=cluster, client_kwargs={"name": "mine"})
    twin = runner.duplicate()
    assert twin == runner
    assert twin is not runner
    assert twin._cluster is cluster
    assert twin.client_kwargs == {"name": "mine", "set_as_default": False}


@pytest.mark.parametrize(
    "other",
    [
        {"address": "tcp://127.0.0.1:2"},
        {"cluster_kwargs": {"n_workers": 1}},
        {"adapt_kwargs": {"maximum": 2}},
        {"client_kwargs": {"name": "x"}},
        {"performance_report_path": "report.html"},
        {"local": [WorkerClass("cpu")]},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_runners_that_differ_in_one_argument_are_not_equal(other: dict[str, Any]) -> None:
    assert DeepflowTaskRunner(**other) != DeepflowTaskRunner()
    assert DeepflowTaskRunner(**other) == DeepflowTaskRunner(**other)
    assert DeepflowTaskRunner(**other).duplicate() == DeepflowTaskRunner(**other)


def test_a_runner_survives_cloudpickle_and_leaves_a_live_cluster_behind(
    cluster: LocalCluster,
) -> None:
    plain = DeepflowTaskRunner(cluster_kwargs={"n_workers": 3})
    assert cloudpickle.loads(cloudpickle.dumps(plain)) == plain
    live = cloudpickle.loads(cloudpickle.dumps(DeepflowTaskRunner(cluster=cluster)))
    assert live.address == cluster.scheduler_address
    assert live._cluster is None
    assert run_on(live, lambda: give.submit(1).result()).result() == 1


def test_entering_connects_to_nothing_until_it_is_needed() -> None:
    runner = DeepflowTaskRunner(address=f"tcp://127.0.0.1:{_free_port()}")
    with runner:
        assert runner._client is None


def test_a_flow_without_tasks_starts_no_cluster(server: object) -> None:
    def no_cluster() -> Any:
        raise AssertionError("started")

    assert run_on(DeepflowTaskRunner(cluster_class=no_cluster), lambda: 5).result() == 5


def test_an_address_where_nobody_answers_is_told_with_what_to_do(server: object) -> None:
    address = f"tcp://127.0.0.1:{_free_port()}"
    runner = DeepflowTaskRunner(address=address, client_kwargs={"timeout": 1})
    with pytest.raises(ClusterUnreachableError, match=rf"(?s){address}.*DEEPFLOW_ADDRESS"):
        run_on(runner, lambda: give.submit(1)).result()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"address": "tcp://x:1", "cluster_kwargs": {"n_workers": 1}},
        {"address": "tcp://x:1", "adapt_kwargs": {"maximum": 1}},
        {"client_kwargs": {"asynchronous": True}},
        {"cluster_kwargs": {"asynchronous": True}},
        {"local": [WorkerClass("a")], "address": "tcp://x:1"},
        {"local": ["cpu"]},
    ],
    ids=str,
)
def test_arguments_that_exclude_each_other_are_refused_at_once(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DeepflowTaskRunner(**kwargs)


def test_the_address_from_the_environment_is_used(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_ADDRESS", cluster.scheduler_address)

    def body() -> Any:
        from prefect.context import FlowRunContext

        value = give.submit(3).result()
        context = FlowRunContext.get()
        assert context is not None
        return value, context.task_runner.client.scheduler.address  # type: ignore[attr-defined]

    assert run_on(DeepflowTaskRunner(), body).result() == (3, cluster.scheduler_address)


def test_a_given_cluster_is_still_open_after_the_flow(cluster: LocalCluster) -> None:
    for _ in range(2):
        assert run_on(cluster, lambda: give.submit(1).result()).result() == 1
    assert cluster.status.value == "running"


def test_submitting_after_the_flow_is_refused(cluster: LocalCluster) -> None:
    runner = DeepflowTaskRunner(cluster=cluster)
    with pytest.raises(RuntimeError, match="must be started"):
        runner.submit(give, {"value": 1})


def test_one_runner_serves_two_flows_at_once(cluster: LocalCluster, tmp_path: Path) -> None:
    import threading
    from contextvars import copy_context

    path = str(tmp_path / "notes")
    runner = DeepflowTaskRunner(cluster=cluster)

    @task
    def meet(mine: str, other: str) -> str:
        note(path, mine)
        await_note(path, other)
        return mine

    @flow(task_runner=runner)
    def run(mine: str, other: str) -> str:
        return meet.submit(mine, other).result()

    results: list[str] = []
    threads = [
        # Prefect's settings are in force in a context, which a new thread does not have.
        threading.Thread(
            target=copy_context().run, args=(lambda a, b: results.append(run(a, b)), a, b)
        )
        for a, b in (("one", "two"), ("two", "one"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == ["one", "two"]


# -- its futures -------------------------------------------------------------------------------


def test_result_times_out_in_time_and_the_run_goes_on(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task
    def held() -> str:
        await_note(path, "open")
        return "done"

    def body() -> Any:
        future = held.submit()
        began_s = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not complete within 0\.3 seconds"):
            future.result(timeout=0.3)
        assert time.monotonic() - began_s >= 0.3
        future.wait(timeout=0.1)
        assert not future.done()  # however long that took, nobody has let it go on
        note(path, "open")
        return future.result(timeout=120)

    assert run_on(cluster, body).result() == "done"


def test_a_failed_result_raises_or_is_returned_as_asked(cluster: LocalCluster) -> None:
    @task
    def fail() -> None:
        raise ValueError("on purpose")

    def body() -> Any:
        future = fail.submit()
        with pytest.raises(ValueError, match="on purpose"):
            future.result()
        return repr(future.result(raise_on_failure=False)), future.state.name

    assert run_on(cluster, body).result() == ("ValueError('on purpose')", "Failed")


def test_as_completed_gives_futures_in_the_order_of_their_end(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task
    def after(name: str, before: str) -> str:
        if before:
            await_note(path, before)
        note(path, name)
        return name

    def body() -> Any:
        second, first = after.submit("second", "first seen"), after.submit("first", "")
        order = []
        for future in as_completed([second, first], timeout=30):
            order.append(future.result())
            note(path, f"{order[-1]} seen")
        return order

    assert run_on(cluster, body).result() == ["first", "second"]


def test_wait_tells_done_from_not_done(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    @task
    def held() -> None:
        await_note(path, "open")

    def body() -> Any:
        quick, slow = give.submit(1), held.submit()
        quick.wait()
        done, not_done = wait([quick, slow], timeout=1)
        answer = done == {quick}, not_done == {slow}
        note(path, "open")
        return *answer, len(wait([quick, slow], timeout=120).done)

    assert run_on(cluster, body).result() == (True, True, 2)


def test_callbacks_are_called_once_also_for_a_future_that_is_done(cluster: LocalCluster) -> None:
    def body() -> Any:
        seen: list[Any] = []
        future = give.submit(1)
        future.add_done_callback(lambda f: seen.append(f.task_run_id))
        future.result()
        end_s = time.monotonic() + 60
        while len(seen) < 1:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        future.add_done_callback(lambda f: seen.append(f.task_run_id))
        return [i == future.task_run_id for i in seen], isinstance(future, DeepflowFuture)

    assert run_on(cluster, body).result() == ([True, True], True)


def test_wait_does_not_download_a_large_value(cluster: LocalCluster) -> None:
    import numpy as np

    @task
    def make() -> Any:
        return np.zeros(1_000_000)

    def body() -> Any:
        future = make.submit()
        future.wait()
        before = future._final_state is None and future._item.blob is None
        return before, float(future.result().sum())

    assert run_on(cluster, body).result() == (True, 0.0)


def test_a_future_says_why_it_cannot_be_pickled(cluster: LocalCluster) -> None:
    def body() -> None:
        with pytest.raises(TypeError, match="pass it as a task's parameter"):
            pickle.dumps(give.submit(1))

    run_on(cluster, body).result()


def test_dask_keys_start_with_the_tasks_name_and_carry_the_flow_run(
    cluster: LocalCluster,
) -> None:
    run = run_on(cluster, lambda: (f := give.submit(1)).wait() or f.wrapped_future.key)
    key = run.result()
    assert key.startswith("give-")
    assert run.id.hex in key
