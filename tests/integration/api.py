"""How tests ask a Prefect server: one way, which bears that its SQLite is locked now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import httpx

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

    def delete(self, path: str) -> None:
        """Delete what is under `path`."""
        self._request("DELETE", path, None)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        return self._request(method, path, body).json()

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Asked again while the server's SQLite is locked (503), as Prefect's own client does."""
        end_s = time.monotonic() + 60
        while True:
            response = self._client.request(method, path, json=body)
            if response.status_code != 503 or time.monotonic() > end_s:
                return response.raise_for_status()
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

    def until(self, ask: Callable[[], T], claim: Callable[[T], bool], deadline_s: float = 90) -> T:
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
