"""`deepflow.testing`, as somebody uses it in tests of flows of their own."""

from __future__ import annotations

import os
import time

import pytest
from prefect import flow, get_client, task

from deepflow import DeepflowTaskRunner, WorkerClass, hints
from deepflow.decide.place.policy import Policy
from deepflow.runner.server import EmbeddedServer
from deepflow.testing import (
    ClusterSpec,
    NoSuchRunError,
    SimWorkerClass,
    Workload,
    deepflow_test_harness,
    pipelines,
    play,
)

CLASSES = [WorkerClass("cpu", count=2), WorkerClass("card", gpu=1)]


@task
def read(number: int) -> int:
    return number


@task
@hints(gpu=1)
def train(numbers: list[int]) -> int:
    return sum(numbers)


@flow(task_runner=DeepflowTaskRunner())
def training() -> int:
    return int(train.submit(read.map(range(4))).result())


def test_a_flow_runs_where_its_hints_say_and_the_test_can_ask(server: EmbeddedServer) -> None:
    before = dict(os.environ)
    began_s = time.time()
    with deepflow_test_harness(CLASSES, server=False) as harness:
        assert training() == 6
        assert harness.worker_class_of("train-0") == "card"
    assert dict(os.environ) == before
    assert not harness.state_dir.exists()
    assert harness.worker_class_of("train-0") == "card"
    ran = harness.workers()
    assert sorted(ran) == ["read-0", "read-1", "read-2", "read-3", "train-0"]
    assert all(harness.worker_class_of(name) in ("cpu", "card") for name in ran)
    assert harness.trail().begin_s >= began_s
    with pytest.raises(NoSuchRunError, match="did you mean 'train-0'"):
        harness.worker_class_of("trian-0")


@pytest.mark.slow
def test_the_harness_has_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with deepflow_test_harness() as harness, get_client(sync_client=True) as client:
        assert training.with_options(name="of its own")
        assert [run.name for run in client.read_flow_runs()] == []

        @flow(task_runner=DeepflowTaskRunner())
        def four() -> list[int]:
            return list(read.map(range(4)).result())

        assert four() == [0, 1, 2, 3]
        assert len(client.read_flow_runs()) == 1
        assert len(client.read_task_runs()) == 4
    assert len(harness.workers()) == 4


class Nearest(Policy):
    """Where the least has to be moved."""

    name = "nearest"

    def score(self, task: object, candidates: object, rng: object) -> list[float]:
        return list(candidates.transfer_s)  # type: ignore[attr-defined]


def test_a_policy_is_played_in_the_simulator() -> None:
    work = Workload("small", (pipelines("run", n_items=6, spread=0.3, n_bytes=1_000_000),))
    cluster = ClusterSpec("two", (SimWorkerClass("slow", 1), SimWorkerClass("fast", 1, speed=2.0)))
    outcome = play(work, cluster, Nearest(), seed=1).outcome
    assert outcome.makespan_s > 0
    assert outcome.makespan_s == play(work, cluster, Nearest(), seed=1).outcome.makespan_s
