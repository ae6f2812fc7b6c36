"""Plays a job of the judge on a real local cluster, whose workers sleep as long as theirs compute.

Each worker is a Dask `Worker` in this process with threads of its own, over TCP. A task sleeps for
what it takes on the class of the worker at hand, so that two cores are enough for many workers.
Where a task can use a GPU, it takes the worker's if that is free, whoever placed it there.
"""

from __future__ import annotations

import time
from threading import BoundedSemaphore
from typing import Any

import dask
import numpy as np
from dask.base import annotate
from distributed import Client, Scheduler, SpecCluster, Worker, get_worker

from deepflow.backend.placement.annotation import OURS
from deepflow.backend.placement.plugin import Placement
from deepflow.decide.experience import Experience
from deepflow.decide.place.registry import STOCK
from deepflow.hints import CLASS_LABEL, GPU_RESOURCE, LABEL_OFFER, label_resource
from deepflow.sim._jobs import normal_draw
from deepflow.sim.cluster import ClusterSpec
from deepflow.sim.workload import SimJob

_gpus: dict[str, BoundedSemaphore] = {}
"""Of the workers in this process, by name."""


def sleep_work(seconds: dict[str, float], n_bytes: int, is_soft: bool, *_: Any) -> bytes:
    """Sleep for what the class of the worker at hand takes, on its GPU where that is of use."""
    name = str(get_worker().name)
    worker_class = name.rpartition("-")[0]
    gpu = _gpus.get(name) if is_soft else None
    if gpu is not None and gpu.acquire(blocking=False):
        try:
            time.sleep(seconds[f"{worker_class}+gpu"])
        finally:
            gpu.release()
    else:
        time.sleep(seconds[worker_class])
    return bytes(n_bytes)


def seconds_of(
    job: SimJob, cluster: ClusterSpec, seed: int, scale: float
) -> dict[str, dict[str, float]]:
    """Key → class of worker, with and without its GPU → seconds; with the judge's own noise."""
    found: dict[str, dict[str, float]] = {}
    for task in job.tasks:
        noise = float(np.exp(cluster.noise * normal_draw(seed, job.run, task.key)))
        kind = task.kind or task.task
        found[task.key] = {
            f"{c.name}{'+gpu' if on_gpu else ''}": scale
            * noise
            * task.run_s
            / c.speed_for(kind, on_gpu=on_gpu)
            for c in cluster.classes
            for on_gpu in (False, True)
        }
    return found


def real_makespan_s(
    job: SimJob,
    cluster_spec: ClusterSpec,
    policy: str,
    seed: int,
    experience: Experience,
    *,
    scale: float = 1.0,
) -> float:
    """Seconds from submitting the first task until the last result is there.

    `scale`: what a second of the judge is here. The workers join in an order shuffled by `seed`.
    """
    workers: dict[str, Any] = {}
    _gpus.clear()
    for c in cluster_spec.classes:
        resources = {label_resource(CLASS_LABEL, c.name): LABEL_OFFER, **dict(c.resources)}
        for n in range(c.count):
            options = {"nthreads": c.threads, "resources": resources, "dashboard": False}
            workers[f"{c.name}-{n}"] = {"cls": Worker, "options": options}
            if resources.get(GPU_RESOURCE):
                _gpus[f"{c.name}-{n}"] = BoundedSemaphore(int(resources[GPU_RESOURCE]))
    names = list(workers)
    np.random.default_rng(seed).shuffle(names)
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with (
        dask.config.set({"distributed.worker.memory.pause": False}),
        SpecCluster({n: workers[n] for n in names}, scheduler, silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(len(workers))
        if policy != STOCK:
            client.register_plugin(
                Placement(policy, estimates=experience.estimates, shapes=experience.shapes)
            )
        times = seconds_of(job, cluster_spec, seed, scale)
        futures: dict[str, Any] = {}
        began = time.perf_counter()
        for n, task in enumerate(job.tasks):
            note: dict[str, Any] = {"task": task.task, "flow": job.flow, "run": job.run}
            if task.soft_gpu:
                note["soft_gpu"] = task.soft_gpu
            with annotate(**{OURS: note}):
                futures[task.key] = client.submit(
                    sleep_work,
                    times[task.key],
                    task.output_bytes,
                    task.soft_gpu > 0,
                    *(futures[key] for key in task.depends_on),
                    key=f"{task.task}-{n}-{job.run}-{task.key}",
                    pure=False,
                )
        wanted = {key for task in job.tasks for key in task.depends_on}
        leaves = [futures[task.key] for task in job.tasks if task.key not in wanted]
        client.gather(leaves)
        return time.perf_counter() - began
