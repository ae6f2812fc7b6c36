"""Threads for done-callbacks: few in the normal case, as many as block, and in order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from deepflow.observe import metrics
from deepflow.runner.calling import CallingThreads, waiting

LOGGER = logging.getLogger("deepflow.tests")
PATIENCE_S = 30.0


def threads_that_never_take_over() -> CallingThreads:
    """Threads whose patience is longer than any test: only `waiting` makes another one go on."""
    return CallingThreads(LOGGER, stall_s=PATIENCE_S, same_run_s=PATIENCE_S)


def test_many_short_functions_need_few_threads_and_are_called_in_order() -> None:
    calling = threads_that_never_take_over()
    called: list[int] = []
    for number in range(1_000):
        calling.put(number, lambda number=number: called.append(number))  # type: ignore[misc]
    assert calling.wait_idle(PATIENCE_S)
    assert called == list(range(1_000))
    assert calling.n_threads <= 2


def test_functions_that_wait_for_each_other_all_get_a_thread() -> None:
    calling = CallingThreads(LOGGER)
    barrier = threading.Barrier(20)
    for number in range(20):
        calling.put(number, lambda: barrier.wait(PATIENCE_S))
    assert calling.wait_idle(PATIENCE_S)
    assert not barrier.broken


def test_a_function_that_says_that_it_waits_is_overtaken_at_once() -> None:
    calling = threads_that_never_take_over()
    second_called = threading.Event()
    seen: list[bool] = []

    def first() -> None:
        with waiting():
            seen.append(second_called.wait(PATIENCE_S))

    calling.put("one run", first)
    calling.put("one run", second_called.set)
    assert calling.wait_idle(PATIENCE_S)
    assert seen == [True]


def test_functions_of_one_run_are_not_called_beside_each_other_where_they_only_take_long() -> None:
    calling = CallingThreads(LOGGER, stall_s=0.001, same_run_s=PATIENCE_S)
    other_called, order = threading.Event(), []

    def first() -> None:
        assert other_called.wait(PATIENCE_S)  # the other run's function overtakes, the second not
        order.append("first")

    calling.put("a", first)
    calling.put("a", lambda: order.append("second"))
    calling.put("b", other_called.set)
    assert calling.wait_idle(PATIENCE_S)
    assert order == ["first", "second"]


def test_a_function_that_blocks_for_good_does_not_hold_up_the_next_one_of_its_run() -> None:
    calling = CallingThreads(LOGGER, stall_s=0.001, same_run_s=0.01)
    second_called = threading.Event()
    calling.put("a", lambda: second_called.wait(PATIENCE_S))
    calling.put("a", second_called.set)
    assert second_called.wait(PATIENCE_S)
    assert calling.wait_idle(PATIENCE_S)


def leave() -> None:
    raise SystemExit


def fail() -> None:
    raise ValueError("a user's mistake")


@pytest.mark.parametrize("bad", [fail, leave], ids=["raises", "exits"])
def test_what_a_function_raises_is_logged_and_counted_and_hurts_nobody_else(
    bad: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    calling = CallingThreads(LOGGER)
    before = metrics.value("deepflow_fallbacks_total", kind="callback_failed")
    called = threading.Event()
    with caplog.at_level(logging.ERROR, logger=LOGGER.name):
        calling.put(1, bad)
        calling.put(1, called.set)
        assert calling.wait_idle(PATIENCE_S)
    assert called.is_set()
    assert metrics.value("deepflow_fallbacks_total", kind="callback_failed") == before + 1
    assert [record.message for record in caplog.records] == ["A done-callback failed"]


def test_idle_threads_end_and_new_ones_are_started_when_needed() -> None:
    calling = CallingThreads(LOGGER, idle_s=0.01)
    calling.put(1, lambda: None)
    assert calling.wait_idle(PATIENCE_S)
    end_s = time.monotonic() + PATIENCE_S
    while calling.n_threads and time.monotonic() < end_s:
        time.sleep(0.005)
    assert calling.n_threads == 0
    called = threading.Event()
    calling.put(2, called.set)
    assert called.wait(PATIENCE_S)


def test_who_waits_for_the_end_is_told_whether_it_came() -> None:
    calling = CallingThreads(LOGGER)
    go_on = threading.Event()
    calling.put(1, lambda: go_on.wait(PATIENCE_S))
    assert not calling.wait_idle(0.01)
    go_on.set()
    assert calling.wait_idle(PATIENCE_S)
