import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.errors import UnplaceableError
from deepflow.hints import LABEL_NEED, label_resource
from deepflow.sim.bounds import best_run_s, capacity_s, critical_path_s, lower_bound_s
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.generators import layered, pipelines
from deepflow.sim.workload import SimJob, SimTask

TWO_SPEEDS = ClusterSpec(
    "two", (SimWorkerClass("fast", 2, threads=2, speed=2.0), SimWorkerClass("slow", 4, speed=0.5))
)


def job(*tasks):
    return SimJob("run", "flow", tasks)


def test_critical_path_is_the_longest_chain_on_the_fastest_class():
    chain = job(
        SimTask("c", "t", 1.0, depends_on=("a", "b")),  # order in the job does not matter
        SimTask("a", "t", 8.0),
        SimTask("b", "t", 3.0),
    )
    assert critical_path_s(chain, TWO_SPEEDS) == 4.5


def test_with_one_speed_a_class_capacity_is_work_over_aggregate_speed():
    tasks = [SimTask(str(n), "t", 3.0) for n in range(20)]
    assert capacity_s(tasks, TWO_SPEEDS) == pytest.approx(60.0 / (2 * 2 * 2.0 + 4 * 0.5))


def test_bound_is_the_larger_of_the_two():
    one = job(SimTask("a", "t", 10.0))
    many = job(*(SimTask(str(n), "t", 1.0) for n in range(100)))
    assert lower_bound_s(one, TWO_SPEEDS) == critical_path_s(one, TWO_SPEEDS) == 5.0
    assert lower_bound_s(many, TWO_SPEEDS) == capacity_s(many.tasks, TWO_SPEEDS) == 10.0


def test_each_kind_of_work_goes_where_it_gains_most_by_hand():
    # A does x at 4 and y at 1, B both at 1. Best: A does the x (1 s), B the y (1 s).
    cluster = ClusterSpec(
        "c", (SimWorkerClass("a", 1, speeds=(("x", 4.0),)), SimWorkerClass("b", 1))
    )
    tasks = [SimTask("1", "x", 4.0), SimTask("2", "y", 1.0)]
    assert capacity_s(tasks, cluster) == pytest.approx(1.0)
    # With twice as much x, B helps: A t seconds of x at 4, B t - 1 of x at 1: 4t + t - 1 = 8.
    tasks = [SimTask("1", "x", 8.0), SimTask("2", "y", 1.0)]
    assert capacity_s(tasks, cluster) == pytest.approx(1.8)


def test_order_of_classes_and_tasks_changes_no_bound():
    for seed in range(60, 90):  # 75: rounding led the solver astray here
        chance = random.Random(seed)
        kinds = [f"k{n}" for n in range(chance.randint(1, 12))]
        classes = [
            SimWorkerClass(
                f"c{n}",
                chance.randint(1, 5),
                threads=chance.randint(1, 4),
                speeds=(
                    *((kind, chance.choice([0.1, 0.5, 1.0, 2.0, 5.0, 11.3])) for kind in kinds),
                    ("k1+gpu", 10.0),
                ),
                resources=(("GPU", 1.0),) if chance.random() < 0.5 else (),
            )
            for n in range(chance.randint(1, 6))
        ]
        tasks = [
            SimTask(
                str(n),
                chance.choice(kinds),
                chance.lognormvariate(2, 2),
                soft_gpu=float(chance.random() < 0.4),
            )
            for n in range(40)
        ]
        bound_s = capacity_s(tasks, ClusterSpec("c", tuple(classes)))
        turned = capacity_s(tasks[::-1], ClusterSpec("c", tuple(classes[::-1])))
        assert bound_s == pytest.approx(turned, rel=1e-9)
        assert bound_s > 0


def test_soft_gpu_tasks_may_use_gpus_and_threads_without():
    cluster = ClusterSpec(
        "c",
        (
            SimWorkerClass("cpu", 1),
            SimWorkerClass(
                "gpu", 1, threads=2, speeds=(("i+gpu", 9.0),), resources=(("GPU", 1.0),)
            ),
        ),
    )
    soft = [SimTask(str(n), "i", 11.0, soft_gpu=1.0) for n in range(3)]
    # One thread with the GPU does 9 a second; the other and the CPU worker's do 1 each.
    assert capacity_s(soft, cluster) == pytest.approx(3.0)
    assert best_run_s(soft[0], cluster) == pytest.approx(11.0 / 9.0)
    hard = [SimTask(str(n), "i", 9.0, kind="i+gpu", needs=(("GPU", 1.0),)) for n in range(3)]
    assert capacity_s(hard, cluster) == pytest.approx(3.0)


def test_task_is_counted_only_where_its_needs_are_met():
    labelled = ClusterSpec(
        "c",
        (
            SimWorkerClass("fast", 1, speed=9.0),
            SimWorkerClass("near", 1, labels=(("zone", "here"),)),
        ),
    )
    task = SimTask("a", "t", 3.0, needs=((label_resource("zone", "here"), LABEL_NEED),))
    assert best_run_s(task, labelled) == 3.0
    with pytest.raises(UnplaceableError, match="needs GPU=1, which no worker of 'c' offers"):
        best_run_s(SimTask("a", "t", 3.0, needs=(("GPU", 1.0),)), labelled)


def test_no_work_takes_no_time():
    assert lower_bound_s(job(), TWO_SPEEDS) == 0.0
    assert lower_bound_s(job(SimTask("a", "t", 0.0)), TWO_SPEEDS) == 0.0


def test_jobs_that_could_never_end_are_refused():
    with pytest.raises(ValueError, match="circle"):
        critical_path_s(job(SimTask("a", "t", 1.0, depends_on=("a",))), TWO_SPEEDS)
    with pytest.raises(ValueError, match="no task"):
        critical_path_s(job(SimTask("a", "t", 1.0, depends_on=("b",))), TWO_SPEEDS)


def greedy_makespan_s(job, cluster, chance):
    """The makespan of some schedule: random order, each task on a random fit thread."""
    threads = [
        [c, n, 0.0] for c in cluster.classes for n in range(c.count) for _ in range(c.threads)
    ]
    gpus = {(c.name, n): 0.0 for c in cluster.classes for n in range(c.count)}
    ends = {}
    waiting = list(job.tasks)
    while waiting:
        ready = [task for task in waiting if all(parent in ends for parent in task.depends_on)]
        task = chance.choice(ready)
        waiting.remove(task)
        needs_gpu = bool(task.needs)
        fit = [t for t in threads if not needs_gpu or t[0].resources]
        thread = chance.choice(fit)
        worker_class, n, free_s = thread
        on_gpu = needs_gpu or (
            task.soft_gpu > 0 and bool(worker_class.resources) and chance.random() < 0.7
        )
        start_s = max([free_s, *(ends[parent] for parent in task.depends_on)])
        if on_gpu:
            start_s = max(start_s, gpus[worker_class.name, n])
        speed = worker_class.speed_for(task.kind or task.task, on_gpu=task.soft_gpu > 0 and on_gpu)
        thread[2] = ends[task.key] = start_s + task.run_s / speed
        if on_gpu:
            gpus[worker_class.name, n] = ends[task.key]
    return max(ends.values())


SPEEDS = st.sampled_from([0.3, 1.0, 1.7, 10.0])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 2), SPEEDS, SPEEDS, SPEEDS, st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["layered", "soft", "hard"]),
)
def test_no_schedule_beats_the_bound(seed, classes, shape):
    cluster = ClusterSpec(
        "c",
        tuple(
            SimWorkerClass(
                f"class-{n}",
                count,
                threads=threads,
                speed=plain,
                speeds=(("infer+gpu", on_gpu), ("infer", special), ("layer-1", special)),
                resources=(("GPU", 1.0),) if has_gpu or n == 0 else (),
            )
            for n, (count, threads, plain, special, on_gpu, has_gpu) in enumerate(classes)
        ),
    )
    if shape == "layered":
        made = layered("r", n_tasks=12, n_layers=3, seed=seed)
    else:
        made = pipelines("r", n_items=5, gpu=shape, spread=0.5, seed=seed)
    bound_s = lower_bound_s(made, cluster)
    assert bound_s > 0
    chance = random.Random(seed)
    for _ in range(5):
        assert greedy_makespan_s(made, cluster, chance) >= bound_s * (1 - 1e-9)
