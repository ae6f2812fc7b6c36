"""Task code is what it is when it is submitted, and fresh in each run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from prefect import flow, task, unmapped

from tests.differential.cases import BOTH, case

factor = 1
offset = {"by": 0}
seen: set[Any] = set()
count = 0
table = np.zeros(1)


class Rates:
    factor = 1

    @classmethod
    def of(cls, x):
        return x * cls.factor


class Settings:
    def __init__(self):
        self.factor = 1


settings = Settings()


@task
def scale(x):
    return x * factor


@task
def shift(x):
    return x + offset["by"]


@task
def rated(x):
    return Rates.factor * x


@task
def rated_by_method(x):
    return Rates.of(x)


@task
def configured(x):
    return settings.factor * x


@task
def keep(x):
    return x


@case([2, 20, 200])
def a_global_changes_between_submits():
    global factor
    out = []
    for factor in (1, 10, 100):  # noqa: B007 - what the task sees
        out.append(scale.submit(2).result())
    return out


@case([[2, 4], [20, 40], [200, 400]])
def a_global_changes_between_maps():
    global factor
    out = []
    for factor in (1, 10, 100):  # noqa: B007 - what the task sees
        out.append(scale.map([2, 4]).result())
    return out


@case([1, 11, 101])
def a_dict_global_is_written_to_between_submits():
    out = []
    for by in (0, 10, 100):
        offset["by"] = by
        out.append(shift.submit(1).result())
    return out


@case([1, 10, 100])
def a_class_attribute_changes_between_submits():
    out = []
    for Rates.factor in (1, 10, 100):
        out.append(rated.submit(1).result())
    return out


@case([1, 10, 100])
def a_class_attribute_changes_that_a_class_method_reads():
    out = []
    for Rates.factor in (1, 10, 100):
        out.append(rated_by_method.submit(1).result())
    return out


@case([1, 10, 100])
def an_object_changes_between_submits():
    out = []
    for settings.factor in (1, 10, 100):
        out.append(configured.submit(1).result())
    return out


@case([[2], [20], [200]])
def a_closure_changes_between_maps():
    box = [1]

    @task
    def boxed(x):
        return x * box[0]

    out = []
    for box[0] in (1, 10, 100):
        out.append(boxed.map([2]).result())
    return out


@case([3, 30, 300])
def a_rebound_closure_changes_between_submits():
    by = 1

    @task
    def times(x):
        return x * by

    out = []
    for by in (1, 10, 100):  # noqa: B007 - what the task sees
        out.append(times.submit(3).result())
    return out


@case([2, 101, -1])
def a_helper_is_redefined():
    global helper

    def helper(x):
        return x + 1

    @task
    def use(x):
        return helper(x)

    out = [use.submit(1).result()]

    def helper(x):  # noqa: F811 - that is the case
        return x + 100

    out.append(use.submit(1).result())
    helper = lambda x: -x  # noqa: E731, F811
    out.append(use.submit(1).result())
    return out


def inner(x):
    return x


def outer(x):
    return inner(x)


@task
def use_outer(x):
    return outer(x)


@case([1, 50])
def a_helper_of_a_helper_is_redefined():
    global inner
    out = [use_outer.submit(1).result()]

    def inner(x):
        return 50

    out.append(use_outer.submit(1).result())
    return out


@case([5, 7])
def a_partial_is_replaced():
    global plus
    out = []

    @task
    def use(x):
        return plus(x)

    for n in (4, 6):
        plus = functools.partial(lambda a, b: a + b, n)
        out.append(use.submit(1).result())
    return out


@case([0.0, 1.0, 2.0], sizes=BOTH)
def an_array_that_is_a_global_is_written_to(n):
    global table
    table = np.zeros(n)

    @task
    def first():
        return float(table[0])

    out = []
    for _ in range(3):
        out.append(first.submit().result())
        table += 1
    return out


@case([0.0, 1.0], sizes=BOTH)
def a_captured_array_is_written_to(n):
    captured = np.zeros(n)

    @task
    def last(x):
        return float(captured[-1]) + x

    out = [last.submit(0).result()]
    captured[-1] = 1
    out.append(last.submit(0).result())
    return out


@case([1, 1, 1])
def what_is_shipped_is_what_was_at_the_submit():
    global factor
    factor = 1
    first = keep.submit(1)
    submitted = scale.submit(1, wait_for=[first])
    mapped = scale.map([1, 1], wait_for=[first])
    factor = 1000
    return [submitted.result(), *mapped.result()]


@case(["done", "done", "done"])
def a_set_that_a_run_writes_to_is_fresh_in_the_next():
    @task
    def once(x):
        if x in seen:
            return "skipped"
        seen.add(x)
        return "done"

    return [once.submit("a").result() for _ in range(3)]


@case([1])
def a_counter_is_fresh_in_each_run_of_a_map():
    @task
    def counted(x):
        global count
        count += 1
        return count

    return sorted(set(counted.map(range(40)).result()))


@case([1, 1, 1])
def a_mutable_default_is_fresh():
    @task
    def grow(x, kept=[]):  # noqa: B006 - that is the case
        kept.append(x)
        return len(kept)

    return [grow.submit(i).result() for i in range(3)]


@case([1, 1, 1])
def a_mutable_default_of_a_helper_is_fresh():
    def remember(x, kept=[]):  # noqa: B006 - that is the case
        kept.append(x)
        return len(kept)

    @task
    def use(x):
        return remember(x)

    return [use.submit(i).result() for i in range(3)]


@case([1, 1, 1])
def a_list_in_a_closure_is_fresh():
    kept = []

    @task
    def use(x):
        kept.append(x)
        return len(kept)

    return [use.submit(i).result() for i in range(3)]


@case([1, 1, 1])
def an_attribute_of_a_function_is_fresh():
    def helper(x):
        helper.calls = getattr(helper, "calls", 0) + 1
        return helper.calls

    @task
    def use(x):
        return helper(x)

    return [use.submit(i).result() for i in range(3)]


@case([0, 0], sizes=BOTH)
def a_captured_array_is_each_runs_own(n):
    captured = np.zeros(n)

    @task
    def add():
        before = float(captured[0])
        captured[0] += 1
        return int(before)

    return [add.submit().result() for _ in range(2)]


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None


class Refused(Exception):
    pass


@task
def make_point(x):
    return Point(x)


@task
def is_point(p):
    return isinstance(p, Point)


@case([True, True, True, True])
def a_class_keeps_its_identity():
    one = make_point.submit(1)
    two = make_point.submit(2)
    return [
        isinstance(one.result(), Point),
        is_point.submit(one).result(),
        is_point.submit(Point(3)).result(),
        all(is_point.map([two, one]).result()),
    ]


@case([True, "Refused: no", True])
def a_class_keeps_its_identity_when_an_attribute_changes():
    made = make_point.submit(1)
    made.wait()
    Point.colour = "red"

    @task
    def look(p):
        return isinstance(p, Point) and Point.colour == "red"

    @task
    def refuse():
        raise Refused("no")

    out = [look.submit(made).result()]
    try:
        refuse.submit().result()
    except Refused as exc:
        out.append(f"Refused: {exc}")
    out.append(isinstance(make_point.submit(1).result(), Point))
    del Point.colour
    return out


@case(["caught", "caught"])
def an_error_of_a_helper_is_caught_in_the_task():
    def fails():
        raise Refused("no")

    @task
    def catch(i):
        try:
            fails()
        except Refused:
            return "caught"

    return [catch.submit(0).result(), *catch.map([1]).result()]


@case([10, 20, 20])
def tasks_of_one_name_are_told_apart():
    def make(n):
        @task(name="same")
        def same():
            return n

        return same

    one, two = make(10), make(20)
    return [one.submit().result(), two.submit().result(), make(20).submit().result()]


@case([[7, 7], [8, 8]])
def a_captured_value_changes_for_what_is_mapped_beside_unmapped():
    box = {"n": 7}

    @task
    def add(x, y):
        return box["n"] + x + y

    first = add.map([0, 0], unmapped(0)).result()
    box["n"] = 8
    return [first, add.map([0, 0], unmapped(0)).result()]


@case([["done", "done"], ["done", "done"]], is_whole=True)
def a_second_flow_run_sees_nothing_of_the_first(runner):
    @task
    def once(x):
        if x in seen:
            return "skipped"
        seen.add(x)
        return "done"

    def body():
        return [once.submit(x).result() for x in "ab"]

    return [flow(body, task_runner=runner())() for _ in range(2)]


@case([1, 1], is_whole=True)
def a_second_flow_run_has_the_defaults_of_the_first(runner):
    def remember(x, kept=[]):  # noqa: B006 - that is the case
        kept.append(x)
        return len(kept)

    @task
    def use(x):
        return remember(x)

    def body():
        return use.submit(1).result()

    return [flow(body, task_runner=runner())() for _ in range(2)]


@case([1, 5], is_whole=True)
def a_global_changes_between_flow_runs(runner):
    global factor
    out = []
    for factor in (1, 5):  # noqa: B007 - what the task sees
        out.append(flow(lambda: scale.submit(1).result(), name="f", task_runner=runner())())
    return out
