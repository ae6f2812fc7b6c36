"""How much work lies behind a task, and how much of a flow is still to come.

The upward rank of a task is the longest way from its start to the end of the flow (Topcuoglu et
al. 2002, HEFT), here in seconds on the mean class of worker. A Prefect flow makes its tasks as it
goes, so that nobody knows its graph while it runs; what is known are its past runs. From each of
those its `RunShape` is kept: per task name, how many there were, how long they took, and their mean
upward rank. `FlowShape` answers from the newest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from deepflow.errors import ConfigurationError, HistoryError

__all__ = ["FlowShape", "NameShape", "RunShape", "RunTask", "shape_of", "upward_ranks"]

VERSION: Final = 1
MAX_RUNS: Final = 16
"""Past runs of a flow that are kept, the newest."""
MAX_FLOWS: Final = 256


class Dependent(Protocol):
    """Any task that says what it depends on: of a journal, of a simulation, of a history."""

    @property
    def key(self) -> str: ...
    @property
    def depends_on(self) -> Sequence[str]: ...


T = TypeVar("T", bound=Dependent)


@dataclass(frozen=True, slots=True)
class RunTask:
    """One task of a finished run."""

    key: str
    task: str
    """Its name."""
    depends_on: tuple[str, ...]
    run_s_reference: float
    """Seconds it took, or would have taken, on the mean class of worker."""


@dataclass(frozen=True, slots=True)
class NameShape:
    """The tasks of one name in a run, or on average in several."""

    n_tasks: float
    run_s: float
    """Mean, of each task."""
    rank_s: float
    """Mean upward rank, their own time included."""

    def __reduce__(self) -> tuple[Any, ...]:
        return NameShape, (self.n_tasks, self.run_s, self.rank_s)

    @property
    def work_s(self) -> float:
        """Of all of them together."""
        return self.n_tasks * self.run_s


@dataclass(frozen=True, slots=True)
class RunShape:
    """What is kept of a run: its tasks by name."""

    names: Mapping[str, NameShape]

    def __reduce__(self) -> tuple[Any, ...]:
        return RunShape, (self.names,)

    @property
    def work_s(self) -> float:
        """Seconds of all tasks together, on the mean class."""
        return sum(shape.work_s for shape in self.names.values())


def upward_ranks(
    tasks: Sequence[T],
    run_s: Callable[[T], float],
    transfer_s: Callable[[T, T], float] | None = None,
) -> dict[str, float]:
    """Seconds from the start of each task to the end of the last that depends on it, by key.

    `transfer_s(source, target)` counts what moving the first's output to the second takes. What a
    task depends on outside `tasks` is ignored. Raises :class:`ConfigurationError` for a key that
    is there twice and for a cycle. O(tasks + dependencies).
    """
    by_key = {task.key: task for task in tasks}
    if len(by_key) < len(tasks):
        raise ConfigurationError(
            f"{len(tasks) - len(by_key)} tasks have the key of another; keys must be unique"
        )
    n_dependents = dict.fromkeys(by_key, 0)
    for task in tasks:
        for key in task.depends_on:
            if key in n_dependents:
                n_dependents[key] += 1
    behind_s = dict.fromkeys(by_key, 0.0)
    ranks: dict[str, float] = {}
    ready = [task for task in tasks if not n_dependents[task.key]]
    while ready:
        task = ready.pop()
        rank_s = ranks[task.key] = run_s(task) + behind_s[task.key]
        for key in task.depends_on:
            source = by_key.get(key)
            if source is None:
                continue
            way_s = rank_s + (transfer_s(source, task) if transfer_s else 0.0)
            behind_s[key] = max(behind_s[key], way_s)
            n_dependents[key] -= 1
            if not n_dependents[key]:
                ready.append(source)
    if len(ranks) < len(tasks):
        on_cycle = sorted(set(by_key) - set(ranks))[:3]
        raise ConfigurationError(
            f"{len(tasks) - len(ranks)} tasks are on a cycle or before one, such as "
            f"{', '.join(map(repr, on_cycle))}; a task cannot depend on its own result"
        )
    return ranks


def shape_of(
    tasks: Sequence[RunTask], transfer_s: Callable[[RunTask, RunTask], float] | None = None
) -> RunShape:
    """What is kept of a finished run. O(tasks + dependencies)."""
    ranks = upward_ranks(tasks, lambda task: task.run_s_reference, transfer_s)
    sums: dict[str, tuple[int, float, float]] = {}
    for task in tasks:
        n, run_s, rank_s = sums.get(task.task, (0, 0.0, 0.0))
        sums[task.task] = (n + 1, run_s + task.run_s_reference, rank_s + ranks[task.key])
    return RunShape(
        {name: NameShape(n, run / n, rank / n) for name, (n, run, rank) in sums.items()}
    )


class FlowShape:
    """What runs of each flow look like, from the newest `MAX_RUNS` of them.

    Deterministic; pickles, and survives JSON by `to_dict` and `from_dict`.
    """

    def __init__(self) -> None:
        self._runs: dict[str, list[RunShape]] = {}
        self._mean: dict[str, dict[str, NameShape]] = {}

    def learn_run(self, flow: str, tasks: Sequence[RunTask]) -> RunShape:
        """Learn from all tasks of a finished run; gives what is kept of it."""
        shape = shape_of(tasks)
        self.learn(flow, shape)
        return shape

    def learn(self, flow: str, shape: RunShape) -> None:
        """Learn what was kept of a run, the newest last. A run without tasks tells nothing."""
        if not shape.names:
            return
        runs = self._runs[flow] = [*self._runs.pop(flow, []), shape][-MAX_RUNS:]
        self._mean[flow] = _mean(runs)
        if len(self._runs) > MAX_FLOWS:
            oldest = next(iter(self._runs))
            del self._runs[oldest], self._mean[oldest]

    def is_known(self, flow: str) -> bool:
        """Whether a run of the flow was learned from."""
        return flow in self._runs

    def upward_rank_s(self, flow: str, task: str, run_s: float | None = None) -> float | None:
        """Mean seconds from the start of a task of that name to the end of its flow.

        `run_s` says how long this one itself will take, where that is known better than the mean.
        None where no run of the flow had such a task. O(1).
        """
        shape = self._mean.get(flow, {}).get(task)
        if shape is None:
            return None
        return shape.rank_s if run_s is None else shape.rank_s - shape.run_s + run_s

    def names(self, flow: str) -> Mapping[str, NameShape]:
        """The mean shape of the flow's runs by task name; empty where it is not known."""
        return self._mean.get(flow, {})

    def work_s(self, flow: str) -> float | None:
        """Mean seconds of work of a run; None for an unknown flow. O(runs × names)."""
        runs = self._runs.get(flow)
        return sum(run.work_s for run in runs) / len(runs) if runs else None

    def remaining_work_s(
        self, flow: str, done_work_s: float, n_submitted: Mapping[str, int] | None = None
    ) -> float:
        """Seconds of work that a run of the flow still has before it, `done_work_s` being done.

        The mean of what was left in those past runs that were longer than this one is already; 0
        where none was, and for an unknown flow. With `n_submitted`, tasks by name so far, done
        ones included, past runs are stretched by how many more there are of what has been
        submitted, and the rest of that counts at least. O(runs × names).
        """
        mean = self._mean.get(flow)
        if mean is None:
            return 0.0
        stretch, known_s = _compare(mean, n_submitted or {})
        totals = (run.work_s * stretch for run in self._runs[flow])
        left = [total_s - done_work_s for total_s in totals if total_s > done_work_s]
        expected_s = sum(left) / len(left) if left else 0.0
        return max(expected_s, known_s - done_work_s, 0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        return FlowShape.from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as what JSON can hold."""
        runs = {flow: [shape_to_list(run) for run in of] for flow, of in self._runs.items()}
        return {"version": VERSION, "runs": runs}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FlowShape:
        """What `to_dict` gave; raises :class:`HistoryError` for anything else."""
        if saved.get("version") != VERSION:
            raise HistoryError(
                f"shapes of flows of version {saved.get('version')!r} cannot be read, only version "
                f"{VERSION}; learn them again from the history"
            )
        shapes = cls()
        try:
            for flow, runs in saved["runs"].items():
                for run in runs:
                    shapes.learn(flow, shape_from_list(run))
        except (KeyError, AttributeError, TypeError) as error:
            raise HistoryError(
                f"saved shapes of flows are damaged ({type(error).__name__}: {error}); "
                "learn them again from the history"
            ) from error
        return shapes


def _mean(runs: Sequence[RunShape]) -> dict[str, NameShape]:
    """Each name's mean: of the numbers over all runs, of seconds over the tasks there were."""
    totals: dict[str, tuple[float, float, float]] = {}
    for run in runs:
        for name, of in run.names.items():
            n, work, rank = totals.get(name, (0.0, 0.0, 0.0))
            totals[name] = (n + of.n_tasks, work + of.work_s, rank + of.n_tasks * of.rank_s)
    return {
        name: NameShape(n / len(runs), work / n, rank / n)
        for name, (n, work, rank) in totals.items()
    }


def _compare(mean: Mapping[str, NameShape], n_submitted: Mapping[str, int]) -> tuple[float, float]:
    """How many times as large as usual a run is, at least, and the work it is known to have."""
    usual_s = known_s = 0.0
    for name, n in n_submitted.items():
        shape = mean.get(name)
        if shape is not None:
            usual_s += shape.work_s
            known_s += n * shape.run_s
    return (max(1.0, known_s / usual_s) if usual_s > 0 else 1.0), known_s


def shape_to_list(shape: RunShape) -> list[list[Any]]:
    """A run's shape as what JSON can hold."""
    return [[name, of.n_tasks, of.run_s, of.rank_s] for name, of in shape.names.items()]


def shape_from_list(saved: Iterable[Any]) -> RunShape:
    """What `shape_to_list` gave; raises :class:`HistoryError` for anything else."""
    names: dict[str, NameShape] = {}
    try:
        for name, *numbers in saved:
            n, run_s, rank_s = map(float, numbers)
            if not (0 < n < math.inf and 0 <= run_s < math.inf and 0 <= rank_s < math.inf):
                raise ValueError(f"{name!r} has {n}, {run_s}, {rank_s}")
            names[str(name)] = NameShape(n, run_s, rank_s)
    except (TypeError, ValueError) as error:
        raise HistoryError(
            f"the saved shape of a run is damaged ({error}); learn it again from the history"
        ) from error
    return RunShape(names)
