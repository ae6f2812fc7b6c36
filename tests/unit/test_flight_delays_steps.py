"""The steps of the flight-delay flow: checks, split without leakage, features, model, errors."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows._flights import evaluation, features, model, picture, rows
from flows._flights.evaluation import BIN_EDGES_MIN, ErrorSums
from flows._flights.features import FEATURE_NAMES, FeatureShard
from flows._flights.model import Training
from flows._flights.rows import FlightDataError

COLUMN = {name: i for i, name in enumerate(FEATURE_NAMES)}


def flights(n: int = 200, **changes: object) -> pd.DataFrame:
    """`n` plausible flights, four a day from 1 January on, as they stand in the table."""
    number = np.arange(n)
    day = pd.Timestamp(2013, 1, 1) + pd.to_timedelta(number // 4, unit="D")
    hour = 6 + 4 * (number % 4)
    utc = day + pd.to_timedelta(hour + 5, unit="h")
    frame = pd.DataFrame(
        {
            "year": 2013,
            "month": day.month,
            "day": day.day,
            "hour": hour,
            "minute": 30,
            "sched_dep_time": hour * 100 + 30,
            "sched_arr_time": (hour * 100 + 245) % 2400,
            "dep_delay": (number % 7).astype(float),
            "arr_delay": (number % 5).astype(float),
            "distance": 700,
            "flight": number + 1,
            "carrier": np.where(number % 2, "UA", "AA"),
            "origin": "JFK",
            "dest": np.where(number % 3, "ORD", "LAX"),
            "tailnum": "N10156",
            "time_hour": [t.strftime("%Y-%m-%dT%H:00:00Z") for t in utc],
        }
    )
    return frame.assign(**changes)


def weather(first: str = "2013-01-01T00:00Z", n_hours: int = 24 * 80) -> pd.DataFrame:
    """Weather at JFK whose temperature is the hour's number, so that a join can be read off it."""
    hours = int(pd.Timestamp(first).timestamp() // 3600) + np.arange(n_hours)
    index = pd.MultiIndex.from_arrays(
        [np.full(n_hours, "JFK", dtype=object), hours], names=["origin", "time_hour"]
    )
    columns = ("dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
    table = pd.DataFrame(dict.fromkeys(columns, 1.0), index=index)
    table["wind_gust"] = np.nan
    table["temp"] = (hours - hours[0]).astype(float)
    return table


def planes() -> pd.DataFrame:
    return pd.DataFrame(
        {"year_built": [2004.0], "seats": [55.0], "engines": [2.0], "is_jet": [1.0]},
        index=pd.Index(["N10156"], name="tailnum"),
    )


def shard(month: int = 1, frame: pd.DataFrame | None = None) -> FeatureShard:
    checked = rows.check_flights(flights() if frame is None else frame).frame
    of_month = [features.rows_of_month(checked, month)]
    before = [features.rows_of_month(checked, month - 1)] if month > 1 else []
    return features.make_features(of_month, before, weather(), planes(), "JFK", month)


def write_tables(folder: Path, frame: pd.DataFrame) -> Path:
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", frame.to_csv(index=False))
    return folder


# Rows


def test_good_rows_all_pass() -> None:
    checked = rows.check_flights(flights())
    assert (len(checked.frame), checked.rows_read, checked.set_aside) == (200, 200, {})


def test_cancelled_and_unfinished_flights_are_set_aside_and_counted_not_refused() -> None:
    frame = flights()
    frame.loc[0:59, "dep_delay"] = np.nan
    frame.loc[60:69, "arr_delay"] = np.nan
    checked = rows.check_flights(frame)
    assert checked.set_aside == {"cancelled": 60, "no arrival recorded": 10}
    assert len(checked.frame) == 130


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("origin", "BOS", "unknown airport of origin"),
        ("month", 13, "impossible date or hour"),
        ("hour", 24, "impossible date or hour"),
        ("time_hour", "soon", "impossible date or hour"),
        ("distance", -1, "distance not positive"),
        ("arr_delay", 9000.0, "impossible delay"),
        ("carrier", None, "no carrier or destination"),
        ("sched_dep_time", np.nan, "missing number"),
        ("dep_delay", "late", "unreadable number"),
    ],
)
def test_a_wrong_row_is_set_aside_under_its_reason(column: str, value: object, reason: str) -> None:
    frame = flights().astype({column: object})
    frame.loc[17, column] = value
    checked = rows.check_flights(frame)
    assert checked.set_aside == {reason: 1}
    assert 17 not in checked.frame.index


def test_the_same_flight_twice_counts_once() -> None:
    frame = pd.concat([flights(), flights(1)], ignore_index=True)
    assert rows.check_flights(frame).set_aside == {"same flight twice": 1}


def test_too_many_wrong_rows_stop_the_flow_and_name_the_first() -> None:
    frame = flights().astype({"dep_delay": object})
    frame.loc[5:9, "dep_delay"] = "late"
    with pytest.raises(
        FlightDataError, match=r"5 of 200.*dep_delay='late' in row 5.*1\.0% allowed"
    ):
        rows.check_flights(frame)
    assert rows.check_flights(frame, max_bad_share=0.1).set_aside == {"unreadable number": 5}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlightDataError, match=r"lacks the column\(s\) dep_delay; it has .*carrier"):
        rows.check_flights(flights().drop(columns="dep_delay"))
    write_tables(tmp_path, flights().drop(columns="tailnum"))
    with pytest.raises(FlightDataError, match=r"flights\.csv\.zip lacks the column\(s\) tailnum"):
        rows.read_flights(tmp_path, 0, 10)


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FlightDataError, match=r"flights\.csv\.zip does not exist; give `source=`"):
        rows.count_rows(tmp_path)


def test_blocks_cover_the_table_once_and_a_sample_does_not_depend_on_them(tmp_path: Path) -> None:
    write_tables(tmp_path, flights(101))
    assert rows.count_rows(tmp_path) == 101
    for every in (1, 7):
        whole = rows.read_flights(tmp_path, 0, 101, every)
        for block_rows in (10, 33, 100):
            blocks = [
                rows.read_flights(tmp_path, first, block_rows, every)
                for first in range(0, 101, block_rows)
            ]
            together = pd.concat(blocks)
            pd.testing.assert_frame_equal(
                together, whole, check_dtype=False, check_index_type=False
            )
    assert list(whole.index) == list(range(0, 101, 7))


def test_an_impossible_wind_is_left_out_and_counted(tmp_path: Path) -> None:
    hours = ["2013-01-01T06:00Z", "2013-01-01T07:00Z"]
    numbers = dict.fromkeys(rows._WEATHER_NUMBERS, 1.0)
    table = pd.DataFrame({"time_hour": hours, "origin": "JFK", **numbers})
    table.loc[1, "wind_speed"] = 1048.0
    table.to_csv(tmp_path / "weather.csv", index=False)
    read = rows.read_weather(tmp_path)
    assert read.attrs["impossible_winds"] == 1
    assert np.isnan(read["wind_speed"].iloc[1])
    assert read["wind_speed"].iloc[0] == 1.0


# Split and features


def test_every_test_month_lies_after_all_training_months() -> None:
    for held_out in range(1, 12):
        train, test = features.split_by_time([10, 1, 11, 12, *range(2, 10), 1], held_out)
        assert max(train) < min(test)
        assert sorted([*train, *test]) == list(range(1, 13))
        assert len(test) == held_out


@pytest.mark.parametrize("held_out", [0, 3, 4])
def test_a_split_that_leaves_nothing_is_refused(held_out: int) -> None:
    with pytest.raises(ValueError, match=r"cannot hold out \d of 3 month\(s\) \[1, 2, 3\]"):
        features.split_by_time([1, 2, 3], held_out)


def test_the_weather_is_that_of_the_hour_before_departure() -> None:
    frame = flights()
    made = shard()
    january = frame[frame["month"] == 1]
    utc = pd.to_datetime(january["time_hour"], utc=True)
    hours_since_start = (utc - pd.Timestamp("2013-01-01", tz="UTC")) // pd.Timedelta(hours=1)
    assert np.array_equal(made.numbers[:, COLUMN["temp"]], hours_since_start.to_numpy() - 1)


def test_a_flight_without_observation_or_plane_says_so_and_stays() -> None:
    checked = rows.check_flights(flights(8, tailnum="N0")).frame
    made = features.make_features([checked], [], weather(n_hours=18), planes(), "JFK", 1)
    missing = made.numbers[:, COLUMN["weather_missing"]]
    # Observed until 17:00 UTC; the flights leave at 11, 15, 19 and 23 UTC.
    assert missing.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert np.isnan(made.numbers[missing == 1, COLUMN["temp"]]).all()
    assert (made.numbers[:, COLUMN["plane_missing"]] == 1).all()
    assert made.n_flights == 8


@pytest.mark.parametrize("month", [1, 2])
def test_no_feature_of_a_flight_depends_on_what_happens_from_its_day_on(month: int) -> None:
    """The leak test: change every arrival from some day on; features until then stay the same."""
    frame = flights()
    day = 15
    changed = frame.copy()
    later = (frame["month"] > month) | ((frame["month"] == month) & (frame["day"] >= day))
    changed.loc[later, "arr_delay"] += 100.0
    before, after = shard(month, frame), shard(month, changed)
    of_month = frame[frame["month"] == month]
    until = (of_month["day"] <= day).to_numpy()
    assert 0 < until.sum() < len(until)
    assert np.array_equal(before.numbers[until], after.numbers[until], equal_nan=True)
    # And the day after does see it, or the feature would be of no use.
    recent = COLUMN["recent_gain_min"]
    next_day = (of_month["day"] == day + 1).to_numpy()
    assert (after.numbers[next_day, recent] > before.numbers[next_day, recent] + 5).all()


def test_recent_gain_is_the_mean_of_the_seven_days_before_across_the_month() -> None:
    frame = flights()
    made = shard(2)
    date = pd.to_datetime(frame[["year", "month", "day"]])
    window = (date >= pd.Timestamp(2013, 1, 26)) & (date < pd.Timestamp(2013, 2, 2))
    lost = (frame["arr_delay"] - frame["dep_delay"])[window]
    second_of_february = (frame["day"][frame["month"] == 2] == 2).to_numpy()
    assert made.numbers[second_of_february, COLUMN["recent_gain_min"]] == pytest.approx(lost.mean())


def test_the_first_day_has_no_recent_gain() -> None:
    assert np.isnan(shard(1).numbers[:4, COLUMN["recent_gain_min"]]).all()


def test_features_do_not_depend_on_how_the_blocks_were_cut() -> None:
    checked = rows.check_flights(flights()).frame
    january = features.rows_of_month(checked, 1)
    whole = features.make_features([january], [], weather(), planes(), "JFK", 1)
    cut = [january.iloc[70:], january.iloc[:31], january.iloc[31:70]]
    parts = features.make_features(cut, [], weather(), planes(), "JFK", 1)
    assert np.array_equal(whole.numbers, parts.numbers, equal_nan=True)
    assert np.array_equal(whole.arrival_delay_min, parts.arrival_delay_min)


def test_a_flight_past_midnight_has_a_positive_block_time() -> None:
    made = shard(1, flights(sched_dep_time=2330, sched_arr_time=215))
    assert (made.numbers[:, COLUMN["scheduled_block_min"]] == 165).all()


def test_an_airport_without_flights_is_an_error_that_says_what_to_do() -> None:
    checked = rows.check_flights(flights()).frame
    with pytest.raises(FlightDataError, match=r"no usable flight leaves LGA in month 1; choose a"):
        features.make_features([checked], [], weather(), planes(), "LGA", 1)


# Model and errors


def learnable(n: int = 600, seed: int = 0) -> FeatureShard:
    """Flights whose minutes gained are 20 × the wind's sine, with no noise."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    delay = random.normal(scale=20, size=n).astype(np.float32)
    gained = 20 * numbers[:, COLUMN["wind_dir_sin"]]
    return FeatureShard(
        airport="JFK",
        month=1,
        numbers=numbers,
        carrier=random.choice(["AA", "UA"], n),
        destination=random.choice(["LAX", "ORD"], n),
        scheduled_hour=random.integers(6, 22, n).astype(np.int16),
        departure_delay_min=delay,
        arrival_delay_min=delay + gained,
    )


QUICK = Training(epochs=40, batch_flights=100)


def test_the_network_learns_what_can_be_learned() -> None:
    trained = model.train("JFK", [learnable()], seed=1, how=QUICK)
    fresh = learnable(seed=5)
    error = np.abs(model.predict(trained, fresh) - fresh.arrival_delay_min).mean()
    without = np.abs(fresh.departure_delay_min - fresh.arrival_delay_min).mean()
    assert error < without / 3
    assert trained.losses[-1] < trained.losses[0] / 10


def test_training_is_the_same_for_a_seed_and_another_for_another() -> None:
    once, again, other = (
        model.train("JFK", [learnable()], seed=seed, how=Training(epochs=2)) for seed in (1, 1, 2)
    )
    for name, weights in once.weights.items():
        assert np.allclose(weights, again.weights[name], atol=1e-5)
    assert not np.allclose(once.weights["w1"], other.weights["w1"], atol=1e-3)


def test_what_was_never_seen_in_training_still_gets_a_forecast() -> None:
    trained = model.train("JFK", [learnable()], seed=1, how=Training(epochs=1))
    strange = learnable(5, seed=3)
    numbers = strange.numbers.copy()
    numbers[:, :3] = np.nan
    strange = FeatureShard(
        **{name: getattr(strange, name) for name in FeatureShard.__slots__}
        | {
            "numbers": numbers,
            "carrier": np.array(["ZZ"] * 5),
            "destination": np.array(["AAA"] * 5),
        }
    )
    assert np.isfinite(model.predict(trained, strange)).all()


def test_a_model_refuses_flights_of_another_airport() -> None:
    with pytest.raises(ValueError, match=r"the model of LGA needs flights from LGA.*from JFK"):
        model.train("LGA", [learnable()], seed=1)


def test_baselines_are_medians_of_training_flights_by_carrier_and_hour() -> None:
    made = shard(1)
    baseline = evaluation.fit_baseline("JFK", [made])
    here = (made.carrier == "AA") & (made.scheduled_hour == 6)
    gained = (made.arrival_delay_min - made.departure_delay_min)[here]
    assert baseline.usual_delay_min["AA", 6] == np.median(made.arrival_delay_min[here])
    assert baseline.usual_gain_min["AA", 6] == np.median(gained)
    assert ("UA", 6) not in baseline.usual_delay_min


def test_errors_are_those_of_plain_arithmetic_and_parts_add_up_to_the_whole() -> None:
    made = shard(1)
    baseline = evaluation.fit_baseline("JFK", [made])
    guess = made.arrival_delay_min + np.where(np.arange(made.n_flights) % 2, 3, -1)
    whole = evaluation.evaluate(made, guess.astype(np.float32), baseline)
    errors = evaluation.airport_errors(whole, 7, "cpu")
    assert errors.mae_min == pytest.approx(2.0)
    assert errors.rmse_min == pytest.approx(np.sqrt(5.0))
    assert whole.counts.sum() == made.n_flights
    twice = evaluation.merge([whole, whole])
    assert twice.sums["model"] == ErrorSums(
        2 * whole.sums["model"].absolute, 2 * whole.sums["model"].squared
    )
    assert evaluation.airport_errors(twice, 7, "cpu").mae_min == pytest.approx(2.0)


def test_the_picture_has_a_panel_per_airport_and_shows_where_the_flights_lie() -> None:
    from PIL import Image

    made = shard(1)
    baseline = evaluation.fit_baseline("JFK", [made])
    one = evaluation.evaluate(made, made.arrival_delay_min, baseline)
    errors = evaluation.airport_errors(one, 7, "cpu")
    sizes = []
    for n_panels in (1, 3):
        png = picture.draw([one] * n_panels, [errors] * n_panels)
        image = Image.open(io.BytesIO(png)).convert("RGB")
        sizes.append(image.size)
        assert len(image.getcolors(1 << 20) or []) > 20, "the picture is as good as blank"
    assert sizes[1][0] > 2 * sizes[0][0]


def test_what_lies_beyond_the_axes_is_counted_at_the_edge_and_said() -> None:
    made = shard(1)
    guess = made.arrival_delay_min.copy()
    guess[:3] = BIN_EDGES_MIN[-1] + 500
    one = evaluation.evaluate(made, guess, evaluation.fit_baseline("JFK", [made]))
    assert one.n_beyond == 3
    assert one.counts[-1].sum() == 3
