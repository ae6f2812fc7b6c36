"""One real Prefect server for all tests of a process, and a way to ask it.

The server runs for the whole session, in a process of its own with a home of its own; this process
and the workers that it starts speak to it through the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)

from deepflow.runner.server import EmbeddedServer
from tests.integration.api import Api

__all__ = ["api", "server"]


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
                # With heartbeats the end of each flow run waits for up to a second.
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
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
