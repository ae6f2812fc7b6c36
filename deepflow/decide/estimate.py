"""How long a task takes on a class of worker and how big its output is, learned from what was seen.

The model, for one run of task *t* of a flow on a worker of class *c*::

    ln seconds = task[t] + class[c] + deviation[t, c] + slope[t] · ln(offset + input bytes)
                 + run[t] + noise

- ``class`` is fitted over all tasks of the flow that ran on two classes or more (weighted least
  squares, shrunk towards the classes' effects in all flows), so that a task that never ran on a
  class borrows what other tasks tell about it.
- ``deviation`` is what is special about this task on this class, shrunk by the number of runs.
- ``slope`` is the pooled regression within the classes, shrunk to 0: the runs of one flow run have
  errors in common, so that many of them at one size are little evidence.
- ``task`` is shrunk a little towards the mean of the flow's tasks. A task that was never seen has
  that mean, a flow that was never seen has `DEFAULT_RUN_S`; both still have the class's effect.
- ``run`` is what the runs of a task in one flow run have in common: the median of the newest
  `_RECENT` residuals, shrunk by how much flow runs were seen to differ. It ends with `begin_run`.
- ``noise`` is kept as a standard deviation per task, from which quantiles follow (log-normal).

Robust: the first run in a fresh process imports what it needs and takes many times as long.
Values are cut off at `_CUT` deviations from the median of the newest `_RECENT`, and as long as
there are no more than those, all of them are looked at again with every new one. Forgetting: the
weight of the past is bounded, so that it fades exponentially once the bound is reached. Memory is
bounded: a few numbers and `_RECENT` pairs for each task and class, and a bounded number of tasks
and flows, of which those not seen for longest go first.

Sources: two-way random effects (Searle, Casella, McCulloch 1992) for the shrinkage; winsorising as
in Huber 1981. The constants were chosen by `tests/benchmarks/run_time_model.py`.

The model is in one file, since the fits of cells, tasks and flows shrink towards each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
from mypy_extensions import mypyc_attr

from deepflow.errors import HistoryError

__all__ = ["DEFAULT_OUTPUT_BYTES", "DEFAULT_RUN_S", "Estimates"]

DEFAULT_RUN_S: Final = 0.5
"""Seconds where nothing is known; the same as Dask's."""
DEFAULT_OUTPUT_BYTES: Final = 1024.0
"""Bytes where nothing is known; the same as Dask's."""

VERSION: Final = 1
MAX_FLOWS: Final = 256
MAX_TASKS_PER_FLOW: Final = 2048

_RECENT: Final = 16
_LOOK_EVERY: Final = 8
"""Observations between two looks at what is an outlier and at the slope, once there are enough."""
_CUT: Final = 3.0
_LEAST_DEVIATION: Final = 0.2
"""Of the logarithm: below this nothing is an outlier."""
_MOST_WEIGHT: Final = 256.0
"""Runs after which the past begins to fade."""
_SIZE_OFFSET_BYTES: Final = 1024.0
"""Inputs much smaller than this do not differ."""
_SHORTEST_S: Final = 1e-6

# Standard deviations, of logarithms, that the shrinkage expects.
_NOISE: Final = 0.6
_NOISE_WEIGHT: Final = 5.0
_BETWEEN_TASKS: Final = 3.0
_BETWEEN_CLASSES: Final = 0.7
_BETWEEN_FLOWS: Final = 0.2
_DEVIATION: Final = 0.3
_SLOPE: Final = 0.7
_MOST_SLOPE: Final = 1.5
_RUN_ERROR: Final = 0.3
"""What the runs of a task in one flow run have in common."""

_RUN: Final = 0.6
_RUN_WEIGHT: Final = 2.0
_MOST_RUNS: Final = 32.0
_LEAST_NOISE: Final = 0.3
_MEDIAN: Final = math.pi / 2
"""Variance of a median over that of a mean, of many normal values."""

_MOST_STEP: Final = 256
_NORMAL: Final = NormalDist()


class _Line(NamedTuple):
    """What is predicted for one task on one class."""

    intercept: float
    slope: float
    deviation: float


class _Fit(NamedTuple):
    """What is predicted for one task."""

    run_effect: float
    mean: _Line
    """On the mean class."""
    of_class: dict[str, _Line]
    """On each class that any task of the flow ran on, or any flow."""
    unseen_deviation: float
    """On a class that nothing is known of."""


class _Cell:
    """Weighted moments of x = ln input bytes and y = ln of what was seen; robust and fading."""

    __slots__ = (
        *("high", "low", "n_seen", "recent"),
        *("mean_x", "mean_y", "sxx", "sxy", "syy", "weight"),
    )

    def __init__(self) -> None:
        self.n_seen = 0
        self.low = self.high = 0.0
        self.weight = 0.0
        self.mean_x = self.mean_y = 0.0
        self.sxx = self.sxy = self.syy = 0.0
        self.recent: list[tuple[float, float]] = []

    def add(self, x: float, y: float, slope: float) -> None:
        """Learn one pair; `slope` is what is believed now, to tell outliers by. O(1)."""
        self.n_seen += 1
        self.recent.append((x, y))
        if len(self.recent) > _RECENT:
            del self.recent[0]
        if self.n_seen <= _RECENT or not self.n_seen % _LOOK_EVERY:
            self.low, self.high = _bounds([b - slope * a for a, b in self.recent])
        if self.n_seen <= _RECENT:
            self.weight = self.mean_x = self.mean_y = self.sxx = self.sxy = self.syy = 0.0
            for a, b in self.recent:
                self._put(a, slope * a + min(max(b - slope * a, self.low), self.high))
        else:
            self._put(x, slope * x + min(max(y - slope * x, self.low), self.high))

    def _put(self, x: float, y: float) -> None:
        weight = self.weight + 1.0
        dx, dy = x - self.mean_x, y - self.mean_y
        self.mean_x += dx / weight
        self.mean_y += dy / weight
        rest = self.weight / weight
        self.sxx += rest * dx * dx
        self.sxy += rest * dx * dy
        self.syy += rest * dy * dy
        self.weight = weight
        if weight > _MOST_WEIGHT:
            self._fade()

    def _fade(self) -> None:
        keep = min(1.0, _MOST_WEIGHT / self.weight)
        self.weight *= keep
        self.sxx *= keep
        self.sxy *= keep
        self.syy *= keep

    def merge(self, other: _Cell) -> None:
        """Learn what another cell has learned."""
        weight = self.weight + other.weight
        if not other.weight:
            return
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        rest = self.weight * other.weight / weight
        self.sxx += other.sxx + rest * dx * dx
        self.sxy += other.sxy + rest * dx * dy
        self.syy += other.syy + rest * dy * dy
        share = other.weight / weight
        self.mean_x += dx * share
        self.mean_y += dy * share
        self.weight = weight
        self._fade()
        low, high = (self.low, self.high) if self.n_seen else (other.low, other.high)
        self.low, self.high = min(low, other.low), max(high, other.high)
        self.n_seen += other.n_seen
        both = sorted(self.recent + other.recent)
        n_kept = min(len(both), _RECENT)
        self.recent = [both[(2 * i + 1) * len(both) // (2 * n_kept)] for i in range(n_kept)]

    def to_list(self) -> list[Any]:
        moments = [self.weight, self.mean_x, self.mean_y, self.sxx, self.sxy, self.syy]
        bounds = [self.low, self.high]
        return [self.n_seen, bounds, moments, [list(pair) for pair in self.recent]]

    @classmethod
    def from_list(cls, saved: list[Any]) -> _Cell:
        cell = cls()
        n_seen, bounds, moments, recent = saved
        cell.n_seen = int(n_seen)
        cell.low, cell.high = map(float, bounds)
        cell.weight, cell.mean_x, cell.mean_y, cell.sxx, cell.sxy, cell.syy = map(float, moments)
        cell.recent = [(float(x), float(y)) for x, y in recent]
        return cell


def _bounds(values: list[float]) -> tuple[float, float]:
    """Where to cut off: around the median, by the median absolute deviation."""
    values.sort()
    n = len(values)
    middle = 0.5 * (values[(n - 1) // 2] + values[n // 2])
    off = sorted([abs(value - middle) for value in values])
    deviation = 1.4826 * 0.5 * (off[(n - 1) // 2] + off[n // 2])
    cut = _CUT * max(deviation, _LEAST_DEVIATION)
    return middle - cut, middle + cut


def _slope_and_variance(cells: Iterable[_Cell]) -> tuple[float, float]:
    """The pooled regression within the cells: its slope, shrunk, and what it leaves."""
    sxx = sxy = syy = weight = 0.0
    for cell in cells:
        sxx += cell.sxx
        sxy += cell.sxy
        syy += cell.syy
        weight += cell.weight
    prior = _NOISE_WEIGHT * _NOISE**2
    slope = 0.0
    if sxx > 1e-9 * weight:
        left = max(0.0, syy - sxy * sxy / sxx)
        variance = (prior + left) / (_NOISE_WEIGHT + weight)
        slope = sxy / (sxx + (variance + weight * _RUN_ERROR**2) / _SLOPE**2)
        slope = min(max(slope, 0.0), _MOST_SLOPE)
    left = max(0.0, syy - 2 * slope * sxy + slope * slope * sxx)
    return slope, (prior + left) / (_NOISE_WEIGHT + weight)


class _Task:
    """What is known of one task: a cell for each class, and one for its output."""

    __slots__ = (
        *("cells", "fit", "n_seen", "output", "output_slope", "slope", "variance"),
        *("newest", "n_runs", "squares"),
    )

    def __init__(self) -> None:
        self.n_seen = 0
        self.cells: dict[str, _Cell] = {}
        self.output = _Cell()
        self.fit: _Fit | None = None
        self.newest: list[tuple[str, float, float]] = []
        self.n_runs = 0.0
        self.squares = 0.0
        self.refresh()

    def add(self, worker_class: str, x: float, ln_s: float, ln_bytes: float) -> None:
        """Learn from one run."""
        cell = self.cells.get(worker_class)
        if cell is None:
            cell = self.cells[worker_class] = _Cell()
        cell.add(x, ln_s, self.slope)
        self.output.add(x, ln_bytes, self.output_slope)
        self.newest.append((worker_class, x, ln_s))
        if len(self.newest) > _RECENT:
            del self.newest[0]
        self.n_seen += 1
        if self.n_seen <= _RECENT or not self.n_seen % _LOOK_EVERY:
            self.refresh()
        self.fit = None

    def begin_run(self, effect: float) -> None:
        """What the newest runs had in common, `effect`, ends; how large it was is remembered."""
        if not self.newest:
            return
        self.newest = []
        self.fit = None
        self._remember(1.0, effect * effect)

    def merge(self, other: _Task, effect: float) -> None:
        """Learn what another has learned; `effect` is that of its newest run."""
        for worker_class, cell in other.cells.items():
            self.cells.setdefault(worker_class, _Cell()).merge(cell)
        self.output.merge(other.output)
        self.n_seen += other.n_seen
        self._remember(other.n_runs, other.squares)
        if other.newest:
            self._remember(1.0, effect * effect)
        self.refresh()

    def _remember(self, n_runs: float, squares: float) -> None:
        n_runs += self.n_runs
        keep = min(1.0, _MOST_RUNS / max(n_runs, 1.0))
        self.n_runs = keep * n_runs
        self.squares = keep * (self.squares + squares)

    @property
    def run_variance(self) -> float:
        """Variance of what the runs of one flow run have in common, from one to the next."""
        return (_RUN_WEIGHT * _RUN**2 + self.squares) / (_RUN_WEIGHT + self.n_runs)

    def refresh(self) -> None:
        """Look at the slopes and the noise again. O(classes)."""
        self.fit = None
        self.slope, self.variance = _slope_and_variance(self.cells.values())
        self.output_slope, _ = _slope_and_variance((self.output,))

    def level(self, worker_class: str) -> tuple[float, float]:
        """ln seconds of the class at ln input bytes = 0, and the weight of that."""
        cell = self.cells[worker_class]
        weight = 1.0 / (_DEVIATION**2 + self.variance / cell.weight)
        return cell.mean_y - self.slope * cell.mean_x, weight


class _Flow:
    """What is known of one flow."""

    __slots__ = ("effects", "mean", "n_seen", "next_fit", "output_mean", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[str, _Task] = {}
        self.effects: dict[str, float] = {}
        self.mean = math.log(DEFAULT_RUN_S)
        self.output_mean = math.log(DEFAULT_OUTPUT_BYTES)
        self.n_seen = 0
        self.next_fit = 0

    def fit(self, prior: Mapping[str, float]) -> None:
        """Fit the classes' effects and the means over tasks. O(tasks × classes)."""
        tasks = self.tasks.values()
        self.effects = _class_effects(tasks, prior, _BETWEEN_FLOWS if prior else _BETWEEN_CLASSES)
        means = [_mean(task, self.effects) for task in tasks if task.cells]
        if means:
            self.mean = sum(means) / len(means)
            self.output_mean = sum(task.output.mean_y for task in tasks) / len(means)
        for task in tasks:
            task.fit = None
        self.next_fit = self.n_seen + 1 + min(self.n_seen // 5, _MOST_STEP)


def _mean(task: _Task, effects: Mapping[str, float]) -> float:
    """ln seconds of the task on the mean class, at its mean input."""
    weight = sum(cell.weight for cell in task.cells.values())
    of_classes = ((c.mean_y - effects.get(n, 0.0)) * c.weight for n, c in task.cells.items())
    return sum(of_classes) / weight


def _class_effects(
    tasks: Iterable[_Task], prior: Mapping[str, float], spread: float
) -> dict[str, float]:
    """ln seconds by which each class differs from the mean class, shrunk towards `prior`.

    Least squares for level[t, c] = task[t] + class[c] with the tasks eliminated, so that only
    tasks that ran on several classes count.
    """
    right: dict[str, float] = {}
    matrix: dict[tuple[str, str], float] = {}
    for task in tasks:
        levels = []
        total = mean = 0.0
        for name in task.cells:
            level, weight = task.level(name)
            level -= prior.get(name, 0.0)
            right.setdefault(name, 0.0)
            levels.append((name, level, weight))
            total += weight
            mean += weight * level
        if len(levels) < 2:
            continue
        mean /= total
        for name, level, weight in levels:
            right[name] += weight * (level - mean)
            matrix[name, name] = matrix.get((name, name), 0.0) + weight
            for other, _, of_other in levels:
                pair = name, other
                matrix[pair] = matrix.get(pair, 0.0) - weight * of_other / total
    if not matrix:
        return {**dict.fromkeys(right, 0.0), **prior}
    names = sorted(right)
    square = np.array([[matrix.get((a, b), 0.0) for b in names] for a in names])
    ridge = np.eye(len(names)) / spread**2
    effects = np.linalg.solve(square + ridge, [right[name] for name in names])
    learned = (prior.get(name, 0.0) + float(e) for name, e in zip(names, effects, strict=True))
    return {**prior, **dict(zip(names, learned, strict=True))}


_FIELDS: Final = frozenset({"_flows", "_effects", "_next_fit", "_n_seen"})
"""Attributes of `Estimates`; a compiled one has no `__dict__` for them."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Estimates:
    """Run times and output sizes of tasks, learned run by run; see the module for the model.

    Deterministic: the same calls in the same order give the same numbers. Not safe for several
    threads. Pickles, and survives JSON by `to_dict` and `from_dict`.
    """

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._effects: dict[str, float] = {}
        self._next_fit = 0
        self._n_seen = 0

    def observe(
        self,
        flow: str,
        task: str,
        worker_class: str,
        run_s: float,
        input_bytes: float,
        output_bytes: float,
    ) -> None:
        """Learn from one run that ended well: its seconds, all bytes it read, and its output's.

        Bytes read are outputs of other tasks and external inputs. Raises :class:`HistoryError` for
        what is no number; a time or size below 0 (clocks may be set back) counts as 0. O(1).
        """
        if not math.isfinite(run_s + input_bytes + output_bytes):
            raise HistoryError(
                f"a run of task {task!r} is said to have taken {run_s} s, read {input_bytes} and "
                f"made {output_bytes} bytes; record finite numbers"
            )
        of_flow = self._flow(flow)
        of_task = of_flow.tasks.pop(task, None) or _Task()
        of_flow.tasks[task] = of_task  # the one seen last is last
        if len(of_flow.tasks) > MAX_TASKS_PER_FLOW:
            del of_flow.tasks[next(iter(of_flow.tasks))]
        of_task.add(
            worker_class,
            math.log(_SIZE_OFFSET_BYTES + max(0.0, input_bytes)),
            math.log(max(run_s, _SHORTEST_S)),
            math.log1p(max(0.0, output_bytes)),
        )
        of_flow.n_seen += 1
        self._n_seen += 1
        self._fit_when_due(of_flow)

    def begin_run(self, flow: str) -> None:
        """A run of the flow begins: what the tasks of the last ones had in common is over.

        Without this everything counts as one long run: the newest times of a task are believed
        more than they deserve where runs differ much. O(tasks).
        """
        of_flow = self._flows.get(flow)
        if of_flow is not None:
            for task in of_flow.tasks.values():
                task.begin_run(_fit_of(of_flow, task).run_effect)

    def _flow(self, flow: str) -> _Flow:
        known = self._flows.get(flow)
        if known is None:
            known = self._flows[flow] = _Flow()
            if len(self._flows) > MAX_FLOWS:
                del self._flows[next(iter(self._flows))]
        return known

    def _fit_when_due(self, of_flow: _Flow) -> None:
        if self._n_seen >= self._next_fit and len(self._flows) > 1:
            self._fit_all_flows()
        if of_flow.n_seen >= of_flow.next_fit:
            of_flow.fit(self._effects)

    def _fit_all_flows(self) -> None:
        tasks = chain.from_iterable(flow.tasks.values() for flow in self._flows.values())
        self._effects = _class_effects(tasks, {}, _BETWEEN_CLASSES)
        self._next_fit = self._n_seen + 1 + self._n_seen // 10

    def run_s(self, flow: str, task: str, worker_class: str | None, input_bytes: float) -> float:
        """Seconds that half of the runs take at most; None as the class: on the mean class. O(1).

        The median, since it is what robust estimates estimate; the mean of a log-normal time is
        larger by the factor exp(spread² ÷ 2).
        """
        line = self._line(flow, task, worker_class)
        return math.exp(line.intercept + line.slope * math.log(_SIZE_OFFSET_BYTES + input_bytes))

    def run_quantile_s(
        self, flow: str, task: str, worker_class: str | None, input_bytes: float, q: float
    ) -> float:
        """Seconds within which the share `q` (above 0, below 1) of the runs is expected to end."""
        z = _NORMAL.inv_cdf(q)
        line = self._line(flow, task, worker_class)
        return self.run_s(flow, task, worker_class, input_bytes) * math.exp(z * line.deviation)

    def spread(self, flow: str, task: str, worker_class: str | None) -> float:
        """Standard deviation of ln(seconds) around the estimate: noise and what is not known."""
        return self._line(flow, task, worker_class).deviation

    def output_bytes(self, flow: str, task: str, input_bytes: float) -> float:
        """Bytes of the task's result, in the median. O(1)."""
        of_flow = self._flows.get(flow)
        if of_flow is None:
            return DEFAULT_OUTPUT_BYTES
        of_task = of_flow.tasks.get(task)
        if of_task is None:
            return math.exp(of_flow.output_mean)
        cell, slope = of_task.output, of_task.output_slope
        x = math.log(_SIZE_OFFSET_BYTES + input_bytes)
        return max(0.0, math.expm1(cell.mean_y + slope * (x - cell.mean_x)))

    def speed(self, flow: str, task: str, worker_class: str) -> float:
        """How many times as fast as on the mean class the task is on this one. O(1)."""
        mean, here = self._line(flow, task, None), self._line(flow, task, worker_class)
        return math.exp(mean.intercept - here.intercept)

    def n_seen(self, flow: str, task: str, worker_class: str) -> int:
        """How many runs of the task on the class were learned from."""
        of_task = self._task(flow, task)
        cell = of_task.cells.get(worker_class) if of_task else None
        return cell.n_seen if cell else 0

    def knows(self, flow: str) -> bool:
        """Whether any task of the flow was seen."""
        return flow in self._flows

    def is_known(self, flow: str, task: str) -> bool:
        """Whether a run of the task was seen on any class."""
        return self._task(flow, task) is not None

    def state_of(self, flow: str, task: str) -> object:
        """What answers about the task come from; another object once they may differ. O(1)."""
        of_flow = self._flows.get(flow)
        if of_flow is None:
            return self._effects
        of_task = of_flow.tasks.get(task)
        if of_task is None:
            return of_flow.effects
        return of_task.fit or _fit_of(of_flow, of_task)

    def _task(self, flow: str, task: str) -> _Task | None:
        of_flow = self._flows.get(flow)
        return of_flow.tasks.get(task) if of_flow else None

    def _line(self, flow: str, task: str, worker_class: str | None) -> _Line:
        of_flow = self._flows.get(flow)
        if of_flow is None:
            return self._unseen(self._effects, math.log(DEFAULT_RUN_S), worker_class)
        of_task = of_flow.tasks.get(task)
        if of_task is None:
            return self._unseen(of_flow.effects, of_flow.mean, worker_class)
        fit = of_task.fit or _fit_of(of_flow, of_task)
        if worker_class is None:
            return fit.mean
        return fit.of_class.get(worker_class) or fit.mean._replace(deviation=fit.unseen_deviation)

    def _unseen(self, effects: Mapping[str, float], mean: float, worker_class: str | None) -> _Line:
        effect = effects.get(worker_class, 0.0) if worker_class is not None else 0.0
        return _Line(mean + effect, 0.0, _BETWEEN_TASKS)

    def merge(self, other: Estimates) -> None:
        """Learn all that `other` has learned, which is left as it is. Ends the runs of both."""
        for flow, theirs in other._flows.items():
            self.begin_run(flow)
            ours = self._flow(flow)
            for task, of_theirs in theirs.tasks.items():
                of_task = ours.tasks.setdefault(task, _Task())
                of_task.merge(of_theirs, _fit_of(theirs, of_theirs).run_effect)
            ours.n_seen += theirs.n_seen
            while len(ours.tasks) > MAX_TASKS_PER_FLOW:
                del ours.tasks[next(iter(ours.tasks))]
        self._n_seen += other._n_seen
        self._fit_everything()

    def _fit_everything(self) -> None:
        if len(self._flows) > 1:
            self._fit_all_flows()
        for of_flow in self._flows.values():
            of_flow.fit(self._effects)

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What was learned, and what a class derived from this one has beside it."""
        beside = getattr(self, "__dict__", {}).items()
        return self.to_dict(), {name: value for name, value in beside if name not in _FIELDS}

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        saved, beside = state
        self._flows = {}
        self._read(saved)
        getattr(self, "__dict__", {}).update(beside)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as what JSON can hold."""
        return {
            "version": VERSION,
            "n_seen": self._n_seen,
            "next_fit": self._next_fit,
            "effects": self._effects,
            "flows": {
                name: {
                    "n_seen": flow.n_seen,
                    "next_fit": flow.next_fit,
                    "mean": flow.mean,
                    "output_mean": flow.output_mean,
                    "effects": flow.effects,
                    "tasks": {
                        task: {
                            "n_seen": of_task.n_seen,
                            "slopes": [of_task.slope, of_task.output_slope],
                            "variance": of_task.variance,
                            "newest": [list(one) for one in of_task.newest],
                            "runs": [of_task.n_runs, of_task.squares],
                            "output": of_task.output.to_list(),
                            "classes": {c: cell.to_list() for c, cell in of_task.cells.items()},
                        }
                        for task, of_task in flow.tasks.items()
                    },
                }
                for name, flow in self._flows.items()
            },
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Estimates:
        """What `to_dict` gave; raises :class:`HistoryError` for anything else."""
        version = saved.get("version")
        if version != VERSION:
            raise HistoryError(
                f"estimates of version {version!r} cannot be read, only version {VERSION}; "
                "learn them again from the history"
            )
        estimates = cls()
        try:
            estimates._read(saved)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HistoryError(
                f"saved estimates are damaged ({type(error).__name__}: {error}); "
                "learn them again from the history"
            ) from error
        return estimates

    def _read(self, saved: Mapping[str, Any]) -> None:
        self._n_seen = int(saved["n_seen"])
        self._next_fit = int(saved["next_fit"])
        self._effects = {str(name): float(effect) for name, effect in saved["effects"].items()}
        for name, of_saved in saved["flows"].items():
            flow = self._flows[name] = _Flow()
            flow.n_seen = int(of_saved["n_seen"])
            flow.next_fit = int(of_saved["next_fit"])
            flow.mean = float(of_saved["mean"])
            flow.output_mean = float(of_saved["output_mean"])
            flow.effects = {str(c): float(effect) for c, effect in of_saved["effects"].items()}
            for task, of_task_saved in of_saved["tasks"].items():
                task_ = flow.tasks[task] = _Task()
                task_.output = _Cell.from_list(of_task_saved["output"])
                task_.cells = {
                    c: _Cell.from_list(cell) for c, cell in of_task_saved["classes"].items()
                }
                task_.n_seen = int(of_task_saved["n_seen"])
                task_.slope, task_.output_slope = map(float, of_task_saved["slopes"])
                task_.variance = float(of_task_saved["variance"])
                task_.newest = [(str(c), float(x), float(y)) for c, x, y in of_task_saved["newest"]]
                task_.n_runs, task_.squares = map(float, of_task_saved["runs"])


def _fit_of(flow: _Flow, task: _Task) -> _Fit:
    if task.fit is None:
        task.fit = _fit(flow, task)
    return task.fit


def _fit(flow: _Flow, task: _Task) -> _Fit:
    """Fit one task, from its cells and the flow's effects. O(classes)."""
    own: dict[str, tuple[float, float]] = {}
    total = 1.0 / _BETWEEN_TASKS**2
    level = weight_seen = mean_x = 0.0
    for name, cell in task.cells.items():
        own[name] = at_zero, weight = task.level(name)
        level += weight * (at_zero - flow.effects.get(name, 0.0))
        total += weight
        weight_seen += cell.weight
        mean_x += cell.weight * cell.mean_x
    level += (flow.mean - task.slope * mean_x / weight_seen) / _BETWEEN_TASKS**2
    level /= total
    unknown = 1.0 / total + _DEVIATION**2
    levels: dict[str, tuple[float, float]] = {}
    for name, effect in flow.effects.items():
        levels[name] = level + effect, unknown
    for name, (at_zero, _) in own.items():
        expected = level + flow.effects.get(name, 0.0)
        error = task.variance / task.cells[name].weight
        believed = _DEVIATION**2 / (_DEVIATION**2 + error)
        remains = believed**2 * error + (1.0 - believed) ** 2 * unknown
        levels[name] = expected + believed * (at_zero - expected), remains
    effect, variance = _run_effect(task, levels)
    of_class = {
        name: _Line(at_zero + effect, task.slope, math.sqrt(variance + remains))
        for name, (at_zero, remains) in levels.items()
    }
    mean = _Line(level + effect, task.slope, math.sqrt(variance + 1.0 / total))
    return _Fit(effect, mean, of_class, math.sqrt(variance + unknown + _BETWEEN_CLASSES**2))


def _run_effect(task: _Task, levels: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """By how much the newest runs differ from the rest, shrunk; and the variance that is left."""
    if not task.newest:
        return 0.0, task.variance
    off = sorted([y - task.slope * x - levels[name][0] for name, x, y in task.newest])
    n = len(off)
    median = 0.5 * (off[(n - 1) // 2] + off[n // 2])
    between = task.run_variance
    # What was seen of one run differs by the noise alone, of several also by what tells runs apart.
    seen_between = between * task.n_runs / (task.n_runs + 1.0)
    within = max(task.variance - seen_between, min(task.variance, _LEAST_NOISE**2))
    error = _MEDIAN * within / n
    believed = between / (between + error)
    return believed * median, within + believed * error
