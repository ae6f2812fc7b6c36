"""Pictures for README and docs read on any ground, and say when and how they were made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.benchmarks import pictures
from tests.sim.shared_data import needs_workflows

COMMAND = "python -m tests.benchmarks.some"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    return tmp_path


def figures() -> dict[str, Any]:
    rates = {"deepflow": 250.0, "thread-pool": 170.0, "prefect-dask": 10.0, "dask": 360.0}
    return {
        "figures": [
            *(
                {"kind": kind, "n": n, "contender": name, "tasks_per_s": rate, "rounds": 2}
                for kind, n in (("map", 1000), ("submit", 500))
                for name, rate in rates.items()
            ),
            {"kind": "map", "n": 20000, "contender": "deepflow", "tasks_per_s": 200.0, "rounds": 1},
        ]
    }


def words(path: Path) -> list[str]:
    """What is written in a picture: letters are drawn, each text with a comment that says it."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


LINKS = {"0.1": {"mix": {"off": 1.0, "zstd1": 0.7, "deepflow": 0.45}, "rows": {"a": {}, "b": {}}}}
SAME_HOST = {n: {"deepflow": {"summed_s": 0.1}, "prefect-dask": {"summed_s": 0.9}} for n in "18"}


@pytest.mark.parametrize(
    "name", ["dispatch", "transfer", pytest.param("placement", marks=needs_workflows)]
)
def test_a_picture_has_no_ground_and_says_how_it_was_made(name: str) -> None:
    if name == "dispatch":
        path = pictures.draw_dispatch(figures(), "2026-11-25", COMMAND)
    elif name == "placement":
        path = pictures.draw_placement("2026-11-25", COMMAND)
    else:
        path = pictures.draw_transfer(LINKS, SAME_HOST, "2026-11-25", COMMAND)
    drawn = ElementTree.parse(path).getroot()
    told = "".join(drawn.itertext())
    assert "2026-11-25" in told
    assert COMMAND in told
    styles = [one.attrib.get("style", "") for one in drawn.iter(f"{SVG}path")]
    assert not any("fill: #ffffff" in style and "opacity: 0" not in style for style in styles)


def test_what_was_measured_of_one_runner_alone_is_not_compared() -> None:
    """The largest map is run with deepflow only: it has no place beside neighbours."""
    both = words(pictures.draw_dispatch(figures(), "2026-11-25", COMMAND))
    without = figures()
    without["figures"].pop()
    assert {"1,000 tasks of one map", "250", "170"} <= set(both)
    assert words(pictures.draw_dispatch(without, "2026-11-25", COMMAND)) == both


def test_the_command_is_read_off_the_figures() -> None:
    rows = figures()["figures"]
    assert pictures.dispatch_command(rows) == (
        "python -m tests.benchmarks.dispatch --n 1000 --rounds 2"
    )
    some = [row for row in rows if row["contender"] != "dask"]
    assert pictures.dispatch_command(some).endswith("--only deepflow,thread-pool,prefect-dask")
