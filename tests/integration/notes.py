"""What tasks leave behind in a file, whichever process they run in; and waiting for things."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


def note(path: str | Path, name: object) -> None:
    """Append `name` and the time in one write, which the system keeps whole between processes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{time.time()!r} {os.getpid()} {name}\n".encode())
    finally:
        os.close(descriptor)


class Note(NamedTuple):
    """One line of `note`."""

    at_s: float
    pid: int
    name: str


def notes(path: str | Path) -> list[Note]:
    """All notes so far, in the order of writing."""
    if not Path(path).exists():
        return []
    parts = (line.split(" ", 2) for line in Path(path).read_text().splitlines())
    return [Note(float(at_s), int(pid), name) for at_s, pid, name in parts]


def names(path: str | Path) -> list[str]:
    """The names noted so far."""
    return [entry.name for entry in notes(path)]


def times_noted(path: str | Path) -> Counter[str]:
    """How often each name was noted."""
    return Counter(names(path))


def noted_at(path: str | Path) -> dict[str, float]:
    """When each name was noted last, in seconds since the epoch."""
    return {entry.name: entry.at_s for entry in notes(path)}


def noted_by(path: str | Path) -> dict[str, int]:
    """The process that noted each name last."""
    return {entry.name: entry.pid for entry in notes(path)}


def until(claim: Callable[[], object], deadline_s: float = 120.0) -> None:
    """Wait until `claim` holds; fail at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not claim():
        assert time.monotonic() < end_s, f"not so within {deadline_s} s"
        time.sleep(0.02)


def await_note(path: str | Path, name: str, deadline_s: float = 120.0) -> None:
    """Wait until `name` is noted; fail at the deadline."""
    until(lambda: name in names(path), deadline_s)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in ("Z", "X")


def await_death(pid: int, deadline_s: float = 60.0) -> None:
    """Wait until a process is gone; fail at the deadline."""
    until(lambda: not is_alive(pid), deadline_s)


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    await_death(pid)
