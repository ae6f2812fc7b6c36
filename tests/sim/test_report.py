"""Metrics of small runs, worked out by hand; and policies compared where the answer is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from deepflow.decide.events import Finished, Submitted, Transferred, WorkerJoined, WorkerLeft
from deepflow.decide.trail import Trail
from deepflow.errors import ConfigurationError
from deepflow.sim.report import Cell, Metrics, Yardstick, measure, summarise, to_json

YARDSTICK = Yardstick(
    bound_s=5.0,
    best_s={"a": 1.0, "b": 2.0, "c": 0.1, "d": 1.0},
    job_bound_s={"one": 3.0, "two": 1.0},
)


def two_jobs() -> Trail:
    """Job one: a, then b and c; job two: d, which comes at 1. Workers: two threads, one thread.

    fast-0: a 0-1, b 1-3, d 3-5; slow-0: c 2-6 (copied for a second first).
    """
    return Trail.of(
        [
            WorkerJoined(0.0, "fast-0", "fast", 2),
            WorkerJoined(0.0, "slow-0", "slow", 1),
            Submitted(0.0, "a", "a", "f", "one"),
            Submitted(0.0, "b", "b", "f", "one", ("a",)),
            Submitted(0.0, "c", "c", "f", "one", ("a",)),
            Submitted(1.0, "d", "d", "g", "two"),
            Finished(1.0, "a", "fast-0", 0.0, 1.0, 10),
            Transferred(2.0, "a", "fast-0", "slow-0", 10, 1.0),
            Finished(3.0, "b", "fast-0", 1.0, 3.0, 0),
            Finished(5.0, "d", "fast-0", 3.0, 5.0, 0),
            Finished(6.0, "c", "slow-0", 2.0, 6.0, 0),
        ]
    )


def test_the_metrics_of_two_jobs_by_hand() -> None:
    told = measure(two_jobs(), YARDSTICK, decision_us=[1.0, 2.0, 3.0], fragmentation=0.25)
    assert told.makespan_s == 6.0
    assert told.makespan_over_bound == 1.2
    assert told.wait_mean_s == pytest.approx((0 + 0 + 1 + 2) / 4)
    # 99 % of the way from the smallest to the largest of four: between the third and the fourth.
    assert told.wait_p99_s == pytest.approx(1 + (0.99 * 3 - 2) * (2 - 1))
    assert told.long_tail_share == 0.25  # c: 5 s from ready to finished, 50 times its best 0.1 s
    assert told.slowdown_mean == pytest.approx((6 / 3 + 4 / 1) / 2)
    assert told.slowdown_max == 4.0
    assert told.completion_mean_s == pytest.approx((6 + 4) / 2)
    assert told.utilisation == pytest.approx((1 + 2 + 0.1 + 1) / (3 * 6))
    assert told.moved_bytes == 10
    assert (told.fragmentation, told.decision_p50_us) == (0.25, 2.0)
    assert told.decision_p99_us == pytest.approx(2.98)
    assert (told.n_tasks, told.n_unfinished) == (4, 0)


def test_capacity_is_that_of_the_workers_while_they_were_there() -> None:
    trail = Trail.of(
        [
            WorkerJoined(-5.0, "fast-0", "fast", 1),
            WorkerJoined(2.0, "late-0", "late", 2),
            WorkerLeft(3.0, "late-0"),
            Submitted(0.0, "a", "a", "f", "one"),
            Finished(4.0, "a", "fast-0", 0.0, 4.0, 10),
            WorkerLeft(9.0, "fast-0"),
        ]
    )
    assert measure(trail, YARDSTICK).utilisation == pytest.approx(1.0 / (4 * 1 + 1 * 2))


def test_a_long_tail_begins_above_ten_times() -> None:
    def share(stopped_s: float) -> float:
        trail = Trail.of(
            [
                Submitted(0.0, "a", "a", "f", "one"),
                Finished(stopped_s, "a", "fast-0", 0.0, stopped_s, 0),
            ]
        )
        return measure(trail, YARDSTICK).long_tail_share

    assert (share(10.0), share(10.1)) == (0.0, 1.0)


def test_what_did_not_finish_is_counted() -> None:
    trail = Trail.of([Submitted(0.0, "a", "a", "f", "one")])
    told = measure(trail, YARDSTICK)
    assert (told.n_unfinished, told.makespan_s, told.slowdown_max) == (1, 0.0, 0.0)


def test_nothing_at_all() -> None:
    assert measure(Trail.of([]), Yardstick(0.0, {}, {})).n_tasks == 0


def test_a_yardstick_of_another_workload_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no time on the best class for 'a'"):
        measure(two_jobs(), Yardstick(1.0, {}, {}))
    with pytest.raises(ConfigurationError, match="no bound of a run for 'one'"):
        measure(two_jobs(), replace(YARDSTICK, job_bound_s={}))


PLAIN = measure(two_jobs(), YARDSTICK)


def cell(
    policy: str, seed: int, makespan_s: float, workflow: str = "w", **other: float | None
) -> Cell:
    metrics: Metrics = replace(
        PLAIN,
        makespan_s=makespan_s,
        makespan_over_bound=makespan_s / 10,
        **other,  # type: ignore[arg-type]
    )
    return Cell(workflow, "c", policy, seed, metrics)


def test_ratios_are_geometric_and_paired_by_seed() -> None:
    # Given in another order of seeds: pairs are made by seed, not by place.
    cells = [cell("stock", 0, 10), cell("stock", 1, 40), cell("new", 1, 20), cell("new", 0, 5)]
    summary = summarise(cells, baseline="stock", rng=np.random.default_rng(0))
    stock, new = summary.policies
    assert new.ratios["makespan_s"].mean == pytest.approx(0.5)
    # Every pair halves, so there is no doubt about it, however much the seeds differ.
    assert new.ratios["makespan_s"].low == pytest.approx(0.5)
    assert new.ratios["makespan_s"].high == pytest.approx(0.5)
    assert new.means["makespan_s"].mean == pytest.approx(10.0)
    assert (new.means["makespan_s"].low, new.means["makespan_s"].high) == pytest.approx((5, 20))
    assert stock.ratios["makespan_s"].mean == 1.0
    assert (stock.wins, stock.losses, new.wins, new.losses) == (0, 0, 1, 0)


def test_the_worst_cell_and_the_wins() -> None:
    cells = [
        *(cell("stock", 0, 10, w) for w in "xyz"),
        cell("new", 0, 5, "x"),
        cell("new", 0, 20, "y"),
        cell("new", 0, 10, "z"),
    ]
    (_, new) = summarise(cells, baseline="stock", rng=np.random.default_rng(0)).policies
    assert (new.wins, new.losses) == (1, 1)
    assert (new.worst.workflow, new.worst.ratio) == ("y", pytest.approx(2.0))
    assert new.ratios["makespan_s"].mean == pytest.approx(1.0)
    assert new.ratios["makespan_s"].low is None  # one seed: nothing is known of the spread
    assert [c.ratio for c in new.cells] == pytest.approx([0.5, 2.0, 1.0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 0.8
    n_covered = 0
    noise = np.random.default_rng(7)
    for trial in range(100):
        cells = []
        for seed in range(20):
            both, one, other = noise.normal(0, (0.5, 0.1, 0.1))
            cells.append(cell("stock", seed, 10 * math.exp(both + one)))
            cells.append(cell("new", seed, 10 * truth * math.exp(both + other)))
        summary = summarise(
            cells, baseline="stock", rng=np.random.default_rng(trial), n_resamples=300
        )
        ratio = summary.policies[1].ratios["makespan_s"]
        assert ratio.low is not None
        assert ratio.high is not None
        # Paired: the noise that both share, five times as large, does not widen it.
        assert ratio.high - ratio.low < 0.2
        n_covered += ratio.low <= truth <= ratio.high
    assert 86 <= n_covered <= 99


def test_a_run_that_did_not_finish_loses_and_is_never_hidden() -> None:
    cells = [
        *(cell("stock", s, 10) for s in (0, 1)),
        cell("new", 0, 1),
        cell("new", 1, 1, n_unfinished=3),
    ]
    summary = summarise(cells, baseline="stock", rng=np.random.default_rng(0))
    new = summary.policies[1]
    assert (new.worst.ratio, new.losses, new.n_unfinished) == (math.inf, 1, 3)
    assert new.means["makespan_over_bound"].mean == math.inf
    document = json.loads(json.dumps(to_json(summary), allow_nan=False))
    assert document["policies"][1]["worst"]["ratio"] is None


def test_where_neither_finishes_neither_wins() -> None:
    cells = [cell("stock", 0, 10, n_unfinished=1), cell("new", 0, 1, n_unfinished=1)]
    new = summarise(cells, baseline="stock", rng=np.random.default_rng(0)).policies[1]
    assert (new.wins, new.losses) == (0, 1)


def test_cells_where_a_ratio_has_no_meaning_are_left_out_of_it_and_counted() -> None:
    cells = [
        cell("stock", 0, 10, "x", moved_bytes=0.0, fragmentation=0.5),
        cell("stock", 0, 10, "y", moved_bytes=10.0),
        cell("new", 0, 10, "x", moved_bytes=5.0, fragmentation=0.2),
        cell("new", 0, 10, "y", moved_bytes=5.0),
    ]
    new = summarise(cells, baseline="stock", rng=np.random.default_rng(0)).policies[1]
    assert (new.ratios["moved_bytes"].mean, new.ratios["moved_bytes"].n_cells) == (0.5, 1)
    assert (new.means["moved_bytes"].mean, new.means["moved_bytes"].n_cells) == (5.0, 2)
    assert (new.means["fragmentation"].mean, new.means["fragmentation"].n_cells) == (0.2, 1)
    assert "decision_p50_us" not in new.means


def test_the_same_generator_gives_the_same_intervals() -> None:
    noise = np.random.default_rng(1)
    cells = [cell(p, s, float(noise.uniform(5, 10))) for p in ("stock", "new") for s in range(6)]
    twice = [summarise(cells, baseline="stock", rng=np.random.default_rng(3)) for _ in range(2)]
    assert twice[0] == twice[1]


def test_missing_seeds_and_baselines_are_refused() -> None:
    cells = [cell("stock", 0, 10), cell("stock", 1, 10), cell("new", 0, 5)]
    with pytest.raises(ConfigurationError, match=r"'new' was not run .* seeds \[1\]"):
        summarise(cells, baseline="stock", rng=np.random.default_rng(0))
    with pytest.raises(ConfigurationError, match=r"'dask' is not among .*stock, new"):
        summarise(cells, baseline="dask", rng=np.random.default_rng(0))
