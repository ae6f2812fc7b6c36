"""Leaving a slot, coming back, and lending it, on Dask's own thread pool of one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any
from uuid import uuid4

import pytest
from distributed import rejoin, secede
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.threadpoolexecutor import secede as leave_pool
from prefect.task_engine import TaskRunTimeoutError

from deepflow.runner.slots import Slot, current_slot, slot_left, slot_of_call
from deepflow.runner.worker.engine import Interrupted, Seat, TimedCall

PATIENCE_S = 30.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    made = ThreadPoolExecutor(1)
    yield made
    made.shutdown(wait=False)


def run_in(pool: ThreadPoolExecutor, fn: Callable[[], Any]) -> Any:
    """What `fn` returns in a thread of the pool, in a context of its own."""
    return pool.submit(copy_context().run, fn).result(timeout=PATIENCE_S)


def threads_of(pool: ThreadPoolExecutor) -> int:
    """How many threads count as the pool's; not fewer than are alive and working."""
    return len(pool._threads)


def in_thread(fn: Callable[[], Any]) -> threading.Thread:
    """A thread that runs `fn` in a copy of this context."""
    thread = threading.Thread(target=copy_context().run, args=(fn,), daemon=True)
    thread.start()
    return thread


def works(pool: ThreadPoolExecutor) -> bool:
    """Whether the pool runs what it is given, one after the other."""
    together = [pool.submit(threading.get_ident) for _ in range(5)]
    return all(future.result(timeout=PATIENCE_S) for future in together) and threads_of(pool) == 1


def test_while_a_slot_is_left_another_task_runs_and_afterwards_it_is_held_again(
    pool: ThreadPoolExecutor,
) -> None:
    def waits() -> tuple[str, bool]:
        with slot_of_call() as slot:
            other = pool.submit(lambda: "ran")
            with slot_left():
                value = other.result(timeout=PATIENCE_S)
            return value, slot.is_held

    assert run_in(pool, waits) == ("ran", True)
    assert works(pool)


def test_a_thread_beside_the_pools_leaves_the_slot_for_it(pool: ThreadPoolExecutor) -> None:
    def waits() -> tuple[list[str], bool]:
        values: list[str] = []
        with slot_of_call() as slot:
            other = pool.submit(lambda: "ran")

            def wait() -> None:
                with slot_left():
                    values.append(other.result(timeout=PATIENCE_S))

            in_thread(wait).join(PATIENCE_S)
            return values, slot.is_held

    assert run_in(pool, waits) == (["ran"], True)
    assert works(pool)


def test_a_slot_is_left_until_the_last_of_its_threads_has_waited(pool: ThreadPoolExecutor) -> None:
    def waits() -> bool:
        first, second = threading.Event(), threading.Event()
        inside = threading.Barrier(3)
        with slot_of_call() as slot:

            def wait(for_event: threading.Event) -> None:
                with slot_left():
                    inside.wait(PATIENCE_S)
                    for_event.wait(PATIENCE_S)

            one = in_thread(lambda: wait(first))
            two = in_thread(lambda: wait(second))
            inside.wait(PATIENCE_S)
            first.set()
            one.join(PATIENCE_S)
            assert not slot.is_held
            assert pool.submit(lambda: "ran").result(timeout=PATIENCE_S) == "ran"
            second.set()
            two.join(PATIENCE_S)
            return slot.is_held

    assert run_in(pool, waits)
    assert works(pool)


def test_who_waits_again_while_the_slot_is_coming_back_takes_the_request_back(
    pool: ThreadPoolExecutor,
) -> None:
    """Otherwise the place would be given to somebody who waits, and nobody could use it."""

    def waits() -> bool:
        go_on, holds = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            go_on.wait(PATIENCE_S)

        with slot_of_call() as slot:

            def wait_briefly() -> None:
                with slot_left():
                    pool.submit(hold)
                    holds.wait(PATIENCE_S)

            coming = in_thread(wait_briefly)  # cannot come back: the holder has the only place
            holds.wait(PATIENCE_S)
            while not pool._rejoin_list:
                time.sleep(0.001)
            with slot_left():
                assert pool._rejoin_list == []
                coming.join(PATIENCE_S)
                assert not coming.is_alive()
                go_on.set()
            return slot.is_held

    assert run_in(pool, waits)
    assert works(pool)


def test_what_was_left_by_the_user_is_not_left_again(pool: ThreadPoolExecutor) -> None:
    def waits() -> tuple[bool, bool]:
        with slot_of_call() as slot:
            leave_pool()
            with slot_left():
                inside = slot.is_held
            after = slot.is_held  # the user left it: the user comes back
            rejoin()
            return inside or after, slot.is_held

    assert run_in(pool, waits) == (False, True)
    assert works(pool)


def test_a_call_after_one_that_left_for_good_has_a_slot_again(pool: ThreadPoolExecutor) -> None:
    def calls() -> tuple[bool, bool]:
        with slot_of_call() as first:
            leave_pool()
        left = first.is_held
        with slot_of_call() as second:
            return left, second.is_held

    assert run_in(pool, calls) == (False, True)
    assert works(pool)


def test_outside_of_a_pool_a_slot_does_nothing() -> None:
    with slot_of_call() as slot:
        with slot_left():
            assert current_slot.get() is slot
        assert not slot.is_held


def test_a_closed_slot_is_not_left_or_taken_by_threads_that_outlive_the_call(
    pool: ThreadPoolExecutor,
) -> None:
    waiting, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def call() -> None:
        with slot_of_call():

            def wait() -> None:
                with slot_left():
                    waiting.set()
                    go_on.wait(PATIENCE_S)
                with slot_left():
                    pass

            threads.append(in_thread(wait))
            waiting.wait(PATIENCE_S)

    run_in(pool, call)
    assert works(pool)
    go_on.set()
    threads[0].join(PATIENCE_S)
    assert not threads[0].is_alive()
    assert works(pool)


# -- timed calls -----------------------------------------------------------------------------------


def timed(fn: Callable[[], Any], timeout_s: float, seat: Seat | None = None) -> Any:
    """What a timed call of `fn` gives, in the current thread's slot."""
    with slot_of_call() as slot:
        return TimedCall(fn, slot).outcome(timeout_s, seat or Seat(uuid4()))


def test_a_timed_call_gives_its_value_or_raises_what_it_raised(pool: ThreadPoolExecutor) -> None:
    def fail() -> None:
        raise KeyError("mine")

    assert run_in(pool, lambda: timed(lambda: 42, PATIENCE_S)) == 42
    with pytest.raises(KeyError, match="mine"):
        run_in(pool, lambda: timed(fail, PATIENCE_S))
    assert works(pool)


def test_dask_secedes_and_rejoins_in_a_timed_call_for_the_pools_thread(
    pool: ThreadPoolExecutor,
) -> None:
    def call() -> tuple[str, bool]:
        leave_pool()
        value = pool.submit(lambda: "ran").result(timeout=PATIENCE_S)
        try:
            leave_pool()
            twice = True
        except KeyError:  # as Dask's own callers expect it
            twice = False
        rejoin()
        return value, twice

    def run() -> tuple[tuple[str, bool], bool]:
        with slot_of_call() as slot:
            value = TimedCall(call, slot).outcome(PATIENCE_S, Seat(uuid4()))
            return value, slot.is_held

    assert run_in(pool, run) == (("ran", False), True)
    assert works(pool)


def test_a_timed_call_that_blocks_is_left_behind_and_changes_nothing_later(
    pool: ThreadPoolExecutor,
) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def block() -> None:
        try:
            leave_pool()
            go_on.wait(PATIENCE_S)  # in C: no exception reaches it
        finally:
            try:
                rejoin()
                with slot_left():
                    pass
                with pytest.raises(KeyError):
                    secede()
            finally:
                ended.set()

    with pytest.raises(TaskRunTimeoutError):
        run_in(pool, lambda: timed(block, 0.05))
    assert works(pool)
    go_on.set()
    assert ended.wait(PATIENCE_S)
    assert works(pool)


def test_a_call_given_up_while_it_is_coming_back_leaves_the_pool_whole(
    pool: ThreadPoolExecutor,
) -> None:
    seat, holds, go_on = Seat(uuid4()), threading.Event(), threading.Event()

    def hold() -> None:
        holds.set()
        go_on.wait(PATIENCE_S)

    def block() -> None:
        leave_pool()
        pool.submit(hold)
        holds.wait(PATIENCE_S)
        rejoin()  # the holder has the only place

    future = pool.submit(copy_context().run, lambda: timed(block, PATIENCE_S, seat))
    while not pool._rejoin_list:
        time.sleep(0.001)
    seat.cancel()
    with pytest.raises(Interrupted):
        future.result(timeout=PATIENCE_S)
    assert pool._rejoin_list == []
    go_on.set()
    assert works(pool)


def test_a_timed_call_in_python_is_stopped_and_cleans_up(pool: ThreadPoolExecutor) -> None:
    cleaned = threading.Event()

    def spin() -> None:
        try:
            while True:
                time.sleep(0.001)
        finally:
            cleaned.set()

    with pytest.raises(TaskRunTimeoutError, match=r"0\.05 second"):
        run_in(pool, lambda: timed(spin, 0.05))
    assert cleaned.wait(PATIENCE_S)
    assert works(pool)


def test_a_cancelled_timed_call_stops_and_says_so(pool: ThreadPoolExecutor) -> None:
    seat, begun, stopped = Seat(uuid4()), threading.Event(), threading.Event()

    def spin() -> None:
        begun.set()
        try:
            while True:
                time.sleep(0.001)
        finally:
            stopped.set()

    future = pool.submit(copy_context().run, lambda: timed(spin, PATIENCE_S, seat))
    assert begun.wait(PATIENCE_S)
    seat.cancel()
    with pytest.raises(Interrupted):
        future.result(timeout=PATIENCE_S)
    assert stopped.wait(PATIENCE_S)
    assert works(pool)


def test_an_abandoned_thread_knows_of_no_slot_of_the_next_call(pool: ThreadPoolExecutor) -> None:
    go_on, slots = threading.Event(), []

    def block() -> None:
        slots.append(current_slot.get())
        go_on.wait(PATIENCE_S)

    def run() -> Slot | None:
        with pytest.raises(TaskRunTimeoutError):
            timed(block, 0.05)
        with slot_of_call() as slot:
            return slot

    assert run_in(pool, run) is not slots[0]
    assert slots[0] is not None
    assert slots[0]._is_closed
    go_on.set()
