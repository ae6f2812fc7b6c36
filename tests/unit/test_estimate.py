from __future__ import annotations

import json
import math
import pickle
import random

import pytest

from deepflow.decide import estimate as module
from deepflow.decide.estimate import DEFAULT_OUTPUT_BYTES, DEFAULT_RUN_S, Estimates
from deepflow.errors import HistoryError


def learned(*runs: tuple[str, str, float], flow: str = "f") -> Estimates:
    """Estimates after runs given as task, class, seconds; nothing read, 100 bytes made."""
    estimates = Estimates()
    for task, worker_class, run_s in runs:
        estimates.observe(flow, task, worker_class, run_s, 0, 100)
    return estimates


def test_nothing_known_is_half_a_second() -> None:
    estimates = Estimates()
    assert estimates.run_s("f", "t", "c", 0) == pytest.approx(DEFAULT_RUN_S)
    assert estimates.run_s("f", "t", None, 1e9) == pytest.approx(DEFAULT_RUN_S)
    assert estimates.output_bytes("f", "t", 0) == DEFAULT_OUTPUT_BYTES
    assert estimates.n_seen("f", "t", "c") == 0
    assert not estimates.is_known("f", "t")


def test_a_run_is_learned_from_at_once() -> None:
    estimates = learned(("t", "c", 40.0))
    assert estimates.is_known("f", "t")
    assert estimates.n_seen("f", "t", "c") == 1
    assert estimates.run_s("f", "t", "c", 0) == pytest.approx(40.0, rel=0.05)
    assert estimates.output_bytes("f", "t", 0) == pytest.approx(100, rel=0.01)


def test_an_unseen_task_has_the_mean_of_the_flow() -> None:
    estimates = learned(*[("a", "c", 1.0)] * 5, *[("b", "c", 100.0)] * 5)
    assert estimates.run_s("f", "new", "c", 0) == pytest.approx(10.0, rel=0.1)


def test_first_runs_in_fresh_processes_do_not_count_for_long() -> None:
    estimates = learned(("t", "c", 1.0), *[("t", "c", 0.001)] * 3)
    assert estimates.run_s("f", "t", "c", 0) == pytest.approx(0.001, rel=0.3)


def test_a_task_never_seen_on_a_class_borrows_its_speed_from_other_tasks() -> None:
    runs = [(t, c, s * k) for t, s in [("a", 1), ("b", 7)] for c, k in [("x", 1), ("y", 3)]] * 10
    estimates = learned(*runs, *[("new", "x", 5.0)] * 10)
    assert estimates.run_s("f", "new", "y", 0) == pytest.approx(15.0, rel=0.2)
    assert estimates.speed("f", "new", "x") > 1 > estimates.speed("f", "new", "y")


def test_a_flow_never_seen_knows_the_speeds_of_the_classes() -> None:
    runs = [(t, c, s * k) for t, s in [("a", 1), ("b", 7)] for c, k in [("x", 1), ("y", 3)]] * 10
    estimates = learned(*runs)
    estimates.merge(learned(*runs, flow="g"))
    ratio = estimates.run_s("h", "t", "y", 0) / estimates.run_s("h", "t", "x", 0)
    assert ratio == pytest.approx(3.0, rel=0.2)


def test_time_that_grows_with_the_input_is_learned() -> None:
    estimates = Estimates()
    rng = random.Random(1)
    for i in range(100):
        size = 10.0 ** rng.uniform(6, 10)
        noise = math.exp(rng.gauss(0, 0.2))
        estimates.observe("f", "t", "xy"[i % 2], size * 1e-8 * noise, size, size / 2)
    assert estimates.run_s("f", "t", "x", 1e10) == pytest.approx(100, rel=0.25)
    assert estimates.run_s("f", "t", "y", 1e7) == pytest.approx(0.1, rel=0.25)
    assert estimates.output_bytes("f", "t", 1e9) == pytest.approx(5e8, rel=0.25)


def test_the_newest_times_of_a_run_count_until_the_next_run_begins() -> None:
    estimates = Estimates()
    for i in range(10):
        estimates.begin_run("f")
        for _ in range(10):
            estimates.observe("f", "t", "c", 5.0 if i % 2 else 2.0, 0, 0)
    assert estimates.run_s("f", "t", "c", 0) == pytest.approx(5.0, rel=0.15)
    within_run = estimates.spread("f", "t", "c")
    estimates.begin_run("f")
    assert 2.5 < estimates.run_s("f", "t", "c", 0) < 4.0
    assert estimates.spread("f", "t", "c") > within_run
    estimates.begin_run("never seen")


def test_only_so_many_tasks_of_a_flow_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TASKS_PER_FLOW", 3)
    monkeypatch.setattr(module, "MAX_FLOWS", 2)
    estimates = learned(*[(f"t{i}", "c", 1.0) for i in range(3)], ("t0", "c", 1.0))
    estimates.observe("f", "t3", "c", 1.0, 0, 0)
    assert [estimates.is_known("f", f"t{i}") for i in range(4)] == [True, False, True, True]
    estimates.observe("g", "t", "c", 1.0, 0, 0)
    estimates.observe("h", "t", "c", 1.0, 0, 0)
    assert not estimates.is_known("f", "t0")


def test_quantiles_hold_the_share_they_name() -> None:
    rng = random.Random(2)
    seen = [math.exp(rng.gauss(0, 0.5)) for _ in range(1000)]
    estimates = learned(*[("t", "c", s) for s in seen])
    within = estimates.run_quantile_s("f", "t", "c", 0, 0.9)
    assert sum(s <= within for s in seen) / 1000 == pytest.approx(0.9, abs=0.03)
    assert estimates.spread("f", "t", "c") == pytest.approx(0.5, abs=0.06)


def test_what_is_learned_survives_json_and_pickle() -> None:
    estimates = learned(*[("t", "c", 3.0)] * 20, ("u", "d", 1.0))
    saved = json.loads(json.dumps(estimates.to_dict()))
    for copy in (Estimates.from_dict(saved), pickle.loads(pickle.dumps(estimates))):
        assert copy.to_dict() == estimates.to_dict()
        assert copy.run_s("f", "t", "d", 9) == estimates.run_s("f", "t", "d", 9)


@pytest.mark.parametrize("saved", [{}, {"version": 99}, {"version": 1, "n_seen": "?"}])
def test_what_cannot_be_read_is_refused(saved: dict[str, object]) -> None:
    with pytest.raises(HistoryError, match="learn them again"):
        Estimates.from_dict(saved)


def test_what_is_no_number_is_refused_and_changes_nothing() -> None:
    estimates = learned(("t", "c", 1.0))
    before = estimates.to_dict()
    with pytest.raises(HistoryError, match="nan"):
        estimates.observe("f", "t", "c", math.nan, 0, 0)
    assert estimates.to_dict() == before
