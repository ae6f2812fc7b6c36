"""The choice to compress: the least predicted time, with a margin, and a memory of losses."""

import numpy as np
import pytest

from deepflow.decide.compression import (
    HEAP,
    STORE,
    Chooser,
    Link,
    Sample,
    choose,
    parse_compression,
    predict_s,
)
from deepflow.errors import ConfigurationError
from deepflow.intermediates.sampling import sample

KEY = ("task", "<f8", "a-b")
GOOD = Sample("shuffle+zstd", 4.0, 800e6, 1600e6)
BAD = Sample("zstd:1", 1.02, 400e6, 900e6)


def test_the_serial_time_is_the_sum_by_hand():
    assert predict_s(8_000_000, GOOD, 100e6, 0) == pytest.approx(0.01 + 0.02 + 0.005)


def test_the_pipelined_time_is_the_slowest_stage_and_both_ends():
    assert predict_s(8_000_000, GOOD, 100e6, 1, 800_000) == pytest.approx(0.02 + 0.0015)


def test_a_slow_link_compresses_and_a_fast_one_does_not():
    assert choose(64_000_000, [GOOD, BAD], Link(12.5e6, 2)).codec == "shuffle+zstd"
    assert choose(64_000_000, [GOOD, BAD], Link(5e9, 2)).codec == "raw"


def test_less_than_a_tenth_saved_is_raw():
    exact = Sample("zstd:1", 1.1, 1e15, 1e15)
    assert choose(10**7, [exact], Link(1e8, 1)).codec == "raw"
    assert choose(10**7, [Sample("zstd:1", 1.12, 1e15, 1e15)], Link(1e8, 1)).codec == "zstd:1"


def test_small_buffers_and_unknown_links_are_raw():
    assert choose(127_999, [GOOD], Link(1e6, 2)).codec == "raw"
    assert choose(10**8, [GOOD], Link(0.0, 2)).codec == "raw"


def test_a_store_takes_the_fewest_bytes_and_pco_only_where_it_is_a_fifth_smaller():
    shuffled, barely, clearly = (
        Sample(*one) for one in (("shuffle+zstd", 4.0), ("pco", 4.9), ("pco", 5.1))
    )
    assert choose(10**7, [shuffled, barely], STORE).codec == "shuffle+zstd"
    assert choose(10**7, [shuffled, clearly], STORE).codec == "pco"
    assert choose(10**7, [Sample("zstd:1", 1.03)], STORE).codec == "raw"
    assert choose(10**7, [Sample("zstd:1", 1.04)], STORE).codec == "zstd:1"
    assert choose(511, [clearly], STORE).codec == "raw"


def test_the_heap_takes_a_fast_codec_where_that_saves_a_tenth():
    assert choose(10**7, [Sample("shuffle+lz4", 1.2)], HEAP).codec == "shuffle+lz4"
    assert choose(10**7, [Sample("shuffle+lz4", 1.05)], HEAP).codec == "raw"
    assert choose(10**7, [], HEAP).codec == "raw"


def test_a_codec_whose_speed_was_not_measured_is_not_taken_for_a_link():
    assert choose(64_000_000, [Sample("pco", 9.0)], Link(1e6, 2)).codec == "raw"


def test_no_more_threads_than_bring_something():
    assert choose(64_000_000, [GOOD], Link(1e6, 8)).threads == 1


def test_a_sample_is_taken_once_and_renewed_for_one_in_64():
    chooser = Chooser()
    sampled = 0
    for _ in range(130):
        wanted = chooser.wants_sample(KEY, 10**7)
        sampled += wanted
        plan = chooser.plan(KEY, 10**7, 1e8, 1, [BAD] if wanted else [])
        assert plan.codec == "raw"
    assert sampled == 3  # 1st, 65th, 129th


def test_a_link_that_turns_out_slower_is_planned_for_anew():
    chooser = Chooser()
    assert chooser.plan(KEY, 10**7, 1e11, 1, [GOOD]).codec == "raw"
    assert chooser.plan(KEY, 10**7, 1e7, 1).codec == GOOD.codec
    assert chooser.plan(KEY, 10**7, 1e11, 1).codec == "raw"


def test_slower_than_raw_is_a_loss_and_is_logged():
    chooser = Chooser()
    plan = chooser.plan(KEY, 10**7, 1e7, 1, [GOOD])
    outcome = chooser.record(KEY, 10**7, plan, plan.raw_s + 1)
    assert outcome.regret_s == pytest.approx(1)
    assert chooser.log.regret_s == pytest.approx(1)
    assert chooser.plan(KEY, 10**7, 1e7, 1).codec == GOOD.codec  # once is no rule


def test_what_samples_well_and_still_loses_is_bypassed():
    chooser = Chooser()
    picked = []
    for _ in range(10):
        wanted = chooser.wants_sample(KEY, 10**7)
        plan = chooser.plan(KEY, 10**7, 1e7, 1, [GOOD] if wanted else [])
        chooser.record(KEY, 10**7, plan, 2 * plan.raw_s)
        picked.append(plan.codec)
    assert picked == ["shuffle+zstd"] * 2 + ["raw"] * 8


def test_a_fixed_setting_is_obeyed_without_sampling():
    chooser = Chooser("zstd:3")
    assert not chooser.wants_sample(KEY, 10**9)
    assert chooser.plan(KEY, 10, 1e9, 2).codec == "zstd:3"
    assert Chooser("off").plan(KEY, 10**9, 1e3, 2).codec == "raw"


@pytest.mark.parametrize("setting", ["zsdt", "zstd:0", "zstd:99", "", "pco:13"])
def test_a_bad_setting_names_the_choices(setting):
    with pytest.raises(ConfigurationError, match="adaptive, off, raw, zstd"):
        parse_compression(setting)


def test_sampling_tells_ratios_and_leaves_out_what_does_not_suit():
    data = np.cumsum(np.ones(2_500_000))
    ticks = iter(np.arange(1000.0))
    found = {s.codec: s for s in sample(data.data, "<f8", clock=lambda: next(ticks))}
    assert found["pco"].ratio > found["shuffle+lz4"].ratio > 2
    assert found["pco"].encode_bytes_per_s == pytest.approx(3 * 262_144)
    assert [s.codec for s in sample(b"abc" * 9, None, ["pco", "zstd"])] == ["zstd"]
    assert sample(b"") == []


def test_what_takes_longer_than_predicted_gives_way_before_it_loses():
    chooser = Chooser()
    near = Sample("pco", 4.4, 200e6, 1600e6)  # a little better than GOOD on a slow link
    assert chooser.plan(KEY, 10**7, 2e7, 1, [GOOD, near]).codec == "pco"
    for _ in range(3):
        plan = chooser.plan(KEY, 10**7, 2e7, 1)
        chooser.record(KEY, 10**7, plan, 2 * plan.predicted_s if plan.codec == "pco" else 0.13)
    assert chooser.plan(KEY, 10**7, 2e7, 1).codec == GOOD.codec


def test_nothing_is_learned_from_a_buffer_that_went_only_in_part_by_its_plan():
    chooser = Chooser()
    first = chooser.plan(KEY, 10**7, 1e7, 1, [GOOD])
    for _ in range(5):
        chooser.record(KEY, 10**7, first, 3 * first.raw_s, is_whole=False)
    assert chooser.plan(KEY, 10**7, 1e7, 1) == first


def test_what_is_raw_by_all_that_is_known_need_not_be_looked_at():
    chooser = Chooser()
    assert not chooser.is_left_raw(KEY, 10**7, 1e8, 1)  # nothing is known yet
    assert chooser.wants_sample(KEY, 10**7)
    chooser.plan(KEY, 10**7, 1e8, 1, [BAD])
    found = [chooser.is_left_raw(KEY, 10**7, 1e8, 1) for _ in range(64)]
    assert found == [True] * 63 + [False]  # it is time for a sample
    assert chooser.wants_sample(KEY, 10**7)
    assert not chooser.is_left_raw(KEY, 10**7, 0.0, 1)  # the link is not known
    chooser.plan(KEY, 10**7, 1e7, 1, [GOOD])
    assert not chooser.is_left_raw(KEY, 10**7, 1e7, 1)
    assert chooser.is_left_raw(KEY, 1000, 1e7, 1)
    assert Chooser("off").is_left_raw(KEY, 10**9, 1e7, 1)
    assert not Chooser("pco").is_left_raw(KEY, 10**9, 1e7, 1)


def test_a_fixed_codec_saves_and_loses_nothing_that_anybody_knows():
    chooser = Chooser("pco")
    plan = chooser.plan(KEY, 10**7, 1e9, 1)
    outcome = chooser.record(KEY, 10**7, plan, 5.0)
    assert (plan.raw_s, outcome.regret_s, chooser.log.saved_s) == (0.0, 0.0, 0.0)
