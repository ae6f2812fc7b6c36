"""The steps of the genome flow: reproducible regions, honest joins, counts checked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flows._genome import picture, statistics, variants
from flows._genome.variants import (
    CHROMOSOME_MB,
    DRIFT,
    EVERYBODY,
    MISSING,
    POPULATIONS,
    Calls,
    Carried,
    Region,
)


def region(**changes: int) -> Region:
    values = {
        "chromosome": 21,
        "start_mb": 0,
        "stop_mb": 10,
        "variants_per_mb": 40,
        "people_per_population": 30,
        "seed": 7,
    }
    return Region(**(values | changes))


def carried(genotypes: object, chromosome: int = 1) -> Carried:
    """A chromosome whose variants lie at 10, 20, 30 and so on."""
    copies = np.asarray(genotypes, dtype=np.int8)
    return Carried(chromosome, 10 * (1 + np.arange(len(copies))), copies, len(copies), {})


# Regions and genotypes


def test_regions_cover_each_chromosome_once_and_without_gaps() -> None:
    cut = variants.regions(
        [21, 22], region_mb=25, variants_per_mb=2, people_per_population=3, seed=0
    )
    for chromosome in (21, 22):
        parts = [one for one in cut if one.chromosome == chromosome]
        assert parts[0].start_mb == 0
        assert parts[-1].stop_mb == CHROMOSOME_MB[chromosome]
        assert all(a.stop_mb == b.start_mb for a, b in itertools.pairwise(parts))


def test_a_region_is_the_same_whenever_it_is_made_and_another_for_another_seed() -> None:
    once, again, other = (variants.sequence(region(seed=seed)) for seed in (7, 7, 8))
    assert np.array_equal(once.genotypes, again.genotypes)
    assert np.array_equal(once.positions, again.positions)
    assert not np.array_equal(once.genotypes, other.genotypes)


def test_genotypes_are_copies_or_missing_at_ascending_places_within_the_region() -> None:
    calls = variants.sequence(region(start_mb=25, stop_mb=47))
    assert set(np.unique(calls.genotypes)) == {MISSING, 0, 1, 2}
    assert calls.genotypes.shape == (22 * 40, 30 * len(POPULATIONS))
    assert (np.diff(calls.positions) > 0).all()
    assert calls.positions[0] >= 25_000_000
    assert calls.positions[-1] < 47_000_000


def test_what_cannot_be_used_is_set_aside_and_counted_by_reason() -> None:
    genotypes = np.ones((4, 40), dtype=np.int8)
    genotypes[0, :3] = MISSING  # 7.5 % missing: too many
    genotypes[1, :2] = MISSING  # 5 %: just enough
    genotypes[2] = 0
    usable = variants.individuals(Calls(1, np.arange(4), genotypes))
    assert usable.positions.tolist() == [1, 3]
    assert usable.set_aside == {"called in too few people": 1, "carried by nobody": 1}
    assert usable.n_called == 4
    assert (usable.genotypes[0, :2] == 0).all()


def test_every_called_variant_is_used_or_set_aside() -> None:
    usable = variants.individuals(variants.sequence(region()))
    assert len(usable.positions) + sum(usable.set_aside.values()) == usable.n_called == 400
    assert all(usable.set_aside.values())


def test_merging_does_not_depend_on_the_order_of_the_regions() -> None:
    parts = [
        variants.individuals(variants.sequence(region(start_mb=start, stop_mb=start + 10)))
        for start in (0, 10, 20)
    ]
    forwards, backwards = variants.merge(parts), variants.merge(parts[::-1])
    assert (np.diff(forwards.positions) > 0).all()
    assert np.array_equal(forwards.positions, backwards.positions)
    assert np.array_equal(forwards.genotypes, backwards.genotypes)
    assert forwards.n_called == 3 * 400
    assert len(forwards.positions) + sum(forwards.set_aside.values()) == forwards.n_called


def test_regions_of_two_chromosomes_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"one chromosome can be merged, not those of \[1, 2\]"):
        variants.merge([carried([[1]], 1), carried([[1]], 2)])


def test_deleterious_variants_are_a_good_third_of_those_that_were_sequenced() -> None:
    deleterious = variants.sift([region()])
    positions = variants.sequence(region()).positions
    assert np.isin(deleterious, positions).all()
    assert 0.25 < len(deleterious) / len(positions) < 0.45


# Statistics, against loops over people and variants


def test_overlap_is_what_counting_pair_by_pair_gives() -> None:
    random = np.random.default_rng(1)
    whole = carried(random.integers(0, 3, (60, 5 * 6)))
    deleterious = whole.positions[::3]
    for population in (*POPULATIONS, EVERYBODY):
        people = range(30)[variants.members(population, 30)]
        found = statistics.overlap(whole, deleterious, population)
        assert found.n_variants == 20
        for i, a in enumerate(people):
            for j, b in enumerate(people):
                both = sum(
                    1
                    for row in range(0, 60, 3)
                    if whole.genotypes[row, a] and whole.genotypes[row, b]
                )
                assert found.shared[i, j] == both


def test_means_of_an_overlap_leave_out_the_diagonal_where_they_must() -> None:
    found = statistics.Overlap("EUR", 9, np.array([[5, 1, 3], [1, 4, 2], [3, 2, 9]]))
    assert found.mean_shared == pytest.approx(2.0)
    assert found.mean_carried == pytest.approx(6.0)


def test_frequency_counts_each_variant_once_in_each_group() -> None:
    n_people = 5 * 40
    genotypes = np.zeros((3, n_people), dtype=np.int8)
    genotypes[0] = 1  # everybody's
    genotypes[2, variants.members("EAS", n_people)] = 2  # all East Asians'
    whole = carried(genotypes)
    everywhere = {
        population: statistics.frequency(whole, whole.positions, population, n_groups=5, seed=3)
        for population in POPULATIONS
    }
    for population, found in everywhere.items():
        assert found.carriers.sum() == 3 * 5
        assert found.carriers[26] == (10 if population == "EAS" else 5)
        assert found.carriers[0] == (5 if population == "EAS" else 10)


def test_fst_of_populations_is_that_of_the_model_they_were_drawn_from() -> None:
    """Of two that drifted by F1 and F2, F_ST is their mean; rare variants that got lost lower it.

    With 20,000 variants chance moves each by some 0.003.
    """
    parts = [
        variants.individuals(
            variants.sequence(region(start_mb=s, stop_mb=s + 2, variants_per_mb=2000))
        )
        for s in range(0, 10, 2)
    ]
    added = statistics.add_differentiations([statistics.differentiate(part) for part in parts])
    drift = np.array(list(DRIFT.values()))
    expected = (drift[:, None] + drift[None, :]) / 2
    np.fill_diagonal(expected, 0)
    assert np.abs(added.fst - expected).max() < 0.01
    assert np.array_equal(added.fst, added.fst.T)


def test_two_halves_of_one_population_are_not_apart() -> None:
    genotypes = np.random.default_rng(2).binomial(2, 0.3, (4000, 5 * 50))
    fst = statistics.differentiate(carried(genotypes)).fst
    assert np.abs(fst).max() < 0.002


def test_figures_of_chromosomes_add_up_to_those_of_the_genome() -> None:
    random = np.random.default_rng(4)
    first, second = (carried(random.integers(0, 3, (n, 5 * 30)), 1) for n in (40, 25))
    both = carried(np.concatenate([first.genotypes, second.genotypes]), 1)
    kept = statistics.overlap(both, both.positions, EVERYBODY)
    added = statistics.add_overlaps(
        [statistics.overlap(one, one.positions, EVERYBODY) for one in (first, second)]
    )
    assert np.array_equal(added.shared, kept.shared)
    assert added.n_variants == kept.n_variants
    draws = [
        statistics.frequency(one, one.positions, "AMR", n_groups=8, seed=1)
        for one in (first, second, both)
    ]
    assert np.array_equal(
        statistics.add_frequencies(draws[:2]).carriers, draws[2].carriers
    )  # the groups depend on seed, chromosome and population only


def test_populations_are_not_added_to_each_other() -> None:
    parts = [statistics.Overlap(p, 1, np.ones((2, 2), dtype=np.int64)) for p in ("AFR", "EUR")]
    with pytest.raises(ValueError, match=r"one population can be added.*'AFR', 'EUR'"):
        statistics.add_overlaps(parts)


def test_the_picture_shows_something() -> None:
    import io

    from PIL import Image

    whole = variants.individuals(variants.sequence(region()))
    deleterious = variants.sift([region()])
    groups = (*POPULATIONS, EVERYBODY)
    png = picture.draw(
        [statistics.overlap(whole, deleterious, p) for p in groups],
        [statistics.frequency(whole, deleterious, p, n_groups=3, seed=1) for p in groups],
        statistics.differentiate(whole),
    )
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for third in range(3):
        panel = image.crop((third * image.width // 3, 0, (third + 1) * image.width // 3, 400))
        assert np.asarray(panel).std() > 10
