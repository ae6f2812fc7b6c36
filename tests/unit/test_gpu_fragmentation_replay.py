import pytest

from tests.benchmarks.go_random import GoRandom
from tests.benchmarks.gpu_fragmentation import DATA, LOADS, PUBLISHED, published, replay

needs_trace = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs the openb trace at {DATA} (SHARED_DATA names its parent)"
)


def test_the_generator_is_the_one_of_go():
    # What every Go program without a seed printed before Go 1.20.
    random = GoRandom(1)
    assert [random.intn(100) for _ in range(10)] == [81, 87, 47, 59, 81, 18, 25, 40, 56, 0]


def test_a_permutation_has_every_number_once():
    assert sorted(GoRandom(7).permutation(50)) == list(range(50))


@needs_trace
@pytest.mark.parametrize("policy", ["fgd", "best-fit"])
def test_the_published_figures_of_a_seed_are_met(policy):
    ours, theirs = replay(policy, 42), published()
    for load in LOADS:
        for metric, figures in (
            ("fragmented_gpus", ours.fragmented),
            ("allocated_gpus", ours.allocated),
        ):
            known = theirs[metric, PUBLISHED[policy], load, 42]
            assert figures[load] == pytest.approx(known, abs=0.015), (metric, load)
