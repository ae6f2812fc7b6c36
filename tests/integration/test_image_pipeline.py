"""The image pipeline end to end, tiny: a real server, the default runner, real handwriting."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from distributed import LocalCluster
from PIL import Image
from prefect.client.schemas.objects import State

from deepflow import DeepflowTaskRunner
from flows.image_pipeline import PICTURE_KEY, SCALES, TABLE_KEY, ImageSummary, image_pipeline
from tests.integration.api import Api

pytest.importorskip("sklearn", reason="scikit-learn ships the images")


@pytest.fixture(scope="module")
def state(cluster: LocalCluster) -> State[ImageSummary]:
    """How one run ended."""
    with_cluster = image_pipeline.with_options(task_runner=DeepflowTaskRunner(cluster=cluster))
    ended: State[ImageSummary] = with_cluster(size="tiny", return_state=True)
    return ended


@pytest.fixture(scope="module")
def summary(state: State[ImageSummary]) -> ImageSummary:
    """What it returned."""
    returned: ImageSummary = state.result()
    return returned


def test_the_run_is_completed_in_the_server_with_every_task_it_counted(
    state: State[ImageSummary], summary: ImageSummary, api: Api
) -> None:
    task_runs = api.task_runs(str(state.state_details.flow_run_id))
    assert len(task_runs) == summary.tasks
    assert {run["state_type"] for run in task_runs} == {"COMPLETED"}


def test_most_digits_never_seen_before_are_read_right(summary: ImageSummary) -> None:
    """Guessing gets 10 %; 400 scanned digits to learn from get about 85 %."""
    scale = SCALES["tiny"]
    assert summary.digits_learned_from == scale.learn_digits * scale.conditions
    assert summary.digits_judged == scale.judge_digits * scale.conditions
    assert summary.accuracy > 0.7
    assert [one.condition for one in summary.conditions] == ["clean", "busy"]
    assert [one.digits for one in summary.conditions] == [scale.judge_digits] * 2
    assert summary.trained_on in {("cpu",), ("cuda",)}


def test_the_table_has_the_accuracy_of_the_summary(summary: ImageSummary, api: Api) -> None:
    table = json.loads(api.get(f"/artifacts/{TABLE_KEY}/latest")["data"])
    assert [(row["condition"], row["read right"]) for row in table] == [
        (one.condition, f"{one.accuracy:.1%}") for one in summary.conditions
    ]


def test_the_contact_sheet_is_a_picture_that_shows_something(
    summary: ImageSummary, api: Api
) -> None:
    markdown = api.get(f"/artifacts/{PICTURE_KEY}/latest")["data"]
    found = re.search(r"\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    png = base64.b64decode(found[1])
    assert len(png) == summary.picture_bytes
    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).std() > 10
