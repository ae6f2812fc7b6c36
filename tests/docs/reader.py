"""Runs code blocks and commands for the tests, one after the other, in one process.

    python -m tests.docs.reader      # one JSON request a line in, one JSON answer a line out

Importing Prefect and Dask takes seconds, so that a process for each block would take minutes. Code
is run as the main module of a program would be; commands of deepflow by click's own runner.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any


def run_python(name: str, source: str) -> None:
    """Run a program's text as `__main__`."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    before = sys.modules["__main__"]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(compile(source, name, "exec"), main.__dict__)
    finally:
        sys.modules["__main__"] = before


def run_command(arguments: list[str]) -> str:
    """What a command of deepflow prints; `AssertionError` where it ends with another status."""
    from click.testing import CliRunner

    from deepflow.cli import main

    done = CliRunner().invoke(main, arguments, prog_name="deepflow")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"status {done.exit_code}: {done.output}"
    return done.output


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request says, in its folder and with its variables."""
    printed = io.StringIO()
    before = dict(os.environ)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    try:
        with contextlib.redirect_stdout(printed):
            if request["what"] == "python":
                run_python(request["name"], request["source"])
            else:
                printed.write(run_command(request["arguments"]))
    except BaseException:  # noqa: BLE001 - the code of a page may raise anything: it is told
        return {"ok": False, "printed": printed.getvalue(), "error": traceback.format_exc()}
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {"ok": True, "printed": printed.getvalue(), "error": ""}


def main() -> None:
    """Answer until the input ends."""
    # Answers go to the standard output that was there at the beginning; what code prints without
    # asking `sys.stdout` goes to standard error, where it cannot be taken for one.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
