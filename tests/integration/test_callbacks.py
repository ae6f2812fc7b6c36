"""Done-callbacks do what they like: they wait, submit, fail and block, and hold up nobody."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task
from prefect.futures import as_completed, wait

from tests.integration.notes import await_note, names, note
from tests.integration.parity import run_on

PATIENCE_S = 60.0


@task
def echo(value: Any) -> Any:
    return value


@task
def after_note(path: str, name: str) -> str:
    await_note(path, name)
    return name


def test_a_callback_waits_for_a_run_that_ends_later(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    def body() -> Any:
        seen, called = [], threading.Event()
        slow, quick = after_note.submit(path, "go on"), echo.submit(1)

        def callback(future: Any) -> None:
            note(path, "go on")
            seen.append((future.result(), slow.result(timeout=PATIENCE_S)))
            called.set()

        quick.add_done_callback(callback)
        assert called.wait(PATIENCE_S)
        return seen

    assert run_on(cluster, body).result() == [(1, "go on")]


def test_a_callback_submits_and_waits_for_what_it_submitted(cluster: LocalCluster) -> None:
    def body() -> Any:
        seen: list[int] = []
        called = threading.Event()

        def callback(future: Any) -> None:
            seen.extend(echo.map([future.result(), 2, 3]).result(timeout=PATIENCE_S))
            called.set()

        echo.submit(1).add_done_callback(callback)
        assert called.wait(PATIENCE_S)
        return seen

    assert run_on(cluster, body).result() == [1, 2, 3]


def test_callbacks_that_wait_for_each_other_are_all_made(cluster: LocalCluster) -> None:
    def body() -> bool:
        barrier = threading.Barrier(11)
        for future in echo.map(range(10)):
            future.add_done_callback(lambda _: barrier.wait(PATIENCE_S))
        barrier.wait(PATIENCE_S)
        return not barrier.broken

    assert run_on(cluster, body).result() is True


def test_a_callback_that_fails_is_logged_and_the_others_are_made(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> None:
        raise ValueError("a mistake in a callback")

    def body() -> list[int]:
        called, seen = threading.Event(), []
        future = echo.submit(5)
        future.add_done_callback(fail)
        future.add_done_callback(lambda f: (seen.append(f.result()), called.set()))
        assert called.wait(PATIENCE_S)
        future.add_done_callback(fail)
        return seen

    with caplog.at_level(logging.ERROR):
        assert run_on(cluster, body).result() == [5]
    said = [record for record in caplog.records if "done-callback failed" in record.message]
    assert len(said) == 2


def test_waiting_for_many_with_callbacks_behind_one_that_blocks(cluster: LocalCluster) -> None:
    def body() -> tuple[int, int]:
        go_on = threading.Event()
        futures = list(echo.map(range(200)))
        futures[0].add_done_callback(lambda _: go_on.wait(PATIENCE_S))
        total = sum(future.result() for future in as_completed(futures, timeout=PATIENCE_S))
        done, _ = wait(futures, timeout=PATIENCE_S)
        go_on.set()
        return total, len(done)

    assert run_on(cluster, body).result() == (sum(range(200)), 200)


def test_callbacks_of_many_runs_need_few_threads(cluster: LocalCluster) -> None:
    def body() -> tuple[int, int]:
        called: list[int] = []
        n_threads: list[int] = []
        futures = echo.map(range(1_000))

        def callback(future: Any) -> None:
            called.append(future.result())
            if len(called) % 100 == 0:
                running = [t for t in threading.enumerate() if t.name == "deepflow-callbacks"]
                n_threads.append(len(running))

        for future in futures:
            future.add_done_callback(callback)
        futures.wait()
        futures[0]._dispatcher.wait_called(PATIENCE_S)  # type: ignore[attr-defined]
        return len(called), max(n_threads)

    n_called, n_threads = run_on(cluster, body).result()
    assert n_called == 1_000
    assert n_threads < 100


def test_callbacks_are_made_before_the_flow_run_ends(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")

    def body() -> int:
        futures = [echo.submit(i) for i in range(3)]
        for future in futures:
            future.add_done_callback(lambda f: note(path, f"{f.result()}"))
        for future in futures:
            future.wait()
        return 1

    run_on(cluster, body).result()
    assert sorted(names(path)) == ["0", "1", "2"]


def test_in_a_task_callbacks_wait_and_submit_while_the_slot_is_free(one_slot: LocalCluster) -> None:
    @task
    def outer() -> tuple[int, int]:
        called, seen = threading.Event(), []
        second = echo.submit(2)

        def callback(future: Any) -> None:
            third = echo.submit(3).result(timeout=PATIENCE_S)
            seen.append((future.result(), second.result(timeout=PATIENCE_S) + third))
            called.set()

        echo.submit(1).add_done_callback(callback)
        assert called.wait(PATIENCE_S)
        (found,) = seen
        return found

    assert run_on(one_slot, lambda: outer.submit().result(timeout=PATIENCE_S)).result() == (1, 5)


@pytest.mark.parametrize("timeout_s", [None, PATIENCE_S], ids=["untimed", "timed"])
def test_a_callback_asked_for_in_a_task_is_made_after_the_task_has_ended(
    one_slot: LocalCluster, tmp_path: Path, timeout_s: float | None
) -> None:
    path = str(tmp_path / "notes")

    @task(timeout_seconds=timeout_s)
    def outer() -> None:
        inner = after_note.submit(path, "outer has ended")
        inner.add_done_callback(lambda f: note(path, f"called with {f.result()}"))

    def body() -> None:
        outer.submit().result(timeout=PATIENCE_S)
        note(path, "outer has ended")
        await_note(path, "called with outer has ended")

    run_on(one_slot, body).result()
    assert run_on(one_slot, lambda: echo.submit(1).result(timeout=PATIENCE_S)).result() == 1
