"""What the integration tests share: real clusters, beside the server of `tests/serving.py`.

Tests that break things (kill workers, stop servers) start their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import LocalCluster

from deepflow.runner.server import EmbeddedServer
from tests.integration.losses import breakable_cluster, worker_pids
from tests.integration.notes import until


@pytest.fixture(scope="session")
def cluster(server: EmbeddedServer) -> Iterator[LocalCluster]:
    """Two worker processes of one thread each, for tests that leave them whole."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=40
    ) as running:
        yield running


@pytest.fixture(scope="session")
def one_slot(server: EmbeddedServer) -> Iterator[LocalCluster]:
    """One worker process of one thread: whoever holds its slot while waiting is found out."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=40
    ) as running:
        yield running


@pytest.fixture(scope="module")
def workers_to_break(server: EmbeddedServer) -> Iterator[LocalCluster]:
    """Two worker processes to break; their nannies start new ones."""
    with breakable_cluster() as running:
        yield running


@pytest.fixture
def breakable(workers_to_break: LocalCluster) -> LocalCluster:
    """A cluster to break, whole again."""
    workers = workers_to_break.scheduler.workers
    until(lambda: len(workers) == 2 and len(worker_pids()) == 2, 60)
    return workers_to_break
