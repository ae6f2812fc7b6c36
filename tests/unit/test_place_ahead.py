"""Which tasks that were sent to busy workers are asked for."""

from __future__ import annotations

import pytest

from deepflow.decide.place.ahead import SentAhead
from deepflow.decide.place.fleet import Fleet, Worker

GPU = (("GPU", 1.0),)


@pytest.fixture
def fleet() -> Fleet:
    """`a` is busy with something and has `x` ahead, due at 1.0; `b` is busy too."""
    fleet = Fleet()
    a, b = Worker("a"), Worker("b")
    for worker in (a, b):
        fleet.join(worker)
        fleet.assign(worker, f"other-{worker.id}", 0.0, 1.0)
    fleet.assign(a, "x", 1.0, 2.0)
    return fleet


@pytest.fixture
def ahead() -> SentAhead:
    ahead = SentAhead()
    ahead.sent("x", "a", 1.0, (), None)
    return ahead


def test_a_late_task_is_asked_for_once_another_worker_idles(fleet: Fleet, ahead: SentAhead) -> None:
    fleet.unassign("b", "other-b")
    assert list(ahead.late(fleet, 1.05)) == []
    assert list(ahead.late(fleet, 1.2)) == [("x", "a")]
    assert list(ahead.late(fleet, 9.0)) == [], "it was asked for already"
    assert ahead.next_s() == float("inf")


def test_nobody_is_asked_while_all_others_are_busy_and_it_is_looked_at_again(
    fleet: Fleet, ahead: SentAhead
) -> None:
    assert list(ahead.late(fleet, 2.0)) == []
    assert 2.0 < ahead.next_s() < 3.0
    fleet.unassign("b", "other-b")
    assert list(ahead.late(fleet, ahead.next_s())) == [("x", "a")]


def test_a_task_that_has_a_thread_by_now_is_left(fleet: Fleet, ahead: SentAhead) -> None:
    fleet.unassign("a", "other-a")
    fleet.unassign("b", "other-b")
    assert list(ahead.late(fleet, 5.0)) == []
    assert len(ahead) == 0


def test_a_task_is_not_fetched_for_a_worker_that_cannot_take_it(fleet: Fleet) -> None:
    fleet.join(Worker("gpu", resources={"GPU": 1.0}))
    fleet.unassign("b", "other-b")
    ahead = SentAhead()
    ahead.sent("x", "a", 1.0, GPU, frozenset({"a", "b"}))
    assert list(ahead.late(fleet, 5.0)) == []
    ahead.sent("x", "a", 1.0, GPU, None)
    assert list(ahead.late(fleet, 5.0)) == [("x", "a")]


def test_a_task_that_has_ended_is_forgotten(fleet: Fleet, ahead: SentAhead) -> None:
    ahead.forget("x")
    assert ahead.next_s() == float("inf")
    assert list(ahead.late(fleet, 5.0)) == []
