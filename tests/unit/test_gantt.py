"""Pictures are made of any trail, and their rows and colours are those of the trail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from deepflow.decide.events import (
    Event,
    Failed,
    Finished,
    Placed,
    Started,
    Submitted,
    Transferred,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.decide.trail import Trail
from deepflow.errors import ConfigurationError
from deepflow.observe.gantt import (
    OTHER,
    PALETTE,
    draw_gantt,
    draw_side_by_side,
    lanes,
    task_colours,
    time_unit,
    waiting_over_time,
)


def ran(key: str, worker: str, started_s: float, stopped_s: float) -> list[Event]:
    return [
        Submitted(0.0, key, key.split("-")[0], "f", "r"),
        Finished(stopped_s, key, worker, started_s, stopped_s, 10),
    ]


ONE: list[Event] = [WorkerJoined(0.0, "w-0", "c", 1), *ran("a-1", "w-0", 1.0, 2.0)]
ODD: dict[str, list[Event]] = {
    "empty": [],
    "one task": ONE,
    "a worker and no task": [WorkerJoined(0.0, "w-0", "c", 1)],
    "nothing began": [Submitted(5.0, "a-1", "a", "f", "r")],
    "no time passed": ran("a-1", "w-0", 0.0, 0.0),
    "failed, and lost its worker": [
        *ONE,
        Submitted(0.0, "b-1", "b", "f", "r"),
        Started(2.0, "b-1", "w-0"),
        Failed(3.0, "b-1", "w-0", "worker-lost"),
        WorkerLeft(3.0, "w-0", "killed"),
        WorkerJoined(4.0, "w-0", "c", 1),
    ],
    "still running": [*ONE, Submitted(0.0, "b-1", "b", "f", "r"), Started(2.0, "b-1", "w-0")],
    "failed before it had a worker": [*ONE, Failed(3.0, "a-1", "", "unplaceable")],
    "dollars in names": [*ONE, *ran("$_{$-2", "w$_{$0", 1.0, 2.0)],
    "a class without a name": ran("a-1", "w-0", 0.0, 1.0),
    "a copy to a worker that is not known": [*ONE, Transferred(3.0, "a-1", "w-0", "v", 10, 1.0)],
    "hundreds of workers": [
        event
        for i in range(300)
        for event in (
            WorkerJoined(0.0, f"w-{i}", "c", 1),
            *ran(f"{i}-1", f"w-{i}", 0.0, 1.0 + i),
        )
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_a_picture_is_made_of_any_trail(name: str, tmp_path: Path) -> None:
    draw_gantt(Trail.of(ODD[name]), tmp_path / "run.png", title=name)
    with Image.open(tmp_path / "run.png") as picture:
        width, height = picture.size
    assert width == 1690
    assert 200 < height < 9000


def test_tasks_are_drawn_in_their_colours_as_long_as_they_took(tmp_path: Path) -> None:
    trail = Trail.of(
        [
            WorkerJoined(0.0, "w-0", "c", 1),
            *ran("long-1", "w-0", 0.0, 60.0),
            *ran("short-1", "w-0", 60.0, 90.0),
        ]
    )
    draw_gantt(trail, tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as picture:
        pixels = picture.convert("RGB")
        counts = {
            colour: sum(
                pixels.getpixel((x, y)) == tuple(bytes.fromhex(colour[1:]))
                for y in range(60, 160, 4)
                for x in range(pixels.width)
            )
            for colour in PALETTE[:2]
        }
    assert counts[PALETTE[0]] / counts[PALETTE[1]] == pytest.approx(2.0, rel=0.05)


def test_several_trails_are_drawn_under_each_other(tmp_path: Path) -> None:
    one = Trail.of(ONE)
    draw_gantt(one, tmp_path / "one.png")
    draw_side_by_side({"stock": one, "ours": one}, tmp_path / "two.png", title="both")
    with Image.open(tmp_path / "one.png") as single, Image.open(tmp_path / "two.png") as double:
        assert double.size[0] == single.size[0]
        assert double.size[1] > 1.3 * single.size[1]


def test_other_formats_by_the_suffix(tmp_path: Path) -> None:
    draw_gantt(Trail.of(ONE), tmp_path / "run.svg")
    assert "<svg" in (tmp_path / "run.svg").read_text()


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"\.png or \.svg or \.pdf"):
        draw_gantt(Trail.of(ONE), tmp_path / "run.docx")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        draw_gantt(Trail.of(ONE), tmp_path / "no" / "run.png")
    with pytest.raises(ConfigurationError, match="no trail to draw"):
        draw_side_by_side({}, tmp_path / "run.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'prefect-deepflow\[plot\]'"):
        draw_gantt(Trail.of(ONE), tmp_path / "run.png")


def test_a_worker_has_a_lane_for_each_thread_and_more_where_more_ran() -> None:
    trail = Trail.of(
        [
            WorkerJoined(0.0, "w-10", "c", 2),
            WorkerJoined(0.0, "w-9", "c", 1),
            *ran("a-1", "w-10", 0.0, 2.0),
            *ran("a-2", "w-10", 1.0, 3.0),
            *ran("a-3", "w-10", 2.0, 4.0),
            *ran("a-4", "w-9", 0.0, 2.0),
            *ran("a-5", "w-9", 1.0, 2.0),
        ]
    )
    told = [(lane.worker, lane.thread, [a.key for a in lane.attempts]) for lane in lanes(trail)]
    assert told == [
        ("w-9", 0, ["a-4"]),
        ("w-9", 1, ["a-5"]),
        ("w-10", 0, ["a-1", "a-3"]),
        ("w-10", 1, ["a-2"]),
    ]


EPOCH_S = 1.79e9
"""Unix time, as in the journals of real runs."""


def at_epoch(key: str, worker: str, started_s: float, stopped_s: float) -> list[Event]:
    return [
        Submitted(EPOCH_S, key, key.split("-")[0], "f", "r"),
        Finished(EPOCH_S + stopped_s, key, worker, EPOCH_S + started_s, EPOCH_S + stopped_s, 10),
    ]


@pytest.mark.parametrize("run_s", [1e-5, 1e-3, 0.05, 20.0])
def test_what_ran_at_once_is_on_different_lanes_also_in_unix_time(run_s: float) -> None:
    log: list[Event] = [WorkerJoined(EPOCH_S, "w-0", "c", 3)]
    for i in range(12):
        begin_s = (i // 3) * run_s
        log += at_epoch(f"a-{i}", "w-0", begin_s, begin_s + run_s)
    found = lanes(Trail.of(log))
    assert [len(lane.attempts) for lane in found] == [4, 4, 4]
    for lane in found:
        times = [(one.started_s, one.stopped_s) for one in lane.attempts]
        assert times == sorted(times)
        assert len({started_s for started_s, _ in times}) == 4


def test_a_clock_that_is_set_anew_between_two_tasks_makes_no_further_lane() -> None:
    log = [
        WorkerJoined(EPOCH_S, "w-0", "c", 1),
        *at_epoch("a-1", "w-0", 0.0, 0.1),
        *at_epoch("a-2", "w-0", 0.0995, 0.2),
    ]
    assert len(lanes(Trail.of(log))) == 1


def test_a_short_task_is_not_hidden_beneath_a_long_one_that_began_with_it() -> None:
    log = [
        WorkerJoined(EPOCH_S, "w-0", "c", 2),
        *at_epoch("a-1", "w-0", 0.0, 0.0005),
        *at_epoch("a-2", "w-0", 0.0, 60.0),
    ]
    assert [len(lane.attempts) for lane in lanes(Trail.of(log))] == [1, 1]


def test_the_tasks_that_took_most_time_have_colours_of_their_own() -> None:
    log = [event for i in range(14) for event in ran(f"t{i}-1", "w-0", 20.0 * i, 21.0 * i)]
    colours = task_colours([Trail.of(log)])
    assert next(iter(colours)) == "t13"
    assert len(set(colours.values()) - {OTHER}) == len(PALETTE)
    assert colours["t0"] == OTHER


def test_who_waits_and_for_what_over_time() -> None:
    trail = Trail.of(
        [
            Submitted(0.0, "a-1", "a", "f", "r"),
            Submitted(0.0, "b-1", "b", "f", "r"),
            Placed(2.0, "a-1", "w-0", "p"),
            Finished(6.0, "a-1", "w-0", 5.0, 6.0, 0),
            Finished(9.0, "b-1", "w-0", 6.0, 9.0, 0),
        ]
    )
    assert waiting_over_time(trail) == (
        [0.0, 0.0, 2.0, 5.0, 6.0],
        [0, 2, 1, 1, 0],
        [0, 0, 1, 0, 0],
    )


@pytest.mark.parametrize(
    ("span_s", "unit"), [(0.1, "ms"), (1.0, "s"), (299.0, "s"), (301.0, "min"), (20_000.0, "h")]
)
def test_spans_are_told_in_the_unit_that_reads_best(span_s: float, unit: str) -> None:
    assert time_unit(span_s)[0] == unit
