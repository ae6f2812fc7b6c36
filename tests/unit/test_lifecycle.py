"""What may happen to a run next: each pair of state and event is in the table, or is refused."""

from __future__ import annotations

import itertools

import pytest

from deepflow.runner.driver.lifecycle import (
    MAX_SPARED,
    TABLE,
    Effect,
    Event,
    IllegalMoveError,
    Life,
    Loss,
    RunState,
    event_of_loss,
)

S, E, F = RunState, Event, Effect

DONE = (S.DONE, S.CANCELLED, S.CRASHED)
HELD = (S.HELD_FOR_INPUTS, S.HELD_FOR_PILOT, S.HELD_FOR_RETRY)
ENDS = (F.FINISH, F.LET_GO, F.LEAVE_PLAN, F.RELEASE)
ENDS_HERE = (F.TELL_SERVER, *ENDS)

MOVES = """
                 INPUTS PILOT  RETRY  RETURN QUEUED SENT   BEGUN  CANCEL done
HOLD_FOR_PILOT   PILOT  -      -      -      -      -      -      -      -
SEND             QUEUED QUEUED -      QUEUED -      -      -      -      -
SENT             -      -      -      -      SENT   -      -      -      -
DUE              .      .      INPUTS .      .      .      .      .      .
CANCEL           over   over   over   over   over   CANCEL CANCEL CANCEL .
GIVE_UP          over   over   over   over   over   over   over   over   .
ABANDON          crash  crash  crash  crash  crash  crash  crash  crash  .
BEGUN            .      .      .      .      .      BEGUN  .      .      .
ENDED            end    end    end    end    end    end    end    end    .
RETRY            .      .      .      .      RETRY  RETRY  RETRY  over   .
HANDED_BACK      .      .      .      .      .      RETURN RETURN over   .
DEFERRED         .      .      .      .      .      INPUTS INPUTS over   .
LOST_WITH_INPUT  .      .      .      .      INPUTS INPUTS INPUTS over   .
LOST_NEARBY      .      .      .      .      INPUTS INPUTS INPUTS over   .
LOST_TO_BLAME    .      .      .      .      INPUTS INPUTS INPUTS over   .
LOST_BUT_RETRIES .      .      .      .      RETRY  RETRY  RETRY  over   .
LOST_FOR_GOOD    .      .      .      .      crash  crash  crash  over   .
LOST_UNWANTED    .      .      .      .      over   over   over   over   .
"""
"""As a person would write the table down. `-`: refused; `.`: nothing changes."""

SHORT = {
    "INPUTS": S.HELD_FOR_INPUTS,
    "PILOT": S.HELD_FOR_PILOT,
    "RETRY": S.HELD_FOR_RETRY,
    "RETURN": S.RETURNED,
    "QUEUED": S.QUEUED,
    "SENT": S.SENT,
    "BEGUN": S.BEGUN,
    "CANCEL": S.CANCELLING,
    "over": S.CANCELLED,
    "crash": S.CRASHED,
    "end": S.DONE,
}
DOES = {
    E.DUE: (F.TRY,),
    E.RETRY: (F.LEAVE_PLAN, F.LET_GO, F.WAKE),
    E.HANDED_BACK: (F.SEND_ELSEWHERE, F.LEAVE_PLAN),
    E.DEFERRED: (F.LEAVE_PLAN, F.DETACH, F.TRY_ONCE_DONE),
    E.LOST_WITH_INPUT: (F.DETACH, F.TRY_ONCE_DONE),
    E.LOST_NEARBY: (F.DETACH, F.TRY),
    E.LOST_TO_BLAME: (F.DETACH, F.TRY),
    E.LOST_BUT_RETRIES: (F.TELL_SERVER, F.LEAVE_PLAN, F.LET_GO, F.WAKE),
}
"""What is done about a move that is no end."""


def expected(state: RunState, event: Event) -> tuple[RunState, tuple[Effect, ...]] | None:
    """Where the table in words leads; None: refused."""
    if event is E.OVERRULE:
        return (state, (F.TELL_SERVER, F.OVERRULE, F.LET_GO)) if state is S.DONE else None
    names, *rows = (line.split() for line in MOVES.strip().splitlines())
    row = next(cells for name, *cells in rows if name == event.name)
    column = "done" if state in DONE else next(n for n, of in SHORT.items() if of is state)
    cell = row[names.index(column)]
    if cell == "-":
        return None
    if cell == ".":
        recomputed = event is E.ENDED and state in DONE
        return state, ((F.NOTE_RECOMPUTED,) if recomputed else ())
    to = SHORT[cell]
    if to in (S.CANCELLED, S.CRASHED):
        return to, ENDS_HERE
    if to is S.DONE:
        return to, ENDS
    if to is S.CANCELLING:
        return to, (F.TELL_WORKER,)
    return to, DOES.get(event, ())


@pytest.mark.parametrize(("state", "event"), list(itertools.product(RunState, Event)))
def test_each_pair_leads_where_the_table_in_words_says_or_is_refused(
    state: RunState, event: Event
) -> None:
    life = Life()
    life.state = state
    wanted = expected(state, event)
    if wanted is None:
        assert (state, event) not in TABLE
        with pytest.raises(IllegalMoveError, match=r"nothing has changed"):
            life.handle(event)
        assert (life.state, life.failures, life.n_spared) == (state, 0, 0)
        return
    to, effects = wanted
    assert life.handle(event) == effects
    assert life.state is to


def test_a_run_that_is_done_stays_as_it_ended() -> None:
    for state, event in itertools.product(DONE, Event):
        move = TABLE.get((state, event))
        assert move is None or move.to is state


def test_every_end_releases_and_is_told_once() -> None:
    for (state, _), move in TABLE.items():
        if move.to.is_done and not state.is_done:
            assert move.effects.count(F.FINISH) == 1
            assert move.effects.count(F.RELEASE) == 1
            is_told_here = F.TELL_SERVER in move.effects
            assert is_told_here is (move.to is not S.DONE)
        elif state.is_done:
            assert F.FINISH not in move.effects


def test_what_others_report_is_never_refused() -> None:
    for state in RunState:
        for event in Event:
            if event not in (E.HOLD_FOR_PILOT, E.SEND, E.SENT, E.OVERRULE):
                assert (state, event) in TABLE


def broken(life: Life, event: Event) -> Life:
    """A run whose Dask task was sent and broke."""
    life.state = S.SENT
    life.handle(event)
    return life


def test_a_life_counts_how_often_its_dask_tasks_broke_and_forgets_it_with_a_retry() -> None:
    life = broken(broken(broken(Life(), E.LOST_NEARBY), E.LOST_TO_BLAME), E.LOST_TO_BLAME)
    assert (life.n_spared, life.failures) == (1, 2)
    life.handle(E.LOST_TO_BLAME)
    assert (life.n_spared, life.failures) == (1, 2), "it is held: what is said comes too late"
    broken(life, E.LOST_BUT_RETRIES)
    assert (life.n_spared, life.failures) == (0, 0)


LOST = {
    "the flow is over": (Loss(is_unwanted=True, is_input_open=True), E.LOST_UNWANTED),
    "an input was lost before": (Loss(is_input_open=True, is_nearby=True), E.LOST_WITH_INPUT),
    "an input cannot be made": (Loss(is_input_broken=True, is_nearby=True), E.LOST_FOR_GOOD),
    "others are to blame": (Loss(is_nearby=True, is_hopeless=True), E.LOST_NEARBY),
    "it may be to blame": (Loss(), E.LOST_TO_BLAME),
    "there is no scheduler": (Loss(is_hopeless=True), E.LOST_FOR_GOOD),
}


@pytest.mark.parametrize("case", LOST)
def test_what_a_loss_is_to_a_run(case: str) -> None:
    loss, event = LOST[case]
    assert event_of_loss(Life(), loss, 2) is event


def test_a_run_is_spared_and_goes_again_a_bounded_number_of_times() -> None:
    life = Life()
    for _ in range(MAX_SPARED):
        event = event_of_loss(life, Loss(is_nearby=True), 2)
        assert event is E.LOST_NEARBY
        broken(life, event)
    for _ in range(2):
        event = event_of_loss(life, Loss(is_nearby=True), 2)
        assert event is E.LOST_TO_BLAME
        broken(life, event)
    assert event_of_loss(life, Loss(is_nearby=True), 2) is E.LOST_FOR_GOOD
    assert event_of_loss(Life(), Loss(), 0) is E.LOST_FOR_GOOD
