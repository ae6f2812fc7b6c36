"""Tasks in tasks, maps in tasks, flows in flows and in tasks."""

from __future__ import annotations

import numpy as np
from prefect import flow, task, unmapped

from tests.differential.cases import BOTH, case
from tests.differential.told import ended, tell

factor = 1


@task
def add(x, y=1):
    return x + y


@task
def fail():
    raise ValueError("on purpose")


@task
def submits(x):
    return add.submit(x).result()


@task
def maps(n):
    return sum(add.map(range(n)).result())


@task
def deeper(depth):
    return 0 if depth == 0 else 1 + deeper.submit(depth - 1).result()


@task
def calls(x):
    return add(add(x))


@case([2, 15, 3, 3])
def tasks_in_tasks():
    return [
        submits.submit(1).result(),
        maps.submit(5).result(),
        deeper.submit(3).result(),
        calls.submit(1).result(),
    ]


@case([[1, 2, 3, 4], [1, 3, 6]])
def tasks_in_mapped_tasks():
    return [submits.map(range(4)).result(), maps.map([1, 2, 3]).result()]


@case(["ValueError: on purpose", "Failed", "caught"])
def a_failure_in_a_nested_task():
    @task
    def parent():
        return fail.submit().result()

    @task
    def catches():
        try:
            fail.submit().result()
        except ValueError:
            return "caught"

    future = parent.submit()
    return [tell(future.result), ended(future), catches.submit().result()]


@case([0.0, 1.0], sizes=BOTH)
def a_nested_run_does_not_write_to_its_parents_values(n):
    @task
    def write(v):
        v[0] += 1
        return float(v[0])

    @task
    def parent(v):
        child = write.submit(v).result()
        return [float(v[0]), child]

    return parent.submit(np.zeros(n)).result()


@case([[1.0, 1.0], 0.0], sizes=BOTH)
def nested_runs_that_write_to_one_value(n):
    @task
    def write(v, _=None):
        v[0] += 1
        return float(v[0])

    @task
    def parent(v):
        return write.map(unmapped(v), range(2)).result(), float(v[0])

    got, mine = parent.submit(np.zeros(n)).result()
    return [got, mine]


@case([10, 20])
def a_nested_run_sees_its_parents_globals():
    global factor

    @task
    def inner(x):
        return x * factor

    @task
    def parent(x):
        return inner.submit(x).result()

    out = []
    for factor in (1, 2):  # noqa: B007 - what the task sees
        out.append(parent.submit(10).result())
    return out


@case([["done", "done"], ["done", "done"]])
def nested_runs_are_fresh():
    kept = set()

    @task
    def once(x):
        if x in kept:
            return "skipped"
        kept.add(x)
        return "done"

    @task
    def parent(_):
        return [once.submit(1).result() for _ in range(2)]

    return [parent.submit(i).result() for i in range(2)]


@case([3, 4, "ValueError: on purpose"])
def flows_in_flows():
    @flow
    def inner(x):
        return add.submit(x, 2).result()

    @flow
    def fails():
        fail.submit().result()

    return [inner(1), inner(add.submit(1)), tell(fails)]


@case([4, [1, 2]])
def a_flow_in_a_task():
    @flow
    def inner(x):
        return add.submit(x, 2).result()

    @flow
    def inner_map(n):
        return add.map(range(n)).result()

    @task
    def outer(x):
        return inner(x)

    @task
    def outer_map(n):
        return inner_map(n)

    return [outer.submit(2).result(), outer_map.submit(2).result()]


@case([1, 6])
def a_future_is_returned_from_a_task():
    @task
    def hands_over(x):
        return add.submit(x).result()

    @task
    def total(values):
        return sum(values)

    return [
        hands_over.submit(0).result(),
        total.submit([hands_over.submit(i) for i in range(3)]).result(),
    ]


@case([[1, [2]], 3])
def nested_runs_wait_for_each_other():
    @task
    def parent():
        one = add.submit(0)
        two = add.submit(one)
        three = add.submit(2, 0, wait_for=[two])
        return [one.result(), [three.result()]]

    return [parent.submit().result(), add.submit(parent.submit().result()[0], 2).result()]
