"""What the driver says about its tasks: a Dask annotation with plain values.

The annotation's name is `deepflow`; a scheduler without our plugin carries it and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

__all__ = ["OURS", "TaskNote", "note_of"]

OURS: Final = "deepflow"
"""The Dask annotation that marks the tasks of this package."""


class TaskNote(TypedDict, total=False):
    """One graph's annotation; every entry may be missing."""

    task: str
    """The Prefect task's name, by which run times are kept."""
    flow: str
    run: str
    input_bytes: int
    """Bytes it reads that are no Dask task's output."""
    soft_gpu: float
    memory_bytes: int
    n_runs: int
    """Task runs in each Dask task of the graph."""
    near: list[str]
    """Addresses of workers close to those inputs."""


def note_of(annotations: Mapping[str, Any] | None) -> TaskNote | None:
    """The note among a Dask task's annotations; None where it has none."""
    note = annotations.get(OURS) if annotations else None
    return note if isinstance(note, dict) else None  # type: ignore[return-value]
