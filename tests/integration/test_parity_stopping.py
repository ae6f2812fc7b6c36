"""Timeouts, tasks in a process of their own, and cancelling: what is to stop does stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import task

from deepflow import hints
from deepflow.runner.driver.lifecycle import RunState
from tests.integration.api import Api
from tests.integration.notes import (
    await_death,
    await_note,
    is_alive,
    names,
    note,
    noted_at,
    notes,
    until,
)
from tests.integration.parity import run_on

LONG_S = 60.0
"""How long a task would take that nobody stops: longer than any test waits."""
SOON_S = 25.0
"""Within this, what is to stop has stopped, also on a loaded machine."""


def test_a_sync_task_blocked_in_sleep_times_out_in_time_and_frees_its_slot(
    one_slot: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task(timeout_seconds=1)
    def stuck() -> None:
        note(path, "stuck begins")
        time.sleep(30)  # blocks in C: no exception can reach it

    @task
    def other() -> None:
        note(path, "other runs")

    def body() -> Any:
        future = stuck.submit()
        future.wait()
        other.submit().wait()
        return future.state.name

    run = run_on(one_slot, body)
    assert run.result() == "TimedOut"
    at_s = noted_at(path)
    assert 1.0 <= at_s["other runs"] - at_s["stuck begins"] < SOON_S
    record = next(r for r in api.task_runs(run.id) if r["name"].startswith("stuck"))
    assert (record["state_type"], record["state_name"]) == ("FAILED", "TimedOut")


def test_an_async_task_times_out(cluster: LocalCluster, api: Api) -> None:
    import asyncio

    @task(timeout_seconds=0.5)
    async def stuck() -> None:
        await asyncio.sleep(LONG_S)

    def body() -> Any:
        future = stuck.submit()
        future.wait()
        return future.state.name

    run = run_on(cluster, body)
    assert run.result() == "TimedOut"
    assert api.task_runs(run.id)[0]["state_name"] == "TimedOut"


def test_a_task_that_is_quick_enough_keeps_its_value_and_its_context(
    cluster: LocalCluster,
) -> None:
    @task(timeout_seconds=20)
    def named() -> str:
        from prefect.runtime import task_run

        return str(task_run.name)

    assert run_on(cluster, lambda: named.submit().result()).result() == "named-0"


def test_a_timed_out_task_is_retried(cluster: LocalCluster) -> None:
    @task(timeout_seconds=2, retries=1)
    def slow_once() -> int:
        from prefect.runtime import task_run

        if task_run.run_count == 1:
            time.sleep(20)
        return int(task_run.run_count)

    assert run_on(cluster, lambda: slow_once.submit().result()).result() == 2


@hints(isolate=True)
@task
def own_pid() -> tuple[int, int, str]:
    from prefect.runtime import task_run

    return os.getpid(), os.getppid(), str(task_run.name)


def test_an_isolated_task_runs_in_a_process_of_its_own(cluster: LocalCluster) -> None:
    workers = {w.pid for w in cluster.workers.values()}
    assert workers
    pid, parent, name = run_on(cluster, lambda: own_pid.submit().result()).result()
    assert parent in workers
    assert pid not in workers | {os.getpid()}
    assert name == "own_pid-0"


def test_an_isolated_task_is_killed_at_its_timeout(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @hints(isolate=True)
    @task(timeout_seconds=4)
    def stuck() -> None:
        note(path, "begins")
        time.sleep(LONG_S)

    def body() -> Any:
        future = stuck.submit()
        future.wait(LONG_S)
        return future.state.name

    run = run_on(cluster, body)
    assert run.result() == "TimedOut"
    (entry,) = notes(path)
    await_death(entry.pid)


def start_others(path: str) -> None:
    """Start a program, and a fork of this process, that would outlive what started them."""
    note(path, subprocess.Popen(["sleep", str(LONG_S)]).pid)
    forked = os.fork()
    if forked == 0:
        time.sleep(LONG_S)
        os._exit(0)
    note(path, forked)


@pytest.mark.parametrize("how", ["timed out", "cancelled", "dead"])
def test_what_an_isolated_task_has_started_dies_with_it(
    cluster: LocalCluster, tmp_path: Path, how: str
) -> None:
    path = str(tmp_path / "notes")

    @hints(isolate=True)
    @task(timeout_seconds=6 if how == "timed out" else None)
    def parent() -> None:
        start_others(path)
        note(path, "started")
        if how == "dead":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(LONG_S)

    def body() -> Any:
        future = parent.submit()
        await_note(path, "started")
        if how == "cancelled":
            future.cancel()
        future.wait(SOON_S)
        return future.state.name

    state_name = run_on(cluster, body).result()
    assert state_name == {"timed out": "TimedOut", "cancelled": "Cancelled", "dead": "Failed"}[how]
    program, forked, _ = names(path)
    await_death(int(program))
    await_death(int(forked))


def test_what_an_isolated_task_leaves_behind_when_it_returns_is_left(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @hints(isolate=True)
    @task
    def parent() -> str:
        with subprocess.Popen(["cat"], stdout=subprocess.PIPE, text=True) as reader:
            said, _ = reader.communicate()  # standard input is empty, so it ends
        note(path, subprocess.Popen(["sleep", str(LONG_S)], stdout=subprocess.DEVNULL).pid)
        return said

    assert run_on(cluster, lambda: parent.submit().result()).result() == ""
    (left,) = map(int, names(path))
    assert is_alive(left)
    os.kill(left, signal.SIGKILL)


def test_a_segmentation_fault_in_an_isolated_task_fails_it_and_not_its_worker(
    cluster: LocalCluster, api: Api
) -> None:
    before = {w.pid for w in cluster.workers.values()}

    @hints(isolate=True)
    @task
    def fault() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    run = run_on(cluster, lambda: fault.submit().wait())
    (record,) = api.task_runs(run.id)
    assert record["state_type"] in ("FAILED", "CRASHED")
    assert "ended by signal 11" in record["state"]["message"]
    assert {w.pid for w in cluster.workers.values()} == before


def test_an_error_in_an_isolated_task_reaches_the_caller(cluster: LocalCluster) -> None:
    @hints(isolate=True)
    @task
    def wrong() -> None:
        raise KeyError("from the child")

    with pytest.raises(KeyError, match="from the child"):
        run_on(cluster, lambda: wrong.submit().result()).result()


def test_an_async_isolated_task_gives_its_value(cluster: LocalCluster) -> None:
    @hints(isolate=True)
    @task
    async def pid_of(value: int) -> tuple[int, int]:
        return value, os.getpid()

    value, pid = run_on(cluster, lambda: pid_of.submit(3).result()).result()
    assert value == 3
    assert pid not in {w.pid for w in cluster.workers.values()}


def test_a_queued_run_is_cancelled_at_once_and_never_begins(
    one_slot: LocalCluster, api: Api, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    @task
    def holder() -> None:
        note(path, "holder begins")
        end_s = time.monotonic() + LONG_S
        while "cancelled" not in names(path) and time.monotonic() < end_s:
            time.sleep(0.02)

    @task
    def queued() -> None:
        note(path, "queued begins")

    def body() -> Any:
        first = holder.submit()
        await_note(path, "holder begins")
        second = queued.submit()
        assert second.cancel() is True
        second.wait(SOON_S)
        state_while_first_runs = second.state.type.value
        was_running = not first.done()
        note(path, "cancelled")
        first.result()
        return state_while_first_runs, was_running, second.cancel()

    run = run_on(one_slot, body)
    assert run.result() == ("CANCELLED", True, False)
    assert "queued begins" not in names(path)
    states = {r["name"]: r["state_type"] for r in api.task_runs(run.id)}
    assert states == {"holder-0": "COMPLETED", "queued-0": "CANCELLED"}


@pytest.mark.parametrize("kind", ["sync", "async", "isolated", "with a timeout"])
def test_a_running_task_is_cancelled_at_the_next_chance(
    cluster: LocalCluster, api: Api, tmp_path: Path, kind: str
) -> None:
    path = str(tmp_path / "notes")

    def loop() -> None:
        note(path, "begins")
        end_s = time.monotonic() + LONG_S
        while time.monotonic() < end_s:
            time.sleep(0.01)
        note(path, "ran to its end")

    async def wait() -> None:
        import asyncio

        note(path, "begins")
        await asyncio.sleep(LONG_S)
        note(path, "ran to its end")

    def block() -> None:
        note(path, "begins")
        time.sleep(LONG_S)

    endless: Any = task({"sync": loop, "async": wait, "isolated": block}.get(kind, loop))
    if kind == "with a timeout":
        endless = endless.with_options(timeout_seconds=LONG_S)

    def body() -> Any:
        with hints(isolate=kind == "isolated"):
            future = endless.submit()
        await_note(path, "begins")
        future.cancel()
        future.wait(2 * SOON_S)
        return future.state.type.value, future.state.message

    run = run_on(cluster, body)
    # One that is abandoned rather than stopped says that in its message.
    assert run.result() == ("CANCELLED", "Cancelled while it was running.")
    assert api.task_runs(run.id)[0]["state_type"] == "CANCELLED"
    if kind == "isolated":
        await_death(notes(path)[0].pid)
    assert "ran to its end" not in names(path)


def test_a_held_run_is_cancelled_before_it_is_ever_sent(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    """Held: it waits for its retry, or for an input that is not done."""
    path = str(tmp_path / "notes")

    @task(retries=1, retry_delay_seconds=LONG_S)
    def flaky() -> None:
        note(path, "first attempt")
        raise ValueError("not yet")

    @task
    def after(_: Any) -> None:
        note(path, "after begins")

    def body() -> Any:
        future = flaky.submit()
        dependent = after.submit(1, wait_for=[future])
        await_note(path, "first attempt")
        until(lambda: future._item.state is RunState.HELD_FOR_RETRY, SOON_S)
        dependent.cancel()
        future.cancel()
        dependent.wait(SOON_S)
        future.wait(SOON_S)
        return future.state.type.value, dependent.state.type.value

    run = run_on(cluster, body)
    assert run.result() == ("CANCELLED", "CANCELLED")
    assert {r["state_type"] for r in api.task_runs(run.id)} == {"CANCELLED"}
    assert names(path) == ["first attempt"]


def test_what_depends_on_a_cancelled_run_gets_a_state(cluster: LocalCluster, api: Api) -> None:
    @task
    def endless() -> None:
        time.sleep(0.01)
        end_s = time.monotonic() + LONG_S
        while time.monotonic() < end_s:
            time.sleep(0.01)

    @task
    def after(_: Any) -> None:
        pass

    def body() -> Any:
        first = endless.submit()
        second = after.submit(first)
        first.cancel()
        second.wait(2 * SOON_S)
        return second.state.name

    run = run_on(cluster, body)
    assert run.result() == "NotReady"
    states = {r["name"]: r["state_name"] for r in api.task_runs(run.id)}
    assert states == {"endless-0": "Cancelled", "after-0": "NotReady"}


CANCELLED_DRIVER = """
import sys, time
from prefect import flow, task
from deepflow import DeepflowTaskRunner
from tests.integration.notes import note

path = sys.argv[1]

@task
def endless(number):
    from tests.integration.notes import note
    import time
    note(path, f"begins-{number}")
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        time.sleep(0.01)

@flow(task_runner=DeepflowTaskRunner(address=sys.argv[2]))
def run():
    from prefect.runtime import flow_run
    note(path, "flow-" + str(flow_run.id))
    futures = [endless.submit(i) for i in range(6)]
    for future in futures:
        future.wait()

if __name__ == "__main__":
    run()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_driver_told_to_stop_leaves_no_run_running(
    cluster: LocalCluster, api: Api, tmp_path: Path, signum: int
) -> None:
    path = tmp_path / "notes"
    script = tmp_path / "driver.py"
    script.write_text(CANCELLED_DRIVER)
    root = str(Path(__file__).resolve().parents[2])

    def has_begun() -> bool:
        return any(name.startswith("begins") for name in names(path))

    with subprocess.Popen(
        [sys.executable, str(script), str(path), cluster.scheduler_address],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Tests started in the background ignore SIGINT, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as driver:
        try:
            until(lambda: has_begun() or driver.poll() is not None, 60)
            assert driver.poll() is None, driver.communicate()[0].decode()
            driver.send_signal(signum)
            output, _ = driver.communicate(timeout=60)
        finally:
            driver.kill()
    flow_run_id = next(n for n in names(path) if n.startswith("flow-"))[5:]
    runs = api.until(
        lambda: api.task_runs(flow_run_id),
        lambda found: {r["state_type"] for r in found} == {"CANCELLED"} and len(found) == 6,
    )
    assert len(runs) == 6, output.decode()
    begun = [name for name in names(path) if name.startswith("begins")]
    assert len(begun) <= 2


def test_cancel_all_of_the_original_runner_reaches_the_running_work(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    """Prefect calls `cancel_all` on the flow's runner while a duplicate of it is at work."""
    import threading

    from deepflow import DeepflowTaskRunner

    path = str(tmp_path / "notes")
    runner = DeepflowTaskRunner(cluster=cluster)

    @task
    def endless() -> None:
        note(path, "begins")
        end_s = time.monotonic() + LONG_S
        while time.monotonic() < end_s:
            time.sleep(0.01)

    def stop() -> None:
        await_note(path, "begins")
        runner.cancel_all()

    stopper = threading.Thread(target=stop)
    stopper.start()

    def body() -> Any:
        futures = [endless.submit() for _ in range(4)]
        for future in futures:
            future.wait(2 * SOON_S)
        return [future.state.type.value for future in futures]

    run = run_on(runner, body)
    stopper.join()
    assert run.result() == ["CANCELLED"] * 4
