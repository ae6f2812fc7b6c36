"""Persisted and cached results: found again, equal, and by whoever looks for them."""

from __future__ import annotations

import dataclasses
import tempfile
import uuid
from datetime import timedelta

import numpy as np
import pandas as pd
import torch
from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE, TASK_SOURCE
from prefect.task_runners import ThreadPoolTaskRunner

from deepflow import DeepflowSerializer
from tests.differential.cases import BOTH, case
from tests.differential.told import each, ended
from tests.integration.notes import note, times_noted

assert DeepflowSerializer  # its name is known once it is imported
SERIALIZERS = ("pickle", "deepflow", "compressed/pickle")


@dataclasses.dataclass
class Price:
    value: float


def _notes():
    return tempfile.mkdtemp(prefix="deepflow-differential-") + "/notes"


VALUES = {
    "list": lambda n: [1.5] * n,
    "array": lambda n: np.arange(float(n)),
    "frame": lambda n: pd.DataFrame({"x": range(n), "s": ["a"] * n}),
    "tensor": lambda n: torch.arange(n).to(torch.bfloat16),
    "own": lambda n: Price(1.5),
    "function": lambda n: lambda: n,
    "nothing": lambda n: None,
}


def _look(value):
    if callable(value):
        return ["function", value()]
    if isinstance(value, Price):
        return [type(value).__name__, value.value]
    return [type(value).__name__, len(value) if value is not None else 0]


LOOKED = {name: make(10) for name, make in VALUES.items()}


def _seen(n):
    return {s: {k: _look(make(n)) for k, make in VALUES.items()} for s in SERIALIZERS}


def _check(found):
    n, seen, again, ran = found
    if seen != _seen(n) or again != _seen(n):
        return f"first {seen}\nagain {again}"
    wrong = {k: v for k, v in ran.items() if v != 1}
    return f"ran {wrong}" if wrong else None


@case(_check, sizes=BOTH)
def persisted_results_are_found_again(n):
    path = _notes()
    seen, again = {}, {}
    for name in SERIALIZERS:

        @task(persist_result=True, result_serializer=name, cache_policy=INPUTS)
        def kept(kind, n, path, name):
            note(path, f"{kind} {name}")
            return VALUES[kind](n)

        def result(kind, kept=kept, name=name):
            return _look(kept.submit(kind, n, path, name).result())

        seen[name] = each(VALUES, result)
        again[name] = each(VALUES, result)
    return n, seen, again, times_noted(path)


@case(["Completed", "Cached", "Completed", 2, [1, 1, 1]])
def caching_by_inputs():
    path = _notes()

    @task(persist_result=True, cache_policy=INPUTS)
    def kept(x, path):
        note(path, "ran")
        return x

    first = kept.submit(1, path)
    states = [ended(first)]
    states.append(ended(kept.submit(1, path)))
    states.append(ended(kept.submit(2, path)))
    ran = times_noted(path)["ran"]
    return [*states, ran, kept.map([1, 1, 1], [path] * 3).result()]


@case([[5, 5], 1, 2, 1])
def cache_keys_and_refreshing():
    path, key = _notes(), uuid.uuid4().hex
    key_of = lambda *_: key  # noqa: E731

    @task(persist_result=True, cache_key_fn=key_of, cache_expiration=timedelta(hours=1))
    def kept(x):
        note(path, "ran")
        return x

    out = [[kept.submit(5).result(), kept.submit(6).result()], times_noted(path)["ran"]]
    kept.with_options(refresh_cache=True).submit(7).result()
    out.append(times_noted(path)["ran"])
    gone = _notes()

    @task(persist_result=False, cache_policy=NO_CACHE)
    def not_kept():
        note(gone, "ran")

    not_kept.submit().result()
    return [*out, times_noted(gone)["ran"]]


@case([2, 2])
def a_cache_of_the_source():
    path = _notes()

    def make(n):
        @task(persist_result=True, cache_policy=INPUTS + TASK_SOURCE)
        def kept(path):
            note(path, n)
            return 2

        return kept

    return [make(1).submit(path).result(), make(2).submit(path).result()]


@case([1, 1])
def equal_large_inputs_are_one_cache_key():
    path = _notes()

    @task(persist_result=True, cache_policy=INPUTS)
    def kept(v, path):
        note(path, "ran")
        return int(v[0])

    out = [kept.submit(np.ones(40_000), path).result() for _ in range(2)]
    return [out[1], times_noted(path)["ran"]]


@case([[1, 2], 1])
def a_persisted_result_is_each_consumers_own():
    @task(persist_result=True)
    def make():
        return [1]

    @task
    def write(v):
        v.append(2)
        return v

    made = make.submit()
    return [write.submit(made).result(), len(made.result())]


@case(["a stored one", "a stored one"])
def what_a_custom_key_names():
    key = uuid.uuid4().hex

    @task(persist_result=True, result_storage_key=f"differential-{key}")
    def stored(x):
        return x

    return [stored.submit("a stored one").result(), stored.submit("another").result()]


@case({"pickle": [1, 1], "deepflow": [1, 1]}, is_whole=True)
def records_are_found_by_prefects_own_runner_and_back(runner):
    out = {}
    for name in ("pickle", "deepflow"):
        out[name] = []
        for order in (lambda: (runner(), _threads()), lambda: (_threads(), runner())):
            path, key = _notes(), uuid.uuid4().hex

            @task(persist_result=True, result_serializer=name, cache_key_fn=lambda *_: key)
            def kept(path):
                note(path, "ran")
                return [1, 2]

            for one in order():
                got = flow(lambda: kept.submit(path).result(), name="f", task_runner=one)()  # noqa: B023
                assert got == [1, 2]
            out[name].append(times_noted(path)["ran"])
    return out


def _threads():
    return ThreadPoolTaskRunner(max_workers=2)


@case({"INPUTS": [1, 1], "flow parameters": [1, 1]}, is_whole=True)
def records_are_found_in_the_next_flow_run(runner):
    from prefect.cache_policies import FLOW_PARAMETERS

    out = {}
    for name, policy in {"INPUTS": INPUTS, "flow parameters": FLOW_PARAMETERS}.items():
        path = _notes()

        @task(persist_result=True, cache_policy=policy)
        def kept(path):
            note(path, "ran")
            return np.arange(40_000)

        def body(path):
            return int(kept.submit(path).result()[1])

        got = [flow(body, name="f", task_runner=runner())(path) for _ in range(2)]
        out[name] = [got[1], times_noted(path)["ran"]]
    return out
