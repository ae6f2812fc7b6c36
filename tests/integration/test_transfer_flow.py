"""Results of Prefect tasks between workers of one host, and to the driver, without a copy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from distributed import get_worker
from prefect import flow, task

from deepflow import DeepflowTaskRunner
from deepflow.backend.transfer.install import transfer_of

N = 500_000


@task
def make(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(N)


@task
def total(array: np.ndarray) -> tuple[float, int, bool]:
    array[0] = 0.0
    transfer = transfer_of(get_worker())
    assert transfer is not None
    key_shared = any(
        transfer.sender.is_shared(key) for key in transfer.worker.data if "make" in str(key)
    )
    return float(array.sum()), os.getpid(), key_shared


def test_results_lie_in_shared_memory_and_can_be_written_by_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_SHARED_MEMORY", str(tmp_path))
    monkeypatch.setenv("DEEPFLOW_PLACEMENT", "stock")

    @flow(task_runner=DeepflowTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1}))
    def pipeline() -> tuple[list[tuple[float, int, bool]], list[bool]]:
        # The driver is a neighbour too: from its first fetch on, results are laid in the folder.
        assert np.array_equal(make.submit(0).result(), np.random.default_rng(0).random(N))
        assert np.array_equal(make.submit(1).result(), np.random.default_rng(1).random(N))
        made = [make.submit(seed) for seed in range(2, 8)]
        for one in made:
            one.wait()
        is_mapped = [one.result().base is not None for one in made]
        return [total.submit(one).result() for one in made], is_mapped

    totals, is_mapped = pipeline()
    for seed, (seen, _, _) in enumerate(totals, start=2):
        wanted = np.random.default_rng(seed).random(N)
        wanted[0] = 0.0
        assert seen == pytest.approx(wanted.sum(), rel=1e-12)
    assert all(is_mapped)
    assert any(shared for _, _, shared in totals)
    assert list(tmp_path.iterdir()) == []
