"""Tiers in real workers: more results than memory, damage on disk, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Status, Worker, wait
from distributed.spill import SpillBuffer
from prefect import flow, task

from deepflow import DeepflowTaskRunner
from deepflow.backend.tiers import TierOptions, install_tiers, tiers_of
from deepflow.backend.transfer.install import Options
from deepflow.intermediates.tiers import TieredStore
from deepflow.runner.options import this_process
from deepflow.runner.worker.plugin import DeepflowWorkerPlugin
from tests.integration.notes import until

N = 1_000_000
LARGE = 42_000_000
"""Numbers of 8 bytes: 336 MB."""
LIMIT = "500MB"
"""Of a worker: results may take 300 MB of it."""


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(N)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None
        ) as made,
    ):
        yield made


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("deepflow-tiers/*") if path.is_file()]


def used(dask_worker: Worker) -> dict[str, int]:
    tiers = tiers_of(dask_worker)
    assert tiers is not None
    return tiers.store.used_bytes()


@pytest.mark.slow
def test_more_than_twice_the_memory_and_every_result_is_right(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path / "state"))

    @task
    def make(seed: int) -> np.ndarray:
        return noise(seed)

    @task
    def add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return one + other

    @task
    def total(array: np.ndarray) -> float:
        return float(array.sum())

    n = 90
    n_damaged = []

    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def pipeline() -> list[float]:
        made = [make.submit(seed) for seed in range(n)]
        for future in made:
            future.wait()
        # A disk that lies: half of what is there by now is damaged or gone.
        for number, path in enumerate(sorted(stored(tmp_path))[::2]):
            if number % 2:
                path.unlink()
            else:
                content = bytearray(path.read_bytes())
                content[len(content) // 3] ^= 1
                path.write_bytes(content)
            n_damaged.append(path)
        added = [add.submit(made[i], made[(i + 1) % n]) for i in range(n)]
        return [future.result() for future in [total.submit(one) for one in added]]

    pids = {worker.process.pid for worker in cluster.workers.values()}
    sums = pipeline()
    assert len(n_damaged) > 5
    for i, found in enumerate(sums):
        assert found == pytest.approx(noise(i).sum() + noise((i + 1) % n).sum(), rel=1e-12)
    assert pids == {worker.process.pid for worker in cluster.workers.values()}  # nobody died
    with Client(cluster) as client:
        client.run(lambda: None)
        assert all(of_worker["heap"] < 350e6 for of_worker in client.run(used).values())
    cluster.close()
    assert stored(tmp_path) == []


def test_a_lost_value_is_computed_again_for_whoever_asks(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with Client(cluster) as client:
        options = TierOptions(memory_bytes=0)
        client.register_plugin(DeepflowWorkerPlugin(this_process(), Options(), options))
        addresses = sorted(client.scheduler_info(n_workers=-1)["workers"])
        made = client.map(noise, range(60), key=[f"noise-{i}" for i in range(60)], retries=2)
        wait(made)
        for path in stored(tmp_path):
            path.unlink()
        # From the other worker, so that each is fetched.
        for i in range(0, 60, 7):
            for address in addresses:
                total = client.submit(np.sum, made[i], workers=[address], pure=False)
                assert total.result(timeout=60) == pytest.approx(noise(i).sum())


def test_a_worker_without_a_limit_or_with_its_own_mapping_keeps_what_it_has() -> None:
    with (
        LocalCluster(n_workers=1, processes=False, memory_limit=0, dashboard_address=None) as made,
        Client(made),
    ):
        (worker,) = made.workers.values()
        assert install_tiers(worker, TierOptions()) is None
        assert type(worker.data) is dict


def test_what_a_worker_holds_already_moves_along(tmp_path: Path) -> None:
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(
            n_workers=1, processes=False, memory_limit="4GB", dashboard_address=None
        ) as made,
        Client(made) as client,
    ):
        (worker,) = made.workers.values()
        assert type(worker.data) is SpillBuffer
        kept = client.submit(noise, 3)
        wait(kept)

        def install(dask_worker: Any) -> bool:
            return install_tiers(dask_worker, TierOptions()) is not None

        assert list(client.run(install).values()) == [True]
        assert isinstance(worker.data, TieredStore)
        assert np.array_equal(kept.result(), noise(3))
        tiers = tiers_of(worker)
        assert tiers is not None
        tiers.close()


@pytest.mark.slow
def test_results_that_take_most_of_a_workers_memory_leave_and_come_back(tmp_path: Path) -> None:
    """One alone makes a worker too large; two would be the end of it."""
    with (
        dask.config.set({"temporary-directory": str(tmp_path)}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="650MB", dashboard_address=None
        ) as made,
        Client(made) as client,
    ):
        client.register_plugin(DeepflowWorkerPlugin(this_process(), None, TierOptions()))
        pids = {worker.process.pid for worker in made.workers.values()}
        results = []
        for seed in range(3):
            results.append(client.submit(large, seed, pure=False))
            wait(results)
            until(lambda: is_empty(client), 60)
        for seed in [0, 1, 2, 1, 0]:
            total = client.submit(np.sum, results[seed], pure=False)
            assert total.result(timeout=60) == pytest.approx(large(seed).sum())
            until(lambda: is_empty(client), 60)
        assert pids == {worker.process.pid for worker in made.workers.values()}


def large(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(LARGE)


def is_empty(client: Client) -> bool:
    """Whether the heap of the only worker is, and it goes on."""
    return list(client.run(has_left_and_goes_on).values()) == [(True, True)]


def has_left_and_goes_on(dask_worker: Worker) -> tuple[bool, bool]:
    heap_bytes = used(dask_worker)["heap"]
    return heap_bytes < LARGE, dask_worker.status == Status.running
