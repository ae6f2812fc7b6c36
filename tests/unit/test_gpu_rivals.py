"""The policies and prices that the benchmark of shared GPUs compares with."""

import numpy as np
import pytest

from deepflow.decide.place.fragmentation import FragmentationDescent
from deepflow.decide.place.gpus import GpuCluster, GpuNode, GpuTask, GpuWorkload
from tests.benchmarks.gpu_rivals import (
    PRICE_WEIGHT,
    SharePrices,
    best_fit_costs,
    dot_product_costs,
    gpu_clustering_costs,
    gpu_packing_costs,
    tightest_gpus,
)

HALF = GpuTask(cpu_milli=4_000, num_gpu=1, gpu_milli=500)
PAIR = GpuTask(cpu_milli=8_000, num_gpu=2, gpu_milli=1000)
CPU_ONLY = GpuTask(cpu_milli=2_000)


def node(*free: int, cpu: int = 64_000) -> GpuNode:
    return GpuNode(cpu, free)


def test_best_fit_prefers_the_node_with_least_left():
    cluster = GpuCluster([node(1000, 1000), node(1000, cpu=32_000), node(400)])
    # Left: 60,000 of 64,000 and 1,500 of 2,000; 28,000 and 500; does not fit.
    expected = [(60 / 64 + 0.75) / 2, (28 / 64 + 0.25) / 2, np.inf]
    assert best_fit_costs(cluster, HALF) == pytest.approx(expected)


def test_dot_product_prefers_the_least_aligned_node():
    cluster = GpuCluster([node(1000, 1000), node(1000, cpu=32_000)])
    expected = [(4 / 64 + 0.25) / 2, (0.5 * 4 / 64 + 0.5 * 0.25) / 2]
    assert dot_product_costs(cluster, HALF) == pytest.approx(expected)


def test_packing_goes_to_shared_gpus_then_used_nodes_then_untouched_ones():
    cluster = GpuCluster([node(1000, 1000), node(0, 1000), node(600, 1000), node(500, 900)])
    costs = gpu_packing_costs(cluster, HALF)
    assert np.argsort(costs).tolist() == [3, 2, 1, 0]
    assert gpu_packing_costs(cluster, CPU_ONLY).tolist() == [0.0] * 4


def test_clustering_goes_to_nodes_with_the_same_kind_first():
    cluster = GpuCluster([node(*[1000] * 4) for _ in range(4)])
    cluster.place(PAIR, 0)
    cluster.place(PAIR, 1)
    cluster.place(HALF, 1, 2)
    cluster.place(HALF, 2, 0)
    assert np.argsort(gpu_clustering_costs(cluster, HALF)).tolist() == [2, 1, 3, 0]


def test_the_tightest_gpu_that_holds_the_task():
    cluster = GpuCluster([node(1000, 400, 600), node(500, 500)])
    assert tightest_gpus(cluster, HALF).tolist() == [2, 0]


def sharing(**counts: int) -> GpuWorkload:
    """Types of one shared GPU: `s650=3` is three tasks of 650 thousandths."""
    return GpuWorkload.observed(
        GpuTask(1_000, 1, int(name[1:])) for name, count in counts.items() for _ in range(count)
    )


def waste(prices: SharePrices, idle: int, share: int) -> float:
    return prices.waste_milli(np.array([idle]), share)[0]


def test_shares_that_fill_a_gpu_together_waste_nothing():
    # More 600 than 400, so that 400 fills rests and costs nothing; 500 goes in pairs.
    prices = SharePrices(sharing(s600=6, s400=4, s500=6))
    assert waste(prices, 1000, 600) == pytest.approx(0)
    assert waste(prices, 400, 400) == pytest.approx(0)
    assert waste(prices, 500, 500) == pytest.approx(0)
    # The half GPU could have held a 500; what is left of it holds nothing.
    assert waste(prices, 500, 400) == pytest.approx(500)


def test_a_share_that_only_fills_rests_has_no_price():
    # 810 needs a GPU each; the few 160 fit into their rests, so one more costs nothing.
    prices = SharePrices(sharing(s810=10, s160=2))
    assert waste(prices, 190, 160) == pytest.approx(0)
    assert waste(prices, 1000, 810) == pytest.approx(0)
    assert waste(prices, 820, 160) == pytest.approx(1000)


def test_scarce_small_shares_take_over_when_they_are_many():
    # Far more 160 than rests: six of them fill a GPU, so each is worth a sixth, and 810 the rest.
    prices = SharePrices(sharing(s810=1, s160=100))
    assert waste(prices, 960, 160) == pytest.approx(0, abs=1e-3)
    assert waste(prices, 190, 160) == pytest.approx(0, abs=1e-3)
    assert waste(prices, 1000, 810) == pytest.approx(0, abs=1e-3)


def test_a_share_that_is_not_asked_for_is_charged_all_it_takes():
    prices = SharePrices(sharing(s500=2))
    assert waste(prices, 1000, 300) == pytest.approx(500)
    assert waste(prices, 400, 300) == pytest.approx(0)


def test_a_workload_without_sharing_has_whole_gpus_only():
    prices = SharePrices(GpuWorkload((PAIR,), (1.0,)))
    assert waste(prices, 1000, 300) == pytest.approx(1000)
    assert waste(prices, 900, 300) == pytest.approx(0)


def test_waste_is_added_to_the_growth():
    workload = sharing(s600=6, s400=4, s500=6)
    cluster = GpuCluster([node(500), node(400), node(1000)])
    task = GpuTask(1_000, 1, 400)
    plain = FragmentationDescent(cluster, workload, exact=True)
    prices = SharePrices(workload)
    priced = FragmentationDescent(
        cluster, workload, exact=True, surcharge_milli=prices.surcharge_milli
    )
    added = PRICE_WEIGHT * np.array([500, 0, 0])
    assert priced.costs(task)[0] - plain.costs(task)[0] == pytest.approx(added)
