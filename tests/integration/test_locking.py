"""Serialisable transactions of submitted tasks exclude each other, whatever process they run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task
from prefect.cache_policies import INPUTS
from prefect.locking.filesystem import FileSystemLockManager
from prefect.locking.memory import MemoryLockManager
from prefect.transactions import IsolationLevel

from tests.integration.notes import await_note, names, note, until
from tests.integration.parity import run_on

PATIENCE_S = 120.0


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_several_runs_compute_under_a_lock_is_computed_once(
    cluster: LocalCluster, tmp_path: Path, kind: str, is_async: bool
) -> None:
    path = str(tmp_path / "notes")
    lock: Any = (
        MemoryLockManager()
        if kind == "memory"
        else FileSystemLockManager(lock_files_directory=tmp_path / "locks")
    )
    policy = INPUTS.configure(lock_manager=lock, isolation_level=IsolationLevel.SERIALIZABLE)

    def work(key: str) -> str:
        note(path, "computed")
        # Both workers have begun, so the other one is in line for the lock or on its way there.
        await_note(path, "both submitted", PATIENCE_S)
        return key

    async def work_async(key: str) -> str:
        return work(key)

    made: Any = task(work_async if is_async else work).with_options(
        cache_policy=policy, persist_result=True
    )

    def body() -> list[str]:
        futures = [made.submit(str(tmp_path / "result"))]
        if kind == "files":
            # Prefect creates a lock's file and fills it later; who reads it in between fails with
            # `ValueError`. So there are two runs, and the first has its lock before the second.
            until(lambda: "computed" in names(path), PATIENCE_S)
        n_others = 1 if kind == "files" else 3
        futures += [made.submit(str(tmp_path / "result")) for _ in range(n_others)]
        until(lambda: "computed" in names(path), PATIENCE_S)
        note(path, "both submitted")
        return [Path(future.result(timeout=PATIENCE_S)).name for future in futures]

    assert set(run_on(cluster, body).result()) == {"result"}
    assert names(path).count("computed") == 1


def with_a_pool() -> None:
    from multiprocessing import Pool

    with Pool(1) as pool:
        pool.map(int, ["1"])


def with_a_cluster() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0"):
        pass


@pytest.mark.parametrize("fn", [with_a_pool, with_a_cluster])
def test_a_task_that_starts_processes_is_told_why_it_may_not(
    cluster: LocalCluster, fn: Any
) -> None:
    made: Any = task(fn)
    with pytest.raises((AssertionError, RuntimeError)) as raised:
        run_on(cluster, lambda: made.submit().result()).result()
    assert "processes=False" in "".join(raised.value.__notes__)


def test_a_cluster_in_the_workers_own_process_is_fine_in_a_task(cluster: LocalCluster) -> None:
    @task
    def own_cluster() -> int:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=1, processes=False, dashboard_address=None) as own,
            Client(own, set_as_default=False) as client,
        ):
            return int(client.submit(int, 3).result(timeout=PATIENCE_S))

    assert run_on(cluster, lambda: own_cluster.submit().result()).result() == 3
