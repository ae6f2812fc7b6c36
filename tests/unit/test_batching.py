"""How many runs share a Dask task: properties of the pure functions that decide it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.decide.batching import RunTime, group_size, next_wave, split_after_s

LIMITS = {"target_s": 0.1, "max_items": 256}
run_times = st.lists(st.floats(1e-5, 100.0), max_size=60).map(
    lambda seconds: _after(*seconds),
)


def _after(*seconds: float) -> RunTime:
    run_time = RunTime()
    for run_s in seconds:
        run_time = run_time.seen(run_s)
    return run_time


def test_unknown_runs_go_out_alone() -> None:
    assert group_size(1000, 2, RunTime(), **LIMITS) == 1


def test_a_group_is_filled_up_to_the_target() -> None:
    assert group_size(10_000, 2, _after(*[0.005] * 20), **LIMITS) == 20


def test_long_runs_go_out_alone() -> None:
    assert group_size(10_000, 2, _after(0.3, 0.3, 0.3), **LIMITS) == 1


def test_every_slot_gets_two_groups() -> None:
    assert group_size(40, 4, _after(*[0.001] * 5), **LIMITS) == 5


def test_one_cold_start_does_not_make_all_runs_look_long() -> None:
    warm = _after(2.5, *[0.002] * 8)
    assert warm.typical_s == pytest.approx(0.002)
    assert group_size(10_000, 2, warm, **LIMITS) == 50


def test_widely_spread_runs_are_grouped_half_as_large() -> None:
    even = _after(*[0.01] * 6)
    spread = _after(0.002, 0.01, 0.01, 0.01, 0.05, 0.06, 0.0001, 0.03, 0.001)
    assert spread.typical_s == pytest.approx(even.typical_s)
    assert group_size(1000, 2, spread, **LIMITS) == group_size(1000, 2, even, **LIMITS) // 2


def test_the_estimate_follows_what_was_seen_last() -> None:
    assert _after(*[1.0] * 100, *[0.01] * 40).typical_s == pytest.approx(0.01)


@given(st.integers(1, 20_000), st.integers(1, 64), run_times)
def test_a_group_is_never_empty_nor_larger_than_allowed(
    n_items: int, n_slots: int, run_time: RunTime
) -> None:
    size = group_size(n_items, n_slots, run_time, **LIMITS)
    assert 1 <= size <= min(n_items, LIMITS["max_items"])
    if run_time.is_known and size > 1:
        assert size * run_time.typical_s <= LIMITS["target_s"] * (1 + 1e-9)


@given(st.integers(1, 20_000), st.integers(0, 500), st.integers(1, 64), run_times)
def test_a_wave_never_sends_more_than_there_is_and_never_idles_a_slot(
    n_waiting: int, n_outstanding: int, n_slots: int, run_time: RunTime
) -> None:
    wave = next_wave(n_waiting, n_outstanding, n_slots, run_time, **LIMITS)
    assert 0 <= wave.n_items <= n_waiting
    if wave.n_items == 0:
        assert n_outstanding >= n_slots


def test_the_first_wave_is_one_run_for_each_slot() -> None:
    assert next_wave(1000, 0, 4, RunTime(), **LIMITS).n_items == 4


def test_all_goes_out_once_enough_run_times_are_known() -> None:
    wave = next_wave(1000, 500, 2, _after(*[0.01] * 16), **LIMITS)
    assert (wave.n_items, wave.group_size) == (1000, 10)


def test_a_map_drains_in_few_waves() -> None:
    run_time, waiting, n_waves = RunTime(), 1000, 0
    while waiting:
        wave = next_wave(waiting, 0, 2, run_time, **LIMITS)
        assert wave.n_items > 0
        waiting -= wave.n_items
        n_waves += 1
        for _ in range(wave.n_items):
            run_time = run_time.seen(0.005)
    assert n_waves <= 5


def test_runs_behind_a_straggler_wait_longer_where_run_times_vary() -> None:
    assert split_after_s(_after(0.1, 0.5, 0.9), 0.1) > split_after_s(_after(0.1, 0.1), 0.1)
