"""The genome flow end to end, tiny: a real server and the default runner, beside a plain loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from distributed import LocalCluster
from prefect.client.schemas.objects import State

from deepflow import DeepflowTaskRunner
from flows._genome import statistics, variants
from flows._genome.variants import EVERYBODY, POPULATIONS
from flows.genome import PICTURE_KEY, SCALES, TABLE_KEY, GenomeSummary, genome
from tests.integration.api import Api

SEED = 3


@pytest.fixture(scope="module")
def state(cluster: LocalCluster) -> State[GenomeSummary]:
    """How one run ended."""
    with_cluster = genome.with_options(task_runner=DeepflowTaskRunner(cluster=cluster))
    ended: State[GenomeSummary] = with_cluster(size="tiny", seed=SEED, return_state=True)
    return ended


@pytest.fixture(scope="module")
def summary(state: State[GenomeSummary]) -> GenomeSummary:
    """What it returned."""
    returned: GenomeSummary = state.result()
    return returned


def test_the_run_is_completed_in_the_server_with_every_task_it_counted(
    state: State[GenomeSummary], summary: GenomeSummary, api: Api
) -> None:
    task_runs = api.task_runs(str(state.state_details.flow_run_id))
    assert len(task_runs) == summary.tasks
    assert {run["state_type"] for run in task_runs} == {"COMPLETED"}


def test_figures_are_those_of_a_loop_in_one_process(summary: GenomeSummary) -> None:
    scale = SCALES["tiny"]
    regions = variants.regions(
        scale.chromosomes,
        region_mb=scale.region_mb,
        variants_per_mb=scale.variants_per_mb,
        people_per_population=scale.people_per_population,
        seed=SEED,
    )
    whole, deleterious = {}, {}
    for chromosome in scale.chromosomes:
        here = [one for one in regions if one.chromosome == chromosome]
        whole[chromosome] = variants.merge(
            [variants.individuals(variants.sequence(one)) for one in here]
        )
        deleterious[chromosome] = variants.sift(here)
    assert summary.variants_called == sum(one.n_variants for one in regions)
    assert summary.variants_used == sum(len(one.positions) for one in whole.values())
    assert summary.variants_used + sum(summary.set_aside.values()) == summary.variants_called
    fst = statistics.add_differentiations(
        [statistics.differentiate(one) for one in whole.values()]
    ).fst
    assert np.array_equal(np.array(summary.fst), fst)
    assert [row.population for row in summary.populations] == [*POPULATIONS, EVERYBODY]
    for row in summary.populations:
        shared = statistics.add_overlaps(
            [statistics.overlap(whole[c], deleterious[c], row.population) for c in whole]
        )
        groups = statistics.add_frequencies(
            [
                statistics.frequency(
                    whole[c], deleterious[c], row.population, n_groups=scale.n_groups, seed=SEED
                )
                for c in whole
            ]
        )
        assert row.n_people == len(shared.shared)
        assert row.n_deleterious == shared.n_variants
        assert row.mean_carried == shared.mean_carried
        assert row.mean_shared == shared.mean_shared
        assert row.n_in_whole_group == groups.carriers[-1] / scale.n_groups


def test_a_table_and_a_picture_are_published(summary: GenomeSummary, api: Api) -> None:
    table = json.loads(api.get(f"/artifacts/{TABLE_KEY}/latest")["data"])
    assert [row["population"] for row in table] == [row.population for row in summary.populations]
    assert "data:image/png;base64," in api.get(f"/artifacts/{PICTURE_KEY}/latest")["data"]
