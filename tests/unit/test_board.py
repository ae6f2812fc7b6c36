"""The lock discipline: who is called back when, and in which order actions are performed."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from deepflow.observe import metrics
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Code, Item
from deepflow.runner.driver.reactor import Reactor

LOGGER = logging.getLogger("deepflow.tests")
PATIENCE_S = 30.0


class _Template:
    """As much of a template as an item looks at."""

    static_references: tuple[Any, ...] = ()
    learned_as = "task"


def item(board: Board) -> Item:
    """An item that `board` has admitted."""
    made = Item(uuid4(), _Template(), "step-0", "0", Code(b"", None), b"", ())  # type: ignore[arg-type]
    with board.turn():
        board.admit(made)
    return made


def is_free(board: Board) -> bool:
    """Whether another thread could take a turn now."""

    def take() -> bool:
        free = board._lock.acquire(timeout=0.2)
        if free:
            board._lock.release()
        return free

    with ThreadPoolExecutor(1) as other:
        return other.submit(take).result()


def finish(board: Board, *items: Item) -> None:
    """Settle items in one turn."""
    with board.turn():
        for one in items:
            one.settle(b"", "COMPLETED")
            board.finished(one)


def test_a_finished_item_is_called_back_after_the_outermost_turn_and_without_the_lock() -> None:
    board = Board(LOGGER)
    done = item(board)
    seen: list[bool] = []
    assert board.when_done(done, lambda: seen.append(is_free(board)))
    with board.turn():
        finish(board, done)
        assert board.calling.wait_idle(0)
        assert seen == []
    assert board.calling.wait_idle(PATIENCE_S)
    assert seen == [True]
    assert board.n_open == 0


def test_no_callback_runs_in_the_thread_that_finishes_the_item() -> None:
    board = Board(LOGGER)
    done = item(board)
    threads: list[str] = []
    board.when_done(done, lambda: threads.append(threading.current_thread().name))
    finish(board, done)
    assert board.calling.wait_idle(PATIENCE_S)
    assert threads == ["deepflow-callbacks"]


def test_callbacks_of_an_item_are_called_in_order_also_those_that_come_late() -> None:
    board = Board(LOGGER)
    done = item(board)
    begun, go_on = threading.Event(), threading.Event()
    order: list[int] = []

    def first() -> None:
        order.append(1)
        begun.set()
        go_on.wait(PATIENCE_S)

    board.when_done(done, first)
    board.when_done(done, lambda: order.append(2))
    finish(board, done)
    assert begun.wait(PATIENCE_S)
    assert board.when_done(done, lambda: order.append(3))
    go_on.set()
    assert board.calling.wait_idle(PATIENCE_S)
    assert order == [1, 2, 3]
    assert not board.when_done(done, lambda: order.append(4)), "nothing is before it"


def test_who_waits_for_callbacks_waits_for_those_that_are_not_in_line_yet() -> None:
    """A run is done before its callbacks are in line: in between, nothing is to be called."""
    board = Board(LOGGER)
    done = item(board)
    called = threading.Event()
    board.when_done(done, called.set)
    go_on = threading.Event()

    def line_up_slowly(one: Item) -> None:
        go_on.wait(PATIENCE_S)
        Board._call_back(board, one)

    board._call_back = line_up_slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=finish, args=(board, done), daemon=True)
    thread.start()
    assert done.wait(PATIENCE_S)
    assert not board.wait_called(0.05)
    go_on.set()
    assert board.wait_called(PATIENCE_S)
    assert called.is_set()
    thread.join(PATIENCE_S)


def test_a_turn_that_fails_still_calls_back_what_it_had_finished() -> None:
    board = Board(LOGGER)
    done = item(board)
    seen: list[str] = []
    board.when_done(done, lambda: seen.append("called"))

    def fail() -> None:
        with board.turn():
            finish(board, done)
            raise ValueError("in the middle of a turn")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert board.calling.wait_idle(PATIENCE_S)
    assert seen == ["called"]
    assert is_free(board)


def test_a_callback_may_take_a_turn_and_finish_others() -> None:
    board = Board(LOGGER)
    first, second = item(board), item(board)
    order: list[str] = []

    def finish_second() -> None:
        order.append("first")
        finish(board, second)

    board.when_done(first, finish_second)
    board.when_done(second, lambda: order.append("second"))
    finish(board, first)
    assert board.calling.wait_idle(PATIENCE_S)
    assert order == ["first", "second"]


def test_a_board_that_closes_takes_nothing_more() -> None:
    board = Board(LOGGER)
    board.is_closing = True
    with pytest.raises(RuntimeError, match="must be started"):
        item(board)
    assert board.open_items() == []


def test_a_waiter_is_told_when_the_last_open_item_is_done() -> None:
    board = Board(LOGGER)
    last = item(board)

    threading.Timer(0.05, lambda: finish(board, last)).start()
    assert board.wait_until(lambda: board.n_open == 0, 20.0)
    assert not board.wait_until(lambda: False, 0.0)


def test_an_item_is_found_while_somebody_holds_it_and_no_longer() -> None:
    board = Board(LOGGER)
    held = item(board)
    run_id = held.run_id
    with board.turn():
        held.settle(b"", "COMPLETED")
        board.finished(held)
    assert board.find(run_id) is held
    assert board.find_open(run_id) is None
    del held
    assert board.find(run_id) is None


def test_actions_are_performed_in_order_and_those_for_a_time_when_it_has_come() -> None:
    now_s = [0.0]
    order: list[str] = []
    reactor = Reactor(LOGGER, clock=lambda: now_s[0])
    reactor.at(2.0, lambda: order.append("at 2"))
    reactor.at(1.0, lambda: order.append("at 1"))
    reactor.soon(lambda: order.append("soon"))
    reactor.soon(lambda: now_s.__setitem__(0, 1.5))
    reactor.soon(lambda: order.append("at 1.5"))
    reactor.soon(lambda: now_s.__setitem__(0, 2.5))
    reactor.soon(lambda: order.append("at 2.5"))
    reactor.close()
    assert order == ["soon", "at 1", "at 1.5", "at 2", "at 2.5"]


def test_a_fault_in_an_action_is_counted_and_the_next_one_is_performed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reactor = Reactor(LOGGER)
    before = metrics.value("deepflow_fallbacks_total", kind="dispatcher_fault")
    performed: list[int] = []
    reactor.soon(lambda: performed.append(1 // 0))
    reactor.soon(lambda: performed.append(1))
    reactor.close()
    assert performed == [1]
    assert metrics.value("deepflow_fallbacks_total", kind="dispatcher_fault") == before + 1
    assert "met a fault" in caplog.text


def test_closing_performs_what_was_given_before_but_no_timer() -> None:
    reactor = Reactor(LOGGER)
    performed: list[str] = []
    reactor.at(time.time() + 3600, lambda: performed.append("timer"))
    reactor.soon(lambda: performed.append("soon"))
    reactor.close()
    assert performed == ["soon"]


@pytest.mark.parametrize("fault", [ValueError("odd"), SystemExit(2), KeyboardInterrupt()])
def test_whatever_an_action_raises_the_next_ones_are_performed(fault: BaseException) -> None:
    class Deaf(logging.Logger):
        def error(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no log either")

    def fails() -> None:
        raise fault

    before = metrics.value("deepflow_fallbacks_total", kind="dispatcher_fault")
    reactor = Reactor(Deaf("deaf"))
    done = threading.Event()
    reactor.soon(fails)
    reactor.at(time.time(), fails)
    reactor.at(float("inf"), fails)  # a wait that no clock can make
    reactor.soon(done.set)
    assert done.wait(30)
    reactor.at(time.time() + 0.01, done.clear)
    deadline = time.monotonic() + 30
    while done.is_set() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not done.is_set()
    reactor.close()
    assert metrics.value("deepflow_fallbacks_total", kind="dispatcher_fault") == before + 2
