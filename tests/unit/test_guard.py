"""Which scripts would be run again by the workers that they start."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import pytest

from deepflow.backend.clusters.guard import refuse_unguarded_flow, refuse_unguarded_script
from deepflow.errors import ConfigurationError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a script as `__main__`, with the refusing functions at hand as `start` and `make`."""

    def run_script(text: str) -> None:
        path = tmp_path / "script.py"
        path.write_text(text)
        main = ModuleType("__main__")
        main.__dict__.update(
            __file__=str(path),
            __spec__=None,
            start=refuse_unguarded_script,
            make=refuse_unguarded_flow,
            flow=lambda _: lambda function: function,
        )
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(compile(text, str(path), "exec"), main.__dict__)

    return run_script


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("start()", 1),
        ("def main():\n    start()\nmain()", 3),
        ("with open(__file__):\n    for _ in range(2):\n        start()", 3),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    start()", 4),
        ("import threading\nt = threading.Thread(target=start)\nstart()", 3),
    ],
)
def test_a_line_under_no_condition_is_told(run: Any, script: str, line: int) -> None:
    with pytest.raises(ConfigurationError, match=f"script.py .* in line {line}, outside of"):
        run(script)


@pytest.mark.parametrize(
    "script",
    [
        'if __name__ == "__main__":\n    start()',
        'def main():\n    start()\nif __name__ == "__main__":\n    main()',
        "import os\nif os.environ:\n    start()",  # nobody knows what it is in a worker
        "match 1:\n    case 1:\n        start()",
    ],
)
def test_a_line_under_a_condition_is_not(run: Any, script: str) -> None:
    run(script)


def test_workers_that_are_forked_import_nothing(run: Any) -> None:
    with dask.config.set({"distributed.worker.multiprocessing-method": "fork"}):
        run("start()")


def test_what_is_no_script_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unguarded_script()  # under pytest
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(
        compile("start()", "<cell>", "exec"),
        {**notebook.__dict__, "start": refuse_unguarded_script},
    )


def test_a_worker_that_imports_the_script_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ConfigurationError, match="while a worker process of its own imports it"):
        refuse_unguarded_script()


FLOW = "@flow(make())\ndef nightly():\n    pass\n"


@pytest.mark.parametrize(
    "call", ["nightly()", "print(nightly())", "for i in (1, 2):\n    nightly()"]
)
def test_a_flow_that_is_called_further_down_is_told_when_its_runner_is_made(
    run: Any, call: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"script\.py runs the flow 'nightly' in line"):
        run(FLOW + call)


@pytest.mark.parametrize(
    "call",
    [
        'if __name__ == "__main__":\n    nightly()',
        "def other():\n    nightly()",
        "later = lambda: nightly()",
        "nightly",
        "other = make()",
    ],
)
def test_a_flow_that_is_not_called_there_is_not(run: Any, call: str) -> None:
    run(FLOW + call)
