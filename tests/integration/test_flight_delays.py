"""The main job end to end, tiny: a real server, the default runner, real flights."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner

from deepflow.runner.server import EmbeddedServer
from flows._flights import rows
from flows._flights.evaluation import AirportErrors
from flows._flights.rows import AIRPORTS, FlightDataError
from flows.flight_delays import (
    PICTURE_KEY,
    RUN_KEY,
    TABLE_KEY,
    FlightDelaySummary,
    flight_delays,
)
from tests.integration.api import Api

KEYS = {PICTURE_KEY, RUN_KEY, TABLE_KEY}


@pytest.fixture(scope="module")
def summary(server: EmbeddedServer) -> FlightDelaySummary:
    """What one run with the default runner returned."""
    return flight_delays(size="tiny")


def of_run(api: Api, summary: FlightDelaySummary, path: str) -> Any:
    """What the server has under `path` for the run of `summary`."""
    run_id = str(summary.flow_run_url).rsplit("/", 1)[1]
    if path == "flow_run":
        return api.flow_run(run_id)
    body = {
        "artifacts": {"artifacts": {"flow_run_id": {"any_": [run_id]}}},
        "task_runs": {"flow_runs": {"id": {"any_": [run_id]}}},
    }[path]
    return api.post(f"/{path}/filter", body)


@pytest.fixture(scope="module")
def artifacts(api: Api, summary: FlightDelaySummary) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in of_run(api, summary, "artifacts")}


def errors_of(summary: FlightDelaySummary) -> np.ndarray:
    return np.array([[one.mae_min, one.rmse_min] for one in summary.airports])


def test_the_run_is_completed_in_the_server_with_every_task_it_counted(
    api: Api, summary: FlightDelaySummary
) -> None:
    assert of_run(api, summary, "flow_run")["state_type"] == "COMPLETED"
    task_runs = of_run(api, summary, "task_runs")
    assert len(task_runs) == summary.tasks
    assert {run["state_type"] for run in task_runs} == {"COMPLETED"}


def test_every_row_is_accounted_for(summary: FlightDelaySummary) -> None:
    assert summary.rows_in_table == 336_776
    assert summary.rows_read == -(-336_776 // 84)
    assert summary.rows_used + sum(summary.rows_set_aside.values()) == summary.rows_read
    in_models = sum(one.n_trained_on + one.n_held_out for one in summary.airports)
    assert in_models == summary.rows_used
    assert set(summary.rows_set_aside) == {"cancelled", "no arrival recorded"}


def test_it_is_judged_on_the_last_months_only(summary: FlightDelaySummary) -> None:
    assert summary.trained_on_months == tuple(range(1, 11))
    assert summary.held_out_months == (11, 12)


def test_forecasts_are_better_than_none_at_every_airport(summary: FlightDelaySummary) -> None:
    """The hard baseline knows the departure delay too; at 200 flights an airport it may come near.

    Pooled over the airports the model is 9 % better than it; each airport alone is allowed luck
    of 5 %. The easy one, the usual delay of the carrier at that hour, is beaten by far everywhere.
    """
    assert [one.airport for one in summary.airports] == list(AIRPORTS)
    n = np.array([one.n_held_out for one in summary.airports])
    mae = np.array([one.mae_min for one in summary.airports])
    baseline = np.array([one.baseline_mae_min for one in summary.airports])
    usual = np.array([one.usual_delay_mae_min for one in summary.airports])
    assert (mae < 0.75 * usual).all()
    assert (mae < 1.05 * baseline).all()
    assert n @ mae < n @ baseline


def test_a_table_a_picture_and_a_link_are_published(artifacts: dict[str, dict[str, Any]]) -> None:
    assert set(artifacts) == {*KEYS, "deepflow-placement"}


def test_the_table_has_the_errors_of_the_summary(
    artifacts: dict[str, dict[str, Any]], summary: FlightDelaySummary
) -> None:
    table = json.loads(artifacts[TABLE_KEY]["data"])
    assert [row["airport"] for row in table] == list(AIRPORTS)
    for row, errors in zip(table, summary.airports, strict=True):
        assert row["MAE (min)"] == pytest.approx(errors.mae_min, abs=0.006)
        assert row["baseline MAE (min)"] == pytest.approx(errors.baseline_mae_min, abs=0.006)
        assert row["flights held out"] == errors.n_held_out


def test_the_picture_is_one_and_shows_something(artifacts: dict[str, dict[str, Any]]) -> None:
    markdown = artifacts[PICTURE_KEY]["data"]
    found = re.search(r"!\[[^]]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    width, height = image.size
    assert width > 2 * height > 800
    assert len(image.getcolors(1 << 20) or []) > 20
    # Each third is one airport's panel; none is blank.
    for third in range(3):
        panel = image.crop((third * width // 3, 0, (third + 1) * width // 3, height))
        assert np.asarray(panel).std() > 10


def test_the_link_leads_to_the_run(
    artifacts: dict[str, dict[str, Any]], summary: FlightDelaySummary, server: EmbeddedServer
) -> None:
    assert f"({summary.flow_run_url})" in artifacts[RUN_KEY]["data"]
    assert str(summary.flow_run_url).startswith(server.ui_url)
    as_a_browser = {"Accept": "text/html"}
    page = httpx.get(str(summary.flow_run_url), headers=as_a_browser, follow_redirects=True)
    assert page.status_code == 200
    assert "<html" in page.text


def test_another_runner_gives_the_same_figures_for_a_seed_and_other_ones_for_another(
    summary: FlightDelaySummary, server: EmbeddedServer
) -> None:
    with_threads = flight_delays.with_options(task_runner=ThreadPoolTaskRunner(max_workers=2))
    same = with_threads(size="tiny")
    # Not to the last digit: sums in float32 depend on how many threads share them.
    assert errors_of(same) == pytest.approx(errors_of(summary), rel=1e-2)
    assert (same.rows_set_aside, same.tasks) == (summary.rows_set_aside, summary.tasks)
    other = with_threads(size="tiny", seed=1)
    assert errors_of(other) != pytest.approx(errors_of(summary), rel=1e-4)
    without_model = ("airport", "n_trained_on", "n_held_out", "baseline_mae_min")
    for one, two in zip(other.airports, summary.airports, strict=True):
        assert [getattr(one, name) for name in without_model] == [
            getattr(two, name) for name in without_model
        ]


def test_a_summary_can_be_written_as_json(summary: FlightDelaySummary) -> None:
    read = json.loads(json.dumps(summary.as_dict()))
    assert [AirportErrors(**one) for one in read["airports"]] == list(summary.airports)
    assert read["tasks"] == summary.tasks
    assert asdict(summary) == summary.as_dict()


def test_a_table_that_cannot_be_used_ends_the_run_with_the_reason(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    with_threads = flight_delays.with_options(task_runner=ThreadPoolTaskRunner(max_workers=2))
    state: State[Any] = with_threads(size="tiny", source=tmp_path, return_state=True)
    assert state.is_failed()
    with pytest.raises(FlightDataError, match=r"flights\.csv\.zip does not exist; give `source=`"):
        state.result()


def test_the_whole_table_passes_the_checks() -> None:
    folder = rows.default_folder()
    assert rows.count_rows(folder) == 336_776
    checked = rows.check_flights(rows.read_flights(folder, 0, 336_776))
    assert checked.set_aside == {"cancelled": 8255, "no arrival recorded": 1175}
    assert len(checked.frame) == 327_346
    assert checked.frame["origin"].value_counts().sort_index().index.tolist() == list(AIRPORTS)
