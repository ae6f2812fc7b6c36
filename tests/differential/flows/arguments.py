"""Arguments are each run's own, whatever they are made of and however large they are."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from prefect import task, unmapped

from tests.differential.cases import BOTH, LARGE, case
from tests.differential.told import each, tell, together


@dataclasses.dataclass
class Model:
    weights: np.ndarray
    step: int = 0


class Array(np.ndarray):
    pass


class Box:
    def __init__(self, content):
        self.content = content


def linear(n):
    module = torch.nn.Linear(n, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    return module


MAKE = {
    "array": lambda n: np.zeros(n),
    "matrix": lambda n: np.zeros((4, n // 2), order="F"),
    "strided": lambda n: np.zeros(2 * n)[::2],
    "structured": lambda n: np.zeros(n, dtype=[("a", "f8"), ("b", "i4")]),
    "masked": lambda n: np.ma.zeros(n),
    "subclass": lambda n: np.zeros(n).view(Array),
    "objects": lambda n: np.array([0.0] * n, dtype=object),
    "frame": lambda n: pd.DataFrame({"x": np.zeros(n), "s": ["a"] * n}),
    "series": lambda n: pd.Series(np.zeros(n), name="x"),
    "tensor": lambda n: torch.zeros(n),
    "parameter": lambda n: torch.nn.Parameter(torch.zeros(n), requires_grad=False),
    "module": lambda n: linear(n),
    "bytearray": lambda n: bytearray(8 * n),
    "list": lambda n: [0.0] * n,
    "dict": lambda n: dict.fromkeys(range(n), 0.0),
    "set": lambda n: set(range(n)),
    "deque": lambda n: deque([0.0] * n),
    "dict of array": lambda n: {"a": np.zeros(n)},
    "list of frame": lambda n: [pd.DataFrame({"x": np.zeros(n)})],
    "dataclass": lambda n: Model(np.zeros(n)),
    "object": lambda n: Box([np.zeros(n)]),
    "nested": lambda n: {"a": [{"b": (torch.zeros(n), [0.0])}]},
    "defaultdict": lambda n: defaultdict(list, {0: [0.0] * n}),
    "counted": lambda n: OrderedDict(a=bytearray(n)),
}
"""Values that can be written to, made from a size."""


def kinds(n):
    """One of each kind."""
    return {kind: make(n) for kind, make in MAKE.items()}


def write(kind, v):
    """Write to a value of a kind; how often that has been done to it, this time included."""
    if kind in ("array", "strided", "masked", "subclass", "objects", "list", "deque"):
        v[0] += 1
        return int(v[0])
    if kind == "matrix":
        v += 1
        return int(v[-1, -1])
    if kind == "structured":
        v["b"] += 1
        return int(v["b"][-1])
    if kind == "frame":
        v["x"] += 1
        v.loc[0, "s"] += "b"
        assert len(v.loc[0, "s"]) == 1 + int(v["x"].iloc[-1])
        return int(v["x"].iloc[-1])
    if kind == "series":
        v += 1
        v.name += "x"
        return len(v.name) - 1
    if kind in ("tensor", "parameter"):
        v += 1
        return int(v[-1])
    if kind == "module":
        with torch.no_grad():
            v.weight += 1
        return int(v.weight[0, -1])
    if kind == "bytearray":
        v[0] += 1
        return v[0]
    if kind == "dict":
        v[0] += 1
        return int(v[0])
    if kind == "set":
        v.add(("one more", len(v)))
        return sum(isinstance(one, tuple) for one in v)
    if kind == "dict of array":
        v["a"] += 1
        return int(v["a"][0])
    if kind == "list of frame":
        v[0]["x"] += 1
        return int(v[0]["x"].iloc[0])
    if kind == "dataclass":
        v.weights += 1
        v.step += 1
        assert v.step == int(v.weights[0])
        return v.step
    if kind == "object":
        v.content[0] += 1
        v.content.append(1)
        assert len(v.content) - 1 == int(v.content[0][0])
        return len(v.content) - 1
    if kind == "nested":
        inner = v["a"][0]["b"]
        inner[0].add_(1)
        inner[1].append(0.0)
        assert len(inner[1]) - 1 == int(inner[0][0])
        return len(inner[1]) - 1
    if kind == "defaultdict":
        v[0][0] += 1
        v["new"].append(1)
        assert len(v["new"]) == int(v[0][0])
        return len(v["new"])
    v["a"][0] += 1
    return v["a"][0]


KINDS = tuple(MAKE)
SOME = ("array", "frame", "series", "tensor", "bytearray", "list", "dataclass", "nested")


def of_each(names, told):
    return dict.fromkeys(names, told)


@task
def write_to(kind, v):
    return write(kind, v)


@task
def write_to_item(i, kind, v):
    return write(kind, v)


@task
def make(kind, n):
    return MAKE[kind](n)


@task
def after(v, kind, _=None):
    return write(kind, v)


@case(of_each(KINDS, [1, 1, 1]), sizes=BOTH)
def runs_that_write_to_one_argument(n):
    values = kinds(n)
    runs = {k: [write_to.submit(k, values[k]) for _ in range(3)] for k in KINDS}
    return each(KINDS, lambda k: [run.result() for run in runs[k]])


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def mapped_runs_that_write_to_what_is_unmapped(n):
    values = kinds(n)
    futures = {k: write_to_item.map(range(12), k, unmapped(values[k])) for k in SOME}
    return each(SOME, lambda k: [max(futures[k].result())] * 2)


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def mapped_runs_that_write_to_one_element(n):
    values = kinds(n)
    futures = {k: write_to.map([k] * 2, [values[k]] * 2) for k in SOME}
    return each(SOME, lambda k: futures[k].result())


@case(of_each(KINDS, [1, 1, 1]), sizes=BOTH)
def consumers_that_write_to_one_result(n):
    made = {k: make.submit(k, n) for k in KINDS}
    runs = {k: [after.submit(made[k], k) for _ in range(3)] for k in KINDS}
    return each(KINDS, lambda k: [run.result() for run in runs[k]])


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def mapped_consumers_that_write_to_one_result(n):
    made = {k: make.submit(k, n) for k in SOME}
    futures = {k: after.map(unmapped(made[k]), k, range(12)) for k in SOME}
    return each(SOME, lambda k: [max(futures[k].result())] * 2)


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def a_consumer_in_a_container_that_writes(n):
    @task
    def inside(box, kind):
        return write(kind, box["v"][0])

    made = {k: make.submit(k, n) for k in SOME}
    return each(SOME, lambda k: [inside.submit({"v": [made[k]]}, k).result() for _ in range(2)])


@case(of_each(SOME, [1, 1, True]), sizes=BOTH)
def a_flow_that_writes_to_a_result(n):
    made = {k: make.submit(k, n) for k in SOME}

    def look(k):
        got = made[k].result()
        there = write(k, got)
        return [there, after.submit(made[k], k).result(), made[k].result() is got]

    return each(SOME, look)


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def a_flow_that_writes_to_an_argument_after_the_submit(n):
    """Each run takes what was at its submit, even one that begins later."""
    first = write_to.submit("list", [0.0])
    values = kinds(n)

    def look(k):
        late = write_to.submit(k, values[k], wait_for=[first])
        write(k, values[k])
        return [late.result(), 1]

    return each(SOME, look)


@case(of_each(KINDS, [0, True]), sizes=BOTH)
def two_equal_arguments_are_two_objects(n):
    @task
    def two(kind, a, b):
        write(kind, a)
        return [write(kind, b) - 1, a is not b]

    return together(KINDS, lambda k: two.submit(k, MAKE[k](n), MAKE[k](n)))


@case(of_each(SOME, [0, True]), sizes=BOTH)
def two_equal_values_in_one_argument_are_two_objects(n):
    @task
    def two(kind, box):
        write(kind, box["a"])
        return [write(kind, box["b"][0]) - 1, box["a"] is not box["b"][0]]

    return together(SOME, lambda k: two.submit(k, {"a": MAKE[k](n), "b": [MAKE[k](n)]}))


@case(of_each(KINDS, [2, True]), sizes=BOTH)
def one_object_in_two_arguments_stays_one(n):
    @task
    def two(kind, a, box):
        write(kind, a)
        return [write(kind, box["b"]), a is box["b"]]

    def look(k):
        value = MAKE[k](n)
        return two.submit(k, value, {"b": value})

    return together(KINDS, look)


@case(of_each(SOME, [2, True]), sizes=BOTH)
def one_result_in_two_arguments_stays_one(n):
    @task
    def two(kind, a, box):
        write(kind, a)
        return [write(kind, box["b"]), a is box["b"]]

    made = {k: make.submit(k, n) for k in SOME}
    return together(SOME, lambda k: two.submit(k, made[k], {"b": made[k]}))


@case(of_each(SOME, [1, 1]), sizes=BOTH)
def an_argument_that_comes_back_is_apart_from_what_was_passed(n):
    @task
    def ident(v):
        return v

    def look(k):
        value = MAKE[k](n)
        back = ident.submit(value)
        write(k, back.result())
        return [write(k, value), after.submit(back, k).result()]

    return each(SOME, look)


@case(of_each(SOME, [1, 2]), sizes=(LARGE,))
def a_result_that_is_an_argument_passed_on(n):
    """A run that returns what it was given, changed, changes nobody's but its own."""

    @task
    def grow(kind, v):
        write(kind, v)
        return v

    made = {k: make.submit(k, n) for k in SOME}
    grown = {k: grow.submit(k, made[k]) for k in SOME}
    return each(
        SOME,
        lambda k: [
            after.submit(made[k], k).result(),
            after.submit(grown[k], k).result(),
        ],
    )


@case({"array": False, "in a dict": False, "frozen": True, "view": [False, True]}, sizes=BOTH)
def what_is_read_only_stays_so_and_nothing_else_becomes_so(n):
    def frozen():
        array = np.zeros(n)
        array.flags.writeable = False
        return array

    @task
    def readonly(v):
        if isinstance(v, dict):
            v = v["v"]
        if isinstance(v, list):
            return [not one.flags.writeable for one in v]
        return not v.flags.writeable

    values = {
        "array": np.zeros(n),
        "in a dict": {"v": np.zeros(n)},
        "frozen": frozen(),
        "view": [np.zeros(n), frozen()],
    }
    return {k: tell(lambda k=k: readonly.submit(values[k]).result()) for k in values}


@case([(1, (2, 3), 10, {"x": 4}), (1, (), 0, {}), [5, 6]], sizes=())
def all_ways_to_pass_arguments():
    @task
    def collect(first, *rest, scale=0, **named):
        return (first, rest, scale, named)

    @task
    def only(first, /, *, second):
        return [first, second]

    return [
        collect.submit(1, 2, 3, scale=10, x=4).result(),
        collect.submit(1).result(),
        only.submit(5, second=6).result(),
    ]


@case(
    {
        "tensor": "Tensor",
        "sparse": "Tensor",
        "csr": "Tensor",
        "conjugated": "Tensor",
        "negated": "Tensor",
        "expanded": "Tensor",
        "meta": "Tensor",
        "bfloat16": "Tensor",
        "non-leaf": "Tensor",
        "module with sparse": "Module",
        "frame of local objects": "DataFrame",
        "frame with lambdas": "DataFrame",
        "object array of functions": "ndarray",
        "table": "Table",
        "range": "range",
        "str": "str",
        "int": "int",
        "memoryview of a field": "ndarray",
        "big endian": "ndarray",
    },
    sizes=BOTH,
)
def odd_kinds_arrive(n):
    class Local:
        pass

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("graph", torch.eye(side).to_sparse())

    side = max(2, int(n**0.5))
    values: dict[str, Any] = {
        "tensor": torch.zeros(n),
        "sparse": torch.eye(side).to_sparse(),
        "csr": torch.eye(side).to_sparse_csr(),
        "conjugated": torch.zeros(n, dtype=torch.complex64).conj(),
        "negated": torch.zeros(n, dtype=torch.complex64).conj().imag,
        "expanded": torch.zeros(1).expand(n),
        "meta": torch.zeros(n, device="meta"),
        "bfloat16": torch.zeros(n, dtype=torch.bfloat16),
        "non-leaf": torch.ones(n, requires_grad=True) * 2,
        "module with sparse": Module(),
        "frame of local objects": pd.DataFrame({"a": [Local() for _ in range(n)]}),
        "frame with lambdas": pd.DataFrame({"a": [lambda: 1] * n}),
        "object array of functions": np.array([lambda: 1] * n, dtype=object),
        "table": pa.table({"a": range(n)}),
        "range": range(n),
        "str": "x" * n,
        "int": 10**n if n < 1000 else 10**4000,
        "memoryview of a field": np.zeros(n, dtype=[("a", "f8"), ("b", "i4")])["b"],
        "big endian": np.zeros(n, dtype=">f8"),
    }

    @task
    def what(v):
        return type(v).__name__

    return {k: tell(lambda k=k: what.submit(values[k]).result()) for k in values}


@case(None)
def a_large_tensor_that_needs_a_gradient_trains():
    @task
    def train(weights):
        (weights * 2).sum().backward()
        return float(weights.grad[0])

    weights = torch.zeros(LARGE, requires_grad=True)
    got = [train.submit(weights).result() for _ in range(2)]
    return None if got == [2.0, 2.0] else got


@case([0.0, 5.0])
def a_copy_within_the_task_is_writable():
    @task
    def add(v):
        other = copy.deepcopy(v)
        other += 5
        return [float(v[0]), float(other[0])]

    return add.submit(np.zeros(LARGE)).result()
