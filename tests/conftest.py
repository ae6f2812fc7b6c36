"""For all tests: what flow runs leave behind goes to a folder of the tests' own, and no luck.

Properties are tried on the same examples in every run, and however long one takes. Files run side
by side in several processes (`make test`), each with a server, clusters and folders of its own; the
files that take longest begin first, so that no process is left alone with one at the end.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests.serving import api, server
from tests.side_by_side import pytest_xdist_make_scheduler

__all__ = ["api", "pytest_xdist_make_scheduler", "server"]

settings.register_profile("deepflow", derandomize=True, deadline=None)
settings.load_profile("deepflow")


LONGEST_FIRST = (
    "test_flows.py",
    "test_prefect_dask_suite.py",
    "test_demo.py",
    "test_benchmarks.py",
    "test_placement_live.py",
    "test_examples.py",
    "test_blocks.py",
)
"""Names of files, by what they take."""


IN_WORKERS = ("numpy", "pandas", "pyarrow", "scipy", "torch", "prefect_dask")
"""Modules that workers have loaded when they start. Not polars: it does not stand being forked."""


def _import_dask() -> None:
    """Import Dask while the root logger has a handler.

    Otherwise Dask takes its log lines to a handler of its own. pytest then hangs its handlers
    there, too, and a cluster with `silence_logs` silences them for the tests of everything else.
    """
    passing = logging.NullHandler()
    logging.getLogger().addHandler(passing)
    importlib.import_module("distributed.deploy.local")
    logging.getLogger().removeHandler(passing)


# Before the conftest of any folder imports it.
_import_dask()


def pytest_configure() -> None:
    """Let the processes that run side by side name their tests alike, also those made of sets.

    Also let clusters in these processes, whoever makes them, fork their workers as ours do: to
    spawn one costs seconds of the processor for its imports.
    """
    os.environ.setdefault("PYTHONHASHSEED", "0")
    import distributed.deploy.local

    from deepflow.backend.clusters import warm

    if warm.is_possible():
        warm.preload(IN_WORKERS)
        distributed.deploy.local.Nanny = warm.WarmNanny  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, in their order; the others keep theirs."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Let a report pass from process to process whose captured text is not UTF-8."""
    return _as_utf8((yield))


def _as_utf8(data: object) -> object:
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(data, dict):
        return {_as_utf8(name): _as_utf8(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(map(_as_utf8, data))
    return data


@pytest.fixture(scope="session", autouse=True)
def _state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """History and journals in a temporary folder, also those of processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        assert os.environ["DEEPFLOW_STATE_DIR"]
        yield
