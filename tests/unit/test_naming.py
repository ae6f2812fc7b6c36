"""The driver tells which task runs went under which Dask key, and how they are called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from deepflow.decide.events import TasksNamed
from deepflow.runner.driver import naming
from deepflow.runner.driver.naming import RunNames
from deepflow.runner.wire import EventRecord


def item(name: str) -> Any:
    return SimpleNamespace(run_id=uuid4(), name=name)


def record(run_id: UUID, name: str) -> EventRecord:
    return EventRecord(run_id, None, "COMPLETED", "Completed", (), b"{", name)


def test_runs_are_told_by_key_under_the_names_that_workers_gave_them() -> None:
    names, a, b = RunNames(), item("load-0"), item("load-1")
    names.sent("load-0-key", [a, b])
    names.heard([record(b.run_id, "load-of-monday"), record(a.run_id, "")])
    names.sent("load-1-key", [b])  # sent again, after its worker was lost
    assert [(one.key, one.runs) for one in names.events()] == [
        ("load-0-key", ((str(a.run_id), "load-0"), (str(b.run_id), "load-of-monday"))),
        ("load-1-key", ((str(b.run_id), "load-of-monday"),)),
    ]


def test_what_was_submitted_inside_tasks_gets_the_names_that_the_driver_has_heard() -> None:
    names, run_id = RunNames(), uuid4()
    names.heard([record(run_id, "half-of-8")])
    nested = TasksNamed(1.0, "half-0-key", ((str(run_id), "half-0"),))
    (told,) = names.corrected([nested])
    assert told.runs == ((str(run_id), "half-of-8"),)


def test_a_run_of_very_many_tasks_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_MAX_RUNS", 3)
    names = RunNames()
    for i in range(10):
        one = item(f"a-{i}")
        names.sent(f"key-{i}", [one])
        names.heard([record(one.run_id, "named")])
    assert [one.key for one in names.events()] == ["key-0", "key-1", "key-2"]
