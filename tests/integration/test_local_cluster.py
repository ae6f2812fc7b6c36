"""Clusters on this machine, with real worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import dask
import pytest
from distributed import Client, Worker, get_worker

from deepflow.backend.clusters import local
from deepflow.backend.clusters.local import UnlikeWorkersCluster, local_cluster
from deepflow.decide.model import WorkerClass
from deepflow.errors import ConfigurationError
from deepflow.hints import Hints

CLASSES = (
    WorkerClass("cpu", count=2, threads=1, memory="400 MiB", labels={"rack": "a"}),
    WorkerClass(
        "gpu", count=1, threads=2, memory="500 MiB", gpu=1, labels={"rack": "b", "zone": "x"}
    ),
)


def where(_: int = 0) -> str:
    return str(get_worker().name)


def identity(dask_worker: Worker) -> tuple[str, int]:
    return str(dask_worker.name), os.getpid()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(CLASSES) as cluster, Client(cluster) as client:
        yield client


def workers_used(client: Client, hints: Hints, n_tasks: int = 12) -> set[str]:
    with dask.annotate(resources=hints.dask_resources()):
        futures = client.map(where, range(n_tasks), pure=False)
    return set(client.gather(futures))


def test_every_worker_is_a_process_of_its_own_with_its_class_in_its_name(client: Client) -> None:
    answers = client.run(identity)
    assert {name for name, _ in answers.values()} == {"cpu-0", "cpu-1", "gpu-0"}
    pids = {pid for _, pid in answers.values()}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_threads_memory_resources_and_labels_are_those_of_the_class(client: Client) -> None:
    by_name = {w["name"]: w for w in client.scheduler_info(n_workers=-1)["workers"].values()}
    assert by_name["cpu-1"]["nthreads"] == 1
    assert by_name["cpu-1"]["memory_limit"] == 400 * 1024**2
    assert by_name["gpu-0"]["nthreads"] == 2
    assert by_name["gpu-0"]["memory_limit"] == 500 * 1024**2
    assert by_name["gpu-0"]["resources"] == {
        "GPU": 1.0,
        "deepflow.label.class:gpu": 1.0,
        "deepflow.label.rack:b": 1.0,
        "deepflow.label.zone:x": 1.0,
    }


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ({"gpu": 1}, {"gpu-0"}),
        ({"worker_class": "gpu"}, {"gpu-0"}),
        ({"worker_class": "cpu"}, {"cpu-0", "cpu-1"}),
        ({"labels": {"rack": "a"}}, {"cpu-0", "cpu-1"}),
        ({"labels": {"rack": "b", "zone": "x"}}, {"gpu-0"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_task_lands_only_where_its_hints_are_met(
    client: Client, said: dict[str, object], allowed: set[str]
) -> None:
    assert workers_used(client, Hints.of(**said)) <= allowed


def test_a_task_for_a_class_without_workers_waits_rather_than_run_elsewhere(
    client: Client,
) -> None:
    with dask.annotate(resources=Hints.of(worker_class="tpu").dask_resources()):
        homeless = client.submit(where, pure=False)
    with dask.annotate(resources=Hints.of(worker_class="cpu").dask_resources()):
        client.submit(where, pure=False).result()  # a later one went through the scheduler
    assert not homeless.done()
    homeless.cancel()


def test_many_tasks_of_one_label_run_side_by_side_on_one_worker(client: Client) -> None:
    def meet(mine: str, other: str) -> bool:
        from distributed import Event

        Event(mine).set()
        return bool(Event(other).wait(timeout=20))

    with dask.annotate(resources=Hints.of(labels={"zone": "x"}).dask_resources()):
        futures = [
            client.submit(meet, "one", "two", pure=False),
            client.submit(meet, "two", "one", pure=False),
        ]
    assert client.gather(futures) == [True, True]


def test_native_libraries_get_one_thread_per_worker(client: Client) -> None:
    said = client.run(lambda: os.environ["OMP_NUM_THREADS"])
    assert set(said.values()) == {os.environ["OMP_NUM_THREADS"]}


def test_a_number_alone_cannot_scale_unlike_workers(client: Client) -> None:
    cluster = client.cluster
    assert isinstance(cluster, UnlikeWorkersCluster)
    with pytest.raises(ConfigurationError, match=r"classes cpu, gpu.*set the count"):
        cluster.scale(5)
    with pytest.raises(ConfigurationError, match="adapt_kwargs"):
        cluster.adapt(minimum=1)


def test_without_classes_every_core_gets_a_process() -> None:
    with local_cluster() as cluster, Client(cluster) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert len(workers) == min(local.CPU_COUNT, local.MAX_PROCESSES)
        assert sum(w["nthreads"] for w in workers) >= local.CPU_COUNT
        assert all(0 < w["memory_limit"] <= local.MEMORY_LIMIT for w in workers)
        pids = {pid for _, pid in client.run(identity).values()}
        assert os.getpid() not in pids


def test_the_arguments_of_a_local_cluster_are_passed_on() -> None:
    with local_cluster(n_workers=1, threads_per_worker=3, processes=False) as cluster:
        assert [w.state.nthreads for w in cluster.workers.values()] == [3]


@pytest.mark.parametrize(
    ("classes", "kwargs", "message"),
    [
        ([], {}, "no worker among them"),
        ([WorkerClass("a", count=0)], {}, "no worker among them"),
        ([WorkerClass("a"), WorkerClass("a")], {}, "two worker classes are named 'a'"),
        (["gpu"], {}, "'gpu' is no worker class"),
        ([WorkerClass("a", memory="900 TiB")], {}, "this machine has .* GiB"),
        ([WorkerClass("a")], {"n_workers": 3}, "n_workers=3 contradicts .* 'count'"),
        ([WorkerClass("a")], {"processes": False}, "need a process each"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    classes: list[WorkerClass], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        local_cluster(classes, **kwargs)
