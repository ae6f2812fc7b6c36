"""How a Dask task of ours is called, and what its name tells: any worker can read it off a key."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from dask.utils import key_split

__all__ = ["make_key", "run_of", "task_of"]

_OURS: Final = re.compile(r"(?P<task>.+)-\d+-(?P<run>[0-9a-f]{32})-[0-9a-f]+", re.DOTALL)


def make_key(task: str, number: int, run_id: UUID | None, salt: str) -> str:
    """The key of a group of runs of a Prefect task; without a flow run if there is none."""
    flow_run = f"-{run_id.hex}" if run_id else ""
    return f"{task}-{number}{flow_run}-{salt}"


def run_of(key: Any) -> str:
    """The id of the flow run that a key belongs to, empty if it says none."""
    found = _OURS.fullmatch(key) if isinstance(key, str) else None
    return str(UUID(found["run"])) if found else ""


def task_of(key: Any) -> str:
    """The Prefect task that a key belongs to; what Dask would call it, for other keys."""
    found = _OURS.fullmatch(key) if isinstance(key, str) else None
    return found["task"] if found else str(key_split(key))
