"""`deepflow demo` starts what is missing, runs the real flow, and ends by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEEPFLOW = [sys.executable, "-c", "from deepflow.cli import main; main(prog_name='deepflow')"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ARTIFACTS = [
    "deepflow-placement",
    "flight-delay-errors",
    "flight-delay-picture",
    "flight-delay-run",
]


def environment(home: Path) -> dict[str, str]:
    """This process's, without any Prefect of its own."""
    mine = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
    return mine | {
        "PREFECT_HOME": str(home),
        "DEEPFLOW_STATE_DIR": str(home / "state"),
        "PYTHONPATH": str(ROOT),
    }


def get(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as reply:
        return json.loads(reply.read())


def logs_of(api_url: str, flow_run_id: str) -> list[str]:
    """What the UI shows as the log of a flow run, once the last lines have come."""
    asked = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_DESC"}
    lines: list[str] = []
    for _ in range(60):
        reply = httpx.post(f"{api_url}/logs/filter", json=asked, timeout=10, trust_env=False)
        lines = [one["message"] for one in reply.raise_for_status().json()]
        if any("Finished in state" in line for line in lines):
            break
        time.sleep(0.5)
    return lines


def test_it_runs_the_flow_compares_and_ends_with_status_0(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEEPFLOW, "demo", "--size", "tiny", "--json"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert told["state"] == "Completed"
    assert told["tasks_total"] == told["tasks_completed"] == told["flow"]["tasks"]
    assert {one["airport"] for one in told["flow"]["airports"]} == {"EWR", "JFK", "LGA"}
    assert len(told["worker_classes"]) == 2
    assert told["speed_up"] == pytest.approx(told["one_process_wall_s"] / told["wall_s"])
    assert told["prefect_dask_wall_s"] > 0
    assert told["wire_bytes"] > 0
    phases = told["phases"]
    assert phases["before_s"] + phases["tasks_s"] + phases["after_s"] == pytest.approx(
        told["wall_s"], rel=0.05
    )
    assert all(seconds > 0 for seconds in told["start_up"].values())
    assert [one["key"] for one in told["artifacts"]] == ARTIFACTS
    # The server has ended.
    assert told["ui_url"] is None
    assert "http" not in done.stdout


def test_an_api_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEEPFLOW, "demo", "--size", "tiny"],
        env=environment(tmp_path) | {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no Prefect API answers at PREFECT_API_URL=http://127.0.0.1:9/api" in done.stderr
    assert "Traceback" not in done.stderr


def test_keep_leaves_the_ui_running_until_it_is_interrupted(tmp_path: Path) -> None:
    log_path = tmp_path / "stderr.log"
    with (
        log_path.open("w") as log,
        subprocess.Popen(
            [*DEEPFLOW, "demo", "--size", "tiny", "--no-compare", "--keep", "--json"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Tests started in the background ignore SIGINT, and children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as demo,
    ):
        try:
            deadline = time.monotonic() + 300
            while "until Ctrl-C" not in log_path.read_text():
                assert demo.poll() is None, log_path.read_text()[-4000:]
                assert time.monotonic() < deadline, log_path.read_text()[-4000:]
                time.sleep(0.2)
            # Everything was printed before the sentence waited for; its end is a lone brace.
            assert demo.stdout is not None
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                lines.append(demo.stdout.readline())
            told = json.loads("".join(lines))
            assert told["speed_up"] is None
            api_url = told["ui_url"].split("/runs/")[0] + "/api"
            run = get(f"{api_url}/flow_runs/{told['flow_run_id']}")
            assert run["state_name"] == "Completed"
            assert any("Finished in state" in line for line in logs_of(api_url, run["id"]))
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) == 0, log_path.read_text()[-4000:]
        finally:
            if demo.poll() is None:
                demo.kill()
    with pytest.raises(OSError, match="refused"):
        get(f"{api_url}/health")
