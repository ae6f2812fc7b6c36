"""What became of tasks, workers and runs, folded from small logs whose answer is known."""

from __future__ import annotations

import pytest

from deepflow.decide.events import (
    Candidate,
    Event,
    Failed,
    Finished,
    Held,
    Placed,
    Started,
    Submitted,
    Transferred,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.decide.trail import Trail


def joined(worker: str, *, at_s: float = 0.0, threads: int = 1) -> WorkerJoined:
    return WorkerJoined(at_s, worker, worker.split("-")[0], threads)


def submitted(key: str, *depends_on: str, at_s: float = 0.0, run: str = "r") -> Submitted:
    return Submitted(at_s, key, key.split("-")[0], "flow", run, depends_on)


def ran(key: str, worker: str, started_s: float, stopped_s: float) -> list[Event]:
    return [
        Started(started_s, key, worker),
        Finished(stopped_s, key, worker, started_s, stopped_s, 100),
    ]


def test_a_chain_of_two() -> None:
    chosen = Candidate("w-1", 0.0, 0.5, 2.0, 2.5)
    trail = Trail.of(
        [
            joined("w-0"),
            joined("w-1"),
            submitted("a-1", at_s=1.0),
            submitted("b-1", "a-1", at_s=1.0),
            Placed(1.0, "a-1", "w-0", "eft"),
            *ran("a-1", "w-0", 2.0, 4.0),
            Held(4.0, "b-1", "w-1 is soon free"),
            Placed(4.5, "b-1", "w-1", "eft", (chosen,), "it has the data"),
            Transferred(5.5, "a-1", "w-0", "w-1", 100, 0.75),
            *ran("b-1", "w-1", 6.0, 9.0),
        ]
    )
    a, b = trail.tasks.values()
    assert (a.ready_s, a.started_s, a.finished_s, a.wait_s) == (1.0, 2.0, 4.0, 1.0)
    assert (b.submitted_s, b.ready_s, b.placed_s, b.started_s) == (1.0, 4.0, 4.5, 6.0)
    assert (b.wait_s, b.run_s, b.response_s, b.worker) == (2.0, 3.0, 5.0, "w-1")
    assert (b.transfer_s, b.transfer_bytes) == (0.75, 100)
    assert (b.policy, b.candidates, b.reason) == ("eft", (chosen,), "it has the data")
    assert b.holds == ((4.0, "w-1 is soon free"),)
    run = trail.runs["r"]
    assert (run.first_submit_s, run.last_finish_s, run.completion_s) == (1.0, 9.0, 8.0)
    assert (trail.begin_s, trail.end_s, trail.makespan_s) == (1.0, 9.0, 8.0)
    assert [x.key for x in trail.workers["w-1"].attempts] == ["b-1"]


def test_nothing_happened() -> None:
    trail = Trail.of([])
    assert (trail.makespan_s, dict(trail.tasks), dict(trail.runs)) == (0.0, {}, {})


def test_a_task_whose_input_is_not_done_is_not_ready() -> None:
    trail = Trail.of([submitted("a-1"), submitted("b-1", "a-1")])
    assert trail.tasks["a-1"].ready_s == 0.0
    assert trail.tasks["b-1"].ready_s is None
    assert trail.tasks["b-1"].worker is None
    assert trail.runs["r"].completion_s is None


def test_an_input_from_before_the_log_counts_as_finished() -> None:
    assert Trail.of([submitted("b-1", "a-0", at_s=3.0)]).tasks["b-1"].ready_s == 3.0


def test_a_task_that_failed_and_ran_again_waited_for_its_first_start() -> None:
    trail = Trail.of(
        [
            joined("w-0"),
            joined("w-1"),
            submitted("a-1"),
            Placed(0.0, "a-1", "w-0", "p"),
            Started(1.0, "a-1", "w-0"),
            Failed(3.0, "a-1", "w-0", "worker-lost"),
            WorkerLeft(3.0, "w-0", "killed"),
            Placed(3.0, "a-1", "w-1", "p"),
            *ran("a-1", "w-1", 4.0, 6.0),
        ]
    )
    task = trail.tasks["a-1"]
    assert [a.outcome for a in task.attempts] == ["failed", "finished"]
    assert (task.wait_s, task.run_s, task.finished_s, task.worker) == (1.0, 2.0, 6.0, "w-1")
    assert task.attempts[0].cause == "worker-lost"
    assert task.placed_s == 0.0
    assert trail.workers["w-0"].present == ((0.0, 3.0),)


def test_a_result_that_is_lost_and_made_again_does_not_move_its_dependents() -> None:
    trail = Trail.of(
        [
            joined("w-0"),
            submitted("a-1"),
            submitted("b-1", "a-1"),
            *ran("a-1", "w-0", 0.0, 2.0),
            *ran("b-1", "w-0", 2.0, 3.0),
            *ran("a-1", "w-0", 5.0, 8.0),
        ]
    )
    assert trail.tasks["b-1"].wait_s == 0.0
    assert trail.tasks["a-1"].finished_s == 2.0
    assert trail.end_s == 8.0
    assert trail.runs["r"].last_finish_s == 3.0


def test_a_log_without_starts_has_them_from_the_ends() -> None:
    trail = Trail.of([submitted("a-1"), Finished(5.0, "a-1", "w-0", 1.0, 4.0, 0)])
    assert [(a.started_s, a.stopped_s) for a in trail.tasks["a-1"].attempts] == [(1.0, 4.0)]
    assert trail.workers["w-0"].worker_class == ""
    assert trail.workers["w-0"].present == ((1.0, None),)


def test_a_log_that_begins_late_still_folds() -> None:
    trail = Trail.of([*ran("a-1", "w-0", 1.0, 2.0), WorkerLeft(3.0, "w-0")])
    assert trail.tasks["a-1"].task == "?"
    assert trail.workers["w-0"].present == ((1.0, 3.0),)


def test_what_still_runs_has_no_end() -> None:
    trail = Trail.of([joined("w-0"), submitted("a-1"), Started(2.0, "a-1", "w-0")])
    (attempt,) = trail.workers["w-0"].attempts
    assert (attempt.outcome, attempt.stopped_s, attempt.run_s) == ("running", None, None)
    assert trail.end_s == 2.0


def test_a_task_that_fails_before_it_has_a_worker() -> None:
    trail = Trail.of([submitted("a-1"), Failed(1.0, "a-1", "", "unplaceable")])
    assert dict(trail.workers) == {}
    assert trail.tasks["a-1"].attempts[0].cause == "unplaceable"


def test_a_copy_counts_once_for_the_task_that_used_it_first() -> None:
    trail = Trail.of(
        [
            joined("w-0"),
            joined("w-1"),
            submitted("a-1"),
            submitted("b-1", "a-1"),
            submitted("c-1", "a-1"),
            *ran("a-1", "w-0", 0.0, 1.0),
            Transferred(2.0, "a-1", "w-0", "w-1", 50, 1.0),
            *ran("c-1", "w-1", 2.0, 3.0),
            *ran("b-1", "w-1", 3.0, 4.0),
        ]
    )
    assert (trail.tasks["c-1"].transfer_bytes, trail.tasks["b-1"].transfer_bytes) == (50, 0)


def test_copies_at_the_same_time_are_seconds_only_once() -> None:
    trail = Trail.of(
        [
            submitted("a-1"),
            submitted("b-1"),
            submitted("c-1", "a-1", "b-1"),
            *ran("a-1", "w-0", 0.0, 1.0),
            *ran("b-1", "w-0", 1.0, 2.0),
            Transferred(4.0, "a-1", "w-0", "w-1", 10, 2.0),  # 2..4
            Transferred(4.5, "b-1", "w-0", "w-1", 20, 1.0),  # 3.5..4.5
            *ran("c-1", "w-1", 5.0, 6.0),
        ]
    )
    assert trail.tasks["c-1"].transfer_s == pytest.approx(2.5)
    assert trail.tasks["c-1"].transfer_bytes == 30


def test_the_decision_told_is_the_one_that_was_carried_out() -> None:
    trail = Trail.of(
        [
            submitted("a-1"),
            Placed(0.0, "a-1", "w-0", "first"),
            Placed(1.0, "a-1", "w-1", "second"),
            *ran("a-1", "w-1", 2.0, 3.0),
            Placed(4.0, "a-1", "w-2", "third"),
        ]
    )
    assert (trail.tasks["a-1"].policy, trail.tasks["a-1"].placed_s) == ("second", 1.0)


def test_a_worker_that_left_and_came_back_was_away_between() -> None:
    trail = Trail.of([joined("w-0"), WorkerLeft(4.0, "w-0"), joined("w-0", at_s=6.0)])
    worker = trail.workers["w-0"]
    assert worker.present == ((0.0, 4.0), (6.0, None))
    assert worker.present_s(1.0, 10.0) == 7.0


def test_only_the_runs_asked_for() -> None:
    trail = Trail.of(
        [
            joined("w-0"),
            submitted("a-1", run="one"),
            submitted("b-1", run="two"),
            *ran("a-1", "w-0", 0.0, 1.0),
            *ran("b-1", "w-0", 1.0, 2.0),
            Transferred(3.0, "b-1", "w-0", "w-1", 10, 1.0),
        ]
    ).only(["one"])
    assert list(trail.tasks) == ["a-1"]
    assert [a.key for a in trail.workers["w-0"].attempts] == ["a-1"]
    assert (list(trail.runs), trail.transfers) == (["one"], ())
