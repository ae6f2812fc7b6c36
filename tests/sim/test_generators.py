from collections import Counter
from itertools import pairwise
from statistics import mean, stdev

import pytest

from deepflow.sim.bounds import capacity_s
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.generators import fan_out_in, layered, map_reduce, pipelines, stream, survey

CLUSTER = ClusterSpec("c", (SimWorkerClass("w", 4),))
JOBS = [
    fan_out_in("small", width=3),
    map_reduce("middle", n_map=4, n_reduce=2, spread=0.4, seed=1),
    layered("large", n_tasks=60, n_layers=5, seed=2),
    pipelines("gpu", n_items=4, spread=0.2, seed=3),
]


@pytest.mark.parametrize("job", [*JOBS, survey("sky", seed=4)], ids=lambda job: job.flow)
def test_tasks_come_after_what_they_read_and_keys_are_unique(job):
    seen = set()
    for task in job.tasks:
        assert set(task.depends_on) <= seen
        assert task.key not in seen
        assert task.run_s > 0
        seen.add(task.key)


def test_fan_out_in_has_one_task_before_and_one_behind():
    job = fan_out_in("r", width=5, work_s=4.0)
    assert [task.task for task in job.tasks] == ["split", *["work"] * 5, "gather"]
    assert {task.run_s for task in job.tasks[1:-1]} == {4.0}
    assert job.tasks[-1].depends_on == tuple(f"work-{n}" for n in range(5))


def test_reduce_tasks_read_their_part_of_every_map_output():
    job = map_reduce("r", n_map=3, n_reduce=2, map_output_bytes=100)
    reduce_1 = next(task for task in job.tasks if task.key == "reduce-1")
    assert reduce_1.depends_on == ("part-0-1", "part-1-1", "part-2-1")
    sizes = {task.key: task.output_bytes for task in job.tasks}
    assert sum(sizes[key] for key in reduce_1.depends_on) == 150


def test_inference_needs_a_gpu_or_can_use_one():
    hard = pipelines("r", n_items=2, gpu="hard").tasks[1]
    soft = pipelines("r", n_items=2, gpu="soft").tasks[1]
    assert (hard.kind, hard.needs, hard.soft_gpu) == ("infer+gpu", (("GPU", 1.0),), 0.0)
    assert (soft.kind or soft.task, soft.needs, soft.soft_gpu) == ("infer", (), 1.0)
    assert hard.run_s == soft.run_s


def test_layers_are_categories_of_their_own_and_read_the_layer_above():
    job = layered("r", n_tasks=80, n_layers=4, most_parents=2, spread=0.1, seed=4)
    layer_of = {task.key: int(task.task.removeprefix("layer-")) for task in job.tasks}
    assert len(job.tasks) == 80
    assert set(layer_of.values()) == {0, 1, 2, 3}
    for task in job.tasks:
        assert {layer_of[parent] for parent in task.depends_on} <= {layer_of[task.key] - 1}
        assert bool(task.depends_on) == (layer_of[task.key] > 0)
        assert len(task.depends_on) <= 2
    for layer in range(4):
        runs = [task.run_s for task in job.tasks if layer_of[task.key] == layer]
        assert stdev(runs) < 0.3 * mean(runs)


def test_a_survey_compares_each_image_with_its_neighbours():
    job = survey("r", rows=2, columns=3)
    n_of = Counter(task.task for task in job.tasks)
    assert n_of == {"project": 6, "difference": 7, "fit": 1, "correct": 6, "tile": 2, "mosaic": 1}
    (alone, *_) = survey("r", rows=1, columns=1).tasks
    assert alone.key == "project-0-0"


def test_a_seed_makes_one_job_and_another_seed_another():
    def make(seed):
        return layered("r", n_tasks=20, n_layers=3, seed=seed)

    assert make(1) == make(1) != make(2)
    # In every process and on every Python: with other numbers, published figures would not hold.
    assert make(1).tasks[0].run_s == 19.19958958531716


@pytest.mark.parametrize(
    "call",
    [
        lambda: fan_out_in("r", width=0),
        lambda: map_reduce("r", n_map=1, n_reduce=0),
        lambda: pipelines("r", n_items=0),
        lambda: pipelines("r", n_items=1, gpu="maybe"),
        lambda: layered("r", n_tasks=2, n_layers=3),
        lambda: survey("r", rows=0),
        lambda: stream(JOBS, 0.0, CLUSTER, 1, 5),
        lambda: stream(JOBS, 0.7, CLUSTER, 1, 0),
        lambda: stream([], 0.7, CLUSTER, 1, 5),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(ValueError, match=r"cannot (be|fill)|no jobs"):
        call()


@pytest.mark.parametrize("load", [0.3, 0.7, 1.5])
def test_stream_offers_the_load_it_says(load):
    workload = stream(JOBS, load, CLUSTER, seed=7, n_jobs=4000)
    needs_s = {job.flow: capacity_s(job.tasks, CLUSTER) for job in JOBS}
    work_s = sum(needs_s[job.flow] for job in workload.jobs)
    assert work_s / workload.jobs[-1].arrives_s == pytest.approx(load, rel=0.05)


def test_stream_arrives_as_a_poisson_process_of_jobs_drawn_evenly():
    workload = stream(JOBS, 0.7, CLUSTER, seed=8, n_jobs=4000)
    times = [job.arrives_s for job in workload.jobs]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 0.0
    # An exponential distribution has the standard deviation of its mean.
    assert stdev(gaps) == pytest.approx(mean(gaps), rel=0.1)
    for job in JOBS:
        drawn = sum(found.flow == job.flow for found in workload.jobs)
        assert drawn == pytest.approx(1000, rel=0.15)
    assert len({job.run for job in workload.jobs}) == 4000


def test_same_seed_same_stream():
    assert stream(JOBS, 0.7, CLUSTER, 1, 20) == stream(JOBS, 0.7, CLUSTER, 1, 20)
    assert stream(JOBS, 0.7, CLUSTER, 1, 20) != stream(JOBS, 0.7, CLUSTER, 2, 20)
