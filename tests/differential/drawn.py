"""How a drawn graph is run as a flow. It stands for the user's script: see `cases`.

With `is_copying` each task copies what it is given and what it captured, and the flow copies what
it hands over and reads: so Prefect's threads, which share all of it, show what is right.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
from collections import deque

import numpy as np
import pandas as pd
import torch
from prefect import allow_failure, task, unmapped
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFutureList

from deepflow import DeepflowSerializer
from tests.differential.graphs import ERRORS, HARD_ERRORS, ODD
from tests.integration.notes import note

LARGE = 20_000
assert DeepflowSerializer  # its name is known once it is imported
WAIT_S = 60.0

factor = 1
kept = []


@dataclasses.dataclass
class Holder:
    content: object


class Own(Exception):
    pass


class OwnText(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")


class WithLock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Sizeless:
    def __sizeof__(self):
        raise RuntimeError("not to be weighed")


MAKE = {
    "int": lambda: 3,
    "str": lambda: "text",
    "list": lambda: [1, 2],
    "dict": lambda: {"a": 1, "b": [1]},
    "bytearray": lambda: bytearray(100_000),
    "array": lambda: np.arange(5),
    "large array": lambda: np.arange(float(LARGE)),
    "frame": lambda: pd.DataFrame({"x": [1, 2], "s": ["a", "b"]}),
    "large frame": lambda: pd.DataFrame({"x": np.arange(LARGE), "y": 1.5}),
    "tensor": lambda: torch.arange(4),
    "large tensor": lambda: torch.zeros(LARGE),
    "nested": lambda: {"a": [np.zeros(LARGE), {"b": [1]}]},
    "dataclass": lambda: Holder([np.arange(3), "x"]),
    "aliased": lambda: (lambda inner: {"one": inner, "two": inner})([1]),
}


def touch(value):
    """Write to everything in a value that can be written to."""
    if isinstance(value, list):
        for one in value:
            touch(one)
        value.append("+")
    elif isinstance(value, dict):
        for one in value.values():
            touch(one)
        value["+"] = value.get("+", 0) + 1
    elif isinstance(value, bytearray):
        value[0] = (value[0] + 1) % 256
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        value += 1
    elif isinstance(value, pd.DataFrame):
        value["x"] += 1
    elif isinstance(value, tuple):
        for one in value:
            touch(one)
    elif isinstance(value, Holder):
        touch(value.content)


def told(value, depth=0):
    """A value as text that is the same for the same value."""
    if depth > 6:
        return "..."
    if isinstance(value, (list, tuple)):
        inner = ", ".join(told(one, depth + 1) for one in value)
        name = "list" if isinstance(value, PrefectFutureList) else type(value).__name__
        return f"{name}({inner})"
    if isinstance(value, dict):
        inner = ", ".join(f"{k}: {told(v, depth + 1)}" for k, v in value.items())
        return f"{type(value).__name__}({inner})"
    if isinstance(value, np.ndarray):
        return f"array({value.dtype}, {value.shape}, {value.sum()}, {value.flags.writeable})"
    if isinstance(value, torch.Tensor):
        return f"tensor({value.dtype}, {tuple(value.shape)}, {value.sum()})"
    if isinstance(value, pd.DataFrame):
        return f"frame({list(value.columns)}, {value['x'].sum()}, {len(value)})"
    if isinstance(value, bytearray):
        return f"bytearray({len(value)}, {value[0]})"
    if isinstance(value, Holder):
        return f"Holder({told(value.content, depth + 1)})"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}({value})"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({sorted(value)})"
    if isinstance(value, (int, float, str, bytes, type(None))):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__name__}"


def raise_error(detail, of=ERRORS + HARD_ERRORS):
    name = of[detail % len(of)]
    if name == "KeyError":
        raise KeyError("missing")
    if name == "Own":
        raise Own("mine")
    if name == "ExceptionGroup":
        raise ExceptionGroup("several", [ValueError("one"), Own("two")])
    if name == "FileNotFoundError":
        raise FileNotFoundError(2, "No such file", "/nowhere")
    if name == "OwnText":
        raise OwnText(503, "busy")
    if name == "KeywordOnly":
        raise KeywordOnly(code=7)
    if name == "WithLock":
        raise WithLock("locked")
    raise ValueError("on purpose")


def odd(detail):
    name = ODD[detail % len(ODD)]
    if name == "recursive":
        made = []
        made.append(made)
        return made
    if name == "deep":
        made = None
        for _ in range(150):
            made = {"c": made}
        return made
    return {
        "lambda": lambda x: x,
        "own": Holder(1),
        "set": {1, 2},
        "error": ValueError("a value"),
        "none": None,
        "class": Holder,
        "nan": math.nan,
        "sizeof": Sizeless(),
        "deque": deque([1, 2], maxlen=4),
    }[name]


@task(cache_policy=NO_CACHE)  # else two of equal inputs are one, or not, as their times are
def child(index, inputs, is_copying):
    if is_copying:
        inputs = copy.deepcopy(inputs)
    touch(inputs)
    return told(inputs)


def act(op, detail, inputs, is_copying):
    """What a call does; its result."""
    if is_copying:
        inputs = copy.deepcopy(inputs)
    if op == "write":
        touch(inputs)
        return told(inputs)
    if op == "read":
        return told(inputs)
    if op == "pass":
        return inputs[0] if inputs else detail
    if op == "write and pass":
        touch(inputs)
        return inputs[-1] if inputs else [detail]
    if op == "raise":
        raise_error(detail)
    if op == "odd":
        return odd(detail)
    if op == "global":
        return factor * 10
    if op == "grow":
        mine = list(kept) if is_copying else kept
        mine.append(detail)
        return len(mine)
    if op == "nested":
        seen = [child.submit(i, inputs, is_copying) for i in range(1 + detail % 2)]
        return [told([future.result() for future in seen]), told(inputs)]
    if op == "flaky":
        if TaskRunContext.get().task_run.run_count <= detail % 3:
            raise_error(detail, ERRORS)
        return "at last"
    return threading.Lock()


def work(number, op, detail, inputs, path, is_copying, index=0):
    note(path, f"begin {number}")
    try:
        return act(op, detail, inputs, is_copying)
    finally:
        note(path, f"end {number}")


@task
def step(number, op, detail, inputs, path, is_copying):
    return work(number, op, detail, inputs, path, is_copying)


@task
def step_of_map(index, number, op, detail, inputs, path, is_copying):
    return work(number, op, detail, inputs, path, is_copying, index)


def wrapped(value, how):
    if how == "list":
        return [value, 1]
    if how == "tuple":
        return (value,)
    if how == "dict":
        return {"k": value}
    if how == "dataclass":
        return Holder(value)
    if how == "deeper":
        return {"k": [(value, {"d": 1})]}
    return value


def waiting(futures, how):
    if how == "one":
        return futures[0]
    if how == "tuple":
        return tuple(futures)
    if how == "dict":
        return {str(i): one for i, one in enumerate(futures)}
    if how == "nested":
        return [{"all": [futures]}]
    return futures


def run_graph(graph, path, is_copying):
    """Run a graph; of each node its state, and its value or its error, as text."""
    global factor
    factor = 1
    own = copy.deepcopy if is_copying else lambda value: value
    constants = [MAKE[kind]() for kind in graph.constants]
    given, read, again = {}, {}, {}

    for number, node in enumerate(graph.nodes):
        if node.is_changed_before:
            factor += 1
            touch(constants)
        memo = own(constants)
        inputs = [
            wrapped(
                allow_failure(given[one.number])
                if one.is_failure_allowed and one.of == "node"
                else given[one.number]
                if one.of == "node"
                else memo[one.number],
                one.wrap if not one.is_failure_allowed or one.wrap != "dataclass" else "list",
            )
            for one in node.inputs
        ]
        waits = waiting([given[w] for w in node.waits], node.waits_in) if node.waits else None
        called = step_of_map if node.how == "map" else step
        options = {"retries": node.retries, "name": node.op.replace(" ", "-")}
        if node.keeps:
            options["persist_result"] = True
            if node.keeps == "cached":
                options["cache_policy"] = INPUTS
            else:
                options["result_serializer"] = node.keeps
        called = called.with_options(**options)
        # What is called directly runs in this process and shares all with the flow, as ever.
        arguments = (number, node.op, node.detail, inputs, path, is_copying or node.how == "call")
        if node.how == "map":
            shared = [unmapped(one) for one in arguments]
            given[number] = called.map(range(2), *shared, wait_for=waits)
        elif node.how == "call":
            given[number] = called(*arguments, wait_for=waits, return_state=True)
        elif node.how == "state":
            given[number] = called.submit(*arguments, wait_for=waits, return_state=True)
        else:
            given[number] = called.submit(*arguments, wait_for=waits)
        # Under threads a task reads its globals when it runs: so it runs now.
        if (node.op == "global" and is_copying) or node.keeps == "cached":
            for one in singles(given[number]):
                end(one)
        if node.keeps == "cached":
            again[number] = called.submit(*arguments, wait_for=waits)
            end(again[number])
        if node.is_read:
            read[number] = [result(one, own) for one in singles(given[number])]
            touch([value for value in read[number] if not isinstance(value, Failed)])
    out = []
    for number in range(len(graph.nodes)):
        ends = [end(one) for one in singles(given[number])]
        values = read.get(number) or [result(one, lambda v: v) for one in singles(given[number])]
        out.append([*zip(ends, [shown(value) for value in values], strict=True)])
        if number in again:
            out[-1].append((end(again[number]), shown(result(again[number], lambda v: v))))
    return out


class Failed:
    """Stands for the value of a run that has none."""

    def __init__(self, error):
        self.error = error


def singles(given):
    return list(given) if isinstance(given, list) else [given]


def end(one):
    """The name of the state that a future or a state ends in."""
    if hasattr(one, "wait"):
        one.wait(WAIT_S)
        return one.state.name
    return one.name


def result(one, own):
    try:
        return own(one.result())
    except Exception as exc:  # noqa: BLE001 - it is told
        return Failed(exc)


def shown(value):
    if isinstance(value, Failed):
        try:
            text = str(value.error)
        except Exception:  # noqa: BLE001 - its text is the user's code
            text = "(not to be shown)"
        return f"raised {type(value.error).__name__}: {text}"
    return told(value)
