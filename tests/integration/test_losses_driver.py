"""The driver interrupted: it ends soon, leaves no run open and no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.api import Api
from tests.integration.notes import is_alive, times_noted, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_soon_and_leaves_nothing_running(
    api: Api, tmp_path: Path, how: signal.Signals
) -> None:
    begun = tmp_path / "begun"
    output = tmp_path / "output"
    with output.open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.losses_driver", str(begun)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "DEEPFLOW_SHUTDOWN_S": "5"},
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Where the tests themselves run in the background SIGINT is ignored, and children
            # inherit that; a person's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        until(lambda: len(times_noted(begun)) >= 4 or driver.poll() is not None, 90)
        assert driver.poll() is None, output.read_text()
        family = [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
        assert len(family) >= 2
        # As Ctrl-C does, to the driver; workers do not hear it.
        os.kill(driver.pid, how)
        driver.wait(60)
    finally:
        driver.kill()
        driver.wait()
    text = output.read_text()
    assert driver.returncode != 0, text
    until(lambda: not any(is_alive(pid) for pid in family))
    flow_run_id = text.split("id of the run: ", 1)[1].split()[0]
    runs = api.until(
        lambda: api.task_runs(flow_run_id),
        lambda runs: all(run["state_type"] not in ("RUNNING", "PENDING") for run in runs),
    )
    assert runs
    assert "CANCELLED" in {run["state_type"] for run in runs}
    assert api.flow_run(flow_run_id)["state_type"] in ("CRASHED", "FAILED", "CANCELLED")
