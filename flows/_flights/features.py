"""What is known when a plane leaves the gate? Joins flights with weather and planes.

The forecast is made at departure: schedule, carrier, plane, delay at departure, and the weather
observed at the airport in the *previous* clock hour, since the current hour's observation may be
taken after the plane has left. How flights fared on the seven days *before* is known too, and
carries the season and the winds aloft. Nothing measured later (time in the air, arrival) is a
feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd

from .rows import FlightDataError

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.str_]

_WEATHER = (
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
_PLANE = ("year_built", "seats", "engines", "is_jet")

_RECENT_DAYS = 7
_PRIOR_FLIGHTS = 10

FEATURE_NAMES = (
    "departure_delay_min",
    "departure_delay_squashed",
    "scheduled_block_min",
    "log_distance",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "is_weekend",
    "recent_gain_min",
    "recent_gain_to_destination_min",
    "wind_dir_sin",
    "wind_dir_cos",
    *_WEATHER,
    *_PLANE,
    "weather_missing",
    "plane_missing",
)


@dataclass(frozen=True, slots=True)
class FeatureShard:
    """The flights of one airport in one month, ready for a model.

    `numbers` is float32 `(n_flights, n_features)` in the order of `FEATURE_NAMES`, NaN where not
    known; everything else is `(n_flights,)`, delays in minutes (negative: early).
    """

    airport: str
    month: int
    numbers: Floats
    carrier: Words
    destination: Words
    scheduled_hour: npt.NDArray[np.int16]
    departure_delay_min: Floats
    arrival_delay_min: Floats

    @property
    def n_flights(self) -> int:
        return len(self.arrival_delay_min)

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def rows_of_month(frame: pd.DataFrame, month: int) -> pd.DataFrame:
    """The part of a block of rows that departs in `month` (local time)."""
    return frame[frame["month"] == month]


def make_features(
    parts: Sequence[pd.DataFrame],
    parts_before: Sequence[pd.DataFrame],
    weather: pd.DataFrame,
    planes: pd.DataFrame,
    airport: str,
    month: int,
) -> FeatureShard:
    """Features of `airport`'s flights in `month`, from the parts of the row blocks.

    `parts_before` are those of the month before (none for the first), for the days that look back
    into it.
    Flights are in the order of their row numbers, however the blocks were cut. Those without
    an observation or without a known plane keep NaN there, and a flag that says so.
    """
    frame = _of_airport(parts, airport)
    if frame.empty:
        raise FlightDataError(
            f"no usable flight leaves {airport} in month {month}; choose a larger `size`, or give "
            "a `source` that has some"
        )
    if not (frame["month"] == month).all():
        raise ValueError(f"parts for month {month} hold months {sorted(frame['month'].unique())}")

    previous_hour = frame["time_hour"] - 1
    seen = weather.reindex(
        pd.MultiIndex.from_arrays([np.full(len(frame), airport, dtype=object), previous_hour])
    )
    plane = planes.reindex(frame["tailnum"].astype(object))
    weekday = pd.to_datetime(frame[["year", "month", "day"]]).dt.day_of_week.to_numpy()
    recent_min, recent_to_destination_min = _recent_gain(
        pd.concat([_of_airport(parts_before, airport), frame]) if parts_before else frame, frame
    )
    delay_min = frame["dep_delay"].to_numpy(np.float32)
    clock = (frame["hour"] + frame["minute"] / 60).to_numpy() * (2 * np.pi / 24)
    wind_from = np.deg2rad(seen["wind_dir"].to_numpy())

    columns: dict[str, npt.NDArray[np.generic]] = {
        "departure_delay_min": delay_min,
        "departure_delay_squashed": np.arcsinh(delay_min / 10),
        "scheduled_block_min": _block_minutes(frame["sched_dep_time"], frame["sched_arr_time"]),
        "log_distance": np.log(frame["distance"].to_numpy()),
        "hour_sin": np.sin(clock),
        "hour_cos": np.cos(clock),
        "weekday_sin": np.sin(weekday * (2 * np.pi / 7)),
        "weekday_cos": np.cos(weekday * (2 * np.pi / 7)),
        "is_weekend": (weekday >= 5).astype(np.float32),
        "recent_gain_min": recent_min,
        "recent_gain_to_destination_min": recent_to_destination_min,
        "wind_dir_sin": np.sin(wind_from),
        "wind_dir_cos": np.cos(wind_from),
        **{name: seen[name].to_numpy() for name in _WEATHER},
        **{name: plane[name].to_numpy() for name in _PLANE},
        "weather_missing": seen["temp"].isna().to_numpy(np.float32),
        "plane_missing": plane["seats"].isna().to_numpy(np.float32),
    }
    # No gust was reported where the wind was steady: then the gust is the wind itself.
    columns["wind_gust"] = np.where(
        np.isnan(seen["wind_gust"]), seen["wind_speed"], seen["wind_gust"]
    )
    return FeatureShard(
        airport=airport,
        month=month,
        numbers=np.stack([columns[name] for name in FEATURE_NAMES], axis=1).astype(np.float32),
        carrier=frame["carrier"].to_numpy(dtype=np.str_),
        destination=frame["dest"].to_numpy(dtype=np.str_),
        scheduled_hour=frame["hour"].to_numpy(np.int16),
        departure_delay_min=delay_min,
        arrival_delay_min=frame["arr_delay"].to_numpy(np.float32),
    )


def split_by_time(months: Iterable[int], held_out_months: int) -> tuple[list[int], list[int]]:
    """Months to train on and months to test on: every test month lies after all of training.

    Raises `ValueError` where that leaves nothing on one side.
    """
    ordered = sorted(set(months))
    if not 1 <= held_out_months < len(ordered):
        raise ValueError(
            f"cannot hold out {held_out_months} of {len(ordered)} month(s) {ordered}; "
            f"hold out between 1 and {len(ordered) - 1}"
        )
    return ordered[:-held_out_months], ordered[-held_out_months:]


def _of_airport(parts: Sequence[pd.DataFrame], airport: str) -> pd.DataFrame:
    return pd.concat([part[part["origin"] == airport] for part in parts]).sort_index()


def _recent_gain(
    history: pd.DataFrame, frame: pd.DataFrame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean minutes lost after departure on the `_RECENT_DAYS` days *before* each flight's day.

    Of all flights, and of those to the same destination; the latter drawn towards the former as
    if that were `_PRIOR_FLIGHTS` flights more. Two arrays `(n_flights,)`, NaN without history.
    The flight's own day is left out altogether: its flights may not have landed yet.
    """
    days = _day_number(history)
    first, last = int(days.min()), int(days.max())
    lost = (history["arr_delay"] - history["dep_delay"]).astype(np.float64)
    by_day = pd.DataFrame({"day": days, "dest": history["dest"].astype(str), "lost": lost})
    daily = by_day.groupby(["day", "dest"])["lost"].agg(["sum", "count"]).unstack("dest")
    daily = daily.reindex(range(first, last + 1)).fillna(0.0)
    # Row d of the sums: days d-7 … d-1.
    window = daily.rolling(_RECENT_DAYS, min_periods=1).sum().shift(1).fillna(0.0)
    total, count = window["sum"].sum(axis=1), window["count"].sum(axis=1)
    overall = total / count.where(count > 0)
    rows = _day_number(frame) - first
    column = window["sum"].columns.get_indexer(frame["dest"].astype(str))
    near_sum = window["sum"].to_numpy()[rows, column]
    near_count = window["count"].to_numpy()[rows, column]
    all_flights = overall.to_numpy()[rows]
    to_destination = (near_sum + _PRIOR_FLIGHTS * all_flights) / (near_count + _PRIOR_FLIGHTS)
    return all_flights, to_destination


def _day_number(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Days since 1970 of the scheduled departure, local time."""
    dates = pd.to_datetime(frame[["year", "month", "day"]])
    days: npt.NDArray[np.int64] = ((dates - pd.Timestamp(0)) // pd.Timedelta(days=1)).to_numpy()
    return days


def _block_minutes(departs_hhmm: pd.Series, arrives_hhmm: pd.Series) -> npt.NDArray[np.float64]:
    """Scheduled minutes from gate to gate by local clocks (517 means 5:17).

    Off by the difference of the time zones, which is the same for all flights to a destination.
    """
    departs, arrives = departs_hhmm.to_numpy(np.int64), arrives_hhmm.to_numpy(np.int64)
    minutes = (arrives // 100 * 60 + arrives % 100) - (departs // 100 * 60 + departs % 100)
    # A westward hop can arrive a little "before" it leaves: only clear nights are wrapped.
    wrapped: npt.NDArray[np.float64] = np.where(minutes < -300, minutes + 1440, minutes).astype(
        np.float64
    )
    return wrapped
