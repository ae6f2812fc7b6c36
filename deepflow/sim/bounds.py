"""What no schedule can beat: lower bounds on how long work takes on a simulated cluster.

Run times are those of the tasks without noise. Transfers, latencies, memory, start-up delays and
deaths are left out: each only makes work take longer, so the bounds hold with them too.

Where each class of worker has one speed, the bound is the larger of two: the critical path with
every task on the fastest class that can run it, and work ÷ the speed of all threads together. Where
speeds depend on the kind of work, "the speed of all threads together" has no single meaning. Then
the second is the optimum of a linear program: the least time in which all work could be done if
tasks could be cut into any pieces, spread over all workers and run in any order. With one speed a
class, that optimum is work ÷ aggregate speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepflow.errors import UnplaceableError
from deepflow.hints import CLASS_LABEL, GPU_RESOURCE, LABEL_OFFER, label_resource
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.workload import SimJob, SimTask

__all__ = ["best_run_s", "capacity_s", "critical_path_s", "lower_bound_s"]

_THREAD = "thread"


def lower_bound_s(job: SimJob, cluster: ClusterSpec) -> float:
    """Seconds from a job's arrival that it takes at least, alone on the cluster.

    Raises :class:`UnplaceableError` where some task can run on no worker.
    """
    return max(critical_path_s(job, cluster), capacity_s(job.tasks, cluster))


def best_run_s(task: SimTask, cluster: ClusterSpec) -> float:
    """Seconds that a task runs where it runs fastest, without noise."""
    return task.run_s / max(mode.speed for mode in _modes(task, cluster))


def critical_path_s(job: SimJob, cluster: ClusterSpec) -> float:
    """Seconds of the longest chain of tasks that wait for each other, each at its fastest.

    Raises ValueError where tasks wait for each other in a circle or for one that is not there.
    """
    finish_s: dict[str, float] = {}
    waiting = {task.key: len(task.depends_on) for task in job.tasks}
    children: dict[str, list[SimTask]] = {key: [] for key in waiting}
    for task in job.tasks:
        for parent in task.depends_on:
            if parent not in children:
                raise ValueError(f"{task.key!r} of {job.run!r} depends on {parent!r}, no task")
            children[parent].append(task)
    ready = [task for task in job.tasks if not task.depends_on]
    while ready:
        task = ready.pop()
        start_s = max((finish_s[parent] for parent in task.depends_on), default=0.0)
        finish_s[task.key] = start_s + best_run_s(task, cluster)
        for child in children[task.key]:
            waiting[child.key] -= 1
            if waiting[child.key] == 0:
                ready.append(child)
    if len(finish_s) < len(waiting):
        raise ValueError(f"tasks of {job.run!r} wait for each other in a circle")
    return max(finish_s.values(), default=0.0)


def capacity_s(tasks: Iterable[SimTask], cluster: ClusterSpec) -> float:
    """Seconds that all workers together need at least for the work of the tasks.

    The dual of the linear program gives it: with prices p ≥ 0 on a second of each class's threads
    and other resources, a task costs at least its cheapest way of running, and the cluster earns at
    most (capacity × p) a second. So Σ cheapest cost ÷ (capacity × p) is a bound for *any* prices,
    and the best prices give the optimum. The value returned is computed from the prices in the end,
    so that rounding in the solver can make it smaller but not wrong; and it is never less than with
    each thread at the price of its fastest work and all else free.
    """
    # Tasks with the same ways of running are one kind of work.
    work: dict[tuple[_Mode, ...], float] = {}
    for task in tasks:
        if task.run_s > 0:
            modes = _modes(task, cluster)
            work[modes] = work.get(modes, 0.0) + task.run_s
    if not work:
        return 0.0
    columns: dict[tuple[str, str], int] = {}
    for modes in work:
        for mode in modes:
            for resource, _ in mode.uses:
                columns.setdefault((mode.worker_class, resource), len(columns))
    classes = {c.name: c for c in cluster.classes}
    capacity = np.array(
        [classes[name].count * _offers(classes[name])[resource] for name, resource in columns]
    )
    amounts = np.array(list(work.values()))
    rows = [(kind, mode) for kind, modes in enumerate(work) for mode in modes]
    speed = np.array([mode.speed for _, mode in rows])
    kind_of = np.array([kind for kind, _ in rows])
    uses = np.zeros((len(rows), len(columns)))
    for row, (_, mode) in enumerate(rows):
        for resource, amount in mode.uses:
            uses[row, columns[mode.worker_class, resource]] = amount

    # Maximise amounts·u with speed × u[kind] ≤ uses·p for each way of running and capacity·p ≤ 1.
    n_kinds = len(work)
    limits = np.zeros((len(rows) + 1, n_kinds + len(columns)))
    limits[np.arange(len(rows)), kind_of] = speed
    limits[:-1, n_kinds:] = -uses
    limits[-1, n_kinds:] = capacity
    goal = np.concatenate([amounts / amounts.sum(), np.zeros(len(columns))])
    at_most = np.zeros(len(rows) + 1)
    at_most[-1] = 1.0
    solved = np.maximum(_maximise(goal, limits, at_most)[n_kinds:], 0.0)
    simple = np.zeros(len(columns))
    for row, (_, mode) in enumerate(rows):
        column = columns[mode.worker_class, _THREAD]
        simple[column] = max(simple[column], speed[row])

    def bound_s(prices: NDArray[np.float64]) -> float:
        earned = float(capacity @ prices)
        cheapest = np.full(n_kinds, np.inf)
        np.minimum.at(cheapest, kind_of, uses @ prices / speed)
        return float(amounts @ cheapest) / earned if earned > 0 else 0.0

    return max(bound_s(solved), bound_s(simple))


@dataclass(frozen=True, slots=True)
class _Mode:
    """One way for a task to run."""

    worker_class: str
    speed: float
    uses: tuple[tuple[str, float], ...]
    """What it takes of its worker, threads among it."""


def _modes(task: SimTask, cluster: ClusterSpec) -> tuple[_Mode, ...]:
    modes = _modes_of(task.kind or task.task, task.needs, task.soft_gpu, cluster.classes)
    if not modes:
        needs = ", ".join(f"{name}={amount:g}" for name, amount in task.needs)
        raise UnplaceableError(
            f"task {task.key!r} needs {needs}, which no worker of {cluster.name!r} offers; "
            "add a class of workers that does",
            wanted=needs,
        )
    return modes


@lru_cache(maxsize=4096)
def _modes_of(
    kind: str,
    needs: tuple[tuple[str, float], ...],
    soft_gpu: float,
    classes: tuple[SimWorkerClass, ...],
) -> tuple[_Mode, ...]:
    modes = []
    for worker_class in classes:
        offers = _offers(worker_class)
        if any(amount > offers.get(name, 0.0) for name, amount in needs):
            continue
        uses = ((_THREAD, 1.0), *needs)
        modes.append(_Mode(worker_class.name, worker_class.speed_for(kind), uses))
        if 0 < soft_gpu <= offers.get(GPU_RESOURCE, 0.0):
            with_gpu = (*uses, (GPU_RESOURCE, soft_gpu))
            speed = worker_class.speed_for(kind, on_gpu=True)
            modes.append(_Mode(worker_class.name, speed, with_gpu))
    return tuple(modes)


def _offers(worker_class: SimWorkerClass) -> dict[str, float]:
    """What one worker has: threads, resources, and its labels as resources."""
    labels = {CLASS_LABEL: worker_class.name, **dict(worker_class.labels)}
    return {
        **{label_resource(key, value): LABEL_OFFER for key, value in labels.items()},
        **dict(worker_class.resources),
        _THREAD: float(worker_class.threads),
    }


def _maximise(
    goal: NDArray[np.float64], limits: NDArray[np.float64], at_most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The x ≥ 0 with the greatest goal·x for which limits·x ≤ at_most, where at_most ≥ 0.

    The simplex method on a full tableau, with Bland's rule against cycling (Bland 1977). For small
    programs with numbers around 1: each step costs O(rows × columns). It stops short of the
    optimum after 100 steps a row and column, where rounding would otherwise keep it going.
    """
    n_rows, n_columns = limits.shape
    table = np.zeros((n_rows + 1, n_columns + n_rows + 1))
    table[:-1, :n_columns] = limits
    table[:-1, n_columns:-1] = np.eye(n_rows)
    table[:-1, -1] = at_most
    table[-1, :n_columns] = -goal
    basis = np.arange(n_columns, n_columns + n_rows)
    tolerance = 1e-9  # a smaller pivot would blow rounding errors up
    for _ in range(100 * sum(limits.shape)):
        improving = np.flatnonzero(table[-1, :-1] < -tolerance)
        if not improving.size:
            break
        entering = improving[0]
        column = table[:-1, entering]
        usable = np.flatnonzero(column > tolerance)
        ratios = table[usable, -1] / column[usable]
        tied = usable[ratios <= ratios.min() + tolerance]
        leaving = tied[np.argmin(basis[tied])]
        table[leaving] /= table[leaving, entering]
        others = np.arange(n_rows + 1) != leaving
        table[others] -= np.outer(table[others, entering], table[leaving])
        basis[leaving] = entering
    found = np.zeros(n_columns + n_rows)
    found[basis] = table[:-1, -1]
    return found[:n_columns]
