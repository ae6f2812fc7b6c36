"""How well a workload was run: the metrics of one run, and of policies over many.

`measure` folds one trail into `Metrics`. `summarise` compares policies over cells (a workflow on a
cluster) and seeds: paired by seed, with bootstrap intervals, wins per cell and the worst cell.

Definitions, each per task as Dask sees it (a group of tiny runs is one task):

- makespan: first submit to last end of an attempt; divided by a lower bound of it.
- wait: a task's first start − the moment it was ready.
- long tail: share of finished tasks with (first result − ready) > 10 × their best-class time.
- job slowdown: a job's completion time ÷ its own lower bound.
- useful utilisation: the finished tasks' seconds on their best class ÷ thread-seconds of the
  workers that were there, over the makespan.
- fragmentation: as FGD (ATC'23) defines it; where there are GPUs, it is given by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from deepflow.decide.trail import Trail
from deepflow.errors import ConfigurationError

__all__ = ["METRICS", "Cell", "CellRatio", "Interval", "Metric", "Metrics", "PolicySummary"]
__all__ += ["Ratio", "Summary", "Yardstick", "measure", "summarise", "to_json"]

_LONG_TAIL: Final = 10.0
_LEVEL: Final = 0.95
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a run is measured against."""

    bound_s: float
    """Lower bound of the makespan."""
    best_s: Mapping[str, float]
    """Task key → seconds on the class that is fastest for it, without noise."""
    job_bound_s: Mapping[str, float]
    """Run → lower bound of its completion time had it the cluster to itself."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """One run of a workload; see the module for the definitions."""

    makespan_s: float
    makespan_over_bound: float
    wait_mean_s: float
    wait_p99_s: float
    long_tail_share: float
    slowdown_mean: float
    slowdown_max: float
    completion_mean_s: float
    utilisation: float
    moved_bytes: float
    fragmentation: float | None
    """None: no GPUs."""
    decision_p50_us: float | None
    """None: the policy was not timed."""
    decision_p99_us: float | None
    n_tasks: int
    n_unfinished: int
    """Tasks without a result: of these, no other figure says anything."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of one workload on one cluster under one policy."""

    workflow: str
    cluster: str
    policy: str
    seed: int
    metrics: Metrics


def measure(
    trail: Trail,
    yardstick: Yardstick,
    *,
    decision_us: Sequence[float] = (),
    fragmentation: float | None = None,
) -> Metrics:
    """The metrics of one run.

    `decision_us` are microseconds per decision. Figures of tasks are over those that finished;
    where there are none they are 0. Raises :class:`ConfigurationError` where the yardstick lacks a
    task or run of the trail.
    """
    done = [task for task in trail.tasks.values() if task.finished_s is not None]
    best_s = _looked_up(yardstick.best_s, (task.key for task in done), "time on the best class")
    waits_s = _present(task.wait_s for task in trail.tasks.values())
    responses_s = np.array([task.response_s or 0.0 for task in done])
    runs = [(run.run, run.completion_s) for run in trail.runs.values()]
    completed = [(run, seconds) for run, seconds in runs if seconds is not None]
    completions_s = np.array([seconds for _, seconds in completed])
    bounds_s = _looked_up(yardstick.job_bound_s, (run for run, _ in completed), "bound of a run")
    slowdowns = completions_s / bounds_s
    capacity_s = sum(
        worker.threads * worker.present_s(trail.begin_s, trail.end_s)
        for worker in trail.workers.values()
    )
    return Metrics(
        makespan_s=trail.makespan_s,
        makespan_over_bound=trail.makespan_s / yardstick.bound_s if yardstick.bound_s else 0.0,
        wait_mean_s=_mean(waits_s),
        wait_p99_s=_percentile(waits_s, 99),
        long_tail_share=_mean((responses_s > _LONG_TAIL * best_s).astype(np.float64)),
        slowdown_mean=_mean(slowdowns),
        slowdown_max=float(slowdowns.max()) if len(slowdowns) else 0.0,
        completion_mean_s=_mean(completions_s),
        utilisation=float(best_s.sum()) / capacity_s if capacity_s else 0.0,
        moved_bytes=float(sum(copy.n_bytes for copy in trail.transfers)),
        fragmentation=fragmentation,
        decision_p50_us=_percentile(np.array(decision_us), 50) if len(decision_us) else None,
        decision_p99_us=_percentile(np.array(decision_us), 99) if len(decision_us) else None,
        n_tasks=len(trail.tasks),
        n_unfinished=len(trail.tasks) - len(done),
    )


def _looked_up(table: Mapping[str, float], names: Iterable[str], what: str) -> _Floats:
    try:
        return np.array([table[name] for name in names], dtype=np.float64)
    except KeyError as error:
        raise ConfigurationError(
            f"the yardstick has no {what} for {error.args[0]!r}; "
            "measure a run against the bounds of the workload that was run"
        ) from error


def _present(values: Iterable[float | None]) -> _Floats:
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _mean(values: _Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _percentile(values: _Floats, q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else 0.0


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure of `Metrics` is named, averaged and compared."""

    name: str
    header: str
    unit: str
    mean: Literal["geometric", "arithmetic"]
    """Over seeds, and over cells. Geometric for what is a ratio and never 0."""
    better: Literal["lower", "higher"] = "lower"


METRICS: Final = (
    Metric("makespan_over_bound", "makespan ÷ bound", "", "geometric"),
    Metric("makespan_s", "makespan", "s", "geometric"),
    Metric("wait_mean_s", "wait mean", "s", "arithmetic"),
    Metric("wait_p99_s", "wait p99", "s", "arithmetic"),
    Metric("long_tail_share", "long tail", "share", "arithmetic"),
    Metric("slowdown_mean", "slowdown mean", "", "geometric"),
    Metric("slowdown_max", "slowdown max", "", "geometric"),
    Metric("completion_mean_s", "job completion", "s", "geometric"),
    Metric("utilisation", "useful utilisation", "share", "arithmetic", "higher"),
    Metric("fragmentation", "fragmentation", "share", "arithmetic"),
    Metric("moved_bytes", "moved", "bytes", "arithmetic"),
    Metric("decision_p50_us", "decision p50", "µs", "arithmetic"),
    Metric("decision_p99_us", "decision p99", "µs", "arithmetic"),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and cells, with the 95 % bootstrap interval over seeds."""

    mean: float
    low: float | None
    """None: one seed only, so nothing is known of the spread."""
    high: float | None
    n_cells: int


@dataclass(frozen=True, slots=True)
class Ratio(Interval):
    """A policy's mean ÷ the baseline's: geometric mean over the cells where both are above 0.

    `n_cells` says how many those are.
    """


@dataclass(frozen=True, slots=True)
class CellRatio:
    """Makespan ÷ the baseline's in one cell: geometric mean over the seeds, paired."""

    workflow: str
    cluster: str
    ratio: float


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy over all cells."""

    policy: str
    means: Mapping[str, Interval]
    """By name of the metric; those that no cell has are left out."""
    ratios: Mapping[str, Ratio]
    cells: tuple[CellRatio, ...]
    wins: int
    """Cells with a makespan below the baseline's."""
    losses: int
    worst: CellRatio
    n_unfinished: int
    """Tasks without a result, over all cells and seeds. Such a cell counts as infinitely long."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Policies over the same cells and seeds."""

    baseline: str
    n_cells: int
    n_seeds: int
    """The fewest of any cell."""
    policies: tuple[PolicySummary, ...]


def summarise(
    cells: Sequence[Cell],
    *,
    baseline: str,
    rng: np.random.Generator,
    n_resamples: int = 2000,
) -> Summary:
    """Every policy over all cells and against `baseline`.

    The bootstrap draws seeds anew within each cell, the same ones for every policy; cells are
    taken as they are. Raises :class:`ConfigurationError` where a policy or a seed is missing in a
    cell, since pairs cannot be made then. O(resamples × cells × seeds × metrics).
    """
    table = _Table(cells, baseline)
    draws = [rng.integers(n, size=(n_resamples, n)) for n in table.n_seeds]
    return Summary(
        baseline,
        len(table.cells),
        min(table.n_seeds),
        tuple(_policy_summary(table, policy, draws) for policy in table.policies),
    )


class _Table:
    """The figures by metric, policy and cell, as arrays over seeds in the same order."""

    def __init__(self, cells: Sequence[Cell], baseline: str) -> None:
        self.baseline = baseline
        self.policies = list(dict.fromkeys(cell.policy for cell in cells))
        self.cells = list(dict.fromkeys((cell.workflow, cell.cluster) for cell in cells))
        if baseline not in self.policies:
            raise ConfigurationError(
                f"the baseline {baseline!r} is not among the policies that were run "
                f"({', '.join(self.policies) or 'none'}); run it too or name another"
            )
        by_place = {
            (cell.policy, cell.workflow, cell.cluster, cell.seed): cell.metrics for cell in cells
        }
        self._metrics: dict[tuple[str, int], list[Metrics]] = {}
        self.n_seeds: list[int] = []
        for i, (workflow, cluster) in enumerate(self.cells):
            seeds = sorted({c.seed for c in cells if (c.workflow, c.cluster) == self.cells[i]})
            self.n_seeds.append(len(seeds))
            for policy in self.policies:
                missing = [s for s in seeds if (policy, workflow, cluster, s) not in by_place]
                if missing:
                    raise ConfigurationError(
                        f"policy {policy!r} was not run on {workflow} × {cluster} with seeds "
                        f"{missing}, others were; run every policy with the same seeds"
                    )
                self._metrics[policy, i] = [by_place[policy, workflow, cluster, s] for s in seeds]

    def values(self, metric: Metric, policy: str, cell: int) -> _Floats | None:
        """Shape (n_seeds,); None where a seed has no such figure."""
        found = [
            math.inf
            if one.n_unfinished and metric.name.startswith("makespan")
            else getattr(one, metric.name)
            for one in self._metrics[policy, cell]
        ]
        return None if None in found else np.array(found, dtype=np.float64)

    def n_unfinished(self, policy: str) -> int:
        return sum(
            one.n_unfinished for i in range(len(self.cells)) for one in self._metrics[policy, i]
        )


def _policy_summary(table: _Table, policy: str, draws: list[NDArray[Any]]) -> PolicySummary:
    means: dict[str, Interval] = {}
    ratios: dict[str, Ratio] = {}
    for metric in METRICS:
        of_cells = [_centres(table, metric, policy, i, draws[i]) for i in range(len(draws))]
        of_base = [_centres(table, metric, table.baseline, i, draws[i]) for i in range(len(draws))]
        known = [c for c in of_cells if c is not None]
        if known:
            means[metric.name] = Interval(*_interval(metric.mean, known, table.n_seeds), len(known))
        both = [
            _quotient(c, b)
            for c, b in zip(of_cells, of_base, strict=True)
            if c is not None and b is not None and c[0] > 0 and b[0] > 0
        ]
        if both:
            ratios[metric.name] = Ratio(*_interval("geometric", both, table.n_seeds), len(both))
    cells = tuple(_cell_ratio(table, policy, i) for i in range(len(table.cells)))
    return PolicySummary(
        policy,
        means,
        ratios,
        cells,
        wins=sum(cell.ratio < 1 for cell in cells),
        losses=sum(cell.ratio > 1 for cell in cells),
        worst=max(cells, key=lambda cell: cell.ratio),
        n_unfinished=table.n_unfinished(policy),
    )


def _centres(
    table: _Table, metric: Metric, policy: str, cell: int, draws: NDArray[Any]
) -> _Floats | None:
    """The mean over seeds: of the seeds as they are, then of each draw. Shape (1 + resamples,)."""
    values = table.values(metric, policy, cell)
    if values is None:
        return None
    return np.concatenate(
        [[_mean_of(metric.mean, values)], _mean_of(metric.mean, values[draws])], dtype=np.float64
    )


def _mean_of(kind: str, values: _Floats) -> Any:
    """Over the last axis."""
    if kind == "arithmetic":
        return values.mean(axis=-1)
    with np.errstate(divide="ignore"):  # log 0 = -inf, and the mean is 0, as it should be
        return np.exp(np.log(values).mean(axis=-1))


def _interval(
    kind: str, of_cells: list[_Floats], n_seeds: list[int]
) -> tuple[float, float | None, float | None]:
    means = _mean_of(kind, np.stack(of_cells, axis=-1))
    if max(n_seeds) < 2:
        return float(means[0]), None, None
    tail = 50 * (1 - _LEVEL)
    # Without interpolation, which makes NaN of two infinities.
    low, high = np.percentile(means[1:], [tail, 100 - tail], method="inverted_cdf")
    return float(means[0]), float(low), float(high)


def _cell_ratio(table: _Table, policy: str, cell: int) -> CellRatio:
    makespan = next(metric for metric in METRICS if metric.name == "makespan_s")
    ours = table.values(makespan, policy, cell)
    base = table.values(makespan, table.baseline, cell)
    assert ours is not None  # every run has a makespan
    assert base is not None
    if policy == table.baseline:
        return CellRatio(*table.cells[cell], 1.0)
    return CellRatio(*table.cells[cell], float(_mean_of("geometric", _quotient(ours, base))))


def _quotient(ours: _Floats, base: _Floats) -> _Floats:
    """Ours ÷ the baseline's; infinite where neither came to an end, which is no draw but a loss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = ours / base
    quotient[np.isnan(quotient)] = math.inf
    return quotient


def to_json(value: Any) -> Any:
    """A dataclass of this module as plain JSON values; what is not finite becomes null."""
    return _plain(asdict(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
