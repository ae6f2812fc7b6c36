"""Scripts that would start themselves again in each of their workers.

A worker process that is spawned imports the script that started it. Where the script runs its flow
outside of `if __name__ == "__main__":`, each worker begins with running the flow, fails to start,
and is started again, for minutes and a thousand lines. Here that is told before any is started.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Final

import dask

from deepflow.errors import ConfigurationError

__all__ = ["refuse_unguarded_flow", "refuse_unguarded_script"]

_REMEDY: Final = 'put the call under `if __name__ == "__main__":`'


def refuse_unguarded_script() -> None:
    """Raise :class:`ConfigurationError` where workers would run the calling script again.

    Only for what is certain: a script whose file can be read, in the middle of a statement that is
    under no condition. Of a worker that got here all the same it is told there.
    """
    main = sys.modules.get("__main__")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigurationError(
            f"{getattr(main, '__file__', 'this script')} starts a cluster while a worker process "
            f"of its own imports it; {_REMEDY}, so that workers do not run it again"
        )
    if main is None or not _is_imported_by_workers(main):
        return
    line = _line_of(main)
    path = Path(str(main.__file__))
    if line is None or _is_conditional(path, line):
        return
    raise ConfigurationError(
        f"{path.name} starts a cluster of processes in line {line}, outside of "
        f'`if __name__ == "__main__":`. Each worker process imports the script, so it would run '
        f"that line again; {_REMEDY}"
    )


def refuse_unguarded_flow() -> None:
    """As the above, and before the flow begins: to be called where a runner is made that will start
    processes, in the decorator of a flow that the script calls further down without condition.
    """
    main = sys.modules.get("__main__")
    if main is None or not _is_imported_by_workers(main):
        return
    line = _line_of(main)
    path = Path(str(main.__file__))
    tree = _parsed(path) if line is not None else None
    if tree is None or line is None:
        return
    flow = next((one.name for one in _functions(tree) if _is_in_decorator(one, line)), None)
    for call in _calls(tree, flow) if flow is not None else ():
        if not _is_conditional(path, call.lineno):
            raise ConfigurationError(
                f"{path.name} runs the flow {flow!r} in line {call.lineno}, outside of "
                '`if __name__ == "__main__":`. The processes of an embedded cluster import the '
                f"script, so each would run the flow again; {_REMEDY}"
            )


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [one for one in tree.body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _is_in_decorator(function: ast.FunctionDef | ast.AsyncFunctionDef, line: int) -> bool:
    return any(one.lineno <= line <= (one.end_lineno or 0) for one in function.decorator_list)


def _calls(tree: ast.Module, name: str) -> list[ast.Call]:
    """Calls of a function by its name, in statements that are run when the module is."""
    found = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            found.append(node)
        waiting += ast.iter_child_nodes(node)
    return found


def _is_imported_by_workers(main: ModuleType) -> bool:
    """As `multiprocessing.spawn` decides it."""
    if dask.config.get("distributed.worker.multiprocessing-method", "spawn") == "fork":
        return False
    if getattr(main, "__file__", None) is None:
        return False  # a notebook, or python -c
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return not spec.name.endswith("__main__")
    return os.path.splitext(os.path.basename(str(main.__file__)))[0] != "ipython"


def _line_of(main: ModuleType) -> int | None:
    """The line of the main module that is being run; None where it is none."""
    stacks: list[FrameType | None] = [sys._getframe()]
    main_thread = threading.main_thread().ident
    if main_thread is not None and main_thread != threading.get_ident():
        stacks.append(sys._current_frames().get(main_thread))
    for frame in stacks:
        while frame is not None:
            if (
                frame.f_globals is main.__dict__
                and frame.f_code.co_name == "<module>"
                and Path(frame.f_code.co_filename).name == Path(str(main.__file__)).name
            ):
                return frame.f_lineno
            frame = frame.f_back
    return None


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _is_conditional(path: Path, line: int) -> bool:
    """Whether a line of a file is under any condition, or nothing is known of it."""
    tree = _parsed(path)
    if tree is None:
        return True
    statements: Iterable[ast.stmt] = tree.body
    while True:
        within = [one for one in statements if one.lineno <= line <= (one.end_lineno or one.lineno)]
        if not within:
            return False
        statement = within[0]
        if isinstance(statement, (ast.If, ast.Match)):
            return True
        inner = [
            child
            for name in ("body", "orelse", "finalbody")
            for child in getattr(statement, name, [])
        ]
        inner += [child for handler in getattr(statement, "handlers", []) for child in handler.body]
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return False
        statements = inner
