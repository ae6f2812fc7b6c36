"""Every row of the table of a run's life is needed: a test fails where one is another.

Each row in turn is left out, leads elsewhere, and loses each of its effects; the table as a person
writes it down (`tests/unit/test_lifecycle.py`) has to tell each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from deepflow.runner.driver import lifecycle
from deepflow.runner.driver.lifecycle import Event, Move, RunState
from tests.unit import test_lifecycle

Row = tuple[RunState, Event]
TABLE: dict[Row, Move] = lifecycle.TABLE  # type: ignore[assignment]  # a dict, for those who read


def mutants() -> Iterator[tuple[Row, Move | None]]:
    """Each row with what stands there instead; None: it is left out."""
    for row, move in list(TABLE.items()):
        yield row, None
        for state in RunState:
            if state is not move.to:
                yield row, Move(state, move.effects)
        for i in range(len(move.effects)):
            yield row, Move(move.to, move.effects[:i] + move.effects[i + 1 :])


def is_noticed() -> bool:
    """Whether the table as a person writes it down is another one."""
    for state, event in itertools.product(RunState, Event):
        move = TABLE.get((state, event))
        if (None if move is None else tuple(move)) != test_lifecycle.expected(state, event):
            return True
    return False


def test_each_row_is_missed_when_it_is_another() -> None:
    assert not is_noticed()
    for row, mutant in list(mutants()):
        original = TABLE[row]
        try:
            if mutant is None:
                del TABLE[row]
            else:
                TABLE[row] = mutant
            assert is_noticed(), f"{row[0].name} x {row[1].name}: {original} as {mutant}"
        finally:
            TABLE[row] = original
