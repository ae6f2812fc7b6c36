"""What the log of a finished run teaches."""

from __future__ import annotations

import pytest

from deepflow.decide.events import Event, Failed, Finished, Submitted, WorkerJoined
from deepflow.decide.experience import Experience, observations


def log(run: str = "r1", scale: float = 1.0) -> list[Event]:
    """`a`, and `b` that reads it and uses a GPU; two task runs travel in `b`."""
    a, b = f"{run}-a", f"{run}-b"
    return [
        WorkerJoined(0.0, "w-0", "big", 1),
        Submitted(0.0, a, "load", "flow", run, input_bytes=5),
        Submitted(0.0, b, "train", "flow", run, (a,), input_bytes=7, n_runs=2),
        Failed(1.0, a, "w-0", "lost"),
        Finished(3.0, a, "w-0", 1.0, 1.0 + 2.0 * scale, 100),
        Finished(9.0, b, "w-0", 3.0, 3.0 + 6.0 * scale, 40, on_gpu=True),
    ]


def test_observations_are_per_task_run_and_count_all_that_was_read() -> None:
    (a, b), submitted = observations(log())
    assert set(submitted) == {"r1-a", "r1-b"}
    assert (a.task, a.worker_class, a.run_s, a.input_bytes, a.output_bytes) == (
        *("load", "big", 2.0, 5, 100),
    )
    assert (b.task, b.worker_class, b.run_s, b.input_bytes, b.output_bytes) == (
        *("train", "big+gpu", 3.0, 107, 20),
    )


def test_what_was_not_submitted_or_whose_worker_is_unknown() -> None:
    found, _ = observations(
        [
            Finished(1.0, "stranger", "w-0", 0.0, 1.0, 1),
            Submitted(1.0, "x", "t", "f", "r"),
            Finished(2.0, "x", "nobody", 1.0, 2.0, 1),
            Finished(3.0, "x", "nobody", 3.0, 2.0, 1),
        ]
    )
    assert [(o.key, o.worker_class, o.run_s) for o in found] == [
        ("x", "default", 1.0),
        ("x", "default", 0.0),  # a clock that was set back
    ]


def test_runs_teach_run_times_and_the_shape_of_the_flow() -> None:
    experience = Experience()
    assert experience.shapes.work_s("flow") is None
    for n in range(8):
        experience.learn(log(f"r{n}"))
    assert experience.estimates.run_s("flow", "load", "big", 5) == pytest.approx(2.0, rel=0.25)
    work_s = experience.shapes.work_s("flow")
    assert work_s is not None
    assert work_s > 2.0
    rank_s = experience.shapes.upward_rank_s("flow", "load", 2.0)
    assert rank_s is not None
    assert rank_s > 2.0


def test_run_of_which_a_part_is_missing_teaches_no_shape() -> None:
    experience = Experience()
    experience.learn([e for e in log() if not (isinstance(e, Finished) and e.key == "r1-a")])
    assert experience.shapes.work_s("flow") is None


def test_empty_log_teaches_nothing() -> None:
    experience = Experience()
    experience.learn([])
    assert experience.shapes.work_s("flow") is None
