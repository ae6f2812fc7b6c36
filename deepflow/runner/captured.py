"""A flow run's context as it travels from the driver to the workers, once for all of its runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect.settings import Settings

__all__ = ["CapturedContext"]


class CapturedContext(NamedTuple):
    """A context as it travels: all but what varies from call to call (tags, assets)."""

    settings: Settings
    profile: Any
    api_url: str
    flow_run: dict[str, Any] | None
    parent_task_run: dict[str, Any] | None
    deployment_id: str | None
    deployment_parameters: dict[str, Any] | None
    results_topic: str
    events_topic: str
    in_transaction: bool
    """Whether the flow has a transaction open that runs are to be part of."""
