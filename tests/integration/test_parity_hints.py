"""Dask's annotations and deepflow's hints take effect, on a real cluster of unlike workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, get_worker
from prefect import task

from deepflow import DeepflowTaskRunner, WorkerClass, hints
from deepflow.backend.clusters.local import local_cluster
from deepflow.errors import UnplaceableError
from tests.integration.notes import await_note, names, note
from tests.integration.parity import run_on

CLASSES = (
    WorkerClass("cpu", count=1, labels={"rack": "a"}, resources={"scratch": 1}),
    WorkerClass("gpu", count=1, gpu=1, labels={"rack": "b"}),
)


@task
def where(_: int = 0) -> str:
    return str(get_worker().name)


@pytest.fixture(scope="module")
def unlike(server: object) -> Iterator[Any]:
    """One worker of each class."""
    with local_cluster(CLASSES) as running:
        yield running


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"gpu": 1}, "gpu-0"),
        ({"worker_class": "cpu"}, "cpu-0"),
        ({"worker_class": "gpu"}, "gpu-0"),
        ({"labels": {"rack": "a"}}, "cpu-0"),
        ({"labels": {"rack": "b"}}, "gpu-0"),
        ({"resources": {"scratch": 1}}, "cpu-0"),
    ],
    ids=str,
)
def test_a_hinted_task_runs_where_its_hint_is_met(
    unlike: Any, said: dict[str, Any], expected: str
) -> None:
    def body() -> Any:
        with hints(**said):
            futures = [where.submit() for _ in range(3)]
            mapped = where.map(range(6))
        return {f.result() for f in futures} | set(mapped.result())

    assert run_on(unlike, body).result() == {expected}


def test_a_hint_on_the_task_itself_takes_effect(unlike: Any) -> None:
    on_gpu = hints(gpu=1)(where)
    assert run_on(unlike, lambda: on_gpu.submit().result()).result() == "gpu-0"


def test_a_soft_gpu_is_taken_where_it_is_free_and_not_waited_for(unlike: Any) -> None:
    def body() -> Any:
        with hints(gpu="soft", batch=False):
            alone = where.submit().result()
            return alone, set(where.map(range(12)).result())

    alone, together = run_on(unlike, body).result()
    assert alone == "gpu-0"
    assert together == {"cpu-0", "gpu-0"}


def test_a_soft_gpu_is_a_need_where_dask_places(
    unlike: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> Any:
        with hints(gpu="soft"):
            return set(where.map(range(6)).result())

    monkeypatch.setenv("DEEPFLOW_PLACEMENT", "stock")
    assert run_on(unlike, body).result() == {"gpu-0"}


def test_a_soft_gpu_runs_anywhere_where_there_is_none(cluster: Any) -> None:
    def body() -> Any:
        with hints(gpu="soft"):
            return where.submit().result()

    assert run_on(cluster, body).result() in ("0", "1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"gpu": 2}, r"no worker offers gpu=2 \(largest: gpu=1 on 1 worker\)"),
        ({"worker_class": "gpuu"}, "did you mean 'gpu'"),
        ({"labels": {"rack": "z"}}, "known: a, b"),
        ({"cpu": 64}, r"no worker offers cpu=64 \(largest: threads=1"),
        ({"resources": {"scrach": 1}}, "did you mean 'scratch'"),
        ({"gpu": 1, "labels": {"rack": "a"}}, "together"),
    ],
    ids=str,
)
def test_an_impossible_hint_fails_at_submit_with_the_nearest_offer(
    unlike: Any, said: dict[str, Any], words: str
) -> None:
    def body() -> Any:
        with hints(**said), pytest.raises(UnplaceableError, match=words):
            where.submit()

    run_on(unlike, body).result()


def test_near_a_future_means_on_the_worker_that_holds_it(cluster: Any) -> None:
    @task
    def make(name: str) -> np.ndarray:
        return np.zeros(100_000)

    @task
    def look() -> str:
        return str(get_worker().address)

    def body() -> Any:
        pairs = []
        for address in list(addresses):
            with dask.annotate(workers=[address]):
                made = make.submit(address)
            with hints(near=[made], strict=True):
                pairs.append((address, look.submit().result()))
        return pairs

    with Client(cluster, set_as_default=False) as client:
        addresses = list(client.scheduler_info(n_workers=-1)["workers"])
    assert len(addresses) == 2
    for made_on, ran_on in run_on(cluster, body).result():
        assert ran_on == made_on


@pytest.mark.parametrize("by", ["hint", "annotation"])
def test_a_higher_priority_runs_first_among_the_queued(
    one_slot: Any, tmp_path: Path, by: str
) -> None:
    """Queued: what Dask has not handed to a worker yet. It hands over the first few at once."""
    path = str(tmp_path / "notes")

    @task
    def gate() -> None:
        note(path, "gate")
        await_note(path, "open")

    @task
    def step(name: str) -> None:
        note(path, name)

    def body() -> Any:
        scope = hints if by == "hint" else dask.annotate
        first = gate.submit()
        await_note(path, "gate")
        with scope(priority=20):
            futures = [step.submit("handed over") for _ in range(4)]
        for name, priority in (("low", -10), ("middle", 0), ("high", 10)):
            with scope(priority=priority):
                futures.append(step.submit(name))
        with Client(address, set_as_default=False) as client:
            until_known(client, 1 + len(futures))
        note(path, "open")
        first.result()
        for future in futures:
            future.result()

    address = one_slot.scheduler_address
    run_on(one_slot, body).result()
    assert [n for n in names(path) if n in ("low", "middle", "high")] == ["high", "middle", "low"]


def until_known(client: Client, n_tasks: int) -> None:
    """Wait until the scheduler has this many tasks on its hands."""
    import time

    end_s = time.monotonic() + 120
    while True:
        counts = client.run_on_scheduler(
            lambda dask_scheduler: sum(
                ts.state in ("queued", "processing", "no-worker")
                for ts in dask_scheduler.tasks.values()
            )
        )
        if counts >= n_tasks:
            return
        assert time.monotonic() < end_s, f"{counts} of {n_tasks} known"
        time.sleep(0.05)


def test_dask_annotations_arrive_with_the_task(unlike: Any, tmp_path: Path) -> None:
    """Resources and workers by where it runs; retries by what the scheduler was told."""
    path = str(tmp_path / "notes")

    @task
    def held() -> str:
        note(path, "begins")
        await_note(path, "open")
        return str(get_worker().name)

    def body() -> Any:
        with dask.annotate(resources={"GPU": 1}):
            by_resource = where.submit().result()
        with dask.annotate(workers=["cpu-0"]):
            by_worker = where.submit().result()
        with dask.annotate(retries=7):
            future = held.submit()
        await_note(path, "begins")
        key = future.wrapped_future.key
        with Client(address, set_as_default=False) as client:
            retries = client.run_on_scheduler(
                lambda dask_scheduler: dask_scheduler.tasks[key].retries
            )
        note(path, "open")
        future.result()
        return by_resource, by_worker, retries, key

    address = unlike.scheduler_address
    by_resource, by_worker, retries, key = run_on(unlike, body).result()
    assert (by_resource, by_worker, retries) == ("gpu-0", "cpu-0", 7)
    assert key.startswith("held-")


def test_the_embedded_cluster_of_unlike_workers_is_made_for_the_flow(server: object) -> None:
    runner = DeepflowTaskRunner(local=[WorkerClass("small", count=1), WorkerClass("big", count=1)])

    def body() -> Any:
        with hints(worker_class="big"):
            return set(where.map(range(4)).result())

    assert run_on(runner, body).result() == {"big-0"}
