"""Run one task in a process of its own, which can be killed.

`hints(isolate=True)`: the user's function runs in a fresh interpreter; the worker's thread waits
for it and kills it at the task's timeout or when the run is cancelled. The process gets the
run's contexts, so loggers and runtime values work inside. It leads a session of its own, and is
killed together with what it has started; what a function leaves behind when it returns is left.

The child is this module: `python -m deepflow.runner.worker.isolated`, a pickled call on standard
input, the pickled outcome on a pipe of its own (what the user prints stays on standard output).
Standard input stays open for as long as the worker lives, so that the child sees it die and dies,
too.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle

from deepflow.backend.contract import LAST_LINES, may_use
from deepflow.errors import IsolatedProcessError

if TYPE_CHECKING:
    from prefect.tasks import Task

    from deepflow.runner.worker.engine import Seat

_BEGUN = b"!"
"""What the child writes first: it is ready to call the user's function."""


def call_isolated(
    task: Task[Any, Any], parameters: dict[str, Any], timeout_s: float | None, seat: Seat
) -> Any:
    """Call `task.fn(**parameters)` in a process of its own and return its value.

    Raises:
        TaskRunTimeoutError: no result `timeout_s` seconds after the function was called; the
            process was killed.
        IsolatedProcessError: the process died without an answer (its exit status is named).
        Exception: whatever the function raised.
    """
    from prefect.context import serialize_context
    from prefect.task_engine import TaskRunTimeoutError

    from deepflow.runner.worker.engine import CANCELLED_MESSAGE, Interrupted

    call = cloudpickle.dumps((task.fn, parameters, serialize_context(), sys.path))
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as answers:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepflow.runner.worker.isolated", str(write_fd)],
            stdin=subprocess.PIPE,
            pass_fds=(write_fd,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        os.close(write_fd)
        expired = threading.Event()
        kill = partial(_kill, process)

        def expire() -> None:
            expired.set()
            kill()

        timer = threading.Timer(timeout_s, expire) if timeout_s is not None else None
        answer: bytes | None = None
        try:
            with seat.interruptible(kill):
                _send(process, call)
                # The time that its interpreter takes to start is not the task's.
                if answers.read(len(_BEGUN)) == _BEGUN and timer is not None:
                    timer.start()
                answer = _answer(answers)
        finally:
            if timer is not None:
                timer.cancel()
                if timer.ident is not None:
                    timer.join()  # it must not kill who is given the same number afterwards
            if answer is None:
                kill()
            process.wait()
            _close_input(process)
    if seat.cancelled:
        raise Interrupted(CANCELLED_MESSAGE)
    if expired.is_set():
        raise TaskRunTimeoutError(f"no result after {timeout_s} second(s)")
    if answer is None:
        status = process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise IsolatedProcessError(
            f"the process of task {task.name!r} ended by {how} without a result; "
            "look at the worker's output for its last words (out of memory, segmentation fault?)"
        )
    ok, value = pickle.loads(answer)
    if ok:
        return value
    raise value


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has not been waited for, and all of its session's first group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _send(process: subprocess.Popen[bytes], call: bytes) -> None:
    """Send the call."""
    assert process.stdin is not None
    # Where it died before it had read the call, its exit status says so.
    with suppress(BrokenPipeError):
        process.stdin.write(call)
        process.stdin.flush()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # what it had not read when it died is written once more
        process.stdin.close()


def _answer(answers: Any) -> bytes | None:
    """Read the answer; None where the process ended without one."""
    header = answers.read(8)
    if len(header) < 8:
        return None
    (length,) = struct.unpack("<Q", header)
    body: bytes = answers.read(length)
    return body if len(body) == length else None


def _child(write_fd: int) -> None:
    """Read the call, run it in its contexts, write the outcome, flush logs."""
    fn, parameters, context, _path = pickle.load(sys.stdin.buffer)
    _die_with_the_worker()
    # A process that the function forks must not keep the pipe open when this one has died.
    os.register_at_fork(after_in_child=partial(os.close, write_fd))
    from prefect.context import hydrated_context
    from prefect.logging.handlers import APILogWorker
    from prefect.utilities.callables import call_with_parameters

    os.write(write_fd, _BEGUN)
    try:
        with hydrated_context(context):
            value = call_with_parameters(fn, parameters)
            if hasattr(value, "__await__"):
                import asyncio

                value = asyncio.run(_awaited(value))
        answer = cloudpickle.dumps((True, value), protocol=5)
    except BaseException as exc:  # noqa: BLE001 - a user's task may raise anything
        try:
            answer = cloudpickle.dumps((False, exc))
        except Exception:  # noqa: BLE001 - pickling runs the exception's own code
            answer = cloudpickle.dumps(
                (False, IsolatedProcessError(f"{type(exc).__name__}: {exc}"))
            )
    with os.fdopen(write_fd, "wb") as answers:
        answers.write(struct.pack("<Q", len(answer)) + answer)
    if may_use(LAST_LINES):
        APILogWorker.drain_all(timeout=5)


def _die_with_the_worker() -> None:
    """Kill this process and what it has started when the other end of standard input is gone."""
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what the function starts finds an empty input, not the pipe
    os.close(nothing)

    def watch() -> None:
        os.read(pipe, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="deepflow-watch", daemon=True).start()


async def _awaited(value: Any) -> Any:
    return await value


if __name__ == "__main__":
    _child(int(sys.argv[1]))
