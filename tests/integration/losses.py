"""What the tests of losses share: how to break things."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from distributed import LocalCluster

from deepflow.backend.clusters.local import local_cluster
from deepflow.runner.server import EmbeddedServer
from tests.integration.notes import until


@contextmanager
def breakable_cluster(**kwargs: Any) -> Iterator[LocalCluster]:
    """A cluster of two worker processes of one thread each, known to `worker_pids`.

    A flow must not close over the cluster: what it closes over travels to the workers.
    """
    shape = {"n_workers": 2, "threads_per_worker": 1} | kwargs
    with local_cluster(silence_logs=50, **shape) as cluster:
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


def forget_variables() -> None:
    """Make the scheduler of the newest breakable cluster forget what drivers have put on it."""
    cluster = _clusters[-1]
    variables = cluster.scheduler.extensions["variables"].variables

    async def clear() -> None:
        variables.clear()

    cluster.sync(clear)


@contextmanager
def meanwhile(action: Callable[[], Any]) -> Iterator[None]:
    """Run `action` in a thread beside the block; its failure is the block's."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - raised again by the block
            failures.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    if failures:
        raise failures[0]


@contextmanager
def external_cluster(folder: Path, n_workers: int = 2) -> Iterator[ExternalCluster]:
    """A scheduler and workers in processes of their own, as a site would start them."""
    log = (folder / "dask.log").open("ab")
    dask = [sys.executable, "-m", "dask"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment["PYTHONPATH"] = root

    def start(*command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*dask, *command], stdout=log, stderr=log, env=environment, cwd=folder
        )

    address_file = folder / "scheduler.json"
    scheduler = start(
        *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"),
        *("--scheduler-file", str(address_file)),
    )
    workers: list[subprocess.Popen[bytes]] = []
    try:
        until(lambda: address_file.exists() and address_file.stat().st_size > 0, 60)
        workers += [
            start(
                *("worker", "--scheduler-file", str(address_file), "--nthreads", "1"),
                *("--no-dashboard", "--no-nanny", "--host", "127.0.0.1"),
            )
            for _ in range(n_workers)
        ]
        address = json.loads(address_file.read_text())["address"]
        yield ExternalCluster(address, scheduler, workers)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
        log.close()


class ExternalCluster(NamedTuple):
    """Where an external cluster is, and its processes."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


class Heard(logging.Handler):
    """Keeps the messages of the flow runs' logger, from inside a flow on.

    Prefect sets up logging anew when a flow begins, and drops handlers that were there before.
    """

    messages: ClassVar[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


def listen() -> None:
    """Keep what is logged of flow runs from now on in `Heard.messages`."""
    Heard.messages.clear()
    logging.getLogger("prefect.flow_runs").addHandler(Heard())


def stop_server() -> None:
    """Stop the newest breakable server; a flow must not close over it either."""
    breakable_servers[-1].stop()


breakable_servers: list[EmbeddedServer] = []
