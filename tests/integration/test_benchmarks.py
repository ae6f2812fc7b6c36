"""Every benchmark runs to its end at its smallest size and writes its figures.

Whether a figure is good is no matter here: a benchmark may end with status 1 because of one, but
its table is printed, its JSON is written, and nothing is raised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.sim.shared_data import DATA, WORKFLOWS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
GPU_TRACE = DATA / "gpu_cluster"

slow = pytest.mark.slow
needs_workflows = pytest.mark.skipif(
    not WORKFLOWS.is_dir(), reason=f"no workflows at {WORKFLOWS}; set SHARED_DATA"
)
needs_gpu_trace = pytest.mark.skipif(
    not GPU_TRACE.is_dir(), reason=f"no trace at {GPU_TRACE}; set SHARED_DATA"
)
PLAYED = "--seeds 1 --past 1 --processes 1 --policies heft"


def smallest(name: str, words: str, *wanted: str, marks: Any = (), suffix: str = "") -> Any:
    """A benchmark, its arguments, and keys that its JSON must have at the top."""
    return pytest.param(name, words.split(), wanted, id=name + suffix, marks=marks)


BENCHMARKS = [
    smallest("codecs", "--megabytes 0.05", "f64 2 decimals", "DataFrame with strings"),
    smallest(
        "decision_cost",
        "--workers 10 --tasks 200 --rounds 1 --live-workers 2",
        *("machine", "python_us", "figures"),
    ),
    smallest(
        "dispatch",
        "--n 20 --submits 10 --rounds 1 --big 0",
        *("machine", "figures", "ratios"),
        marks=slow,
    ),
    smallest(
        "dispatch",
        "--n 20 --submits 10 --rounds 1 --big 0 --only deepflow",
        *("machine", "figures", "ratios"),
        suffix=" alone",
    ),
    smallest(
        "gpu_fragmentation",
        "--policies best-fit --seeds 42 --processes 1",
        *("summary", "replays"),
        marks=needs_gpu_trace,
    ),
    smallest("kill", "--repetitions 1 --tasks 8 --task-s 0.1", "summary", "runs"),
    smallest("memory", "--runs 3 --tasks 20", "mb_per_run", "curve_mb"),
    smallest("persisted", "--mb 0.1 --rounds 1", "f64 smooth", "frame", "JSON lines"),
    smallest(
        "placement",
        f"--instances 1 --clusters three-speeds {PLAYED}",
        *("summary", "runs"),
        marks=needs_workflows,
    ),
    smallest(
        "real_flows",
        "--only genome --size tiny --rounds 1 --settle 0 --stretch 1",
        *("rounds", "flows"),
        marks=slow,
    ),
    smallest("reality", "--policies stock,heft --rounds 1 --tasks 12", "summary", "rounds"),
    smallest("results", "--mb 1 --repetitions 1", "sizes", "seconds", "median_ratio"),
    smallest("run_time_model", "--set validate --seeds 1", "us", "table", marks=needs_workflows),
    smallest("sim_network", "--n 200 --at-once 10"),
    smallest("soft_gpu", f"--items 8 {PLAYED}", "summary", "runs"),
    smallest(
        "soft_gpu",
        "--items 4 --past 1 --live 1 --scale 0.02",
        *("median", "rounds"),
        suffix=" live",
    ),
    smallest(
        "streams",
        f"--jobs 3 --most-tasks 100 --clusters three-speeds {PLAYED}",
        *("summary", "runs"),
        marks=needs_workflows,
    ),
    smallest("tiers", "--memory 400MB --times 0.2 --repetitions 1", "runs", "ratio"),
    smallest("transfer", "--quick --repetitions 1", "1.0", suffix=" over a link"),
    smallest(
        "transfer",
        "--same-host --megabytes 1 --repetitions 1",
        *("1", "8"),
        suffix=" same host",
        marks=slow,
    ),
]


def test_every_benchmark_has_its_smallest_size() -> None:
    with_commands = {p.stem for p in FOLDER.glob("[!_]*.py") if '"__main__"' in p.read_text()}
    with_commands.remove("pictures")  # draws what others measure: tests/unit/test_pictures.py
    assert with_commands == {benchmark.values[0] for benchmark in BENCHMARKS}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "words", "wanted"), BENCHMARKS)
def test_a_benchmark_runs_at_its_smallest_size(
    name: str, words: list[str], wanted: tuple[str, ...], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DEEPFLOW_"))
    }
    environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "DEEPFLOW_STATE_DIR": str(tmp_path / "state"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *words, "--json", str(figures)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    said = done.stdout[-4000:] + done.stderr[-4000:]
    if "no throttled link can be made here" in said:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr, said
    assert done.returncode in (0, 1), said
    told = json.loads(figures.read_text())
    assert told, said
    assert all(key in told for key in wanted), said
    assert len(done.stdout.splitlines()) >= 2, said
