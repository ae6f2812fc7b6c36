import numpy as np
import pytest

from deepflow.decide.place.fragmentation import (
    FragmentationDescent,
    fragmentation,
    fragmentation_increase,
)
from deepflow.decide.place.gpus import GpuCluster, GpuNode, GpuTask, GpuWorkload
from deepflow.errors import ConfigurationError

HALF = GpuTask(cpu_milli=4_000, num_gpu=1, gpu_milli=500)
PAIR = GpuTask(cpu_milli=8_000, num_gpu=2, gpu_milli=1000)
CPU_ONLY = GpuTask(cpu_milli=2_000)
MIXED = GpuWorkload((HALF, PAIR, CPU_ONLY), (0.5, 0.25, 0.25))


def only(task: GpuTask) -> GpuWorkload:
    return GpuWorkload((task,), (1.0,))


def node(*free: int, cpu: int = 64_000, model: str = "", memory: int = 0) -> GpuNode:
    return GpuNode(cpu, free, model, memory)


@pytest.mark.parametrize(
    ("there", "task", "gpus"),
    [
        pytest.param(node(400, 300, cpu=1_000), HALF, 0.7, id="q1-lacks-both"),
        pytest.param(node(400, 300), HALF, 0.7, id="q2-lacks-gpu"),
        pytest.param(node(1000, 600), PAIR, 1.6, id="q2-lacks-a-second-whole-gpu"),
        pytest.param(node(1000, 400), HALF, 0.4, id="q3-fits-beside-a-share-too-small"),
        pytest.param(node(1000, 500), HALF, 0.0, id="q3-fits-everywhere"),
        pytest.param(node(1000, 1000, 300), PAIR, 0.3, id="q3-several-gpus"),
        pytest.param(node(1000, 500, cpu=3_999), HALF, 1.5, id="q4-lacks-cpu"),
        pytest.param(node(1000, 500), CPU_ONLY, 1.5, id="no-gpu-wanted-and-cpu-enough"),
        pytest.param(node(1000, 500, cpu=0), CPU_ONLY, 1.5, id="no-gpu-wanted-and-cpu-short"),
        pytest.param(node(0, 0), HALF, 0.0, id="nothing-idle"),
        pytest.param(node(), HALF, 0.0, id="no-gpu-on-the-node"),
    ],
)
def test_each_quadrant_counts_what_the_type_cannot_use(there, task, gpus):
    assert fragmentation([there], only(task)) == pytest.approx([gpus])


def test_a_gpu_of_the_wrong_model_is_a_fragment_for_the_type():
    wants = GpuTask(1_000, 1, 500, frozenset({"A10", "T4"}))
    nodes = [node(1000, model="T4"), node(1000, model="P100"), node(1000, model="A10")]
    assert fragmentation(nodes, only(wants)).tolist() == [0.0, 1.0, 0.0]


def test_types_are_weighted_by_popularity():
    # HALF: 0.4 on the second GPU. PAIR fits neither by CPU nor by GPU: 1.4. CPU_ONLY: 1.4.
    there = node(1000, 400, cpu=6_000)
    assert fragmentation([there], MIXED) == pytest.approx([0.5 * 0.4 + 0.5 * 1.4])


def test_increase_is_what_placing_adds():
    # Before: only CPU_ONLY counts, 0.25 × 2. After: HALF 0, PAIR and CPU_ONLY 1.5 each.
    assert fragmentation_increase(node(1000, 1000), HALF, MIXED) == pytest.approx(0.25)


def test_a_shared_task_takes_the_gpu_that_adds_least():
    cluster = GpuCluster([node(1000, 500, 1000)])
    costs, gpus = FragmentationDescent(cluster, MIXED, exact=True).costs(HALF)
    # Filling the half-used GPU takes 0.5 of idle share from CPU_ONLY and from PAIR.
    assert (costs[0], gpus[0]) == (pytest.approx(-250.0), 1)


def test_whole_scores_count_near_growths_as_equal():
    cluster = GpuCluster([node(500), node(510), node(530), node(600)])
    wanted = only(GpuTask(1_000, 1, 500))
    exact, _ = FragmentationDescent(cluster, wanted, exact=True).costs(HALF)
    coarse, _ = FragmentationDescent(cluster, wanted).costs(HALF)
    assert exact.tolist() == [0.0, 10.0, 30.0, 100.0]
    assert coarse.tolist() == [50.0, 51.0, 51.0, 53.0]


def test_increase_is_infinite_where_the_task_does_not_fit():
    assert fragmentation_increase(node(400), HALF, MIXED) == np.inf
    hungry = GpuTask(1_000, 1, 500, memory_bytes=2)
    assert fragmentation_increase(node(1000, memory=1), hungry, MIXED) == np.inf
    assert fragmentation_increase(node(1000, memory=2), hungry, MIXED) < np.inf


def test_memory_freed_makes_a_node_eligible_again():
    cluster = GpuCluster([node(1000, 1000, memory=10)])
    descent = FragmentationDescent(cluster, MIXED)
    hungry = GpuTask(1_000, 1, 500, memory_bytes=8)
    gpus = cluster.place(hungry, 0, 0)
    assert descent.costs(hungry)[0][0] == np.inf
    cluster.release(hungry, 0, gpus)
    assert descent.costs(hungry)[0][0] < np.inf


def test_a_refused_placement_takes_nothing():
    cluster = GpuCluster([node(1000, 400)])
    for task, gpu in ((HALF, 1), (HALF, -1), (HALF, 7), (PAIR, -1)):
        with pytest.raises(ConfigurationError, match="does not fit on node 0"):
            cluster.place(task, 0, gpu)
    assert cluster.gpu_milli.tolist() == [[1000, 400]]
    assert cluster.cpu_milli.tolist() == [64_000]
    assert cluster.changes == 0


def test_whole_gpus_are_the_first_free_ones_and_come_back():
    cluster = GpuCluster([node(500, 1000, 1000, 1000)])
    gpus = cluster.place(PAIR, 0)
    assert gpus == (1, 2)
    assert cluster.gpu_milli.tolist() == [[500, 0, 0, 1000]]
    cluster.release(PAIR, 0, gpus)
    assert cluster.gpu_milli.tolist() == [[500, 1000, 1000, 1000]]


def test_the_most_frequent_types_make_up_the_coverage():
    tasks = [HALF] * 6 + [PAIR] * 3 + [CPU_ONLY]
    assert GpuWorkload.observed(tasks, coverage=0.7) == GpuWorkload((HALF, PAIR), (6 / 9, 3 / 9))
    assert GpuWorkload.observed(tasks).types == (HALF, PAIR, CPU_ONLY)


def test_memory_does_not_tell_types_apart():
    tasks = [GpuTask(1_000, 1, 500, memory_bytes=size) for size in (1, 2, 3)]
    assert GpuWorkload.observed(tasks).types == (GpuTask(1_000, 1, 500),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GpuTask(num_gpu=2, gpu_milli=500), "several are whole"),
        (lambda: GpuTask(num_gpu=1, gpu_milli=1001), "one GPU may be shared"),
        (lambda: GpuTask(num_gpu=1), "give both"),
        (lambda: GpuTask(cpu_milli=-1), "less than nothing"),
        (lambda: GpuNode(1, (1001,)), "0 to 1000 free"),
        (lambda: GpuWorkload((HALF,), (0.5,)), "sum to 0.5"),
        (lambda: GpuWorkload((), ()), "at least one type"),
        (lambda: GpuWorkload.observed([]), "no tasks"),
        (lambda: GpuCluster([]), "no nodes"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
