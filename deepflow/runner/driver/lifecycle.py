"""What may happen to a run next: one table of states and events.

A run is *held* on the driver, *sent* to Dask, or *done*. What happens to it is an event: something
that the driver does (it sends the run), that somebody wants (a cancellation), that a worker
reports, or that Dask says of the run's Dask task. `Life.handle` moves the run to its next state and
returns what is to be done about it; `settling.py` does that. Nothing here sends, waits, reads a
clock, or knows Dask or Prefect.

Reports are late, double or missing: a worker that was thought lost may still have reported, and a
run that was started again may end twice. So what others say is an event in each state, and changes
nothing where it comes too late. What the driver itself does is an event only where it makes sense;
elsewhere it raises :class:`IllegalMoveError` and changes nothing.

The common ways, without what is lost on them:

    HELD_FOR_INPUTS -> QUEUED -> SENT -> BEGUN -> DONE
    HELD_FOR_INPUTS -> HELD_FOR_PILOT -> QUEUED       (the runs of a map)
    SENT or BEGUN -> HELD_FOR_RETRY -> HELD_FOR_INPUTS   (the task's own retries)
    SENT or BEGUN -> RETURNED -> QUEUED               (behind a long run of the same Dask task)
    SENT or BEGUN -> CANCELLING -> CANCELLED
    any that is not done -> CANCELLED or CRASHED
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from deepflow.errors import DeepflowError

__all__ = [
    "TABLE",
    "Effect",
    "Event",
    "IllegalMoveError",
    "Life",
    "Loss",
    "Move",
    "RunState",
    "event_of_loss",
]

MAX_SPARED: Final = 10
"""How often a run is sent again without counting it as a failure of its own. Bounded, for a worker
may also die of what comes before a run's beginning."""


class IllegalMoveError(DeepflowError, RuntimeError):
    """The driver did something with a run that cannot be done in the run's state."""


class RunState(Enum):
    """Where a run stands, as its driver knows it."""

    HELD_FOR_INPUTS = "held for its inputs"
    HELD_FOR_PILOT = "held until it is known how to group its map"
    HELD_FOR_RETRY = "held until its retry is due"
    RETURNED = "handed back by its worker, about to be sent elsewhere"
    QUEUED = "in a Dask task that is about to be sent"
    SENT = "in a Dask task that was sent"
    BEGUN = "begun, as far as its worker has said so"
    CANCELLING = "being cancelled on its worker"
    DONE = "done: its worker has reported its end"
    CANCELLED = "done: cancelled, and no worker speaks for it"
    CRASHED = "done: crashed, and no worker speaks for it"

    @property
    def is_done(self) -> bool:
        """Whether the run has its end."""
        return self in _DONE


_DONE: Final = frozenset({RunState.DONE, RunState.CANCELLED, RunState.CRASHED})
_IN_DASK: Final = frozenset({RunState.SENT, RunState.BEGUN, RunState.CANCELLING})


class Event(Enum):
    """What can happen to a run."""

    # What the driver does.
    HOLD_FOR_PILOT = "its map is to be grouped"
    SEND = "it is put into a Dask task"
    SENT = "that Dask task was sent"
    DUE = "the time of its retry has come"
    CANCEL = "somebody wants it cancelled"
    GIVE_UP = "it did not stop in time"
    ABANDON = "nothing will be heard of it any more"
    OVERRULE = "its value turned out not to be had"

    # What its worker reports.
    BEGUN = "it has begun"
    ENDED = "it has ended"
    RETRY = "it is to be tried again later"
    HANDED_BACK = "it had not begun, and its worker is busy with another run of its Dask task"
    DEFERRED = "it could not begin, for an input was not there"

    # What Dask says of its Dask task, as `event_of_loss` takes it.
    LOST_WITH_INPUT = "its Dask task broke, and an input has to be made again"
    LOST_NEARBY = "its Dask task broke, and others are to blame"
    LOST_TO_BLAME = "its Dask task broke, and it may be to blame"
    LOST_BUT_RETRIES = "its Dask task broke for good; the task's own retries apply"
    LOST_FOR_GOOD = "its Dask task broke for good"
    LOST_UNWANTED = "its Dask task broke when it was not wanted any more"


class Effect(Enum):
    """What is to be done about it, in this order."""

    DETACH = "its Dask task is no longer its own"
    LET_GO = "it does not need the result of its Dask task"
    LEAVE_PLAN = "its map may send further runs"
    TRY = "send it when its inputs allow"
    TRY_ONCE_DONE = "send it when its inputs are done"
    WAKE = "call it due at the time of its retry"
    SEND_ELSEWHERE = "send it with the others that were handed back"
    TELL_WORKER = "have its worker stop it"
    TELL_SERVER = "Prefect's server hears of the state that was given here"
    FINISH = "note its end, and call whoever waits for it"
    RELEASE = "runs that wait for it may be sent"
    OVERRULE = "note its other end"
    NOTE_RECOMPUTED = "it was done before, and has run again"


class Move(NamedTuple):
    """What an event does to a run in some state."""

    to: RunState
    effects: tuple[Effect, ...] = ()


_S, _E, _F = RunState, Event, Effect
_OPEN: Final = tuple(state for state in RunState if state not in _DONE)
_HELD: Final = (_S.HELD_FOR_INPUTS, _S.HELD_FOR_PILOT, _S.HELD_FOR_RETRY)

_ENDS: Final = (_F.FINISH, _F.LET_GO, _F.LEAVE_PLAN, _F.RELEASE)
_ENDS_HERE: Final = (_F.TELL_SERVER, *_ENDS)
_GOES_AGAIN: Final = (_F.DETACH, _F.TRY)
_WAITS_AGAIN: Final = (_F.DETACH, _F.TRY_ONCE_DONE)


def _table() -> dict[tuple[RunState, Event], Move]:
    table: dict[tuple[RunState, Event], Move] = {}

    def on(
        event: Event, *states: RunState, to: RunState | None = None, do: tuple[Effect, ...] = ()
    ) -> None:
        for state in states:
            assert (state, event) not in table, (state, event)
            table[state, event] = Move(to or state, do)

    # -- what the driver does: only where it makes sense --------------------------------------
    on(_E.HOLD_FOR_PILOT, _S.HELD_FOR_INPUTS, to=_S.HELD_FOR_PILOT)
    on(_E.SEND, _S.HELD_FOR_INPUTS, _S.HELD_FOR_PILOT, _S.RETURNED, to=_S.QUEUED)
    on(_E.SENT, _S.QUEUED, to=_S.SENT)
    on(_E.DUE, _S.HELD_FOR_RETRY, to=_S.HELD_FOR_INPUTS, do=(_F.TRY,))
    on(_E.DUE, *(set(_S) - {_S.HELD_FOR_RETRY}))  # it has ended meanwhile, or goes already
    on(_E.CANCEL, *_HELD, _S.RETURNED, _S.QUEUED, to=_S.CANCELLED, do=_ENDS_HERE)
    on(_E.CANCEL, *_IN_DASK, to=_S.CANCELLING, do=(_F.TELL_WORKER,))
    on(_E.CANCEL, *_DONE)
    on(_E.GIVE_UP, *_OPEN, to=_S.CANCELLED, do=_ENDS_HERE)
    on(_E.GIVE_UP, *_DONE)
    on(_E.ABANDON, *_OPEN, to=_S.CRASHED, do=_ENDS_HERE)
    on(_E.ABANDON, *_DONE)
    on(_E.OVERRULE, _S.DONE, do=(_F.TELL_SERVER, _F.OVERRULE, _F.LET_GO))

    # -- what its worker reports: in every state, for it may be late ---------------------------
    on(_E.BEGUN, _S.SENT, to=_S.BEGUN)
    on(_E.BEGUN, *(set(_S) - {_S.SENT}))
    on(_E.ENDED, *_OPEN, to=_S.DONE, do=_ENDS)
    on(_E.ENDED, *_DONE, do=(_F.NOTE_RECOMPUTED,))
    on(
        _E.RETRY,
        _S.QUEUED,
        _S.SENT,
        _S.BEGUN,
        to=_S.HELD_FOR_RETRY,
        do=(_F.LEAVE_PLAN, _F.LET_GO, _F.WAKE),
    )
    on(_E.RETRY, _S.CANCELLING, to=_S.CANCELLED, do=_ENDS_HERE)
    on(_E.RETRY, *_HELD, _S.RETURNED, *_DONE)
    on(_E.HANDED_BACK, _S.SENT, _S.BEGUN, to=_S.RETURNED, do=(_F.SEND_ELSEWHERE, _F.LEAVE_PLAN))
    on(_E.HANDED_BACK, _S.CANCELLING, to=_S.CANCELLED, do=_ENDS_HERE)
    on(_E.HANDED_BACK, *_HELD, _S.RETURNED, _S.QUEUED, *_DONE)
    on(_E.DEFERRED, _S.SENT, _S.BEGUN, to=_S.HELD_FOR_INPUTS, do=(_F.LEAVE_PLAN, *_WAITS_AGAIN))
    on(_E.DEFERRED, _S.CANCELLING, to=_S.CANCELLED, do=_ENDS_HERE)
    on(_E.DEFERRED, *_HELD, _S.RETURNED, _S.QUEUED, *_DONE)

    # -- what Dask says of its Dask task --------------------------------------------------------
    for event, to, do in (
        (_E.LOST_WITH_INPUT, _S.HELD_FOR_INPUTS, _WAITS_AGAIN),
        (_E.LOST_NEARBY, _S.HELD_FOR_INPUTS, _GOES_AGAIN),
        (_E.LOST_TO_BLAME, _S.HELD_FOR_INPUTS, _GOES_AGAIN),
        (
            _E.LOST_BUT_RETRIES,
            _S.HELD_FOR_RETRY,
            (_F.TELL_SERVER, _F.LEAVE_PLAN, _F.LET_GO, _F.WAKE),
        ),
        (_E.LOST_FOR_GOOD, _S.CRASHED, _ENDS_HERE),
        (_E.LOST_UNWANTED, _S.CANCELLED, _ENDS_HERE),
    ):
        on(event, _S.QUEUED, _S.SENT, _S.BEGUN, to=to, do=do)
        on(event, _S.CANCELLING, to=_S.CANCELLED, do=_ENDS_HERE)
        on(event, *_HELD, _S.RETURNED, *_DONE)
    return table


TABLE: Final[Mapping[tuple[RunState, Event], Move]] = _table()
"""Every pair that is not here is an illegal move."""


class Life:
    """One run's state, and how often its Dask tasks broke."""

    __slots__ = ("failures", "n_spared", "state")

    def __init__(self) -> None:
        self.state = RunState.HELD_FOR_INPUTS
        self.failures = 0
        """Times that the infrastructure broke the run's Dask task and it may have been to blame."""
        self.n_spared = 0
        """Times that it broke and others were to blame."""

    def handle(self, event: Event) -> tuple[Effect, ...]:
        """Move on; returns what is to be done about it, in order.

        Raises:
            IllegalMoveError: the event makes no sense in this state; nothing has changed.
        """
        move = TABLE.get((self.state, event))
        if move is None:
            raise IllegalMoveError(
                f"a run that is {self.state.value} cannot take this: {event.value}; nothing has "
                "changed. This is a fault of deepflow's: please report it"
            )
        if move.to is not self.state or move.effects:
            if event is Event.LOST_NEARBY:
                self.n_spared += 1
            elif event is Event.LOST_TO_BLAME:
                self.failures += 1
            elif event is Event.LOST_BUT_RETRIES:
                self.failures = self.n_spared = 0
        self.state = move.to
        return move.effects


@dataclass(frozen=True, slots=True)
class Loss:
    """What is known when the infrastructure has broken a run's Dask task."""

    is_unwanted: bool = False
    """The flow is over."""
    is_input_open: bool = False
    """An input is not done: it was lost before."""
    is_input_broken: bool = False
    """A value that the run needs cannot be made."""
    is_nearby: bool = False
    """The run had not begun, or had ended; or it was to begin with an input that was lost."""
    is_hopeless: bool = False
    """Trying again cannot help: there is no scheduler, or its code will not load."""


def event_of_loss(life: Life, loss: Loss, infra_retries: int) -> Event:
    """What a loss is to a run. `infra_retries`: how often it may be to blame and go again.

    A run that was only near is spared. One that may be to blame goes again, alone, as often as
    `infra_retries` allows. Then it is lost for good; where the task has retries of its own that are
    left, the driver makes that `LOST_BUT_RETRIES`.
    """
    if loss.is_unwanted:
        return Event.LOST_UNWANTED
    if loss.is_input_open:
        return Event.LOST_WITH_INPUT
    if not loss.is_input_broken:
        if loss.is_nearby and life.n_spared < MAX_SPARED:
            return Event.LOST_NEARBY
        if life.failures < infra_retries and not loss.is_hopeless:
            return Event.LOST_TO_BLAME
    return Event.LOST_FOR_GOOD
