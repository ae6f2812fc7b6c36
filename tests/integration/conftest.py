"""What the integration tests share: one real Prefect server, one real cluster, and a way to ask.

The server runs for the whole session, in a process of its own with a home of its own; this process
and the workers that it starts speak to it through the environment. Tests that break things (kill
workers, stop servers) start their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import httpx
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
from tests.integration.losses import breakable_cluster, worker_pids
from tests.integration.notes import until

T = TypeVar("T")


class Api:
    """Questions to a Prefect server, asked again until a deadline where the answer may lag."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=30.0, trust_env=False)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer to a POST."""
        return self._ask("POST", path, body or {})

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return self._ask("GET", path, None)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Asked again while the server's SQLite is locked (503), as Prefect's own client does."""
        end_s = time.monotonic() + 30
        while True:
            response = self._client.request(method, path, json=body)
            if response.status_code != 503 or time.monotonic() > end_s:
                response.raise_for_status()
                return response.json()
            time.sleep(0.5)

    def flow_run(self, flow_run_id: UUID | str) -> dict[str, Any]:
        """A flow run as the server has it."""
        run: dict[str, Any] = self.get(f"/flow_runs/{flow_run_id}")
        return run

    def task_runs(self, flow_run_id: UUID | str) -> list[dict[str, Any]]:
        """All task runs of a flow run, oldest first."""
        runs: list[dict[str, Any]] = []
        while True:
            page = self.post(
                "/task_runs/filter",
                {
                    "flow_runs": {"id": {"any_": [str(flow_run_id)]}},
                    "sort": "ID_DESC",
                    "limit": 200,
                    "offset": len(runs),
                },
            )
            runs.extend(page)
            if len(page) < 200:
                return sorted(runs, key=lambda run: run["id"])

    def states(self, task_run_id: UUID | str) -> list[dict[str, Any]]:
        """The states that a task run went through, in order."""
        states = self.get(f"/task_run_states/?task_run_id={task_run_id}")
        return sorted(states, key=lambda state: state["timestamp"])

    def logs(self, flow_run_id: UUID | str) -> list[str]:
        """Log messages of a flow run and its task runs."""
        body = {"logs": {"flow_run_id": {"any_": [str(flow_run_id)]}}, "limit": 200}
        return [log["message"] for log in self.post("/logs/filter", body)]

    def until(self, ask: Callable[[], T], claim: Callable[[T], bool], deadline_s: float = 15) -> T:
        """The first answer for which `claim` holds; fails with the last one at the deadline."""
        end_s = time.monotonic() + deadline_s
        while True:
            answer = ask()
            if claim(answer):
                return answer
            assert time.monotonic() < end_s, f"not so within {deadline_s} s; last: {answer!r:.3000}"
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


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
