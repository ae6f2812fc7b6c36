"""Dask used by the code of a task, with and without a time-out, on a cluster with one slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from prefect import task

from tests.integration.notes import await_note, names, note
from tests.integration.parity import run_on

PATIENCE_S = 60
"""A deadlock shows as `TimedOut`, or as a TimeoutError, after this long."""

BOTH = pytest.mark.parametrize("timeout_s", [None, PATIENCE_S], ids=["untimed", "timed"])


def value_of(
    where: LocalCluster, fn: Callable[[], Any], timeout_s: float | None, **options: Any
) -> Any:
    """What `fn` returns as a submitted task."""
    made: Any = task(fn).with_options(timeout_seconds=timeout_s, **options)
    return run_on(where, lambda: made.submit().result(timeout=2 * PATIENCE_S)).result()


def with_worker_client() -> int:
    from distributed import worker_client

    with worker_client() as client:
        return int(sum(client.gather(client.map(lambda x: x + 1, range(3), pure=False))))


def with_nested_worker_clients() -> int:
    from distributed import worker_client

    with worker_client() as outer, worker_client() as inner:
        return int(outer.submit(int, 2).result() + inner.submit(int, 3).result())


def with_dask_compute() -> int:
    import dask

    return int(sum(dask.compute(dask.delayed(int)(4), dask.delayed(int)(5))))


def with_delayed_compute_twice() -> int:
    import dask

    return int(dask.delayed(int)(4).compute() + dask.delayed(int)(6).compute())


def with_secede_and_rejoin() -> int:
    from distributed import get_client, rejoin, secede

    secede()
    value = int(sum(get_client().gather(get_client().map(int, range(4)))))
    rejoin()
    return value


def with_secede_alone() -> int:
    from distributed import get_client, secede

    secede()
    return int(get_client().submit(int, 7).result())


def with_as_completed() -> int:
    from distributed import as_completed, worker_client

    with worker_client() as client:
        return int(sum(future.result() for future in as_completed(client.map(int, range(5)))))


def with_a_run_inside_of_a_worker_client() -> int:
    from distributed import worker_client

    @task
    def nested(value: int) -> int:
        return value

    with worker_client() as client:
        return int(nested.submit(8).result(timeout=PATIENCE_S) + client.submit(int, 1).result())


async def with_a_coroutine() -> int:
    from distributed import worker_client

    with worker_client() as client:
        return int(client.submit(int, 9).result())


async def with_a_wait_in_another_thread() -> int:
    import asyncio

    @task
    def nested(value: int) -> int:
        return value

    future = nested.submit(10)
    return int(await asyncio.to_thread(future.result, PATIENCE_S))


@BOTH
@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (with_worker_client, 6),
        (with_nested_worker_clients, 5),
        (with_dask_compute, 9),
        (with_delayed_compute_twice, 10),
        (with_secede_and_rejoin, 6),
        (with_secede_alone, 7),
        (with_as_completed, 10),
        (with_a_run_inside_of_a_worker_client, 9),
        (with_a_coroutine, 9),
        (with_a_wait_in_another_thread, 10),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_dask_is_used_in_a_task(
    one_slot: LocalCluster, fn: Callable[[], Any], value: int, timeout_s: float | None
) -> None:
    assert value_of(one_slot, fn, timeout_s) == value
    assert n_threads(one_slot) == 1


def n_threads(where: LocalCluster) -> int:
    """How many threads count as the pool's on the one worker, once all tasks are done."""

    def count(dask_worker: Any) -> tuple[int, int]:
        pool = dask_worker.executors["default"]
        end_s = time.monotonic() + 20
        while dask_worker.active_threads and time.monotonic() < end_s:
            time.sleep(0.01)
        pool.submit(int).result(timeout=20)
        return len(pool._threads), len(dask_worker.active_threads)

    with Client(where, set_as_default=False) as client:
        ((n_in_pool, n_active),) = client.run(in_a_thread, count).values()
    assert n_active == 0
    return int(n_in_pool)


async def in_a_thread(fn: Callable[[Any], Any], dask_worker: Any) -> Any:
    return await asyncio.to_thread(fn, dask_worker)


@BOTH
def test_a_task_finds_itself_in_dask(one_slot: LocalCluster, timeout_s: float | None) -> None:
    def look() -> tuple[bool, bool, bool]:
        from distributed import get_client, get_worker
        from distributed.worker import thread_state

        worker = get_worker()
        return (
            worker.get_current_task() == thread_state.key,
            thread_state.execution_state["worker"] is worker,
            get_client().scheduler.address == worker.scheduler.address,
        )

    assert value_of(one_slot, look, timeout_s) == (True, True, True)


def test_what_is_left_behind_in_a_worker_client_changes_nothing_later(
    one_slot: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task(timeout_seconds=1)
    def stuck() -> None:
        from distributed import worker_client

        try:
            with worker_client():
                end_s = time.monotonic() + PATIENCE_S
                note(path, "stuck")
                # In C, many times: the exception that asks it to stop is swallowed, too.
                while "let go" not in names(path) and time.monotonic() < end_s:
                    try:
                        time.sleep(0.05)
                    except BaseException:  # noqa: BLE001
                        continue
        finally:
            note(path, "unwound")

    @task
    def other(value: int) -> int:
        return value

    def body() -> tuple[str, list[int]]:
        future = stuck.submit()
        await_note(path, "stuck")
        future.wait(PATIENCE_S)
        name = future.state.name
        first = other.submit(1).result(timeout=PATIENCE_S)
        note(path, "let go")
        await_note(path, "unwound")
        return name, [first, *other.map([2, 3]).result(timeout=PATIENCE_S)]

    assert run_on(one_slot, body).result() == ("TimedOut", [1, 2, 3])
    assert n_threads(one_slot) == 1


def test_a_batch_goes_on_in_its_slot_after_a_run_that_was_left_behind(
    one_slot: LocalCluster,
) -> None:
    @task(timeout_seconds=1)
    def one_of_many(value: int) -> bool:
        from distributed import get_worker, secede

        if value == 20:
            secede()
            time.sleep(20)
        pool = get_worker().executors["default"]
        return len(pool._threads) == 1

    def body() -> list[Any]:
        futures = one_of_many.map(range(40))
        for future in futures:
            future.wait(PATIENCE_S)
        return [future.state.name for future in futures]

    found = run_on(one_slot, body).result()
    assert found.count("TimedOut") == 1
    assert found.count("Completed") == 39
    assert n_threads(one_slot) == 1
