"""A person opens the page of a flow run in a real browser and sees its graph and its artifacts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from deepflow.runner.server import EmbeddedServer
from tests.chromium import CHROMIUM, Page, chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)"),
]

RUN_NAME = "doubling-for-the-picture"
ARTIFACT_KEY = "doubled-numbers"
TEXT_IN_ARTIFACT = "Sum of the doubled numbers"

FLOW = f"""
import time

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from deepflow import DeepflowTaskRunner, WorkerClass


@task
def double(x):
    print(f"doubling {{x}}")
    time.sleep(0.4)  # work long enough to be seen in the picture
    return 2 * x


@task
def total(doubled):
    create_table_artifact(
        key="{ARTIFACT_KEY}",
        table=[{{"number": d // 2, "doubled": d}} for d in doubled],
        description="{TEXT_IN_ARTIFACT}: {{}}".format(sum(doubled)),
    )
    return sum(doubled)


@flow(
    name="doubling",
    flow_run_name="{RUN_NAME}",
    log_prints=True,
    task_runner=DeepflowTaskRunner(local=[WorkerClass("small"), WorkerClass("large")]),
)
def doubling(n):
    return total.submit(double.map(range(n))).result()


if __name__ == "__main__":
    state = doubling(6, return_state=True)
    assert state.result() == 30
    print("flow run", state.state_details.flow_run_id)
"""


@pytest.fixture(scope="module")
def flow_run_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of a run that a deepflow runner made, in a server of its own."""
    home = tmp_path_factory.mktemp("ui")
    script = home / "doubling.py"
    script.write_text(FLOW)
    with EmbeddedServer() as server:
        done = subprocess.run(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "PREFECT_API_URL": server.api_url,
                "PREFECT_HOME": str(home),
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        flow_run_id = done.stdout.split()[-1]
        yield f"{server.ui_url}/runs/flow-run/{flow_run_id}"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as opened:
        yield opened


def keep(png: bytes, name: str) -> None:
    """Also save the picture where a person asked for it."""
    folder = os.environ.get("DEEPFLOW_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(png)


def bars_in_graph(png: bytes, box: tuple[int, int, int, int]) -> int:
    """How many task runs are drawn in the graph: green bars, each on rows of its own.

    `box` is (left, top, right, bottom) of the canvas; the state bar at its foot is left out.
    """
    left, top, right, bottom = box
    cut = Image.open(io.BytesIO(png)).convert("RGB").crop((left, top, right, bottom - 20))
    rgb = np.asarray(cut).astype(int)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    has_green = ((green > 120) & (green > 2 * red) & (green > 1.5 * blue)).sum(axis=1) > 3
    starts = np.flatnonzero(np.diff(np.concatenate(([False], has_green)).astype(int)) == 1)
    return len(starts)


def colours(png: bytes) -> int:
    return len(
        np.unique(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3), axis=0)
    )


def graph_box(page: Page) -> tuple[int, int, int, int] | None:
    box = page.evaluate(
        """(() => {
            const canvas = document.querySelector("canvas");
            if (!canvas) return null;
            const r = canvas.getBoundingClientRect();
            return [r.left, r.top, r.right, r.bottom];
        })()"""
    )
    return None if box is None else tuple(map(round, box))  # type: ignore[return-value]


def test_the_flow_run_page_shows_name_state_graph_and_artifact(
    flow_run_page: str, page: Page, tmp_path: Path
) -> None:
    page.open(flow_run_page)
    page.until(lambda: RUN_NAME in page.text(), "the flow run's name")
    page.until(lambda: "Completed" in page.text(), "the state Completed")
    page.until(lambda: "7 Task runs" in page.text(), "the number of task runs")
    box = page.until(lambda: graph_box(page), "the graph's canvas")

    def drawn() -> bytes | None:
        png = page.picture(tmp_path / "graph.png")
        return png if bars_in_graph(png, box) == 7 else None

    keep(page.until(drawn, "seven task runs drawn in the graph"), "flow-run-graph.png")

    page.click("Artifacts")
    page.until(lambda: ARTIFACT_KEY.upper() in page.text().upper(), "the artifact's key")
    page.until(lambda: f"{TEXT_IN_ARTIFACT}: 30" in page.text(), "the artifact's description")
    png = page.picture(tmp_path / "artifacts.png")
    keep(png, "flow-run-artifacts.png")
    assert colours(png) > 100, "the picture is nearly blank"


def test_the_page_shows_the_logs_of_the_tasks(flow_run_page: str, page: Page) -> None:
    page.open(flow_run_page)
    page.click("Logs")
    for number in range(6):
        page.until(lambda n=number: f"doubling {n}" in page.text(), f"the log of task {number}")


def report_of(flow_run_page: str) -> tuple[str, str]:
    """The server's address, and the id of the report that the flow run has left."""
    server, _, flow_run_id = flow_run_page.partition("/runs/flow-run/")
    asked = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
    reply = httpx.post(f"{server}/api/artifacts/filter", json=asked, timeout=30, trust_env=False)
    (report,) = [one for one in reply.json() if one["key"] == "deepflow-placement"]
    return server, report["id"]


PICTURE = """(() => {
    const image = [...document.images].find(one => one.src.startsWith("data:image/svg"));
    if (!image || !image.complete || !image.naturalWidth) return null;
    image.scrollIntoView({block: "center"});
    const r = image.getBoundingClientRect();
    return [r.left, r.top, r.right, r.bottom].map(Math.round);
})()"""


def shows_ground(
    page: Page, path: Path, box: Sequence[int], is_right: Callable[[float], bool]
) -> bool:
    """Whether most of the picture, which is empty, is as light or dark as the page should be."""
    left, top, right, bottom = box
    cut = Image.open(io.BytesIO(page.picture(path))).convert("L")
    return is_right(float(np.median(np.asarray(cut)[top:bottom, left:right])))


@pytest.mark.parametrize("ui", ["", "/v2"], ids=["the UI", "its second version"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_report_has_no_ground_of_its_own_and_reads_on_light_and_dark(
    flow_run_page: str, page: Page, tmp_path: Path, ui: str, width: int
) -> None:
    server, report_id = report_of(flow_run_page)
    page.resize(width, 1200)
    page.open(f"{server}{ui}/artifacts/artifact/{report_id}")
    page.until(lambda: "7 task runs took" in page.text(), "the report's first sentence")
    for theme, is_right in (("light", lambda mean: mean > 170), ("dark", lambda mean: mean < 85)):
        # What the setting of the theme does, in both UIs.
        page.evaluate(
            "document.documentElement.classList.remove('light', 'dark'),"
            f"document.documentElement.classList.add('{theme}')"
        )
        box = page.until(lambda: page.evaluate(PICTURE), "the picture")
        assert box[2] <= width, "it is wider than the page"
        picture = tmp_path / f"report-{theme}.png"
        page.until(
            partial(shows_ground, page, picture, box, is_right), f"a {theme} ground of the picture"
        )
        keep(picture.read_bytes(), f"report-{theme}-{width}.png")
