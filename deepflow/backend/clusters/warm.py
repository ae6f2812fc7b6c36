"""Worker processes that begin with their libraries imported.

A worker that is spawned imports Prefect, Dask and what its tasks use: seconds of processor time for
each. Here, on Linux, one process imports them once (Python's forkserver), and each worker is a fork
of it, with the libraries' memory shared. Forking is safe there: that process has run nothing but
imports. It ends with the process that started it.

A fork inherits what a spawned worker would not. That is set right in each worker before its first
task: the environment and Prefect's settings are those of the process that starts the worker, as of
that moment, and random numbers begin anew (Dask seeds NumPy's; Python seeds its own).

What Dask takes for a worker's memory includes the libraries that it was forked with: 106 MB at the
start (119 when spawned, where nothing is shared), 259 where the starting process has imported
PyTorch and pandas, of which 94 are the worker's own. `DEEPFLOW_PRELOAD=off` is for workers with
little memory whose tasks do not need what the starting process uses.

`backend/contract.py` lists the private parts of Dask's nanny that are used; where one is not as
expected, workers are spawned.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import dask
import distributed.utils
from distributed import Nanny, Worker
from distributed.core import Status

from deepflow.backend.contract import FORKED_WORKERS, may_use

__all__ = ["WarmNanny", "dask_setup", "is_possible", "preload"]

_METHOD: Final = "distributed.worker.multiprocessing-method"
_ENVIRONMENT: Final = "deepflow-environment"
"""Where a worker's configuration has the environment that it is to have."""
_ALWAYS: Final = (
    "distributed",
    "distributed.http.worker",
    "prefect",
    "prefect.flow_engine",
    "prefect.task_engine",
    "deepflow",
    "deepflow.backend.clusters.warm",
    "deepflow.runner.worker.execute",
    "deepflow.runner.worker.plugin",
)
_IF_IN_USE: Final = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "torch", "xarray", "PIL")
"""Loaded beforehand where the starting process has loaded them; all are safe to fork when idle."""
LEAST_MEMORY_BYTES: Final = 1 << 30
"""A worker with less is not forked: what it has from its parent counts as its own, some hundreds of
megabytes with torch, and Dask would pause it for good before its first task."""
_wanted: Final[dict[str, None]] = {}
"""What was asked for in this process, in order: there is one process to fork from."""


def is_possible() -> bool:
    """Whether workers can be forked here. Elsewhere than on Linux, libraries break in a fork."""
    return sys.platform == "linux" and may_use(FORKED_WORKERS)


def preload(modules: Sequence[str] = ()) -> None:
    """Have these modules imported by the process that workers are forked from.

    They are added to what was asked for before. Once that process runs, the call has no effect.
    Workers import for themselves what that process cannot import.
    """
    in_use = [name for name in _IF_IN_USE if name in sys.modules]
    distributed.utils._forkserver_preload_set = True
    for name in (*_ALWAYS, *in_use, *modules):
        _wanted.setdefault(name)
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_wanted))


class _Forking:
    """Has Dask fork while any worker is being started; then it does what it was set to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_starting = 0
        self._before: Any = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        with self._lock:
            if not self._n_starting:
                self._before = dask.config.get(_METHOD)
                dask.config.set({_METHOD: "forkserver"})
            self._n_starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_starting -= 1
                if not self._n_starting:
                    dask.config.set({_METHOD: self._before})


_forking = _Forking()


class WarmNanny(Nanny):
    """A nanny whose worker is forked from the process that has the libraries loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        theirs, argv = self.preload or [], self.preload_argv
        self.preload = [__name__, *([theirs] if isinstance(theirs, str) else theirs)]
        if argv and not isinstance(argv[0], str):
            self.preload_argv = [[], *argv]  # one for each module; else one for them all

    async def instantiate(self) -> Status:
        """Start the worker; it begins with this process's environment of now."""
        environment = {**os.environ, **self.pre_spawn_env, **self.env}
        self.config[_ENVIRONMENT] = environment
        if self.process is not None:  # it has a copy of the configuration, and starts again
            self.process.config[_ENVIRONMENT] = environment
        limit_bytes = self.memory_manager.memory_limit
        if limit_bytes and limit_bytes < LEAST_MEMORY_BYTES:
            return await super().instantiate()
        with _forking.in_force():
            return await super().instantiate()


def dask_setup(worker: Worker) -> None:
    """Called by Dask in a worker process before it joins: make up for having been forked."""
    environment = dask.config.config.pop(_ENVIRONMENT, None)  # not for others to read there
    if environment is not None:
        take_environment(environment)


def take_environment(environment: Mapping[str, str]) -> None:
    """Make these the variables of this process, and have Prefect read its settings from them."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    importlib.import_module("prefect.context").refresh_global_settings_context()
