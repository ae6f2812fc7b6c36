from __future__ import annotations

import asyncio
import pickle
import threading
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow, task

from deepflow.errors import HintError
from deepflow.hints import (
    LABEL_NEED,
    Hints,
    Near,
    current_hints,
    hints,
    label_resource,
    parse_bytes,
    parse_label_resource,
)


@hints(gpu=1, memory="4 GiB")
@task
def above(x: int) -> int:
    return x


@task(retries=2)
@hints(cpu=2, labels={"rack": "a"})
def below(x: int) -> int:
    return x + 1


def test_a_task_carries_its_hints_from_above_and_from_below() -> None:
    assert current_hints(above) == Hints(gpu=1, memory=4 * 1024**3)
    assert current_hints(below) == Hints.of(cpu=2, labels={"rack": "a"})
    assert above.fn(3) == 3
    assert below.retries == 2


def test_hints_survive_with_options_and_cloudpickle() -> None:
    variant = above.with_options(name="other", retries=4)
    assert current_hints(variant) == current_hints(above)
    arrived = cloudpickle.loads(cloudpickle.dumps(variant))
    assert current_hints(arrived) == current_hints(above)
    assert arrived.fn(5) == 5


def test_hints_on_a_variant_do_not_reach_the_task_it_was_made_from() -> None:
    variant = hints(priority=7)(above.with_options(name="urgent"))
    assert current_hints(variant).priority == 7
    assert current_hints(variant).gpu == 1
    assert current_hints(above).priority == 0


def test_a_plain_function_is_not_changed_by_decorating_it() -> None:
    def plain() -> None: ...

    decorated = hints(isolate=True)(plain)
    assert current_hints(decorated).isolate
    assert not current_hints(plain)


def test_an_async_task_stays_async_and_a_method_stays_one() -> None:
    @hints(isolate=True)
    @task
    async def wait(x: int) -> int:
        return x

    class Holder:
        value = 4

        @hints(cpu=1)
        @task
        def read(self, x: int) -> tuple[int, int]:
            return self.value, x

    assert wait.isasync
    assert asyncio.run(wait.fn(3)) == 3
    assert Holder().read.ismethod
    assert current_hints(Holder().read).cpu == 1


def test_stacked_decorators_merge_and_the_outer_one_wins() -> None:
    @hints(cpu=4)
    @hints(cpu=2, priority=1)
    def work() -> None: ...

    assert current_hints(work) == Hints(cpu=4, priority=1)


def test_a_flow_cannot_be_decorated() -> None:
    @flow
    def whole() -> None: ...

    with pytest.raises(HintError, match="not the flow 'whole'"):
        hints(cpu=1)(whole)


@pytest.mark.parametrize("thing", [3, "text", int, [].append])
def test_what_cannot_carry_hints_is_refused(thing) -> None:
    with pytest.raises(HintError, match="cannot decorate"):
        hints(cpu=1)(thing)


def test_a_context_wins_over_the_task_and_an_inner_one_over_an_outer() -> None:
    with hints(gpu=2, labels={"zone": "x"}), hints(priority=5, labels={"rack": "b"}) as inner:
        assert inner == Hints.of(gpu=2, labels={"zone": "x", "rack": "b"}, priority=5)
        assert current_hints(above).gpu == 2
        assert current_hints(below).wanted_labels == {"rack": "b", "zone": "x"}
    assert current_hints(above).gpu == 1
    assert not current_hints()


def test_an_inner_default_said_in_words_undoes_the_outer() -> None:
    with hints(isolate=True, gpu=1, labels={"rack": "a"}):
        with hints(isolate=False, gpu=0, labels={}):
            now = current_hints()
            assert not now.isolate
            assert now.dask_resources() == {}
        assert current_hints().isolate


def test_an_error_inside_a_context_ends_it() -> None:
    with pytest.raises(KeyError), hints(cpu=1):
        raise KeyError
    assert not current_hints()


def test_a_scope_can_be_entered_again_nested_and_from_threads() -> None:
    scope = hints(priority=3)
    with scope, scope:
        assert current_hints().priority == 3
    assert not current_hints()
    seen: list[bool] = []
    with scope:
        thread = threading.Thread(target=lambda: seen.append(bool(current_hints())))
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"gpus": 1}, "unknown hint 'gpus'; did you mean 'gpu'"),
        ({"qqq": 1}, "known are cpu, gpu, memory"),
        ({"gpu": -1}, 'gpu=-1 must be a finite number from 0 on or "soft"'),
        ({"gpu": "hard"}, "gpu='hard'"),
        ({"cpu": 0}, "cpu=0 must be a finite number above 0"),
        ({"cpu": True}, "cpu=True"),
        ({"cpu": float("nan")}, "cpu=nan"),
        ({"memory": "4 foo"}, "'4 foo' is not a size"),
        ({"memory": 0}, "at least one byte"),
        ({"resources": {"A": 0}}, r"resources\['A'\]=0"),
        ({"resources": [1]}, "must be a mapping"),
        ({"labels": {"a b": "c"}}, "'a b' cannot be the name of a label"),
        ({"labels": {"a": 3}}, "cannot be the value of label 'a'"),
        ({"worker_class": "a b"}, "worker_class='a b'"),
        ({"worker_class": "a", "labels": {"class": "b"}}, "contradict"),
        ({"near": 3.0}, "nothing a task can be near"),
        ({"near": "my file.txt"}, r"write \./my file.txt"),
        ({"strict": 1}, "strict=1 must be True or False"),
        ({"batch": "no"}, "batch='no'"),
        ({"priority": 1.5}, "priority=1.5 must be a whole number"),
    ],
    ids=str,
)
def test_an_impossible_hint_is_refused_at_once_with_what_to_do(said, words) -> None:
    with pytest.raises(HintError, match=words):
        hints(**said)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4 GiB", 4 * 1024**3),
        ("500MB", 500_000_000),
        ("1.5kb", 1500),
        ("10", 10),
        (7, 7),
        ("2e3 B", 2000),
    ],
)
def test_sizes_are_read_with_their_units(text, n_bytes) -> None:
    assert parse_bytes(text) == n_bytes


RUN_ID = UUID("0198f2c5-7b11-7c55-9d2f-3b6b1f6a4e20")


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (SimpleNamespace(task_run_id=RUN_ID), Near("future", str(RUN_ID))),
        (Path("a.csv"), Near("path", "a.csv")),
        ("/data/a b.csv", Near("path", "/data/a b.csv")),
        ("./a.csv", Near("path", "./a.csv")),
        ("~/a.csv", Near("path", "~/a.csv")),
        ("data/a.csv", Near("path", "data/a.csv")),
        (r"C:\data", Near("path", r"C:\data")),
        ("file:///data/a%20b", Near("path", "/data/a b")),
        ("node-7", Near("host", "node-7")),
        ("node7.example.org", Near("host", "node7.example.org")),
        ("10.0.0.5:8786", Near("host", "10.0.0.5:8786")),
        ("fe80::1", Near("host", "fe80::1")),
        ("tcp://10.0.0.5:8786", Near("host", "tcp://10.0.0.5:8786")),
        ("s3://bucket/key", Near("url", "s3://bucket/key")),
    ],
    ids=str,
)
def test_what_to_be_near_is_told_apart(thing, expected) -> None:
    assert Near.of(thing) == expected
    assert hints(near=thing).hints.near == (expected,)


def test_several_things_to_be_near_merge_inner_first_without_doubles() -> None:
    outer = Hints.of(near=["h1", "h2"])
    assert [n.value for n in outer.merge(Hints.of(near=("h3", "h1"))).near] == ["h3", "h1", "h2"]
    assert outer.merge(Hints.of(near=())).near == ()


def test_dask_is_told_gpu_resources_labels_and_class() -> None:
    said = Hints.of(
        gpu=2, resources={"LIC": 1}, labels={"rack": "a"}, worker_class="big", cpu=3, memory=10
    )
    assert said.dask_resources() == {
        "GPU": 2.0,
        "LIC": 1.0,
        "deepflow.label.rack:a": LABEL_NEED,
        "deepflow.label.class:big": LABEL_NEED,
    }
    assert Hints(gpu="soft").dask_resources() == {}
    assert Hints(gpu="soft").dask_resources(soft_gpu=1.0) == {"GPU": 1.0}


def test_taking_and_giving_back_a_label_is_exact() -> None:
    free = 1.0
    for _ in range(1000):
        free -= LABEL_NEED
    for _ in range(1000):
        free += LABEL_NEED
    assert free == 1.0


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
said = st.fixed_dictionaries(
    {},
    optional={
        "cpu": st.floats(0.1, 64),
        "gpu": st.one_of(st.floats(0, 8), st.just("soft")),
        "memory": st.integers(1, 2**50),
        "resources": st.dictionaries(words, st.floats(0.1, 9), max_size=3),
        "worker_class": words,
        "labels": st.dictionaries(words.filter(lambda w: w != "class"), words, max_size=3),
        "near": st.lists(words.map(lambda w: "/" + w), max_size=3),
        "strict": st.booleans(),
        "priority": st.integers(-100, 100),
        "isolate": st.booleans(),
        "batch": st.one_of(st.none(), st.booleans()),
        "durable": st.booleans(),
    },
).map(lambda kw: Hints.of(**kw))


@given(said)
def test_hints_survive_pickle_with_equality_and_hash(one: Hints) -> None:
    arrived = pickle.loads(pickle.dumps(one))
    assert arrived == one
    assert hash(arrived) == hash(one)


@given(said, said, said)
def test_merging_is_associative_and_nothing_said_changes_nothing(a, b, c) -> None:
    try:
        left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    except HintError:  # a class and a class label may contradict each other
        return
    if all(x.resources and x.labels and x.near for x in (b, c)):
        assert left == right
    assert a.merge(Hints()) == a == Hints().merge(a)


@given(words, words)
def test_a_label_is_read_back_from_its_resource(key, value) -> None:
    assert parse_label_resource(label_resource(key, value)) == (key, value)
    assert parse_label_resource(key) is None


def test_hints_are_frozen_and_show_only_what_was_said() -> None:
    one = Hints.of(cpu=2)
    with pytest.raises(FrozenInstanceError):
        one.cpu = 3  # type: ignore[misc]
    assert repr(one) == "Hints(cpu=2.0)"
