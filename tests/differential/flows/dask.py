"""What users of Dask do within their flows: clients, futures and collections of Dask's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.context import FlowRunContext

from tests.differential.cases import BOTH, case
from tests.differential.told import ended, tell


@task
def one():
    return 1


@task
def length(v):
    return len(v)


@task
def total(df):
    return int(df["a"].sum())


@task
def total_of(box):
    return int(box["df"][0]["a"].sum())


def _client():
    return FlowRunContext.get().task_runner.client


@case([41, 41], is_whole=True)
def prefect_dasks_client_in_a_flow_that_runs_twice(runner):
    from prefect_dask import get_dask_client

    def body():
        one.submit().result()
        with get_dask_client() as client:
            return client.submit(lambda: 41).result()

    made = flow(body, name="f", task_runner=runner())
    return [made(), made()]


@case([41, 1], is_whole=True)
def prefect_dasks_client_in_a_task(runner):
    from prefect_dask import get_dask_client

    @task
    def inside():
        with get_dask_client() as client:
            return client.submit(lambda: 41, pure=False).result()

    def body():
        return [inside.submit().result(), one.submit().result()]

    return flow(body, name="f", task_runner=runner())()


@case([3, 3, [3, 3], 3], sizes=BOTH)
def dask_futures_are_arguments(n):
    frame = pd.DataFrame({"a": [1, 2] + [0] * n})
    there = _client().scatter(frame)
    return [
        tell(lambda: total.submit(there).result()),
        tell(lambda: total_of.submit({"df": [there]}).result()),
        tell(lambda: total.map([there, there]).result()),
        tell(lambda: total_of.map([{"df": [there]}]).result()[0]),
    ]


@case([10, 10])
def dask_futures_of_calls_are_arguments():
    made = _client().submit(np.ones, 10)
    return [
        tell(lambda: length.submit(made).result()),
        tell(lambda: length.map([made]).result()[0]),
    ]


@case(["State", "State", True])
def the_wrapped_future_of_a_run_gives_its_state():
    future, many = one.submit(), one.submit()
    future.wait()
    many.wait()
    return [
        tell(lambda: type(future.wrapped_future.result()).__name__),
        tell(lambda: type(many.wrapped_future.result()).__name__),
        tell(lambda: future.wrapped_future.result().is_completed()),
    ]


@case([6, "Completed"])
def dask_in_a_task_with_a_time_out():
    @task(timeout_seconds=40)
    def timed(n):
        from distributed import worker_client

        with worker_client() as client:
            return sum(client.gather(client.map(lambda x: x + 1, range(n))))

    future = timed.submit(3)
    return [tell(future.result), ended(future)]


@case([6, 3, 6])
def dask_in_tasks():
    @task
    def by_client(n):
        from distributed import worker_client

        with worker_client() as client:
            return sum(client.gather(client.map(lambda x: x + 1, range(n), pure=False)))

    @task(timeout_seconds=40)
    def computes(n):
        import dask

        return dask.compute(sum([dask.delayed(i) for i in range(n)], 0))[0] and sum(range(n))

    return [
        tell(lambda: by_client.submit(3).result()),
        tell(lambda: computes.submit(3).result()),
        tell(lambda: by_client.map([3]).result()[0]),
    ]


@case([3, 3])
def a_delayed_value_is_an_argument():
    import dask

    @task
    def look(v):
        return v if isinstance(v, int) else v.compute(scheduler="sync")

    lazy = dask.delayed(lambda: 3)()
    return [
        tell(lambda: look.submit(lazy).result()),
        tell(lambda: look.map([lazy]).result()[0]),
    ]
