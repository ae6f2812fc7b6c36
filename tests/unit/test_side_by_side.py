"""Tests that run side by side: one that hangs fails once, shows where it is, and all others run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANGS = """
import time

def test_before():
    pass

def test_that_hangs():
    time.sleep(600)

def test_after():
    pass
"""
SETTINGS = """
[pytest]
timeout = 6
timeout_method = thread
faulthandler_timeout = 4
"""


def test_a_test_that_hangs_fails_once_and_all_others_run(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_hanging.py").write_text(HANGS)
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.side_by_side", "-p", "no:cacheprovider"),
            *("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert "crashed while running 'test_hanging.py::test_that_hangs'" in done.stdout
    assert "in test_that_hangs" in done.stderr
