"""Results that are odd: each run is executed once, ends in one state, and its value arrives."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import math
import os
import tempfile
import threading
from collections import Counter, deque, namedtuple
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from prefect import task
from prefect.states import Cancelled, Completed, Failed

from tests.differential.cases import BOTH, LARGE, case
from tests.differential.told import each, ended, tell
from tests.integration.notes import note, times_noted

Pair = namedtuple("Pair", "left right")


class Colour(enum.Enum):
    RED = 1


class SizeofRaises:
    def __sizeof__(self):
        raise RuntimeError("not to be weighed")


class SizeofLies:
    def __sizeof__(self):
        return -5


class SizeofHuge:
    def __sizeof__(self):
        return 1 << 60


class LenRaises:
    def __len__(self):
        raise RuntimeError("not to be counted")


class BoolRaises:
    def __bool__(self):
        raise RuntimeError("not to be asked")


class EqRaises:
    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


class ReprRaises:
    def __repr__(self):
        raise RuntimeError("not to be shown")


class GetattrRaises:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"not to be asked for {name}")


class GetattrGivesAll:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: 1


class LenHuge:
    def __len__(self):
        return 1 << 40

    def __iter__(self):
        raise RuntimeError("not to be walked")


class Unhashable(dict):
    __hash__ = None


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: int


def deep(n):
    made = None
    for _ in range(n):
        made = {"c": made}
    return made


def deep_list(n):
    made = []
    for _ in range(n):
        made = [made]
    return made


def recursive_list():
    made = []
    made.append(made)
    return made


def recursive_dict():
    made = {}
    made["me"] = [made]
    return made


def recursive_object():
    made = Node()
    made.me = made
    return made


class Node:
    pass


def linked(n):
    first = None
    for _ in range(n):
        node = Node()
        node.next = first
        first = node
    return first


MAKE = {
    "deep dict": lambda: deep(200),
    "deep list": lambda: deep_list(200),
    "recursive list": recursive_list,
    "recursive dict": recursive_dict,
    "recursive object": recursive_object,
    "linked": lambda: linked(100),
    "sizeof raises": SizeofRaises,
    "sizeof lies": SizeofLies,
    "sizeof huge": SizeofHuge,
    "sizeof raises inside": lambda: {"a": [SizeofRaises()]},
    "len raises": LenRaises,
    "len huge": LenHuge,
    "bool raises": BoolRaises,
    "eq raises": EqRaises,
    "repr raises": ReprRaises,
    "getattr raises": GetattrRaises,
    "getattr gives all": GetattrGivesAll,
    "unhashable": Unhashable,
    "a class": lambda: Node,
    "a function": lambda: deep,
    "a lambda": lambda: lambda x: x + 1,
    "an error": lambda: ValueError("a value"),
    "an error type": lambda: ValueError,
    "an iterator": lambda: iter([1, 2]),
    "a set": lambda: {1, 2},
    "a frozenset": lambda: frozenset([1]),
    "a deque": lambda: deque([1], maxlen=3),
    "a counter": lambda: Counter("aab"),
    "a named tuple": lambda: Pair(1, 2),
    "an enum": lambda: Colour.RED,
    "slotted": lambda: Slotted(1),
    "a decimal": lambda: decimal.Decimal("1.10"),
    "a fraction": lambda: Fraction(1, 3),
    "a date": lambda: datetime(2024, 1, 1, tzinfo=UTC),
    "a path": lambda: Path("/tmp"),
    "nothing": lambda: None,
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "nan": lambda: math.nan,
    "a complex": lambda: 1j,
    "a large int": lambda: 10**5000,
    "a memory view": lambda: bytes(3),
    "a numpy scalar": lambda: np.float32(1),
    "a zero-dimensional array": lambda: np.array(1),
    "an empty array": lambda: np.zeros((0, 3)),
    "an empty frame": lambda: pd.DataFrame(),
    "a slice": lambda: slice(1, 2),
    "a range": lambda: range(3),
    "bytes": lambda: bytes(100_000),
}
"""By name: what makes a value that is odd in some way, but can be pickled."""


@task
def make(kind, path):
    note(path, kind)
    return MAKE[kind]()


@task
def use(v):
    return type(v).__name__


def _notes():
    return tempfile.mkdtemp(prefix="deepflow-differential-") + "/notes"


def _type_name(kind):
    return type(MAKE[kind]()).__name__


EXPECTED = {kind: [_type_name(kind), "Completed", 1] for kind in MAKE}


@case(EXPECTED)
def odd_results_arrive_and_are_made_once():
    path = _notes()
    made = {kind: make.submit(kind, path) for kind in MAKE}
    types = each(MAKE, lambda kind: type(made[kind].result()).__name__)
    return {k: [types[k], ended(made[k]), times_noted(path)[k]] for k in MAKE}


@case({kind: _type_name(kind) for kind in MAKE})
def odd_results_are_used_elsewhere():
    path = _notes()
    made = {kind: make.submit(kind, path) for kind in MAKE}
    used = {kind: [use.submit(made[kind]) for _ in range(2)] for kind in MAKE}

    def one(kind):
        (found,) = {future.result() for future in used[kind]}
        return found

    return each(MAKE, one)


@case({kind: _type_name(kind) for kind in MAKE})
def odd_values_are_arguments():
    return each(MAKE, lambda kind: use.submit(MAKE[kind]()).result())


@case(dict.fromkeys(MAKE, "Completed"))
def odd_values_are_elements_of_a_map():
    used = use.map([MAKE[kind]() for kind in MAKE])
    return {kind: ended(future) for kind, future in zip(MAKE, used, strict=True)}


class Locked:
    def __init__(self):
        self.lock = threading.Lock()


class ReduceRaises:
    def __reduce__(self):
        raise RuntimeError("not to be pickled")


class SetstateRaises:
    def __init__(self):
        self.x = 1

    def __setstate__(self, state):
        raise RuntimeError("not to be made again")


class ReduceWrong:
    def __reduce__(self):
        return 42


CANNOT_TRAVEL = {
    "a lock": threading.Lock,
    "a lock in a list": lambda: [threading.Lock(), bytes(LARGE * 5)],
    "an object with a lock": Locked,
    "reduce raises": ReduceRaises,
    "setstate raises": SetstateRaises,
    "reduce is wrong": ReduceWrong,
    "an open file": lambda: open(os.devnull),  # noqa: SIM115 - that is the case
    "a generator": lambda: (i for i in range(3)),
    "a thread": threading.current_thread,
    "a frame of locks": lambda: pd.DataFrame({"a": [threading.Lock()]}),
}


@task
def unable(kind, path):
    note(path, kind)
    return CANNOT_TRAVEL[kind]()


def _said(found):
    """Either it serves (in one process, under threads), or it fails in words, once."""
    wrong = {}
    for kind, (result, state, times) in found.items():
        is_value = result == "value" and state == "Completed"
        is_said = "unable" in result and state in ("Failed", "Crashed", "Completed")
        if not (is_value or is_said) or times != 1:
            wrong[kind] = (result[:200], state, times)
    return f"{wrong}" if wrong else None


@case(_said)
def results_that_cannot_travel_fail_in_words():
    path = _notes()

    def value(future):
        future.result()
        return "value"

    made = {kind: unable.submit(kind, path) for kind in CANNOT_TRAVEL}
    results = each(CANNOT_TRAVEL, lambda kind: value(made[kind]))
    return {k: (results[k], ended(made[k]), times_noted(path)[k]) for k in CANNOT_TRAVEL}


def _all_ended(found):
    wrong = {
        kind: states
        for kind, states in found.items()
        if any(s not in ("Completed", "Failed", "Crashed", "NotReady") for s in states)
    }
    return f"{wrong}" if wrong else None


@case(_all_ended)
def consumers_of_what_cannot_travel_end():
    path = _notes()
    kinds = ("a lock", "a lock in a list", "reduce raises", "setstate raises")
    made = {kind: unable.submit(kind, path) for kind in kinds}
    used = {kind: [use.submit(made[kind]) for _ in range(4)] for kind in kinds}
    return {k: [ended(f) for f in (made[k], *used[k])] for k in kinds}


@task
def one_bad(i, bad, n):
    return threading.Lock() if i == bad else np.full(n, float(i))


def _one_is_bad(found):
    bad, wrong, text = found
    if wrong:
        return f"{wrong} others are wrong"
    if bad > 1:
        return f"{bad} are lost for one that cannot travel: {text}"
    return None if not bad or ("one_bad" in text and "lock" in text) else f"says: {text}"


@case(_one_is_bad, sizes=BOTH)
def one_result_of_a_map_that_cannot_travel(n):
    bad, wrong, text = 0, 0, ""
    for i, future in enumerate(one_bad.map(range(60), 45, n if n < LARGE else 5_000)):
        try:
            got = future.result()
            wrong += i != 45 and float(got[0]) != float(i)
        except Exception as exc:  # noqa: BLE001 - its text is looked at
            bad, text = bad + 1, f"{type(exc).__name__}: {exc}"
    return bad, wrong, text


@case(["Failed", "Cancelled", "Mine", [1], "Completed"])
def a_state_that_is_returned_is_the_runs_state():
    @task
    def stated(how):
        if how == "failed":
            return Failed(message="no")
        if how == "cancelled":
            return Cancelled(message="no")
        return Completed(message="yes", name="Mine", data=[1])

    mine = stated.submit("mine")
    return [
        ended(stated.submit("failed")),
        ended(stated.submit("cancelled")),
        ended(mine),
        tell(lambda: mine.result()),
        ended(use.submit(mine)),
    ]


@case([True, True])
def a_result_is_one_object_in_the_flow():
    path = _notes()
    future = make.submit("deep dict", path)
    large = make.submit("bytes", path)
    return [future.result() is future.result(), large.result() is large.result()]


@case({"small": 1, "large": 1})
def a_result_that_hides_its_size():
    """What is small to weigh and large to send."""

    class Hidden:
        def __init__(self, n):
            self.content = bytes(n)

        def __sizeof__(self):
            return 1

    @task
    def hidden(n):
        return Hidden(n)

    return {
        name: tell(lambda n=n: hidden.submit(n).result().content.count(0) // n)
        for name, n in {"small": 10, "large": 5_000_000}.items()
    }
