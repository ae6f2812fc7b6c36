"""Every example runs by itself, in a fresh process.

The first one with nothing started before, as for a newcomer; the others ask the server of these
tests, for a server's start takes longer than most of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepflow.runner.server import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))

SAYS = {
    "01_first_run.py": ["The sum of the squares below 100 is 328350."],
    "02_hints.py": [
        "resources={'scratch': 1}: ran on big-0",
        "isolate=True: in a process of its own",
        "durable=True: 42",
        "gpu=2: refused when it is submitted: task 'where': no worker offers gpu=2",
    ],
    "03_heterogeneous.py": [
        "'gpu-0']",
        "  train     on ['cpu-",
        "  the answer is 51.633",
    ],
    "05_near_the_data.py": ["50000 rows of 50000 were read, each in one shard."],
    "07_frames.py": [
        "as on one host: Results that moved: ",
        "handed over in shared memory, without being sent.",
        "as over a network: Results that moved: ",
        "compression saved 8",
        "Both say the same: True.",
    ],
    "08_own_resolver.py": ["6 of 6 recordings were read in their hall."],
    "09_many_flow_runs.py": ["Every short run ended before the long one: True."],
    "06_own_policy.py": ["stock  ", "heft  ", "frugal  "],
    "04_survive_a_worker.py": [
        "Killed worker process",
        "The answer is 506, which is right.",
        "Steps that had finished and ran twice: 0.",
    ],
}
"""What an example must print."""
MOST_LINES = 14
"""Of the first example, on the terminal: what a person wants to read, and little else."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_and_says_what_it_shows(
    example: Path, tmp_path: Path, server: EmbeddedServer
) -> None:
    is_first = example.name.startswith("01")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DEEPFLOW_"))
    }
    environment |= {
        "PREFECT_HOME": str(tmp_path),
        # Of its own: what other runs of an example have taught decides where its tasks go.
        "DEEPFLOW_STATE_DIR": str(tmp_path / "state"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(ROOT),
    }
    if not is_first:
        environment["PREFECT_API_URL"] = server.api_url
    done = subprocess.run(
        [sys.executable, str(example)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in SAYS[example.name]:
        assert text in done.stdout, done.stdout + done.stderr
    if is_first:
        lines = (done.stderr + done.stdout).splitlines()
        assert len(lines) <= MOST_LINES, "\n".join(lines)
        assert any("where and why: `deepflow explain " in line for line in lines)
