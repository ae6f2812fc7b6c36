"""What `deepflow demo` says: stages from the first second, and a short, honest summary."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from deepflow.cli._demo_server import Artifact
from deepflow.cli._demo_session import DemoSummary, Phases, Progress, StartUp
from deepflow.cli.demo import _print_summary, _Stages, _verdict

SUMMARY = DemoSummary(
    size="tiny",
    flow_run_id="id",
    flow_run_name="sapphire-owl",
    state="Completed",
    tasks_completed=80,
    tasks_total=80,
    start_up=StartUp(server_s=6.0, workers_s=4.0, libraries_s=3.0),
    wall_s=10.0,
    phases=Phases(before_s=0.5, tasks_s=8.5, after_s=1.0, busy_share=0.8, work_s=13.6),
    one_process_wall_s=15.0,
    prefect_dask_wall_s=40.0,
    prefect_dask_version="0.3.7",
    speed_up=1.5,
    wire_bytes=3_700_000,
    worker_classes={"small": 1, "large": 1},
    artifacts=tuple(
        Artifact(key, f"What {key} is. And more.")
        for key in (
            "deepflow-placement",
            "flight-delay-errors",
            "flight-delay-picture",
            "flight-delay-run",
        )
    ),
    ui_url=None,
    journals="/home/me/.deepflow/journals",
    flow={
        "airports": [
            {"airport": name, "mae_min": 13.5, "baseline_mae_min": 14.8, "n_held_out": 230}
            for name in ("EWR", "JFK", "LGA")
        ]
    },
)


def printed(
    summary: DemoSummary, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    _print_summary(summary)
    return capsys.readouterr().out


def test_the_summary_compares_like_with_like_and_says_where_the_time_went(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = printed(SUMMARY, capsys, monkeypatch)
    words = " ".join(told.split())
    assert "4.0 times as fast as prefect-dask and 1.5 times as fast as one process" in words
    for row in (
        r"one process, one task at a time      15.0      1.00",
        r"prefect-dask 0.3.7, 1 small + 1 large   40.0      0.38",
        r"deepflow, 1 small + 1 large   10.0      1.50",
        r"tasks   8.5   13.6 s of work on 2 workers, busy 80%; 3.7 MB moved",
        r"start-up: Prefect server   6.0   not in the figures above",
    ):
        assert " ".join(row.split()) in words
    lines = told.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80


def test_the_four_artifacts_the_run_and_the_way_to_keep_them_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = printed(SUMMARY, capsys, monkeypatch)
    for artifact in SUMMARY.artifacts:
        assert f"{artifact.key}" in told
    assert "deepflow explain sapphire-owl" in told
    assert "--keep" in "\n".join(told.splitlines()[-2:])
    assert "KEEP=1" in told


def test_no_address_is_printed_that_leads_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "http" not in printed(SUMMARY, capsys, monkeypatch)
    kept = printed(replace(SUMMARY, ui_url="http://127.0.0.1:4200/runs/x"), capsys, monkeypatch)
    assert kept.splitlines()[-1] == "UI: http://127.0.0.1:4200/runs/x"


def test_a_slow_down_is_called_one() -> None:
    told = _verdict(replace(SUMMARY, one_process_wall_s=5.0))
    assert "4.0 times as fast as prefect-dask and 2.0 times as long as one process." in told
    assert "0.06 s each leave little to gain on 2 workers" in told


def test_what_was_not_compared_is_not_told() -> None:
    alone = replace(SUMMARY, one_process_wall_s=None, prefect_dask_wall_s=None, speed_up=None)
    assert _verdict(alone) == "With deepflow the flow took 10.0 s."
    without_peer = replace(SUMMARY, prefect_dask_wall_s=None, prefect_dask_version=None)
    assert _verdict(without_peer).endswith(
        "To compare with prefect-dask too: pip install prefect-dask"
    )


def test_each_stage_is_a_line_from_the_first_second() -> None:
    said = io.StringIO()
    stages = _Stages(Console(file=said, width=100))
    stages.begin("importing Prefect")
    stages.tell(Progress("starting workers: 1 × small"))
    stages.tell(Progress("running the flow"))
    stages._told_s = float("-inf")  # as if the last line had been long ago
    stages.tell(Progress("running the flow", 41, 87, ("train", "evaluate")))
    stages.tell(Progress("running the flow", 42, 87))  # too soon for another line
    stages.end()
    lines = [line.split(maxsplit=2)[-1] for line in said.getvalue().splitlines()]
    assert lines[:3] == ["importing Prefect", "starting workers: 1 × small", "running the flow"]
    assert said.getvalue().splitlines()[3:] == [
        "          41 of 87 tasks done; running: train, evaluate"
    ]


def test_for_programs_nothing_is_said_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    with _Stages.shown(is_shown=False) as stages:
        stages.begin("importing Prefect")
        stages.tell(Progress("running the flow", 1, 2))
    assert capsys.readouterr() == ("", "")
