"""How wrong are the forecasts, and is that better than no model at all?

Errors are kept as sums, so that those of two months add up to those of both and no prediction has
to travel. Two forecasts without a model stand beside it: the *usual delay* of the carrier at that
hour, and the harder one, *departure delay plus usual gain*, which knows what the model knows about
the delay so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .features import FeatureShard, Floats

# Bins of the picture: predicted and actual delay in minutes; beyond the ends counts as the end.
BIN_EDGES_MIN = np.arange(-60.0, 181.0, 3.0)

FORECASTS = ("model", "departure_plus_usual_gain", "usual_delay")


@dataclass(frozen=True, slots=True)
class Baseline:
    """Medians of the training flights by (carrier, scheduled hour), in minutes."""

    airport: str
    usual_delay_min: Mapping[tuple[str, int], float]
    usual_gain_min: Mapping[tuple[str, int], float]
    overall_delay_min: float
    overall_gain_min: float


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """Absolute (min) and squared (min²) errors of one forecast, summed."""

    absolute: float
    squared: float

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(self.absolute + other.absolute, self.squared + other.squared)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Errors on held-out flights of one airport.

    `sums` by the names in `FORECASTS`; `counts` int64 `(n_bins, n_bins)`, flights by predicted
    (first axis) and actual delay in `BIN_EDGES_MIN`; `n_beyond` of them lie beyond the edges.
    """

    airport: str
    months: tuple[int, ...]
    n_flights: int
    sums: Mapping[str, ErrorSums]
    counts: npt.NDArray[np.int64]
    n_beyond: int
    shard_bytes: int


@dataclass(frozen=True, slots=True)
class AirportErrors:
    """What is published for one airport: mean absolute and root mean square errors in minutes."""

    airport: str
    n_trained_on: int
    n_held_out: int
    mae_min: float
    rmse_min: float
    baseline_mae_min: float
    baseline_rmse_min: float
    usual_delay_mae_min: float
    usual_delay_rmse_min: float
    trained_on: str


def fit_baseline(airport: str, shards: Sequence[FeatureShard]) -> Baseline:
    """Medians by carrier and hour of the training shards; the overall one where there are none."""
    delay = np.concatenate([shard.arrival_delay_min for shard in shards])
    gain = delay - np.concatenate([shard.departure_delay_min for shard in shards])
    carrier = np.concatenate([shard.carrier for shard in shards])
    hour = np.concatenate([shard.scheduled_hour for shard in shards])
    names, number = np.unique(carrier, return_inverse=True)
    group = number * 24 + hour
    order = np.argsort(group, kind="stable")
    groups, first = np.unique(group[order], return_index=True)
    keys = [(str(names[g // 24]), int(g % 24)) for g in groups]

    def medians(values: Floats) -> dict[tuple[str, int], float]:
        parts = np.split(values[order], first[1:])
        return {key: float(np.median(part)) for key, part in zip(keys, parts, strict=True)}

    return Baseline(
        airport=airport,
        usual_delay_min=medians(delay),
        usual_gain_min=medians(gain),
        overall_delay_min=float(np.median(delay)),
        overall_gain_min=float(np.median(gain)),
    )


def evaluate(shard: FeatureShard, predicted_min: Floats, baseline: Baseline) -> Evaluation:
    """Errors of the model's `predicted_min` and of both baselines on one held-out shard."""
    actual = shard.arrival_delay_min.astype(np.float64)
    keys = list(zip(shard.carrier.tolist(), shard.scheduled_hour.tolist(), strict=True))
    usual_delay = [baseline.usual_delay_min.get(k, baseline.overall_delay_min) for k in keys]
    usual_gain = [baseline.usual_gain_min.get(k, baseline.overall_gain_min) for k in keys]
    forecasts = {
        "model": predicted_min.astype(np.float64),
        "departure_plus_usual_gain": shard.departure_delay_min + np.asarray(usual_gain),
        "usual_delay": np.asarray(usual_delay, dtype=np.float64),
    }
    low, high = BIN_EDGES_MIN[0], BIN_EDGES_MIN[-1]
    predicted_inside = np.clip(forecasts["model"], low, high)
    actual_inside = np.clip(actual, low, high)
    counts, _, _ = np.histogram2d(
        predicted_inside, actual_inside, bins=(BIN_EDGES_MIN, BIN_EDGES_MIN)
    )
    beyond = (predicted_inside != forecasts["model"]) | (actual_inside != actual)
    return Evaluation(
        airport=shard.airport,
        months=(shard.month,),
        n_flights=shard.n_flights,
        sums={name: _sums(values - actual) for name, values in forecasts.items()},
        counts=counts.astype(np.int64),
        n_beyond=int(beyond.sum()),
        shard_bytes=shard.n_bytes,
    )


def merge(evaluations: Iterable[Evaluation]) -> Evaluation:
    """The evaluation of all flights together. Raises `ValueError` on none, or unlike airports."""
    parts = list(evaluations)
    airports = {part.airport for part in parts}
    if len(airports) != 1:
        raise ValueError(f"cannot add up the errors of airports {sorted(airports)}; give one's")
    total = parts[0]
    for part in parts[1:]:
        total = Evaluation(
            airport=total.airport,
            months=total.months + part.months,
            n_flights=total.n_flights + part.n_flights,
            sums={name: total.sums[name] + part.sums[name] for name in FORECASTS},
            counts=total.counts + part.counts,
            n_beyond=total.n_beyond + part.n_beyond,
            shard_bytes=total.shard_bytes + part.shard_bytes,
        )
    return total


def airport_errors(evaluation: Evaluation, n_trained_on: int, trained_on: str) -> AirportErrors:
    """The figures to publish. Raises `ValueError` where no flight was held out."""
    if not evaluation.n_flights:
        raise ValueError(f"no flights of {evaluation.airport} in months {evaluation.months}")

    def mae(name: str) -> float:
        return evaluation.sums[name].absolute / evaluation.n_flights

    def rmse(name: str) -> float:
        return float(np.sqrt(evaluation.sums[name].squared / evaluation.n_flights))

    return AirportErrors(
        airport=evaluation.airport,
        n_trained_on=n_trained_on,
        n_held_out=evaluation.n_flights,
        mae_min=mae("model"),
        rmse_min=rmse("model"),
        baseline_mae_min=mae("departure_plus_usual_gain"),
        baseline_rmse_min=rmse("departure_plus_usual_gain"),
        usual_delay_mae_min=mae("usual_delay"),
        usual_delay_rmse_min=rmse("usual_delay"),
        trained_on=trained_on,
    )


def _sums(errors: npt.NDArray[np.float64]) -> ErrorSums:
    return ErrorSums(float(np.abs(errors).sum()), float(np.square(errors).sum()))
