"""Prefect imports every collection at server start: `import deepflow` must cost next to nothing."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "dask", "distributed", "prefect", "pandas", "numpy", "pydantic", "click", "rich")
MAX_IMPORT_MS = 50.0
N_RUNS = 5
RETRY_FOR_S = 20.0

REFERENCE = "asyncio"
"""A package of the standard library that takes somewhat longer; it slows down as deepflow does."""
MAX_REFERENCES = 1.5
"""On a machine that stays loaded: the most imports of the reference that one of deepflow costs."""


def modules_loaded_by(statement: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after `statement`."""
    code = (
        f"{statement}\nimport sys, json\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def cumulative_import_ms(module: str) -> float:
    """Milliseconds that `import module` takes in a fresh interpreter, its own imports included.

    Read from `-X importtime`, so interpreter start, `site` and scheduling before the import do
    not count.
    """
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = re.compile(rf"^import time:\s*\d+ \|\s*(\d+) \| {re.escape(module)}$")
    found = [m for m in map(line.match, done.stderr.splitlines()) if m]
    assert len(found) == 1, done.stderr[-2000:]
    return int(found[0].group(1)) / 1000


def test_importing_deepflow_loads_nothing_heavy() -> None:
    loaded = modules_loaded_by("import deepflow")
    assert "deepflow" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("room", ["deepflow.errors", "deepflow.hints"])
def test_rooms_that_everything_imports_load_nothing_heavy(room: str) -> None:
    assert not modules_loaded_by(f"import {room}") & set(HEAVY)


def test_the_deciding_core_loads_no_dask_no_prefect_and_no_torch() -> None:
    loaded = modules_loaded_by(
        "import importlib, pkgutil, deepflow.decide as room\n"
        "for found in pkgutil.walk_packages(room.__path__, 'deepflow.decide.'):\n"
        "    importlib.import_module(found.name)"
    )
    assert not loaded & {"torch", "dask", "distributed", "prefect"}


def test_importing_deepflow_takes_under_fifty_milliseconds() -> None:
    """The median of several fresh processes is below the limit; a loaded machine is asked again.

    Where the machine stays loaded, the quickest import of deepflow seen is held against the
    quickest one seen, in turn with it, of a standard library package.
    """
    costs_ms: list[float] = []
    references_ms: list[float] = []
    deadline_s = time.monotonic() + RETRY_FOR_S
    while True:
        for _ in range(N_RUNS):
            costs_ms.append(cumulative_import_ms("deepflow"))
            references_ms.append(cumulative_import_ms(REFERENCE))
        if statistics.median(costs_ms[-N_RUNS:]) < MAX_IMPORT_MS:
            return
        if time.monotonic() >= deadline_s:
            break
    best_ms, reference_ms = min(costs_ms), min(references_ms)
    assert best_ms < max(MAX_IMPORT_MS, MAX_REFERENCES * reference_ms), (
        f"`import deepflow` takes {best_ms:.0f} ms at best, `import {REFERENCE}` "
        f"{reference_ms:.0f} ms at best; all: {costs_ms}"
    )
