from __future__ import annotations

import json
import pickle
import sys

import pytest

from deepflow.decide.rank import (
    MAX_FLOWS,
    MAX_RUNS,
    FlowShape,
    RunTask,
    shape_from_list,
    upward_ranks,
)
from deepflow.errors import ConfigurationError, HistoryError


def task(key: str, run_s: float, *depends_on: str, name: str = "") -> RunTask:
    return RunTask(key, name or key, depends_on, run_s)


DIAMOND = [task("a", 1), task("b", 10, "a"), task("c", 2, "a"), task("d", 5, "b", "c")]


def fan(n: int, run_s: float = 2.0) -> list[RunTask]:
    """One task, `n` that depend on it, one that gathers them."""
    leaves = [task(f"leaf-{i}", run_s, "first", name="leaf") for i in range(n)]
    return [task("first", 1), *leaves, task("last", 3, *(leaf.key for leaf in leaves))]


def own_s(of: RunTask) -> float:
    return of.run_s_reference


def test_a_rank_is_the_longest_way_to_the_end() -> None:
    assert upward_ranks(DIAMOND, own_s) == {"a": 16, "b": 15, "c": 7, "d": 5}


def test_transfers_count_where_they_are_asked_for() -> None:
    slow_edge = {("c", "d"): 20.0}
    ranks = upward_ranks(DIAMOND, own_s, lambda s, t: slow_edge.get((s.key, t.key), 0.0))
    assert ranks == {"a": 28, "b": 15, "c": 27, "d": 5}


def test_order_of_tasks_and_unknown_dependencies_do_not_matter() -> None:
    assert upward_ranks([task("x", 1, "elsewhere"), *DIAMOND[::-1]], own_s)["a"] == 16


def test_a_long_chain_needs_no_recursion() -> None:
    n = 2 * sys.getrecursionlimit()
    chain = [task("0", 1), *(task(str(i), 1, str(i - 1)) for i in range(1, n))]
    assert upward_ranks(chain, own_s)["0"] == n


def test_a_dependency_named_twice_counts_once_and_ends() -> None:
    assert upward_ranks([task("a", 1), task("b", 2, "a", "a")], own_s) == {"a": 3, "b": 2}


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cycle.*'a'"):
        upward_ranks([task("a", 1, "b"), task("b", 1, "a")], own_s)


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unique"):
        upward_ranks([task("a", 1), task("a", 2)], own_s)


def test_ranks_are_learned_by_name() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    assert shapes.upward_rank_s("f", "first") == pytest.approx(6)
    assert shapes.upward_rank_s("f", "leaf") == pytest.approx(5)
    assert shapes.upward_rank_s("f", "last") == pytest.approx(3)
    assert shapes.names("f")["leaf"].n_tasks == 4
    assert shapes.work_s("f") == pytest.approx(12)


def test_a_better_known_time_replaces_the_mean_one() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    assert shapes.upward_rank_s("f", "leaf", run_s=7.0) == pytest.approx(10)


def test_what_was_never_seen_has_no_rank() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(1))
    assert shapes.upward_rank_s("f", "other") is None
    assert shapes.upward_rank_s("g", "leaf") is None
    assert shapes.work_s("g") is None
    assert not shapes.is_known("g")


def test_remaining_work_falls_with_what_is_done() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    assert shapes.remaining_work_s("f", 0) == pytest.approx(12)
    assert shapes.remaining_work_s("f", 9) == pytest.approx(3)
    assert shapes.remaining_work_s("f", 99) == 0
    assert shapes.remaining_work_s("g", 1) == 0


def test_a_run_longer_than_the_usual_is_compared_with_the_long_ones() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    shapes.learn_run("f", fan(48))
    assert shapes.remaining_work_s("f", 0) == pytest.approx(56)
    assert shapes.remaining_work_s("f", 20) == pytest.approx(80)


def test_a_run_with_more_tasks_than_usual_has_more_work_before_it() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    assert shapes.remaining_work_s("f", 0, {"leaf": 8}) == pytest.approx(24)
    assert shapes.remaining_work_s("f", 0, {"leaf": 1}) == pytest.approx(12)


def test_submitted_tasks_are_known_to_remain() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(4))
    left_s = shapes.remaining_work_s("f", 30, {"first": 1, "leaf": 20})
    assert left_s == pytest.approx(12 * 41 / 9 - 30)


def test_only_the_newest_runs_are_kept() -> None:
    shapes = FlowShape()
    for _ in range(MAX_RUNS):
        shapes.learn_run("f", fan(4))
    for _ in range(MAX_RUNS):
        shapes.learn_run("f", fan(4, run_s=20))
    assert shapes.upward_rank_s("f", "leaf") == pytest.approx(23)
    for i in range(MAX_FLOWS):
        shapes.learn_run(f"other-{i}", fan(1))
    assert not shapes.is_known("f")


def test_a_run_without_tasks_tells_nothing() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", [])
    assert not shapes.is_known("f")


def test_shapes_survive_json_and_pickle() -> None:
    shapes = FlowShape()
    shapes.learn_run("f", fan(3))
    shapes.learn_run("g", DIAMOND)
    saved = json.loads(json.dumps(shapes.to_dict()))
    for copy in (FlowShape.from_dict(saved), pickle.loads(pickle.dumps(shapes))):
        assert copy.to_dict() == shapes.to_dict()
        assert copy.upward_rank_s("g", "a") == 16


@pytest.mark.parametrize("saved", [{}, {"version": 1}, {"version": 1, "runs": {"f": [[["a", 1]]]}}])
def test_shapes_that_cannot_be_read_are_refused(saved: dict[str, object]) -> None:
    with pytest.raises(HistoryError, match="learn"):
        FlowShape.from_dict(saved)


@pytest.mark.parametrize("n", [0, -1, float("nan"), float("inf")])
def test_a_shape_with_impossible_numbers_is_refused(n: float) -> None:
    with pytest.raises(HistoryError, match="'a'"):
        shape_from_list([["a", n, 1, 1]])
