"""One flow run's way to Prefect's server: its event stream, and what it has on record.

The event stream is Prefect's own client, fed with finished JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from prefect.events.clients import get_events_client
from prefect.events.related import related_resources_from_run_context
from prefect.settings import get_current_settings

from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.observe.text import cleaned, to_json
from deepflow.runner.driver.recording import FINAL_TYPES
from deepflow.runner.events import complete_event

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from deepflow.runner.wire import EventRecord


_UNRELATED_TRIES = 3
_TAG_LIMIT = 1_000
"""Characters; a longer tag stays in the run's record but is no resource."""


class ServerLink:
    """The `recording.Server` of a flow run; connects when something is to be sent."""

    def __init__(self, api: PrefectClient, flow_run_id: UUID | None) -> None:
        self._api = api
        self._flow_run_id = flow_run_id
        self._client: Any = None
        self._base: list[dict[str, Any]] | None = None
        self._n_unrelated = 0
        self._related: dict[tuple[str, ...], bytes] = {}

    async def connect(self) -> bool:
        """Make sure that there is a connection; whether one before it was lost."""
        if self._base is None:
            self._base = await self._related_to_all()
        if self._client is None:
            client: Any = get_events_client()
            await client.__aenter__()
            self._client = client
            return False
        websocket = self._client._websocket
        if websocket is not None and websocket.close_code is None:
            return False
        await self._client._reconnect()
        return True

    async def _related_to_all(self) -> list[dict[str, Any]]:
        """The flow run, its flow, deployment and tags; the flow run alone where asking fails."""
        try:
            related = await related_resources_from_run_context(self._api)
            base = [cleaned(resource.model_dump(), "event") for resource in related]
        except Exception:
            self._n_unrelated += 1
            if self._n_unrelated < _UNRELATED_TRIES or self._flow_run_id is None:
                raise
            fell_back(Fallback.RELATED_UNKNOWN)
            base = [
                {
                    "prefect.resource.id": f"prefect.flow-run.{self._flow_run_id}",
                    "prefect.resource.role": "flow-run",
                }
            ]
        # The server ends a connection on which an event has more than so many: first what says
        # where the event belongs.
        return sorted(base, key=lambda resource: resource.get("prefect.resource.role") == "tag")

    async def send(self, record: EventRecord) -> None:
        """Send one event; it is under way when this returns, not recorded."""
        await self._client._websocket.send(complete_event(record, self._related_of(record)))

    def _related_of(self, record: EventRecord) -> bytes:
        """The flow run, its flow, deployment and tags, and the task run's own tags, as JSON."""
        related = self._related.get(record.tags)
        if related is None:
            base = self._base or []
            known = {resource.get("prefect.resource.id") for resource in base}
            tags = [
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
                for tag in record.tags
                if f"prefect.tag.{tag}" not in known and len(tag) <= _TAG_LIMIT
            ]
            limit = get_current_settings().server.events.maximum_related_resources
            related = self._related[record.tags] = to_json((base + tags)[:limit], "event")
        return related

    async def has(self, record: EventRecord) -> bool:
        """Whether the run's recorded state is as new as `record`, or newer."""
        runs = await self._task_runs([record.run_id])
        if not runs or not runs[0].get("state"):
            return False
        recorded_at = datetime.fromisoformat(runs[0]["state"]["timestamp"].replace("Z", "+00:00"))
        occurred = orjson.loads(record.body + b"}")["occurred"]
        return recorded_at >= datetime.fromisoformat(occurred)

    async def count_final(self) -> int | None:
        """How many task runs of the flow run have a final state; None without a flow run."""
        if self._flow_run_id is None:
            return None
        body: dict[str, Any] = {
            "flow_runs": {"id": {"any_": [str(self._flow_run_id)]}},
            "task_runs": {"state": {"type": {"any_": list(FINAL_TYPES)}}},
        }
        response = await self._api._client.post("/task_runs/count", json=body)
        return int(response.json())

    async def states(self, run_ids: Iterable[UUID]) -> dict[UUID, tuple[str, str]]:
        """Type and name of the recorded state of each run that has one (200 runs at most)."""
        runs = await self._task_runs(list(run_ids))
        return {UUID(run["id"]): (run["state_type"], run["state_name"]) for run in runs}

    async def _task_runs(self, run_ids: list[UUID]) -> list[dict[str, Any]]:
        response = await self._api._client.post(
            "/task_runs/filter",
            json={
                "task_runs": {"id": {"any_": [str(run_id) for run_id in run_ids]}},
                "limit": len(run_ids),
            },
        )
        runs: list[dict[str, Any]] = response.json()
        return runs

    async def close(self) -> None:
        """Close the connection, where there is one."""
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
