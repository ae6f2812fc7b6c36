"""What the integration tests share: one real Prefect server, one real cluster, and a way to ask.

The server runs for the whole session, in a process of its own with a home of its own; this process
and the workers that it starts speak to it through the environment. Tests that break things (kill
workers, stop servers) start their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from distributed import LocalCluster
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)

from deepflow.runner.server import EmbeddedServer
from tests.integration.api import Api
from tests.integration.losses import breakable_cluster, worker_pids
from tests.integration.notes import until


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A real server; the environment and Prefect's settings point to it for the whole session."""
    home = tmp_path_factory.mktemp("prefect")
    with EmbeddedServer(home=home / "server") as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(home / "client"))
        patch.setenv("PREFECT_API_URL", running.api_url)
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
        with temporary_settings(
            {
                PREFECT_HOME: home / "client",
                PREFECT_API_URL: running.api_url,
                PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
            }
        ):
            yield running
            # What this process still has to say, it says while somebody listens: otherwise its
            # exit tries for a minute.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def api(server: EmbeddedServer) -> Iterator[Api]:
    """Questions to the session's server."""
    client = Api(server.api_url)
    yield client
    client.close()


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
