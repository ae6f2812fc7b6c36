import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.decide.place.fragmentation import (
    FragmentationDescent,
    fragmentation,
    fragmentation_increase,
)
from deepflow.decide.place.gpus import GpuCluster, GpuNode, GpuTask, GpuWorkload
from tests.benchmarks.gpu_rivals import SharePrices

MODELS = ("T4", "A10")
models = st.frozensets(st.sampled_from(MODELS))
cpu = st.integers(0, 16).map(lambda n: 1_000 * n)
tasks = st.one_of(
    st.builds(GpuTask, cpu_milli=cpu),
    st.builds(
        GpuTask,
        cpu_milli=cpu,
        num_gpu=st.just(1),
        gpu_milli=st.integers(1, 20).map(lambda n: 50 * n),
        gpu_models=models,
    ),
    st.builds(
        GpuTask,
        cpu_milli=cpu,
        num_gpu=st.integers(2, 4),
        gpu_milli=st.just(1000),
        gpu_models=models,
    ),
)
nodes = st.builds(
    GpuNode,
    cpu_milli=cpu,
    gpu_free_milli=st.lists(st.integers(0, 20).map(lambda n: 50 * n), max_size=4).map(tuple),
    gpu_model=st.sampled_from(MODELS),
)
workloads = st.lists(tasks, min_size=1, max_size=12).map(GpuWorkload.observed)


def by_definition(node: GpuNode, workload: GpuWorkload) -> float:
    """The paper's definition, type by type and GPU by GPU."""
    idle, total = sum(node.gpu_free_milli), 0.0
    for task, share in zip(workload.types, workload.popularity, strict=True):
        enough = [free for free in node.gpu_free_milli if free >= task.gpu_milli]
        fits = (
            task.num_gpu > 0
            and node.cpu_milli >= task.cpu_milli
            and len(enough) >= task.num_gpu
            and (not task.gpu_models or node.gpu_model in task.gpu_models)
        )
        total += share * (idle - sum(enough) if fits else idle)
    return total / 1000


@given(st.lists(nodes, min_size=1, max_size=5), workloads)
def test_it_is_the_definition_and_never_more_than_what_is_idle(some, workload):
    measured = fragmentation(some, workload)
    np.testing.assert_allclose(measured, [by_definition(n, workload) for n in some], atol=1e-6)
    assert (measured >= 0).all()
    assert all(measured[i] <= sum(n.gpu_free_milli) / 1000 + 1e-9 for i, n in enumerate(some))


@given(nodes, st.integers(1, 20))
def test_it_is_zero_when_every_type_fits_every_idle_share(node, step):
    smallest = min([free for free in node.gpu_free_milli if free] or [1000])
    workload = GpuWorkload((GpuTask(0, 1, min(50 * step, smallest)),), (1.0,))
    assert fragmentation([node], workload)[0] == 0


@given(nodes, tasks, workloads)
def test_increase_is_the_least_difference_over_the_gpus_that_hold_the_task(node, task, workload):
    before = fragmentation([node], workload)[0]
    differences = []
    for gpu in range(len(node.gpu_free_milli)) if task.is_shared else [-1]:
        cluster = GpuCluster([node])
        fits_there = not task.is_shared or node.gpu_free_milli[gpu] >= task.gpu_milli
        if cluster.fits(task)[0] and fits_there:
            cluster.place(task, 0, gpu)
            descent = FragmentationDescent(cluster, workload)
            differences.append(descent.milli()[0] / 1000 - before)
    expected = min(differences, default=np.inf)
    np.testing.assert_allclose(fragmentation_increase(node, task, workload), expected, atol=1e-6)


@settings(deadline=None)
@given(
    st.lists(nodes, min_size=1, max_size=4),
    st.lists(tasks, min_size=1, max_size=10),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=20),
    st.booleans(),
)
def test_remembered_costs_are_those_of_a_fresh_look(some, kinds, steps, exact):
    cluster, workload = GpuCluster(some), GpuWorkload.observed(kinds)
    descent = FragmentationDescent(cluster, workload, exact=exact)
    running = []
    for wants_place, number in steps:
        task = kinds[number % len(kinds)]
        costs, gpus = descent.costs(task)
        if wants_place and costs.min() < np.inf:
            chosen = int(costs.argmin())
            running.append((task, chosen, cluster.place(task, chosen, int(gpus[chosen]))))
        elif running:
            cluster.release(*running.pop(number % len(running)))
        fresh = FragmentationDescent(cluster, workload, exact=exact)
        np.testing.assert_allclose(descent.milli(), fresh.milli())
        for other in kinds:
            now, then = descent.costs(other), fresh.costs(other)
            np.testing.assert_allclose(now[0], then[0], atol=1e-6)
            able = np.isfinite(now[0])
            np.testing.assert_array_equal(now[1][able], then[1][able])


shares = st.lists(st.integers(1, 100).map(lambda n: 10 * n), min_size=1, max_size=30)


@settings(deadline=None)
@given(shares)
def test_prices_are_a_bound_that_no_packing_beats(asked):
    workload = GpuWorkload.observed(GpuTask(0, 1, share) for share in asked)
    prices = SharePrices(workload)
    every = np.arange(0, 1001, 10)
    for share in {share for share in asked if share < 1000}:
        able = every[every >= share]
        assert (prices.waste_milli(able, share) >= -1e-3).all()
    # First fit, any order: the GPUs it takes are worth at least the shares on them.
    idle: list[int] = []
    worth = 0.0
    for share in asked:
        if share == 1000:
            continue
        fits = [i for i, free in enumerate(idle) if free >= share]
        if not fits:
            idle.append(1000)
            fits = [len(idle) - 1]
        before = idle[fits[0]]
        idle[fits[0]] -= share
        worth += prices.price(share)
        assert before >= share
    assert worth <= len(idle) + 1e-6
