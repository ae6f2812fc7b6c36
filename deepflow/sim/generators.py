"""Synthetic jobs, and streams of jobs that share a cluster.

Every job is made by a seed alone and is the same in every process. Run times are those at speed 1;
`spread` is the standard deviation of the logarithm of a factor on each (0: all alike), which is
the task's own and known to nobody: it comes on top of the noise of the cluster.

Kinds of work, by which a class of workers has its speeds (`SimWorkerClass.speeds`):

`decode`, `post`
    Work for CPUs, before and after inference.
`infer`
    Inference on a CPU: a soft task that was given no GPU.
`infer+gpu`
    Inference on a GPU: a hard GPU task, or a soft one that was given a GPU.

All other tasks have their category as their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from deepflow.hints import GPU_RESOURCE
from deepflow.sim.bounds import capacity_s
from deepflow.sim.cluster import ClusterSpec
from deepflow.sim.workload import SimJob, SimTask, Workload

__all__ = ["fan_out_in", "layered", "map_reduce", "pipelines", "stream", "survey"]


def fan_out_in(
    run: str,
    *,
    width: int,
    work_s: float = 10.0,
    spread: float = 0.0,
    output_bytes: int = 1_000_000,
    seed: int = 0,
) -> SimJob:
    """One `split`, then `width` tasks `work` that each read it, then a `gather` that reads all."""
    _refuse(width=width)
    chance = Random(seed)
    split = SimTask("split", "split", work_s / 10, output_bytes)
    work = tuple(
        SimTask(f"work-{n}", "work", _spread(chance, work_s, spread), output_bytes, ("split",))
        for n in range(width)
    )
    gather = SimTask("gather", "gather", work_s / 10, 0, tuple(task.key for task in work))
    return SimJob(run, "fan-out-in", (split, *work, gather))


def map_reduce(
    run: str,
    *,
    n_map: int,
    n_reduce: int,
    map_s: float = 10.0,
    reduce_s: float = 10.0,
    spread: float = 0.0,
    map_output_bytes: int = 64_000_000,
    seed: int = 0,
) -> SimJob:
    """`map` tasks, whose output is cut in parts, one for each of the `reduce` tasks.

    A `part` is a task of its own (1 ms), as Dask's task-based shuffle has it: so a reduce task
    reads its part of each map's output and not all of it.
    """
    _refuse(n_map=n_map, n_reduce=n_reduce)
    chance = Random(seed)
    part_bytes = map_output_bytes // n_reduce
    tasks = [
        SimTask(f"map-{m}", "map", _spread(chance, map_s, spread), map_output_bytes)
        for m in range(n_map)
    ]
    tasks += [
        SimTask(f"part-{m}-{r}", "part", 0.001, part_bytes, (f"map-{m}",))
        for m in range(n_map)
        for r in range(n_reduce)
    ]
    tasks += [
        SimTask(
            f"reduce-{r}",
            "reduce",
            _spread(chance, reduce_s, spread),
            0,
            tuple(f"part-{m}-{r}" for m in range(n_map)),
        )
        for r in range(n_reduce)
    ]
    return SimJob(run, "map-reduce", tuple(tasks))


def pipelines(
    run: str,
    *,
    n_items: int,
    gpu: Literal["hard", "soft"] = "soft",
    decode_s: float = 2.0,
    infer_s: float = 20.0,
    post_s: float = 2.0,
    spread: float = 0.0,
    n_bytes: int = 4_000_000,
    seed: int = 0,
) -> SimJob:
    """CPU → GPU → CPU: each item is decoded, inferred upon and post-processed; then a `summary`.

    `gpu="hard"`: inference needs one GPU, and its kind is `infer+gpu`. `gpu="soft"`: it can use one
    (`soft_gpu=1`) and is of kind `infer`. `infer_s` is seconds at speed 1 in both, so a class of
    workers says with its speed for `infer+gpu` how much faster its GPUs are.
    """
    _refuse(n_items=n_items)
    if gpu not in ("hard", "soft"):
        raise ValueError(f"gpu={gpu!r} cannot be; use 'hard' or 'soft'")
    chance = Random(seed)
    tasks: list[SimTask] = []
    for n in range(n_items):
        decode = SimTask(f"decode-{n}", "decode", _spread(chance, decode_s, spread), n_bytes)
        infer = SimTask(
            f"infer-{n}", "infer", _spread(chance, infer_s, spread), n_bytes // 4, (decode.key,)
        )
        if gpu == "hard":
            infer = replace(infer, kind="infer+gpu", needs=((GPU_RESOURCE, 1.0),))
        else:
            infer = replace(infer, soft_gpu=1.0)
        post = SimTask(
            f"post-{n}", "post", _spread(chance, post_s, spread), n_bytes // 100, (infer.key,)
        )
        tasks += [decode, infer, post]
    ends = tuple(f"post-{n}" for n in range(n_items))
    return SimJob(run, f"pipelines-{gpu}", (*tasks, SimTask("summary", "summary", 0.1, 0, ends)))


def layered(
    run: str,
    *,
    n_tasks: int,
    n_layers: int,
    most_parents: int = 3,
    typical_s: float = 10.0,
    typical_bytes: float = 10_000_000,
    spread: float = 0.3,
    seed: int = 0,
) -> SimJob:
    """A random graph in layers: each task reads 1 to `most_parents` tasks of the layer above.

    A layer is a category, `layer-<n>`, with a run time and an output size of its own: log-normal
    around the typical ones with standard deviation 1. `spread` is within the category.
    """
    _refuse(n_layers=n_layers, most_parents=most_parents)
    if n_tasks < n_layers:
        raise ValueError(f"n_tasks={n_tasks} cannot fill n_layers={n_layers}; each has a task")
    chance = Random(seed)
    layer_of = sorted([*range(n_layers), *chance.choices(range(n_layers), k=n_tasks - n_layers)])
    layers: list[list[SimTask]] = [[] for _ in range(n_layers)]
    layer_s = [typical_s * chance.lognormvariate(0.0, 1.0) for _ in layers]
    layer_bytes = [typical_bytes * chance.lognormvariate(0.0, 1.0) for _ in layers]
    for n, layer in enumerate(layer_of):
        above = [task.key for task in layers[layer - 1]] if layer else []
        n_parents = min(len(above), chance.randint(1, most_parents))
        layers[layer].append(
            SimTask(
                key=f"task-{n}",
                task=f"layer-{layer}",
                run_s=_spread(chance, layer_s[layer], spread),
                output_bytes=int(_spread(chance, layer_bytes[layer], spread)),
                depends_on=tuple(chance.sample(above, n_parents)),
            )
        )
    return SimJob(run, "layered", tuple(task for layer in layers for task in layer))


def survey(run: str, *, rows: int = 4, columns: int = 5, seed: int = 0) -> SimJob:
    """Images of the sky put together into one, in the shape of the Montage workflow.

    The images lie in a grid. Each is projected (`project`); each pair of neighbours is compared
    (`difference`); one task works out from all differences how bright each image should be (`fit`);
    each image is corrected (`correct`); each row becomes a tile (`tile`), and all tiles the picture
    (`mosaic`). Times and sizes are made up.
    """
    _refuse(rows=rows, columns=columns)
    chance = Random(seed)

    def task(key: str, name: str, typical_s: float, n_bytes: int, above: Sequence[str]) -> SimTask:
        run_s = round(_spread(chance, typical_s, 0.4), 3)
        return SimTask(key, name, run_s, n_bytes, tuple(above))

    cells = [(row, column) for row in range(rows) for column in range(columns)]
    names = {(row, column): f"{row}-{column}" for row, column in cells}
    projected = [
        replace(
            task(f"project-{names[cell]}", "project", 12.0, 8_000_000, ()),
            input_bytes=int(_spread(chance, 5_000_000, 0.3)),
        )
        for cell in cells
    ]
    differences = [
        task(
            f"difference-{names[cell]}-{names[beside]}",
            "difference",
            2.5,
            1_000_000,
            (f"project-{names[cell]}", f"project-{names[beside]}"),
        )
        for cell in cells
        for beside in ((cell[0], cell[1] + 1), (cell[0] + 1, cell[1]))
        if beside in names
    ]
    above = [one.key for one in (differences or projected)]
    fit = task("fit", "fit", 8.0, 10_000, above)
    corrected = [
        task(
            f"correct-{names[cell]}",
            "correct",
            5.0,
            8_000_000,
            (f"project-{names[cell]}", "fit"),
        )
        for cell in cells
    ]
    tiles = [
        task(
            f"tile-{row}",
            "tile",
            10.0,
            16_000_000,
            [f"correct-{names[row, column]}" for column in range(columns)],
        )
        for row in range(rows)
    ]
    mosaic = task("mosaic", "mosaic", 20.0, 0, [tile.key for tile in tiles])
    return SimJob(run, "survey", (*projected, *differences, fit, *corrected, *tiles, mosaic))


def stream(
    jobs: Sequence[SimJob], load: float, cluster: ClusterSpec, seed: int, n_jobs: int
) -> Workload:
    """`n_jobs` jobs, drawn with replacement, that arrive as a Poisson process at an offered load.

    Load is work ÷ (speed of the whole cluster × time), where work ÷ speed of the whole cluster is
    :func:`deepflow.sim.bounds.capacity_s`: the least seconds in which all workers together could do
    the work, each task where it costs least. With W the sum of that over the jobs *drawn*, arrivals
    have the rate `n_jobs · load ÷ W`; so the expected time from one arrival to the next is
    (W ÷ n_jobs) ÷ load, whatever the seed drew. The first job arrives at 0 s. A load of 1 is
    what a perfect scheduler without transfers could just keep up with.

    Runs are named `<run of the job>-<place in the stream>`. Raises ValueError for a load or number
    that is not above 0 and for no jobs; :class:`UnplaceableError` as `capacity_s` does.
    """
    _refuse(n_jobs=n_jobs)
    if not load > 0:
        raise ValueError(f"load={load!r} cannot be; it is above 0")
    if not jobs:
        raise ValueError("there are no jobs to draw from")
    chance = Random(seed)
    drawn = chance.choices(range(len(jobs)), k=n_jobs)
    needs_s = {n: capacity_s(jobs[n].tasks, cluster) for n in sorted(set(drawn))}
    gap_s = sum(needs_s[n] for n in drawn) / n_jobs / load
    arriving = []
    arrives_s = 0.0
    for place, n in enumerate(drawn):
        job = jobs[n]
        arriving.append(replace(job, run=f"{job.run}-{place:04d}", arrives_s=arrives_s))
        arrives_s += chance.expovariate(1.0) * gap_s
    return Workload(f"stream-{load:g}-{seed}", tuple(arriving))


def _spread(chance: Random, typical: float, spread: float) -> float:
    return typical * chance.lognormvariate(0.0, spread) if spread else typical


def _refuse(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} cannot be; it is at least 1")
