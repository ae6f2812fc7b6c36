"""What workers report: one that is odd keeps no other back, and its run gets its end."""

from __future__ import annotations

import logging
from typing import Any, cast
from uuid import UUID, uuid4

from prefect.client.schemas.objects import State

from deepflow.observe import metrics
from deepflow.runner.driver.reports import Reports
from deepflow.runner.wire import Message, OutcomeReport
from tests.unit.test_board import Board, item

LOGGER = logging.getLogger("deepflow.tests")


class _Settling:
    """Ends items; chokes on the reports of some."""

    def __init__(self, odd: UUID) -> None:
        self.odd = odd
        self.finished: list[UUID] = []
        self.crashed: list[tuple[UUID, str]] = []

    def finish(self, of: Any, blob: bytes | None, state_type: str) -> None:
        if of.run_id == self.odd:
            raise ValueError("no such thing")
        self.finished.append(of.run_id)

    def settle_here(self, of: Any, state: State[Any]) -> None:
        self.crashed.append((of.run_id, f"{state.name}: {state.message}"))


def test_one_odd_report_keeps_no_other_back_and_its_run_gets_its_end() -> None:
    board = Board(LOGGER)
    items = [item(board) for _ in range(3)]
    settling = _Settling(items[1].run_id)
    nothing = cast(Any, None)
    reports = Reports(
        *(nothing, board, nothing, nothing, nothing, cast(Any, settling), nothing, None, nothing),
        events_topic="topic",
    )
    before = metrics.value("deepflow_fallbacks_total", kind="service_fault")
    outcomes = tuple(OutcomeReport(one.run_id, "done", b"", "COMPLETED", 0.1) for one in items)
    reports._take(Message("worker", "topic", (*outcomes, *_unknown()), (), 0))
    assert settling.finished == [items[0].run_id, items[2].run_id]
    ((crashed, why),) = settling.crashed
    assert crashed == items[1].run_id
    assert why.startswith("Crashed: ")
    assert "ValueError" in why
    assert metrics.value("deepflow_fallbacks_total", kind="service_fault") == before + 1
    assert reports.wait_for({"worker": 1}, 0.0), "the message counts as taken in"


def _unknown() -> tuple[OutcomeReport, ...]:
    return (OutcomeReport(uuid4(), "returned", None, "", 0.0),)
