"""Every row of the table of a run's life is needed: a test fails where one is another.

    python -m pytest -s -m slow tests/property/test_lifecycle_mutations.py

Each row in turn is left out, leads elsewhere, and loses each of its effects. Two kinds of tests
have to notice, each for itself: the table as a person writes it down
(`tests/unit/test_lifecycle.py`), and what a dispatcher does (`tests/unit/test_driver.py` and
`test_run_orders.py`). Of rows that change nothing (what comes too late) a dispatcher may
show nothing.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test

from deepflow.runner.driver import lifecycle
from deepflow.runner.driver.lifecycle import Event, Move, RunState
from tests.property.test_run_orders import Orders
from tests.unit import test_driver, test_lifecycle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

Row = tuple[RunState, Event]
TABLE: dict[Row, Move] = lifecycle.TABLE  # type: ignore[assignment]  # a dict, for those who read


def mutants() -> Iterator[tuple[Row, Move | None]]:
    """Each row with what stands there instead; None: it is left out."""
    for row, move in list(TABLE.items()):
        yield row, None
        elsewhere = (
            RunState.HELD_FOR_INPUTS if move.to is not RunState.HELD_FOR_INPUTS else RunState.SENT
        )
        yield row, Move(elsewhere, move.effects)
        for i in range(len(move.effects)):
            yield row, Move(move.to, move.effects[:i] + move.effects[i + 1 :])


def is_noticed_in_the_table() -> bool:
    """Whether the table as a person writes it down is another one."""
    for state, event in itertools.product(RunState, Event):
        move = TABLE.get((state, event))
        if (None if move is None else tuple(move)) != test_lifecycle.expected(state, event):
            return True
    return False


def is_noticed_by_a_dispatcher() -> bool:
    """Whether a dispatcher does something wrong."""
    for name, test in vars(test_driver).items():
        if name.startswith("test_") and not inspect.signature(test).parameters:
            try:
                test()
            except Exception:  # noqa: BLE001 - whatever it is, it is noticed
                return True
    some = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[p for p in settings.default.phases if p.name == "generate"],
    )
    try:
        run_state_machine_as_test(Orders, settings=some)
    except HypothesisException:
        raise
    except Exception:  # noqa: BLE001 - as above
        return True
    return False


def changes_nothing(row: Row, move: Move) -> bool:
    """Whether the row is there for what comes too late."""
    return move.to is row[0] and not move.effects


def test_each_row_is_missed_when_it_is_another(capsys: Any) -> None:
    logging.disable(logging.CRITICAL)
    unnoticed: list[str] = []
    silent: list[str] = []
    n = 0
    try:
        assert not is_noticed_in_the_table()
        assert not is_noticed_by_a_dispatcher()
        for row, mutant in list(mutants()):
            original = TABLE[row]
            n += 1
            try:
                if mutant is None:
                    del TABLE[row]
                else:
                    TABLE[row] = mutant
                words = f"{row[0].name} x {row[1].name}: {original} as {mutant}"
                if not is_noticed_in_the_table():
                    unnoticed.append(words)
                if not changes_nothing(row, original) and not is_noticed_by_a_dispatcher():
                    silent.append(words)
            finally:
                TABLE[row] = original
    finally:
        logging.disable(logging.NOTSET)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{n} mutants; not noticed in the table: {len(unnoticed)}; by no dispatcher: "
            f"{len(silent)}\n" + "".join(f"  {words}\n" for words in silent)
        )
    assert unnoticed == []
    assert len(silent) <= ALLOWED_SILENT


ALLOWED_SILENT = 0
"""Mutants of which a dispatcher on the fake cluster shows nothing."""
