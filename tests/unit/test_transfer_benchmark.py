"""The parts of the transfer benchmark that decide what its figures say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import transfer


def test_the_mix_is_the_sum_of_times_and_the_worst_is_one_payload(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {
        "a": {"off": {"median_s": 1.0}, "deepflow": {"median_s": 0.2}},
        "b": {"off": {"median_s": 3.0}, "deepflow": {"median_s": 3.3}},
    }
    mix = transfer.show_mix(1.0, rows, ["off", "deepflow"])
    assert mix["deepflow"] == pytest.approx(3.5 / 4)
    told = capsys.readouterr().out
    assert "0.88 (asked 0.45: SHORT)" in told
    assert "worst payload 1.10 (asked 1.05: SHORT)" in told


def test_payloads_are_the_same_for_every_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(transfer.CACHE, str(tmp_path))
    first = transfer.make("i64 sorted", 80_000, 1)
    again = transfer.make("i64 sorted", 80_000, 1)
    assert transfer.digest(first) == transfer.digest(again)
    assert transfer.digest(transfer.make("i64 sorted", 80_000, 2)) != transfer.digest(first)
    assert len(list(tmp_path.iterdir())) == 2
    changed = np.array(first)
    changed[7] += 1
    assert transfer.digest(changed) != transfer.digest(first)


CHILD = """
import sys
print("here", flush=True)
sys.stdin.readline()
block = b"x" * 80_000_000
del block
print("done", flush=True)
sys.stdin.readline()
"""


def test_peak_memory_sees_what_was_freed_again() -> None:
    # A process of its own: this one may have as much free memory left over from other tests.
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        try:
            transfer.start_peak([child.pid])
        except OSError as exc:
            child.kill()
            pytest.skip(f"the peak cannot be reset here: {exc}")
        before = transfer.peak_bytes([child.pid])
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        assert transfer.peak_bytes([child.pid]) - before > 60_000_000
        child.stdin.close()
