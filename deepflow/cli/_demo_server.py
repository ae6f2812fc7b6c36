"""What the demo asks the Prefect server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from deepflow.errors import DeepflowError

__all__ = ["Artifact", "DemoError", "DemoServer", "cause_of"]

RECORDS_POLL_S = 0.5

_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_MOST_NAMES = 4


class DemoError(DeepflowError, RuntimeError):
    """The demo could not be carried through."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One thing that the flow run left in the UI."""

    key: str
    description: str


def cause_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


class DemoServer:
    """The few questions that the demo asks the Prefect server."""

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self._ask("GET", f"/flow_runs/{flow_run_id}", None)
        return run

    def find_flow_run(self, name: str) -> str | None:
        """The id of the flow run of that name, if there is one."""
        asked = {"flow_runs": {"name": {"any_": [name]}}, "limit": 1}
        found = self._ask("POST", "/flow_runs/filter", asked)
        return str(found[0]["id"]) if found else None

    def artifacts(self, flow_run_id: str) -> tuple[Artifact, ...]:
        """What the flow run left in the UI, by key."""
        asked = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        found = self._ask("POST", "/artifacts/filter", asked)
        told = {one["key"]: one.get("description") or "" for one in found if one.get("key")}
        return tuple(Artifact(key, told[key]) for key in sorted(told))

    def count(self, flow_run_id: str, state: str | None = None) -> int:
        """Task runs of the flow run, in all or in one state."""
        n: int = self._ask("POST", "/task_runs/count", _task_runs(flow_run_id, state))
        return n

    def running(self, flow_run_id: str) -> tuple[str, ...]:
        """The names of the tasks that run now, as far as the server knows."""
        asked = {**_task_runs(flow_run_id, "RUNNING"), "limit": 50}
        runs = self._ask("POST", "/task_runs/filter", asked)
        names = dict.fromkeys(str(run["name"]).rpartition("-")[0] or run["name"] for run in runs)
        return tuple(names)[:_MOST_NAMES]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Raises `DemoError` where the server does not answer, or refuses."""
        import httpx

        try:
            reply = httpx.request(method, f"{self.api_url}{path}", json=body, timeout=30)
            return reply.raise_for_status().json()
        except httpx.HTTPError as error:
            cause = cause_of(error)
        raise DemoError(
            f"the Prefect server at {self.api_url} did not answer {path} ({cause}); "
            "its log tells why"
        )

    def wait_for_records(self, flow_run_id: str, deadline_s: float) -> dict[str, int]:
        """Task runs by final state, once none is on its way any more or the deadline has passed."""
        end_s = time.monotonic() + deadline_s
        while True:
            counts = {state: self.count(flow_run_id, state) for state in _FINAL}
            unfinished = self.count(flow_run_id) - sum(counts.values())
            if unfinished == 0 or time.monotonic() > end_s:
                return counts | ({"UNFINISHED": unfinished} if unfinished else {})
            time.sleep(RECORDS_POLL_S)


def _task_runs(flow_run_id: str, state: str | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    if state is not None:
        asked["task_runs"] = {"state": {"type": {"any_": [state]}}}
    return asked
