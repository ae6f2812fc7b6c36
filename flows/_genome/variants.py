"""Who carries which variant? Genotypes by chromosome and region, called, checked and joined.

The genotypes are synthetic and drawn from a seed, by the model that population genetics uses for
this (Balding and Nichols 1995): each variant has an ancestral frequency, mostly a rare one; each
population has drifted away from it by its own `F`; each of a person's two copies is drawn from the
frequency of the population. Every region has a random stream of its own, so that a region is the
same wherever and in whatever order it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Length in megabases (GRCh38), which makes chromosome 1 five times the work of 21.
CHROMOSOME_MB: Mapping[int, int] = {
    1: 249, 2: 242, 3: 198, 4: 190, 5: 182, 6: 171, 7: 159, 8: 145, 9: 138, 10: 134, 11: 135,
    12: 133, 13: 114, 14: 107, 15: 102, 16: 90, 17: 83, 18: 80, 19: 59, 20: 64, 21: 47, 22: 51,
}  # fmt: skip

# How far each population has drifted from the common ancestors, of the order that the 1000 Genomes
# Project found: African populations least, East Asian and American ones most.
DRIFT: Mapping[str, float] = {"AFR": 0.02, "AMR": 0.10, "EAS": 0.12, "EUR": 0.09, "SAS": 0.08}
POPULATIONS = tuple(DRIFT)
EVERYBODY = "ALL"

MISSING = -1
_SHARE_MISSING = 0.01
_SHARE_BADLY_CALLED = 0.02
_MISSING_WHERE_BADLY_CALLED = 0.2
_LOWEST_CALL_RATE = 0.95
# The rarest a variant is drawn; frequencies have a density of 1/frequency from here to one half.
_RAREST = 0.005
# Variants that SIFT scores below this are called deleterious (Ng and Henikoff 2003).
_DELETERIOUS_BELOW = 0.05

# What is drawn from a random stream: part of its key, beside the region.
_POSITIONS, _GENOTYPES, _SCORES = range(3)

Genotypes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a chromosome, and the people whose genotypes there are wanted."""

    chromosome: int
    start_mb: int
    stop_mb: int
    variants_per_mb: int
    people_per_population: int
    seed: int

    @property
    def n_variants(self) -> int:
        """How many variants lie in it."""
        return (self.stop_mb - self.start_mb) * self.variants_per_mb


@dataclass(frozen=True, slots=True)
class Calls:
    """Genotypes of a region as they come from the sequencer.

    `genotypes`: copies of the variant, 0 to 2 or `MISSING`, `(n_variants, n_people)`, people in
    the order of `POPULATIONS`. `positions`: base pairs, ascending.
    """

    chromosome: int
    positions: npt.NDArray[np.int64]
    genotypes: Genotypes


@dataclass(frozen=True, slots=True)
class Carried:
    """Usable variants of a region or a chromosome; those that were not are counted by reason."""

    chromosome: int
    positions: npt.NDArray[np.int64]
    genotypes: Genotypes
    n_called: int
    set_aside: Mapping[str, int]


def regions(
    chromosomes: Sequence[int],
    *,
    region_mb: int,
    variants_per_mb: int,
    people_per_population: int,
    seed: int,
) -> list[Region]:
    """The chromosomes cut into stretches of `region_mb`, the last of each shorter."""
    return [
        Region(
            chromosome,
            start_mb,
            min(start_mb + region_mb, CHROMOSOME_MB[chromosome]),
            variants_per_mb,
            people_per_population,
            seed,
        )
        for chromosome in chromosomes
        for start_mb in range(0, CHROMOSOME_MB[chromosome], region_mb)
    ]


def members(population: str, n_people: int) -> slice:
    """Where the people of a population stand among `n_people`; `EVERYBODY` is all of them."""
    if population == EVERYBODY:
        return slice(0, n_people)
    each = n_people // len(POPULATIONS)
    first = POPULATIONS.index(population) * each
    return slice(first, first + each)


def sequence(region: Region) -> Calls:
    """The genotypes of a region, with the gaps that sequencing leaves."""
    random = _stream(region, _GENOTYPES)
    n = region.n_variants
    ancestral = _RAREST ** random.random(n) * 0.5 ** (1 - random.random(n))
    columns = []
    for drift in DRIFT.values():
        spread = (1 - drift) / drift
        frequency = random.beta(ancestral * spread, (1 - ancestral) * spread)
        people = region.people_per_population
        copies = random.binomial(2, frequency[:, None], size=(n, people))
        columns.append(copies.astype(np.int8))
    genotypes = np.concatenate(columns, axis=1)
    gaps = np.where(
        random.random(n) < _SHARE_BADLY_CALLED, _MISSING_WHERE_BADLY_CALLED, _SHARE_MISSING
    )
    genotypes[random.random(genotypes.shape, dtype=np.float32) < gaps[:, None]] = MISSING
    return Calls(region.chromosome, _positions(region), genotypes)


def individuals(calls: Calls) -> Carried:
    """The variants of a region that can be used: called in most people, and carried by one.

    A missing call counts as no copy from here on, as in the 1000 Genomes workflow.
    """
    known = calls.genotypes != MISSING
    copies = np.where(known, calls.genotypes, 0).astype(np.int8)
    is_badly_called = known.mean(axis=1) < _LOWEST_CALL_RATE
    is_carried = copies.any(axis=1)
    usable = is_carried & ~is_badly_called
    return Carried(
        chromosome=calls.chromosome,
        positions=calls.positions[usable],
        genotypes=copies[usable],
        n_called=len(usable),
        set_aside={
            "called in too few people": int(is_badly_called.sum()),
            "carried by nobody": int((~is_carried & ~is_badly_called).sum()),
        },
    )


def merge(parts: Sequence[Carried]) -> Carried:
    """One chromosome from its regions, by position. Raises `ValueError` for several chromosomes."""
    chromosomes = sorted({part.chromosome for part in parts})
    if len(chromosomes) != 1:
        raise ValueError(f"regions of one chromosome can be merged, not those of {chromosomes}")
    parts = sorted(parts, key=lambda part: int(part.positions[0]) if len(part.positions) else -1)
    set_aside: dict[str, int] = {}
    for part in parts:
        for reason, n in part.set_aside.items():
            set_aside[reason] = set_aside.get(reason, 0) + n
    return Carried(
        chromosome=chromosomes[0],
        positions=np.concatenate([part.positions for part in parts]),
        genotypes=np.concatenate([part.genotypes for part in parts]),
        n_called=sum(part.n_called for part in parts),
        set_aside=set_aside,
    )


def sift(wanted: Sequence[Region]) -> npt.NDArray[np.int64]:
    """The positions of a chromosome's deleterious variants, ascending.

    Scores as SIFT gives them to variants that change a protein: one third near zero, the rest
    spread evenly. They are a table of the genome, known without anybody's genotype.
    """
    deleterious = []
    for region in wanted:
        random = _stream(region, _SCORES)
        n = region.n_variants
        damaging = random.random(n) < 1 / 3
        scores = np.where(damaging, random.beta(0.5, 20, n), random.random(n))
        deleterious.append(_positions(region)[scores < _DELETERIOUS_BELOW])
    return np.concatenate(deleterious)


def _positions(region: Region) -> npt.NDArray[np.int64]:
    """Where the variants of a region lie, in base pairs, ascending."""
    length = (region.stop_mb - region.start_mb) * 1_000_000
    drawn = _stream(region, _POSITIONS).choice(length, region.n_variants, replace=False)
    return np.sort(drawn).astype(np.int64) + region.start_mb * 1_000_000


def _stream(region: Region, purpose: int) -> np.random.Generator:
    return np.random.default_rng([region.seed, purpose, region.chromosome, region.start_mb])
