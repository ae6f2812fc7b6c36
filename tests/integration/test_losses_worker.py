"""A worker that dies takes nothing with it that was finished, and nobody waits for it for ever."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import flow, task

from deepflow import DeepflowTaskRunner, hints
from deepflow.observe import metrics
from tests.integration.api import Api
from tests.integration.losses import forget_variables, meanwhile, until_settled, worker_pids
from tests.integration.notes import await_death, kill, note, noted_by, notes, times_noted, until

LARGE = 50_000
"""Length of an array (400 kB) that is too large to travel with the report that a task is done."""


def states_by_name(api: Api, flow_run_id: str) -> dict[str, str]:
    return {run["name"]: run["state_type"] for run in api.task_runs(flow_run_id)}


@pytest.mark.parametrize("how", ["durable", "persisted", "persisted and cached by its inputs"])
def test_a_finished_durable_task_is_never_run_again(
    breakable: LocalCluster, api: Api, tmp_path: Path, how: str
) -> None:
    done = str(tmp_path / "done")
    options: dict[str, Any] = {}
    if how == "persisted":
        from prefect.cache_policies import NO_CACHE

        options = {"persist_result": True, "cache_policy": NO_CACHE}
    elif how.startswith("persisted and"):
        options = {"persist_result": True}

    @task(**options)
    def make(number: int) -> np.ndarray:
        note(done, number)
        return np.full(LARGE, number)

    @task
    def total(arrays: list[np.ndarray]) -> int:
        return int(sum(int(array[0]) for array in arrays))

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, int]:
        from prefect.runtime import flow_run

        with hints(durable=how == "durable", batch=False):
            futures = [make.submit(i) for i in range(12)]
        for future in futures:
            future.wait()
        until_settled()
        kill(worker_pids()[0])
        return flow_run.id, total.submit(futures).result()

    reads_before = metrics.value("deepflow_recomputed_total")
    flow_run_id, answer = run()
    assert answer == sum(range(12))
    assert times_noted(done) == {str(i): 1 for i in range(12)}
    assert metrics.value("deepflow_recomputed_total") > reads_before, "nothing was lost"
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 13
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    assert {run["run_count"] for run in runs} == {1}


def test_a_worker_killed_in_the_middle_changes_no_answer_and_leaves_every_run_completed(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    done = str(tmp_path / "done")

    @task
    def square(number: int) -> int:
        time.sleep(0.15)
        note(done, number)
        return number * number

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, list[int]]:
        from prefect.runtime import flow_run

        with hints(durable=True):
            return flow_run.id, square.map(range(30)).result()

    def break_it() -> None:
        until(lambda: len(times_noted(done)) >= 10)
        kill(worker_pids()[0])

    with meanwhile(break_it):
        flow_run_id, answer = run()
    assert answer == [number * number for number in range(30)]
    # One run may die between its mark and its record; nothing that had finished runs twice.
    assert sum(times_noted(done).values()) <= 31
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 30
    assert {run["state_type"] for run in runs} == {"COMPLETED"}


def test_small_results_are_with_the_driver_and_are_not_computed_again(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    done = str(tmp_path / "done")

    @task
    def make(number: int) -> int:
        note(done, number)
        return number

    @task
    def add(one: int, other: int) -> int:
        return one + other

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> list[int]:
        futures = [make.submit(i) for i in range(10)]
        for future in futures:
            future.wait()
        until_settled()
        for pid in worker_pids():
            kill(pid)
        sums = [add.submit(f, futures[0]) for f in futures]
        return [f.result() for f in (*futures, *sums)]

    assert run() == [*range(10), *range(10)]
    assert times_noted(done) == {str(i): 1 for i in range(10)}


def test_lost_large_results_are_computed_again_and_the_ui_says_so(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    done = str(tmp_path / "done")

    @task
    def make(number: int) -> np.ndarray:
        note(done, number)
        return np.full(LARGE, number)

    @task
    def first(array: np.ndarray) -> int:
        return int(array[0])

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, list[int], list[str]]:
        from prefect.runtime import flow_run

        with hints(batch=False):
            futures = make.map(range(8))
        for future in futures:
            future.wait()
        until_settled()
        victim = worker_pids()[0]
        lost = [name for name, pid in noted_by(done).items() if pid == victim]
        kill(victim)
        firsts = first.map(futures)
        # The values themselves can be had, too: some from where they were computed anew.
        assert [int(array[0]) for array in futures.result()] == list(range(8))
        return flow_run.id, firsts.result(), lost

    flow_run_id, answer, lost = run()
    assert answer == list(range(8))
    assert lost
    again = {name for name, count in times_noted(done).items() if count > 1}
    assert again == set(lost)
    runs = api.task_runs(flow_run_id)
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    said = {run["name"] for run in runs if "lost" in (run["state"]["message"] or "")}
    assert said == {f"make-{name}" for name in lost}
    api.until(
        lambda: api.logs(flow_run_id),
        lambda logs: any("run again because the worker" in line for line in logs),
    )


def test_an_isolated_task_dies_with_its_worker_and_is_started_again(
    breakable: LocalCluster, tmp_path: Path
) -> None:
    tries = str(tmp_path / "tries")

    @hints(isolate=True)
    @task
    def apart() -> str:
        note(tries, "try")
        if len(notes(tries)) == 1:
            time.sleep(60)
        return "done"

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> str:
        future = apart.submit()
        until(lambda: notes(tries))
        first = notes(tries)[0].pid
        kill(parent_of(first))
        await_death(first)
        return str(future.result())

    assert run() == "done"
    assert times_noted(tries) == {"try": 2}


def parent_of(pid: int) -> int:
    """The process that started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_silent_worker_counts_as_lost(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: the process is there, its connection open, but nothing comes from it."""
    monkeypatch.setenv("DEEPFLOW_WORKER_SILENCE_S", "5")
    tries = str(tmp_path / "tries")

    @task
    def stalls_at_first() -> str:
        note(tries, "try")
        if sum(times_noted(tries).values()) == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return "done"

    runner = DeepflowTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1})

    @flow(task_runner=runner)
    def run() -> tuple[str, str]:
        from prefect.runtime import flow_run

        return flow_run.id, stalls_at_first.submit().result(timeout=90)

    flow_run_id, answer = run()
    assert answer == "done"
    assert times_noted(tries) == {"try": 2}
    (record,) = api.task_runs(flow_run_id)
    assert record["state_type"] == "COMPLETED"


def test_a_shared_argument_that_was_lost_is_sent_again(
    breakable: LocalCluster, api: Api, tmp_path: Path
) -> None:
    done = str(tmp_path / "done")
    shared = np.arange(100_000)

    @task
    def pick(number: int, table: np.ndarray) -> int:
        time.sleep(0.1)
        note(done, number)
        return int(table[number])

    @flow(task_runner=DeepflowTaskRunner(cluster=breakable))
    def run() -> tuple[str, list[int], list[int]]:
        from prefect import unmapped
        from prefect.runtime import flow_run

        with hints(batch=False):
            first = pick.map(range(20), table=unmapped(shared))
        until(lambda: len(times_noted(done)) >= 4, 60)
        for pid in worker_pids():
            kill(pid)  # no copy is left
        answers = first.result()
        return flow_run.id, answers, pick.map(range(20, 26), table=unmapped(shared)).result()

    sent_before = metrics.value("deepflow_shared_argument_bytes_total")
    flow_run_id, first, second = run()
    assert first == list(range(20))
    assert second == list(range(20, 26))
    sent = metrics.value("deepflow_shared_argument_bytes_total") - sent_before
    assert sent >= 2 * shared.nbytes
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 26
    assert {run["state_type"] for run in runs} == {"COMPLETED"}


def test_a_context_that_the_scheduler_lost_is_sent_again(breakable: LocalCluster, api: Api) -> None:
    @task
    def add(number: int) -> int:
        return number + 1

    runner = DeepflowTaskRunner(cluster=breakable)

    @flow(task_runner=runner)
    def run() -> tuple[int, int]:
        before = add.submit(1).result()
        forget_variables()
        for pid in worker_pids():
            kill(pid)  # new workers have to fetch what the old ones knew
        return before, add.submit(before).result()

    retries_before = metrics.value("deepflow_infra_retries_total", cause="context_missing")
    assert run() == (2, 3)
    retries = metrics.value("deepflow_infra_retries_total", cause="context_missing")
    assert retries > retries_before
