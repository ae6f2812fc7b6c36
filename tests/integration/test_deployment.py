"""The recurring deployment: deployed to a real server, fired by its schedule, run by a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import prefect.settings as prefect_settings
import pytest
import yaml

from deepflow.runner.server import RECORDER_SETTINGS, EmbeddedServer
from deepflow.settings import load_settings
from tests.integration.api import Api
from tests.integration.notes import until

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
PREFECT = [sys.executable, "-m", "prefect"]

COMMAND_DEADLINE_S = 90.0
RUN_DEADLINE_S = 150.0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a shell that talks to a server of its own, with the laptop profile."""
    with EmbeddedServer(home=tmp_path / "server") as server:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DEEPFLOW_"))}
        yield own | {
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_CLI_COLORS": "false",
            "DEEPFLOW_CONFIG": str(DEPLOYMENTS / "profiles" / "laptop.toml"),
        }


def prefect(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*PREFECT, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"prefect {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def api(environment: dict[str, str], path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with closing(Api(environment["PREFECT_API_URL"])) as server:
        found: list[dict[str, Any]] = server.post(f"/{path}", body)
    return found


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PREFECT, "worker", "start", "--pool", "deepflow", "--type", "process"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


@pytest.mark.slow
def test_a_schedule_of_the_deployed_flow_fires_and_the_run_completes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    declared = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())["deployments"]
    file = ["--prefect-file", "deployments/prefect.yaml"]
    prefect(environment, "work-pool", "create", "deepflow", "--type", "process")
    prefect(environment, "--no-prompt", "deploy", "--all", *file)

    deployed = {one["name"]: one for one in api(environment, "deployments/filter", {})}
    assert set(deployed) == {one["name"] for one in declared}
    for one in declared:
        (wanted,), (got,) = one["schedules"], deployed[one["name"]]["schedules"]
        assert got["schedule"]["cron"] == wanted["cron"]
        assert got["schedule"]["timezone"] == wanted["timezone"] == "America/New_York"
        assert got["active"] is wanted["active"]
        assert deployed[one["name"]]["parameters"] == one["parameters"]

    # The same file once more with another parameter, then a schedule that is due now instead of
    # tonight: an interval of an hour, anchored some seconds ahead.
    prefect(environment, "--no-prompt", "deploy", "-n", "nightly", "--param", "size=tiny", *file)
    due = datetime.now(UTC) + timedelta(seconds=10)
    prefect(
        environment,
        *("deployment", "schedule", "create", "flight-delays/nightly", "--replace"),
        *("--interval", "3600", "--anchor-date", due.isoformat(), "--accept-yes"),
    )
    log = tmp_path / "worker.log"
    with worker(environment, log) as process:
        run = _run_due_first(environment, process, log)
        assert run["state_type"] == "COMPLETED", f"{run['state']}\n{_end_of(log)}"
        assert run["auto_scheduled"] is True
        assert run["parameters"]["size"] == "tiny"
        assert run["deployment_id"] == deployed["nightly"]["id"]
        of_run = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
        expected = {
            "deepflow-placement",  # written after the run's final state, when its runner ends
            "flight-delay-errors",
            "flight-delay-picture",
            "flight-delay-run",
        }
        until(
            lambda: {one["key"] for one in api(environment, "artifacts/filter", of_run)} == expected
        )


def _run_due_first(
    environment: dict[str, str], process: subprocess.Popen[bytes], log: Path
) -> dict[str, Any]:
    """The first scheduled run, once it has ended; fails beyond the deadline."""
    deadline = time.monotonic() + RUN_DEADLINE_S
    runs: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the worker ended: {_end_of(log)}"
        runs = api(environment, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", "limit": 5})
        if runs and runs[0]["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return runs[0]
        time.sleep(0.5)
    states = json.dumps([run["state"] for run in runs], indent=1)
    server_log = log.parent / "server" / "server.log"
    pytest.fail(
        f"no run ended within {RUN_DEADLINE_S} s: {states}\nworker: {_end_of(log)}\n"
        f"server: {_end_of(server_log)}"
    )


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-60:])


def test_every_profile_is_one_that_deepflow_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEEPFLOW_")]:
        monkeypatch.delenv(name)
    profiles = sorted((DEPLOYMENTS / "profiles").glob("*.toml"))
    assert [profile.stem for profile in profiles] == ["cluster", "laptop"]
    loaded = {}
    for profile in profiles:
        monkeypatch.setenv("DEEPFLOW_CONFIG", str(profile))
        loaded[profile.stem] = load_settings()
    assert loaded["laptop"].address is None
    assert loaded["cluster"].address == "tcp://127.0.0.1:8786"
    monkeypatch.setenv("DEEPFLOW_CONFIG", str(DEPLOYMENTS / "profiles" / "cluster.toml"))
    monkeypatch.setenv("DEEPFLOW_ADDRESS", "tcp://10.1.2.3:8786")
    assert load_settings().address == "tcp://10.1.2.3:8786"


def test_a_separate_server_is_given_the_settings_of_the_embedded_one() -> None:
    lines = (DEPLOYMENTS / "profiles" / "prefect-server.env").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert pairs == dict(RECORDER_SETTINGS)


def test_every_server_setting_in_the_profile_is_one_that_prefect_knows() -> None:
    lines = (DEPLOYMENTS / "profiles" / "prefect-server.env").read_text().splitlines()
    names = [line.split("=", 1)[0] for line in lines if line and not line.startswith("#")]
    unknown = [name for name in names if not hasattr(prefect_settings, name)]
    assert names
    assert unknown == []
    assert not hasattr(prefect_settings, names[0] + "_AND_MORE"), "Prefect says yes to any name"
