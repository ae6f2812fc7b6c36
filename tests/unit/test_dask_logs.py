"""Dask's own lines are silent below WARNING, whatever is imported first, unless somebody asks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import dask
import distributed
import pytest
from distributed.deploy.spec import SpecCluster

from deepflow.backend import dask_logs
from deepflow.backend.dask_logs import are_dask_logs_wanted, quiet_dask_logs, quiet_worker

RUNNER = "from deepflow import DeepflowTaskRunner"
ASK = 'import logging; print(logging.getLogger("distributed.scheduler").getEffectiveLevel())'


@pytest.mark.parametrize(
    "order",
    [
        ("import prefect", "import distributed", RUNNER),
        ("import distributed", "import prefect", RUNNER),
        ("import deepflow", "import distributed", "deepflow.DeepflowTaskRunner", "import prefect"),
    ],
    ids=["prefect first", "distributed first", "deepflow first"],
)
def test_the_order_of_imports_changes_nothing(order: tuple[str, ...]) -> None:
    environment = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("PREFECT_", "DASK_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*order, ASK])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{logging.WARNING}\n", done.stderr


@pytest.fixture
def dask_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Dask's logger as it is after `import distributed`, in a process without any server."""
    logger, root = logging.getLogger("distributed"), logging.getLogger()
    levels = logger.level, root.level
    logger.setLevel(logging.INFO)
    root.setLevel(logging.WARNING)
    monkeypatch.setattr(dask_logs, "_own_level", logging.INFO)
    for kind in (distributed.Scheduler, distributed.Worker, distributed.Nanny, SpecCluster):
        monkeypatch.setattr(kind, "_instances", [])
    monkeypatch.delenv("PREFECT_LOGGING_EXTRA_LOGGERS", raising=False)
    try:
        yield logger
    finally:
        logger.setLevel(levels[0])
        root.setLevel(levels[1])


def test_where_nobody_has_said_anything_dask_is_silent_below_warning(
    dask_logger: logging.Logger,
) -> None:
    quiet_dask_logs()
    assert dask_logger.level == logging.WARNING
    assert not are_dask_logs_wanted()
    quiet_dask_logs()
    assert dask_logger.level == logging.WARNING


@pytest.mark.parametrize(
    "key", ["logging", "distributed.logging", "logging-file-config"], ids=lambda key: key
)
def test_dasks_own_configuration_of_its_log_holds(dask_logger: logging.Logger, key: str) -> None:
    with dask.config.set({key: {"distributed": "info"}}):
        assert are_dask_logs_wanted()
        quiet_dask_logs()
    assert dask_logger.level == logging.INFO


def test_the_variable_that_the_docs_name_is_dasks_own() -> None:
    found = dask.config.collect_env({"DASK_LOGGING__DISTRIBUTED": "info"})
    assert found == {"logging": {"distributed": "info"}}


@pytest.mark.parametrize("names", ["distributed", "mine, distributed.scheduler"])
def test_who_has_prefect_send_dasks_lines_to_the_ui_gets_them(
    dask_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", names)
    quiet_dask_logs()
    assert dask_logger.level == logging.INFO


def test_who_wants_info_of_everything_gets_dasks_too(dask_logger: logging.Logger) -> None:
    logging.getLogger().setLevel(logging.INFO)
    quiet_dask_logs()
    assert dask_logger.level == logging.INFO


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
def test_a_level_that_was_set_before_holds(dask_logger: logging.Logger, level: int) -> None:
    dask_logger.setLevel(level)
    quiet_dask_logs()
    assert dask_logger.level == level


def test_a_level_that_is_set_later_holds(dask_logger: logging.Logger) -> None:
    quiet_dask_logs()
    dask_logger.setLevel(logging.INFO)
    assert are_dask_logs_wanted()
    quiet_dask_logs()
    assert dask_logger.level == logging.INFO


def test_a_worker_that_somebody_started_logs_as_dask_does(
    dask_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `dask worker`: a worker is there, and no cluster object that has made it."""
    monkeypatch.setattr(distributed.Worker, "_instances", ["a worker"])
    quiet_dask_logs()
    assert dask_logger.level == logging.INFO
    monkeypatch.setattr(SpecCluster, "_instances", ["a cluster"])
    quiet_dask_logs()
    assert dask_logger.level == logging.WARNING


def test_a_worker_is_quiet_unless_it_is_set_up_to_log(dask_logger: logging.Logger) -> None:
    quiet_worker()
    assert dask_logger.level == logging.WARNING
    dask_logger.setLevel(logging.DEBUG)
    quiet_worker()
    assert dask_logger.level == logging.DEBUG
