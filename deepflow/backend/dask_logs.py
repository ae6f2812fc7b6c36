"""Dask's own log lines: silent below WARNING, unless somebody has asked for them.

`distributed` sets its logger to INFO when it is imported. If Prefect was imported before it, every
line then goes through Prefect's handler to the terminal; otherwise through a handler of Dask's
own. So what a flow run printed depended on the order of two imports. Here that level is raised
once, when the runner is imported, and only where nobody has configured it:

- Dask's configuration has no `logging` (`DASK_LOGGING__DISTRIBUTED=info`, or a file of Dask's);
- Prefect's `PREFECT_LOGGING_EXTRA_LOGGERS` does not name `distributed`;
- the root logger is above INFO, and the level of `distributed` is the one Dask gave it.

A level that is set later, by `logging.getLogger("distributed").setLevel(...)`, stays as well.
"""

from __future__ import annotations

import logging
import os
from typing import Final

import dask
import distributed  # gives its logger the level that is looked at here
from distributed.deploy.spec import SpecCluster

from deepflow.backend.contract import QUIET_LOGS, may_use

__all__ = ["are_dask_logs_wanted", "quiet_dask_logs", "quiet_worker"]

_LOGGER: Final = "distributed"
_PREFECT_VARIABLE: Final = "PREFECT_LOGGING_EXTRA_LOGGERS"
_own_level = logging.INFO
"""The level of Dask's logger that nobody has chosen: Dask's default, and then ours."""


def quiet_dask_logs() -> None:
    """Raise the level of Dask's logger to WARNING, where nobody has configured it.

    Does nothing in the process of a scheduler or worker that somebody started by itself (`dask
    worker`): its lines go to that somebody's terminal or file.
    """
    global _own_level
    if not are_dask_logs_wanted() and not _is_a_server_of_its_own():
        _own_level = logging.WARNING
        logging.getLogger(_LOGGER).setLevel(_own_level)


def are_dask_logs_wanted() -> bool:
    """Whether somebody has said how much Dask is to log, here or for the whole process."""
    for config in (dask.config.config, dask.config.config.get("distributed", {})):
        if "logging" in config or "logging-file-config" in config:
            return True
    extra = os.environ.get(_PREFECT_VARIABLE, "").split(",")
    if any(name.strip().partition(".")[0] == _LOGGER for name in extra):
        return True
    if logging.getLogger().level <= logging.INFO:
        return True
    return logging.getLogger(_LOGGER).level != _own_level


def _is_a_server_of_its_own() -> bool:
    """Whether Dask servers run here that no cluster object of this process has made.

    True where that cannot be seen: then Dask's level stays.
    """
    if not may_use(QUIET_LOGS):
        return True
    servers = (distributed.Scheduler, distributed.Worker, distributed.Nanny)
    has_server = any(len(kind._instances) for kind in servers)
    return has_server and not len(SpecCluster._instances)


def quiet_worker() -> None:
    """As `quiet_dask_logs`, in a worker whose driver has started it and wants it quiet."""
    if not are_dask_logs_wanted():
        logging.getLogger(_LOGGER).setLevel(logging.WARNING)
