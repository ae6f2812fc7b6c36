"""The runners and settings that every case is run under, and the clusters they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from distributed import LocalCluster
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

__all__ = ["SETTINGS", "THREADS", "Setting", "Shape", "clusters"]

Family = Literal["threads", "prefect-dask", "deepflow"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster is made of. Its workers keep what the first driver sets up on them."""

    n_workers: int = 2
    processes: bool = True
    of: str = "deepflow"
    """Whose it is: workers of one kind of runner, or of one environment, are left to it."""

    def start(self) -> LocalCluster:
        """A running cluster."""
        return LocalCluster(
            n_workers=self.n_workers,
            threads_per_worker=1,
            processes=self.processes,
            dashboard_address=None,
            silence_logs=50,
            memory_limit=None,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """A kind of runner, on a kind of cluster, with settings of its own."""

    name: str
    family: Family
    shape: Shape | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    quick: tuple[str, ...] | Literal["all"] = ()
    """The chapters that are part of the quick run."""

    def is_slow(self, chapter: str) -> bool:
        """Whether a chapter under this setting is left to the full run."""
        return self.quick != "all" and chapter not in self.quick

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The setting's environment variables hold within the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield

    def runner(self, address: str | None) -> TaskRunner[Any]:
        """A new task runner on the cluster at the address."""
        if self.family == "threads":
            return ThreadPoolTaskRunner(max_workers=64)  # nested runs hold threads
        if self.family == "prefect-dask":
            from prefect_dask import DaskTaskRunner

            return DaskTaskRunner(address=address)
        from deepflow import DeepflowTaskRunner

        return DeepflowTaskRunner(address=address)


_TWO = Shape()

THREADS = Setting(
    "threads",
    "threads",
    quick=("code", "effects", "errors", "nesting", "order", "results", "storage"),
)
SETTINGS = (
    THREADS,
    Setting("prefect-dask", "prefect-dask", Shape(of="prefect-dask")),
    Setting("deepflow", "deepflow", _TWO, quick="all"),
    Setting("deepflow again", "deepflow", _TWO, quick=("code",)),
    Setting("ungrouped", "deepflow", _TWO, {"DEEPFLOW_BATCH_MAX_ITEMS": "1"}),
    Setting("shares all", "deepflow", _TWO, {"DEEPFLOW_SHARE_ARGUMENT_BYTES": "1024"}),
    Setting("one process", "deepflow", Shape(processes=False), quick=("arguments",)),
    Setting("one worker", "deepflow", Shape(n_workers=1)),
    Setting(
        "no shared memory",
        "deepflow",
        Shape(of="no shared memory"),
        {"DEEPFLOW_SHARED_MEMORY": "off"},
    ),
    Setting(
        "stock",
        "deepflow",
        Shape(of="stock"),
        {"DEEPFLOW_TRANSFER": "stock", "DEEPFLOW_TIERS": "stock", "DEEPFLOW_PLACEMENT": "stock"},
    ),
)
"""The second run on a cluster comes right after the first: what the first left behind shows."""


class Clusters:
    """Running clusters by their shape, one at a time: settings of one shape follow one another."""

    def __init__(self) -> None:
        self._shape: Shape | None = None
        self._cluster: LocalCluster | None = None

    def address(self, shape: Shape | None) -> str | None:
        """The scheduler's address on a running cluster of this shape."""
        if shape is None:
            return None
        if shape != self._shape or self._cluster is None:
            self.close()
            self._cluster, self._shape = shape.start(), shape
        return str(self._cluster.scheduler_address)

    def close(self) -> None:
        """Stop the cluster; the next one asked for is a new one."""
        cluster, self._cluster, self._shape = self._cluster, None, None
        if cluster is not None:
            cluster.close(timeout=20)


@contextmanager
def clusters() -> Iterator[Clusters]:
    """Clusters that end with the block."""
    made = Clusters()
    try:
        yield made
    finally:
        made.close()
