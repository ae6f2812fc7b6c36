"""What do populations share? A wide workflow in the shape of the 1000 Genomes one.

    sequence ─ individuals (region) ─ merge (chromosome) ─┬─ overlap (chromosome × population)
                                                          ├─ frequency (chromosome × population)
    sift (chromosome) ────────────────────────────────────┘
                                      merge ──────────────── differentiate (chromosome)
                                                                 └─ add_up ─ publish

Genotypes of five populations are drawn from a seed (`_genome/variants.py` says by which model), so
that nothing has to be fetched and the answer is known: the distances between populations that come
out are those that went in. Chromosomes have their real lengths, so that tasks are of unlike size.
Run it with `python -m flows.genome [tiny|small|full]`, or under any other task runner with
`genome.with_options(task_runner=...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from deepflow import DeepflowTaskRunner

from . import _png
from ._genome import picture, statistics, variants
from ._genome.statistics import Differentiation, Frequency, Overlap
from ._genome.variants import EVERYBODY, POPULATIONS, Calls, Carried, Region

Size = Literal["tiny", "small", "full"]

TABLE_KEY = "genome-populations"
PICTURE_KEY = "genome-picture"


@dataclass(frozen=True, slots=True)
class Scale:
    """What a size means: which chromosomes, how finely cut, how many people, how many draws."""

    chromosomes: tuple[int, ...]
    region_mb: int
    variants_per_mb: int
    people_per_population: int
    n_groups: int


SCALES: Mapping[Size, Scale] = {
    "tiny": Scale((21, 22), 25, 20, 30, 10),
    "small": Scale(tuple(range(17, 23)), 25, 60, 100, 200),
    "full": Scale(tuple(range(1, 23)), 25, 60, 100, 400),
}


@dataclass(frozen=True, slots=True)
class ChromosomeFigures:
    """What a chromosome comes to, for the driver."""

    chromosome: int
    n_called: int
    n_used: int
    set_aside: Mapping[str, int]
    differentiation: Differentiation


@dataclass(frozen=True, slots=True)
class PopulationFigures:
    """What the people of one population carry and share, all chromosomes together."""

    population: str
    n_people: int
    n_deleterious: int
    mean_carried: float
    mean_shared: float
    n_in_whole_group: float
    """Deleterious variants that all of a random group carry, on average."""


@dataclass(frozen=True, slots=True)
class GenomeSummary:
    """What the flow did, in figures."""

    size: Size
    tasks: int
    variants_called: int
    variants_used: int
    set_aside: Mapping[str, int]
    populations: tuple[PopulationFigures, ...]
    fst: tuple[tuple[float, ...], ...]
    """Between each two populations, in the order of `POPULATIONS`."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


# The default cache policy hashes every input of a task, and these inputs are large: no caching.


@task(cache_policy=NO_CACHE)
def sequence(region: Region) -> Calls:
    """The genotypes of a region, as they come from the sequencer."""
    return variants.sequence(region)


@task(cache_policy=NO_CACHE)
def individuals(calls: Calls) -> Carried:
    """Who carries which usable variant of a region."""
    return variants.individuals(calls)


@task(cache_policy=NO_CACHE)
def merge(parts: Sequence[Carried]) -> Carried:
    """One chromosome from its regions."""
    return variants.merge(parts)


@task(cache_policy=NO_CACHE)
def sift(regions: Sequence[Region]) -> npt.NDArray[np.int64]:
    """Where the deleterious variants of a chromosome lie."""
    return variants.sift(regions)


@task(cache_policy=NO_CACHE)
def overlap(carried: Carried, deleterious: npt.NDArray[np.int64], population: str) -> Overlap:
    """Deleterious variants that two people of a population share."""
    return statistics.overlap(carried, deleterious, population)


@task(cache_policy=NO_CACHE)
def frequency(
    carried: Carried,
    deleterious: npt.NDArray[np.int64],
    population: str,
    n_groups: int,
    seed: int,
) -> Frequency:
    """In how many people of a random group a deleterious variant is found."""
    return statistics.frequency(carried, deleterious, population, n_groups=n_groups, seed=seed)


@task(cache_policy=NO_CACHE)
def differentiate(carried: Carried) -> ChromosomeFigures:
    """How far the populations are apart on a chromosome, and what was set aside there."""
    return ChromosomeFigures(
        chromosome=carried.chromosome,
        n_called=carried.n_called,
        n_used=len(carried.positions),
        set_aside=dict(carried.set_aside),
        differentiation=statistics.differentiate(carried),
    )


@task(cache_policy=NO_CACHE)
def add_overlaps(parts: Sequence[Overlap]) -> Overlap:
    """The overlap of a population on all chromosomes."""
    return statistics.add_overlaps(parts)


@task(cache_policy=NO_CACHE)
def add_frequencies(parts: Sequence[Frequency]) -> Frequency:
    """The frequencies of a population on all chromosomes."""
    return statistics.add_frequencies(parts)


@task(cache_policy=NO_CACHE)
def figures(overlap: Overlap, frequency: Frequency) -> PopulationFigures:
    """One row of the table."""
    return PopulationFigures(
        population=overlap.population,
        n_people=len(overlap.shared),
        n_deleterious=overlap.n_variants,
        mean_carried=overlap.mean_carried,
        mean_shared=overlap.mean_shared,
        n_in_whole_group=float(frequency.carriers[-1]) / frequency.n_groups,
    )


@task(cache_policy=NO_CACHE)
def publish_table(populations: Sequence[PopulationFigures]) -> None:
    """Artifact: figures per population."""
    create_table_artifact(
        key=TABLE_KEY,
        table=[_table_row(one) for one in populations],
        description="Deleterious variants: carried by one person, shared by two, by a whole group",
    )


@task(cache_policy=NO_CACHE)
def publish_picture(
    overlaps: Sequence[Overlap],
    frequencies: Sequence[Frequency],
    chromosomes: Sequence[ChromosomeFigures],
) -> int:
    """Artifact: distances, sharing and frequencies. Returns the bytes of the PNG."""
    png = picture.draw(
        overlaps,
        frequencies,
        statistics.add_differentiations([one.differentiation for one in chromosomes]),
    )
    image = _png.as_markdown_image(png, "distances between populations, shared variants")
    create_markdown_artifact(
        key=PICTURE_KEY,
        markdown=f"# What populations share\n\n{image}\n",
        description="Distances between populations, and the variants that people share",
    )
    return len(png)


@flow(name="genome", task_runner=DeepflowTaskRunner())
def genome(size: Size = "full", seed: int = 1000) -> GenomeSummary:
    """Who shares which deleterious variants, in five populations; publish a table and a picture."""
    logger = get_run_logger()
    scale = SCALES[size]
    everything = variants.regions(
        scale.chromosomes,
        region_mb=scale.region_mb,
        variants_per_mb=scale.variants_per_mb,
        people_per_population=scale.people_per_population,
        seed=seed,
    )
    # Futures stand in for the values they bring, which Prefect's signatures do not say: hence Any.
    carried: Any = individuals.map(sequence.map(everything))
    of_chromosome: dict[int, list[Any]] = {}
    regions_of: dict[int, list[Region]] = {}
    for region, part in zip(everything, carried, strict=True):
        of_chromosome.setdefault(region.chromosome, []).append(part)
        regions_of.setdefault(region.chromosome, []).append(region)
    n_tasks = 2 * len(everything)

    groups = (*POPULATIONS, EVERYBODY)
    overlaps: dict[str, list[Any]] = {population: [] for population in groups}
    frequencies: dict[str, list[Any]] = {population: [] for population in groups}
    chromosomes: list[Any] = []
    for chromosome, parts in of_chromosome.items():
        whole: Any = merge.submit(parts)
        deleterious: Any = sift.submit(regions_of[chromosome])
        chromosomes.append(differentiate.submit(whole))
        for population in groups:
            overlaps[population].append(overlap.submit(whole, deleterious, population))
            frequencies[population].append(
                frequency.submit(whole, deleterious, population, scale.n_groups, seed)
            )
        n_tasks += 3 + 2 * len(groups)

    overlap_of: list[Any] = [add_overlaps.submit(overlaps[p]) for p in groups]
    frequency_of: list[Any] = [add_frequencies.submit(frequencies[p]) for p in groups]
    rows: list[Any] = [figures.submit(o, f) for o, f in zip(overlap_of, frequency_of, strict=True)]
    published: list[Any] = [
        publish_table.submit(rows),
        publish_picture.submit(overlap_of, frequency_of, chromosomes),
    ]
    n_tasks += 3 * len(groups) + len(published)

    known: list[ChromosomeFigures] = [one.result() for one in chromosomes]
    set_aside: dict[str, int] = {}
    for one in known:
        for reason, n in one.set_aside.items():
            set_aside[reason] = set_aside.get(reason, 0) + n
    n_called = sum(one.n_called for one in known)
    logger.info("%d variants called, set aside: %s", n_called, set_aside)
    for future in published:
        future.result()
    fst = statistics.add_differentiations([one.differentiation for one in known]).fst
    return GenomeSummary(
        size=size,
        tasks=n_tasks,
        variants_called=n_called,
        variants_used=sum(one.n_used for one in known),
        set_aside=set_aside,
        populations=tuple(row.result() for row in rows),
        fst=tuple(tuple(float(value) for value in row) for row in fst),
    )


def _table_row(one: PopulationFigures) -> dict[str, Any]:
    return {
        "population": one.population,
        "people": one.n_people,
        "deleterious variants": one.n_deleterious,
        "carried by a person": round(one.mean_carried, 1),
        "shared by two": round(one.mean_shared, 1),
        "carried by a whole group": round(one.n_in_whole_group, 2),
    }


def _main(size: str) -> None:
    if size not in get_args(Size):
        sys.exit(f"size {size!r} is none of {', '.join(get_args(Size))}")
    summary = genome(size=cast("Size", size))
    for one in summary.populations:
        sys.stdout.write(f"{_table_row(one)}\n")


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else "full")
