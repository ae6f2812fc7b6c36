"""The parts of the transfer benchmark that decide what its figures say."""

from __future__ import annotations

import os
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


def test_peak_memory_sees_what_was_freed_again() -> None:
    try:
        transfer.start_peak([os.getpid()])
    except OSError as exc:
        pytest.skip(f"the peak cannot be reset here: {exc}")
    before = transfer.peak_bytes([os.getpid()])
    np.ones(50_000_000, np.uint8).sum()
    assert transfer.peak_bytes([os.getpid()]) - before > 40_000_000
