from __future__ import annotations

import pickle

import pytest

from deepflow.decide.model import WorkerClass, WorkerOffer
from deepflow.decide.offers import impossible, soft_gpu
from deepflow.errors import ConfigurationError
from deepflow.hints import Hints

GIB = 1024**3


def worker(of: WorkerClass, *, name: str = "w", memory_bytes: int | None = GIB) -> WorkerOffer:
    return WorkerOffer(name, of.dask_resources(), of.threads, memory_bytes)  # type: ignore[arg-type]


OFFERS = (
    *(
        worker(WorkerClass("gpu", gpu=1, threads=2, labels={"rack": "a"}), name=f"g{i}")
        for i in range(3)
    ),
    worker(WorkerClass("cpu", threads=8, resources={"LIC": 2}), memory_bytes=8 * GIB),
)


@pytest.mark.parametrize(
    "said",
    [
        {"gpu": 1},
        {"gpu": 0.5},
        {"gpu": "soft"},
        {"gpu": 0},
        {"cpu": 8, "memory": "8 GiB"},
        {"worker_class": "gpu", "cpu": 2},
        {"labels": {"rack": "a"}},
        {"resources": {"LIC": 2}},
        {},
    ],
    ids=str,
)
def test_what_some_worker_has_is_possible(said) -> None:
    assert impossible(Hints.of(**said), OFFERS) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"gpu": 2},
            "no worker offers gpu=2 (largest: gpu=1 on 3 workers); "
            "lower the need or add a worker class",
        ),
        (
            {"cpu": 9},
            "no worker offers cpu=9 (largest: threads=8 on 1 worker); "
            "lower cpu or add a worker class with more threads",
        ),
        (
            {"memory": "12 GiB"},
            "no worker offers memory=12 GiB (largest: memory=8 GiB on 1 worker); "
            "lower memory or add a worker class with more",
        ),
        (
            {"worker_class": "gppu"},
            "no worker offers worker_class='gppu' (known: cpu, gpu); did you mean 'gpu'?",
        ),
        (
            {"labels": {"zone": "z"}},
            "no worker offers label zone='z' (no worker has a label 'zone'); "
            "leave it out or give workers the label 'zone'",
        ),
        (
            {"resources": {"LICE": 1}},
            "no worker offers LICE=1 (none has any; there is 'LIC'); did you mean 'LIC'?",
        ),
        (
            {"gpu": 1, "memory": "4 GiB"},
            "no worker offers gpu=1, memory=4 GiB together "
            "(with gpu=1: largest: memory=1 GiB on 3 workers); "
            "drop one of these needs or add a worker class that meets them all",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_none_has_is_refused_naming_the_nearest_on_offer(said, reason) -> None:
    refused = impossible(Hints.of(**said), OFFERS)
    assert refused is not None
    assert refused.reason == reason
    assert refused.nearest_offer is not None
    assert pickle.loads(pickle.dumps(refused)) == refused


def test_with_no_worker_yet_nothing_is_impossible() -> None:
    assert impossible(Hints(gpu=4), ()) is None


def test_a_worker_without_a_memory_limit_has_enough() -> None:
    unlimited = worker(WorkerClass("a"), memory_bytes=None)
    assert impossible(Hints(memory=10**15), (unlimited,)) is None


@pytest.mark.parametrize(
    ("gpus", "need"), [((), 0.0), ((0, 0), 0.0), ((0, 2), 1.0), ((0.5, 0.25), 0.5)]
)
def test_a_soft_gpu_is_needed_only_if_someone_has_one(gpus, need) -> None:
    offers = [worker(WorkerClass("c", gpu=gpu)) for gpu in gpus]
    assert soft_gpu(offers) == need


def test_a_worker_class_is_a_hashable_value_that_survives_pickle() -> None:
    one = WorkerClass("a", memory="2 GiB", labels={"z": "1", "a": "2"}, resources={"R": 1})  # type: ignore[arg-type]
    assert one.memory == 2 * GIB
    assert one.labels == (("a", "2"), ("z", "1"))
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(
        WorkerClass("a", memory=2 * GIB, labels={"a": "2", "z": "1"}, resources={"R": 1.0})  # type: ignore[arg-type]
    )
    assert WorkerClass("a", count=2).worker_names() == ("a-0", "a-1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"name": "a b"}, "worker class 'a b'"),
        ({"memory": "x"}, "worker class 'a': 'x' is not a size"),
        ({"threads": 0}, "threads=0; give a whole number from 1 on"),
        ({"count": -1}, "count=-1"),
        ({"gpu": -1}, "gpu=-1"),
        ({"gpu": 1, "resources": {"GPU": 1}}, "say one of them"),
        ({"labels": {"class": "q"}}, "the class's own name"),
        ({"resources": [1]}, "give a mapping"),
        ({"resources": {"a=b": 1}}, "use text without spaces"),
    ],
    ids=str,
)
def test_an_impossible_worker_class_is_refused(said, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        WorkerClass(**{"name": "a", **said})
