"""What a task sees of its run and the UI of a task: logs, settings, runtime, suspension."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import LocalCluster
from prefect import flow, get_run_logger, tags, task
from prefect.exceptions import Pause
from prefect.settings import (
    PREFECT_LOGGING_EXTRA_LOGGERS,
    PREFECT_TASKS_DEFAULT_RETRIES,
    PREFECT_UI_URL,
    temporary_settings,
)

from deepflow import DeepflowTaskRunner
from tests.integration.api import Api
from tests.integration.notes import names, note
from tests.integration.parity import run_on


def task_logs(api: Api, flow_run_id: Any) -> dict[str, set[str]]:
    """Messages by task run id."""
    body = {"logs": {"flow_run_id": {"any_": [str(flow_run_id)]}}, "limit": 200}
    found: dict[str, set[str]] = {}
    for log in api.post("/logs/filter", body):
        if log["task_run_id"] is not None:
            found.setdefault(log["task_run_id"], set()).add(log["message"])
    return found


def test_logs_and_prints_of_every_task_are_in_the_ui(cluster: LocalCluster, api: Api) -> None:
    @task(log_prints=True)
    def talk(number: int) -> None:
        print(f"printed {number}")  # noqa: T201
        get_run_logger().info("logged %d", number)

    @task(log_prints=True)
    async def talk_async(number: int) -> None:
        print(f"printed {number}")  # noqa: T201
        get_run_logger().info("logged %d", number)

    def body() -> None:
        futures = [*talk.map(range(10)), talk_async.submit(10)]
        for future in futures:
            future.result()

    run = run_on(cluster, body)
    run.result()
    records = api.task_runs(run.id)
    assert len(records) == 11
    logs = api.until(
        lambda: task_logs(api, run.id),
        lambda found: sum("logged" in m for ms in found.values() for m in ms) == 11,
    )
    seen = set()
    for record in records:
        messages = logs[record["id"]]
        (printed,) = [m for m in messages if m.startswith("printed")]
        number = printed.split()[1]
        assert f"logged {number}" in messages
        assert any(m.startswith("Finished in state Completed") for m in messages)
        seen.add(int(number))
    assert seen == set(range(11))


def test_the_last_lines_before_an_embedded_cluster_closes_are_kept(server: Any, api: Api) -> None:
    @task(log_prints=True)
    def last_words(number: int) -> None:
        print(f"last words of {number}")  # noqa: T201

    runner = DeepflowTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1})
    run = run_on(runner, lambda: [f.wait() for f in last_words.map(range(4))])
    expected = {f"last words of {i}" for i in range(4)}
    api.until(lambda: api.logs(run.id), lambda found: expected <= set(found))
    assert {r["state_type"] for r in api.task_runs(run.id)} == {"COMPLETED"}


def test_lines_of_a_library_named_as_extra_logger_are_in_the_ui_and_no_others(
    cluster: LocalCluster, api: Api
) -> None:
    """PREFECT_LOGGING_EXTRA_LOGGERS of the driver is in force where the tasks run."""

    @task
    def library_calls() -> None:
        logging.getLogger("a_named_library").warning("from the library that is named")
        logging.getLogger("another_library").warning("from the one that is not")
        get_run_logger().warning("from the task")

    with temporary_settings({PREFECT_LOGGING_EXTRA_LOGGERS: "a_named_library"}):
        run = run_on(cluster, lambda: library_calls.submit().wait())
    logs = api.until(
        lambda: task_logs(api, run.id),
        lambda found: any("from the task" in messages for messages in found.values()),
    )
    (record,) = api.task_runs(run.id)
    assert "from the library that is named" in logs[record["id"]]
    assert "from the one that is not" not in logs[record["id"]]


def test_a_temporary_setting_of_the_driver_is_in_force_on_the_worker(
    cluster: LocalCluster,
) -> None:
    @task
    def ui_url() -> str:
        return str(PREFECT_UI_URL.value())

    def body() -> Any:
        return ui_url.submit().result(), os.getpid()

    with temporary_settings({PREFECT_UI_URL: "http://ui.example:1234"}):
        first, _ = run_on(cluster, body).result()
    with temporary_settings({PREFECT_UI_URL: "http://other.example:1234"}):
        second, _ = run_on(cluster, body).result()
    assert (first, second) == ("http://ui.example:1234", "http://other.example:1234")


def test_default_retries_from_the_settings_apply(cluster: LocalCluster, api: Api) -> None:
    with temporary_settings({PREFECT_TASKS_DEFAULT_RETRIES: 1}):

        @task
        def flaky() -> int:
            from prefect.runtime import task_run

            if task_run.run_count == 1:
                raise ValueError("not yet")
            return int(task_run.run_count)

        assert run_on(cluster, lambda: flaky.submit().result()).result() == 2


def test_the_profile_of_the_driver_is_the_profile_on_the_worker(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    (tmp_path / "profiles.toml").write_text(
        'active = "site"\n[profiles.site]\n'
        f'PREFECT_API_URL = "{api.url}"\nPREFECT_UI_URL = "http://site.example"\n'
    )
    script = tmp_path / "driver.py"
    script.write_text(
        "import json, sys\n"
        "from prefect import flow, task\n"
        "from deepflow import DeepflowTaskRunner\n"
        "@task\n"
        "def look():\n"
        "    from prefect.context import get_settings_context\n"
        "    from prefect.settings import PREFECT_UI_URL\n"
        "    return get_settings_context().profile.name, PREFECT_UI_URL.value()\n"
        "@flow(task_runner=DeepflowTaskRunner(address=sys.argv[1]))\n"
        "def run():\n"
        "    return look.submit().result()\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps(run()))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, str(script), cluster.scheduler_address],
        env={
            **environment,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_LOGGING_LEVEL": "ERROR",
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["site", "http://site.example"]


def test_runtime_values_are_those_of_the_run(cluster: LocalCluster, api: Api) -> None:
    @task(tags=["own"])
    def look(value: int) -> dict[str, Any]:
        from prefect.runtime import flow_run, task_run

        return {
            "task": task_run.name,
            "id": str(task_run.id),
            "tags": set(task_run.tags),
            "parameters": task_run.parameters,
            "flow run": str(flow_run.id),
            "flow": flow_run.flow_name,
            "flow parameters": flow_run.parameters,
        }

    def observed_flow(depth: int) -> Any:
        with tags("from-context"):
            return look.submit(7).result()

    run = run_on(cluster, observed_flow, 3)
    seen = run.result()
    (record,) = api.task_runs(run.id)
    assert seen["task"] == record["name"] == "look-0"
    assert seen["id"] == record["id"]
    assert seen["tags"] == set(record["tags"]) == {"own", "from-context"}
    assert seen["parameters"] == {"value": 7}
    assert seen["flow run"] == str(run.id)
    assert seen["flow"] == "observed-flow"
    assert seen["flow parameters"] == {"depth": 3}


def test_a_flow_suspended_while_tasks_are_out_stops_at_its_next_step(
    cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    """Suspended by somebody else: the flow stops where it waits, and queued work does not begin."""
    from prefect._flow_run_suspension import mark_flow_run_suspension_requested
    from prefect.states import Suspended

    path = str(tmp_path / "notes")

    @task
    def step(number: int) -> int:
        note(path, f"step-{number}")
        return number

    def body() -> None:
        from prefect.runtime import flow_run

        note(path, flow_run.id)
        assert step.submit(0).result() == 0
        assert mark_flow_run_suspension_requested(UUID(flow_run.id), Suspended(timeout_seconds=60))
        step.submit(1).result()
        note(path, "went on")

    with pytest.raises(Pause):
        run_on(cluster, body)
    flow_run_id, *others = names(path)
    assert others == ["step-0"]
    states = {r["name"]: r["state_type"] for r in api.task_runs(flow_run_id)}
    assert states == {"step-0": "COMPLETED"}


def test_a_flow_run_cancelled_by_its_own_exception_settles_every_run(
    cluster: LocalCluster, api: Api
) -> None:
    @task
    def endless() -> None:
        import time

        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            time.sleep(0.01)

    def body() -> None:
        for _ in range(5):
            endless.submit()
        raise RuntimeError("the flow fails while its tasks run")

    run = run_on(cluster, body)
    assert run.state.is_failed()
    runs = api.task_runs(run.id)
    assert len(runs) == 5
    assert {r["state_type"] for r in runs} == {"CANCELLED"}


def test_runs_that_nobody_waited_for_are_settled_when_the_flow_returns(
    cluster: LocalCluster, api: Api
) -> None:
    @task
    def short() -> None:
        import time

        time.sleep(0.3)

    run = run_on(cluster, lambda: [short.submit() for _ in range(2)] and None)
    assert run.state.is_completed()
    runs = api.task_runs(run.id)
    assert len(runs) == 2
    assert {r["state_type"] for r in runs} <= {"COMPLETED", "CANCELLED"}


def test_a_flow_that_returns_futures_gets_their_results(cluster: LocalCluster) -> None:
    @task
    def value(number: int) -> int:
        return number

    @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
    def run() -> Any:
        return value.map([1, 2, 3])

    assert [state.result() if hasattr(state, "result") else state for state in run()] == [1, 2, 3]


def test_workers_do_not_start_servers_of_their_own(cluster: LocalCluster, api: Api) -> None:
    @task
    def look() -> tuple[str | None, bool]:
        from prefect.server.api.server import SubprocessASGIServer
        from prefect.settings import PREFECT_API_URL

        url = PREFECT_API_URL.value()
        return url, bool(SubprocessASGIServer._instances)

    url, has_server = run_on(cluster, lambda: look.submit().result()).result()
    assert url == api.url
    assert has_server is False
