from __future__ import annotations

import math
import pickle
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.decide.estimate import Estimates
from deepflow.decide.rank import FlowShape, RunTask, upward_ranks

seconds = st.floats(1e-4, 1e5)
n_bytes = st.integers(0, 10**12)
runs = st.lists(
    st.tuples(
        *(st.sampled_from("fg"), st.sampled_from("tuv"), st.sampled_from("xyz")),
        *(seconds, n_bytes, n_bytes),
    ),
    max_size=60,
)
Run = tuple[str, str, str, float, int, int]


def learned(seen: list[Run]) -> Estimates:
    estimates = Estimates()
    for run in seen:
        estimates.observe(*run)
    return estimates


def predictions(
    estimates: Estimates, input_bytes: int = 10**6
) -> dict[tuple[str, str, str], float]:
    return {
        (flow, task, on): estimates.run_s(flow, task, on, input_bytes)
        for flow in "fgh"
        for task in "tuvw"
        for on in "xyz-"
    }


@given(runs, n_bytes)
def test_what_is_foretold_is_a_positive_number(seen: list[Run], input_bytes: int) -> None:
    estimates = learned(seen)
    assert all(0 < s < math.inf for s in predictions(estimates, input_bytes).values())
    for flow, task, on, *_ in seen:
        assert 0 <= estimates.output_bytes(flow, task, input_bytes) < math.inf
        assert 0 < estimates.speed(flow, task, on) < math.inf
        assert 0 < estimates.spread(flow, task, on) < math.inf


@given(runs)
def test_the_same_runs_give_the_same_numbers(seen: list[Run]) -> None:
    assert predictions(learned(seen)) == predictions(learned(seen))


@given(runs, runs)
def test_asking_changes_nothing(seen: list[Run], more: list[Run]) -> None:
    asked, silent = learned(seen), learned(seen)
    predictions(asked)
    for run in more:
        asked.observe(*run)
        predictions(asked)
        silent.observe(*run)
    assert predictions(asked) == predictions(silent)


@given(runs, runs)
def test_a_copy_by_pickle_goes_on_in_the_same_way(seen: list[Run], more: list[Run]) -> None:
    estimates = learned(seen)
    copy = pickle.loads(pickle.dumps(estimates))
    assert predictions(copy) == predictions(estimates)
    for run in more:
        estimates.observe(*run)
        copy.observe(*run)
    assert predictions(copy) == predictions(estimates)


@given(runs, st.sampled_from([0.05, 0.25, 0.5]), st.sampled_from([0.6, 0.9, 0.99]))
def test_quantiles_rise_and_the_middle_one_is_the_estimate(
    seen: list[Run], low: float, high: float
) -> None:
    estimates = learned(seen)
    low_s, middle_s, high_s = (
        estimates.run_quantile_s("f", "t", "x", 1000, q) for q in (low, 0.5, high)
    )
    assert low_s <= middle_s < high_s
    assert middle_s == pytest.approx(estimates.run_s("f", "t", "x", 1000))


@given(runs, n_bytes, n_bytes)
def test_a_larger_input_never_takes_less_time(seen: list[Run], one: int, other: int) -> None:
    estimates = learned(seen)
    small, large = sorted((one, other))
    for task in "tuvw":
        smaller_s = estimates.run_s("f", task, "x", small)
        assert smaller_s <= estimates.run_s("f", task, "x", large) * (1 + 1e-9)


@given(seconds, st.integers(1, 40))
def test_more_runs_of_one_time_bring_the_estimate_nearer_to_it(run_s: float, n: int) -> None:
    few = learned([("f", "t", "x", 1.0, 0, 0)] * 5 + [("f", "u", "x", run_s, 0, 0)] * n)
    more = learned([("f", "t", "x", 1.0, 0, 0)] * 5 + [("f", "u", "x", run_s, 0, 0)] * (2 * n))
    off = [abs(math.log(e.run_s("f", "u", "x", 0) / run_s)) for e in (few, more)]
    assert off[1] <= off[0] + 1e-9


@given(seconds, seconds)
def test_one_run_is_shrunk_towards_the_flow_and_never_beyond(known_s: float, run_s: float) -> None:
    estimates = learned([("f", "t", "x", known_s, 0, 0)] * 9 + [("f", "u", "x", run_s, 0, 0)])
    low, high = sorted((known_s, run_s))
    assert low * (1 - 1e-6) <= estimates.run_s("f", "u", "x", 0) <= high * (1 + 1e-6)


@given(st.floats(-0.5, 0.5), st.floats(1, 8), st.integers(9, 40))
def test_the_worst_of_outliers_moves_little(off: float, by: float, n: int) -> None:
    around = [math.exp(off * (-1) ** i) for i in range(n)]
    plain = learned([("f", "t", "x", s, 0, 0) for s in around])
    spoilt = learned([("f", "t", "x", s, 0, 0) for s in (10.0**by, *around)])
    moved = math.log(spoilt.run_s("f", "t", "x", 0) / plain.run_s("f", "t", "x", 0))
    assert abs(moved) < 0.7


@settings(max_examples=50)
@given(st.lists(runs, min_size=3, max_size=3))
def test_merging_in_any_order_gives_the_same_within_rounding(parts: list[list[Run]]) -> None:
    results = []
    for order in permutations(range(3)):
        merged = Estimates()
        for i in order:
            merged.merge(learned(parts[i]))
        results.append(predictions(merged))
    for other in results[1:]:
        for key, s in results[0].items():
            assert abs(math.log(other[key] / s)) < 1e-6


@given(runs, runs)
def test_merging_counts_all_and_leaves_the_other_alone(one: list[Run], two: list[Run]) -> None:
    merged, other = learned(one), learned(two)
    before = predictions(other)
    merged.merge(other)
    assert predictions(other) == before
    for flow, task, on, *_ in one + two:
        both = learned(one).n_seen(flow, task, on) + learned(two).n_seen(flow, task, on)
        assert merged.n_seen(flow, task, on) == both


dags = st.lists(st.tuples(seconds, st.lists(st.integers(0, 30), max_size=4)), max_size=30).map(
    lambda made: [
        RunTask(str(i), "abc"[i % 3], tuple({str(j % i) for j in on}) if i else (), run_s)
        for i, (run_s, on) in enumerate(made)
    ]
)


@given(dags)
def test_a_rank_is_the_tasks_own_time_and_the_highest_rank_behind_it(dag: list[RunTask]) -> None:
    ranks = upward_ranks(dag, lambda task: task.run_s_reference)
    for task in dag:
        behind = (ranks[other.key] for other in dag if task.key in other.depends_on)
        assert ranks[task.key] == task.run_s_reference + max(behind, default=0.0)


@given(dags, st.floats(0, 1e6), st.floats(0, 1e6))
def test_remaining_work_is_bounded_by_all_of_it(dag: list[RunTask], a: float, b: float) -> None:
    shapes = FlowShape()
    shapes.learn_run("f", dag)
    for done_s in (a, b):
        left_s = shapes.remaining_work_s("f", done_s)
        assert 0 <= left_s <= (shapes.work_s("f") or 0.0)
