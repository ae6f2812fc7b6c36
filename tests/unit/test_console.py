"""A terminal is spared the lines of task runs that went well, where nobody has asked for them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from distributed import LocalCluster
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_LOGGING_LEVEL, temporary_settings

from deepflow.backend.clusters.local import UnlikeWorkersCluster
from deepflow.runner.console import are_successes_wanted, leave_out_successes

COMPLETED = "Finished in state Completed()"


@pytest.fixture
def terminal() -> Iterator[io.StringIO]:
    """What Prefect's console handler prints, on a root logger with that handler alone."""
    root = logging.getLogger()
    before = root.handlers[:]
    printed = io.StringIO()
    root.handlers[:] = [PrefectConsoleHandler(stream=printed)]  # type: ignore[arg-type]
    try:
        yield printed
    finally:
        root.handlers[:] = before


def say(logger: str, level: int, text: str) -> None:
    """Straight to the root's handlers, whatever levels and other handlers the loggers have."""
    record = logging.LogRecord(logger, level, __file__, 1, text, (), None)
    logging.getLogger().handle(record)


def test_a_worker_that_the_driver_started_prints_no_successes(terminal: io.StringIO) -> None:
    leave_out_successes()
    say("prefect.task_runs", logging.INFO, COMPLETED)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("logger", "level", "text"),
    [
        ("prefect.task_runs", logging.ERROR, "Finished in state Failed('no')"),
        ("prefect.task_runs", logging.INFO, "Finished in state Cached(type=COMPLETED)"),
        ("prefect.task_runs", logging.INFO, "said by the task"),
        ("prefect.flow_runs", logging.INFO, COMPLETED),
        ("mine", logging.INFO, COMPLETED),
    ],
)
def test_all_else_is_printed(terminal: io.StringIO, logger: str, level: int, text: str) -> None:
    leave_out_successes()
    say(logger, level, text)
    assert text in terminal.getvalue()


def test_asked_twice_it_is_done_once(terminal: io.StringIO) -> None:
    leave_out_successes()
    leave_out_successes()
    (handler,) = [
        one for one in logging.getLogger().handlers if isinstance(one, PrefectConsoleHandler)
    ]
    assert len(handler.filters) == 1


def test_who_configures_prefects_logging_sees_all_lines() -> None:
    cluster = Mock(spec=LocalCluster)
    assert not are_successes_wanted(cluster)
    with temporary_settings({PREFECT_LOGGING_LEVEL: "INFO"}):
        assert are_successes_wanted(cluster)


def test_workers_that_the_driver_has_not_started_print_all() -> None:
    assert are_successes_wanted(None)  # reached by its address
    assert are_successes_wanted(object())  # of a class that starts workers elsewhere
    assert not are_successes_wanted(Mock(spec=UnlikeWorkersCluster))
