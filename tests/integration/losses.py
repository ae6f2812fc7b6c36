"""What the tests of losses share: marks that tasks leave behind, and how to break things."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import LocalCluster


def mark(path: str, name: object) -> None:
    """Append a line in one write, which the system keeps whole between processes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{name} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def marks(path: Path | str) -> Counter[str]:
    """How often each name was marked."""
    if not Path(path).exists():
        return Counter()
    return Counter(line.split()[0] for line in Path(path).read_text().splitlines())


def marked_by(path: Path | str) -> dict[str, int]:
    """The process that marked each name last."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return {name: int(pid) for name, pid in (line.split() for line in lines)}


def until(claim: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Wait until `claim` holds; fail at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not claim():
        assert time.monotonic() < end_s, f"not so within {deadline_s} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in ("Z", "X")


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))


@contextmanager
def breakable_cluster(**kwargs: Any) -> Iterator[LocalCluster]:
    """A cluster of two worker processes of one thread each, known to `worker_pids`.

    A flow must not close over the cluster: what it closes over travels to the workers.
    """
    shape = {"n_workers": 2, "threads_per_worker": 1} | kwargs
    with LocalCluster(dashboard_address="127.0.0.1:0", silence_logs=20, **shape) as cluster:
        _clusters.append(cluster)
        try:
            yield cluster
        finally:
            _clusters.remove(cluster)


_clusters: list[LocalCluster] = []


def worker_pids() -> list[int]:
    """The processes of the newest breakable cluster's workers."""
    return [int(nanny.pid) for nanny in _clusters[-1].workers.values() if nanny.pid]


def until_settled() -> None:
    """Wait until no task is being worked on as far as the scheduler knows.

    A worker reports to the driver a moment before it hands its result to Dask.
    """
    scheduler = _clusters[-1].scheduler
    until(lambda: not any(worker.processing for worker in list(scheduler.workers.values())))


@contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[None]:
    """Run `action` in a thread beside the block; its failure is the block's."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            action()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    if failures:
        raise failures[0]
