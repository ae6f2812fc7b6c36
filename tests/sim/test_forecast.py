"""A flow run that has ended is replayed in a process of its own, in bounded time."""

from __future__ import annotations

import pytest

from deepflow.decide.events import Event, Finished, Submitted, WorkerJoined
from deepflow.decide.experience import Experience
from deepflow.decide.place.policy import Policy
from deepflow.decide.trail import Trail
from deepflow.observe.artifact import Forecast
from deepflow.sim.forecast import LEAST_S, MOST_S, MOST_TASKS, Forecasting, budget_s, why_not


def ran(n_tasks: int, run_s: float) -> list[Event]:
    """`n_tasks` one after the other, in turn on two workers."""
    log: list[Event] = [WorkerJoined(0.0, f"cpu-{i}", "cpu", 1) for i in range(2)]
    for n in range(n_tasks):
        begin_s = n // 2 * run_s
        log.append(Submitted(0.0, f"a-{n}", "a", "f", "r"))
        log.append(Finished(begin_s + run_s, f"a-{n}", f"cpu-{n % 2}", begin_s, begin_s + run_s, 8))
    return log


def test_both_policies_are_replayed() -> None:
    events = ran(8, 5.0)
    found = Forecasting(events, 20.0, "heft", Experience(), most_s=60.0).result()
    assert isinstance(found, Forecast), found
    assert (found.policy, found.other, found.happened_s) == ("heft", "stock", 20.0)
    assert found.replayed_s == pytest.approx(20.0, rel=0.05)
    assert found.other_s == pytest.approx(20.0, rel=0.05)


class Last(Policy):
    """A policy that the other process cannot import."""

    name = "last"

    def score(self, task, candidates, rng):  # type: ignore[no-untyped-def]
        return [-float(i) for i in range(len(candidates.run_s))]


def test_a_policy_of_ones_own_is_replayed_too() -> None:
    found = Forecasting(ran(4, 5.0), 10.0, Last(), Experience(), most_s=60.0).result()
    assert isinstance(found, Forecast), found
    assert found.policy == "last"


def test_what_does_not_end_in_time_is_stopped_and_said() -> None:
    forecasting = Forecasting(ran(2000, 5.0), 5000.0, "heft", Experience(), most_s=0.01)
    assert forecasting.result() == "the simulator did not end within the 0.0 s that it had"


def test_what_fails_is_said() -> None:
    found = Forecasting(ran(4, 5.0), 10.0, "no-such-policy", Experience(), most_s=60.0).result()
    assert found == "the simulator failed with status 1"


def test_the_time_for_it_is_a_share_of_what_the_run_took() -> None:
    assert budget_s(1.0) == LEAST_S
    assert budget_s(100.0) == 5.0
    assert budget_s(1e6) == MOST_S


def test_short_large_and_unfinished_runs_are_left_out_with_a_word() -> None:
    assert why_not(Trail.of(ran(8, 10.0))) == ""
    assert "less than 40 s" in why_not(Trail.of(ran(8, 1.0)))
    assert "more than 5,000 tasks" in why_not(Trail.of(ran(MOST_TASKS + 1, 1.0)))
    lacking = [*ran(8, 10.0), Submitted(0.0, "b", "b", "f", "r")]
    assert "did not end well" in why_not(Trail.of(lacking))
