"""What do the people of a population share? Overlap, frequency and differentiation.

Each takes one chromosome; the figures of chromosomes add up (`add_…`), so that nothing needs the
whole genome in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .variants import POPULATIONS, Carried, Genotypes, members

# A group of this many people is drawn again and again, as in the 1000 Genomes workflow.
GROUP_PEOPLE = 26

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Deleterious variants that each two people of a population both carry.

    `shared`: `(n_people, n_people)`; on its diagonal, how many each one carries.
    """

    population: str
    n_variants: int
    shared: Counts

    @property
    def mean_shared(self) -> float:
        """Variants that two different people share, on average over all pairs."""
        n = len(self.shared)
        return float(self.shared.sum() - np.trace(self.shared)) / (n * (n - 1))

    @property
    def mean_carried(self) -> float:
        """Variants that one person carries, on average."""
        return float(np.trace(self.shared)) / len(self.shared)


@dataclass(frozen=True, slots=True)
class Frequency:
    """In how many of a random group of people a deleterious variant is found.

    `carriers[k]`: variants found in exactly `k` people, added over all groups.
    """

    population: str
    n_groups: int
    carriers: Counts


@dataclass(frozen=True, slots=True)
class Differentiation:
    """How far populations are apart: the two sums whose ratio is Hudson's F_ST, per pair.

    Both `(n_populations, n_populations)` in the order of `POPULATIONS`. A ratio of sums over all
    variants, not a mean of ratios (Bhatia et al. 2013).
    """

    between: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]

    @property
    def fst(self) -> npt.NDArray[np.float64]:
        """F_ST of each pair of populations; 0 on the diagonal."""
        fst: npt.NDArray[np.float64] = self.between / self.total
        np.fill_diagonal(fst, 0.0)
        return fst


def overlap(carried: Carried, deleterious: Counts, population: str) -> Overlap:
    """Which deleterious variants each two people of `population` share. O(variants × people²)."""
    copies = _deleterious_copies(carried, deleterious, population)
    # As floats, which a matrix product is fast for; exact, since counts stay far below 2**24.
    carries = (copies > 0).astype(np.float32)
    shared = np.rint(carries.T @ carries).astype(np.int64)
    return Overlap(population, len(copies), shared)


def frequency(
    carried: Carried, deleterious: Counts, population: str, *, n_groups: int, seed: int
) -> Frequency:
    """In how many of `GROUP_PEOPLE` each deleterious variant is found, for `n_groups` groups.

    The groups depend on the seed, the chromosome and the population only.
    """
    copies = _deleterious_copies(carried, deleterious, population)
    carries = copies > 0
    random = np.random.default_rng([seed, carried.chromosome, *population.encode()])
    n_people = carries.shape[1]
    group = min(GROUP_PEOPLE, n_people)
    found = np.zeros(GROUP_PEOPLE + 1, dtype=np.int64)
    for _ in range(n_groups):
        people = random.choice(n_people, group, replace=False)
        in_group = carries[:, people].sum(axis=1)
        found += np.bincount(in_group, minlength=GROUP_PEOPLE + 1)
    return Frequency(population, n_groups, found)


def differentiate(carried: Carried) -> Differentiation:
    """Hudson's estimator of F_ST for each pair of populations, as its two sums."""
    n_people = carried.genotypes.shape[1]
    share, noise = [], []
    for population in POPULATIONS:
        copies = carried.genotypes[:, members(population, n_people)]
        n_chromosomes = 2 * copies.shape[1]
        p = copies.sum(axis=1, dtype=np.int64) / n_chromosomes
        share.append(p)
        noise.append(p * (1 - p) / (n_chromosomes - 1))
    p, within = np.array(share), np.array(noise)
    apart = p[:, None, :] - p[None, :, :]
    between = (apart**2 - within[:, None, :] - within[None, :, :]).sum(axis=2)
    total = (p[:, None, :] * (1 - p[None, :, :]) + p[None, :, :] * (1 - p[:, None, :])).sum(axis=2)
    return Differentiation(between, total)


def add_overlaps(parts: Sequence[Overlap]) -> Overlap:
    """The overlap of one population on all chromosomes."""
    return Overlap(
        _one_population(parts),
        sum(part.n_variants for part in parts),
        np.sum([part.shared for part in parts], axis=0),
    )


def add_frequencies(parts: Sequence[Frequency]) -> Frequency:
    """The frequencies of one population on all chromosomes."""
    (n_groups,) = {part.n_groups for part in parts}
    return Frequency(
        _one_population(parts), n_groups, np.sum([part.carriers for part in parts], axis=0)
    )


def add_differentiations(parts: Sequence[Differentiation]) -> Differentiation:
    """The differentiation on all chromosomes."""
    return Differentiation(
        np.sum([part.between for part in parts], axis=0),
        np.sum([part.total for part in parts], axis=0),
    )


def _deleterious_copies(carried: Carried, deleterious: Counts, population: str) -> Genotypes:
    """Genotypes of the deleterious variants, `(n_variants, n_people)`."""
    rows = np.isin(carried.positions, deleterious, assume_unique=True)
    people = members(population, carried.genotypes.shape[1])
    copies: Genotypes = carried.genotypes[rows, people]
    return copies


def _one_population(parts: Sequence[Overlap] | Sequence[Frequency]) -> str:
    populations = sorted({part.population for part in parts})
    if len(populations) != 1:
        raise ValueError(f"figures of one population can be added, not those of {populations}")
    return populations[0]
