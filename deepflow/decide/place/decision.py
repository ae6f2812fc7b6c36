"""What comes of a pass for one task, and what a pass is tuned by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deepflow.decide.place.candidates import Candidates
from deepflow.decide.place.fleet import Worker
from deepflow.decide.place.task import Task

__all__ = ["DEFAULT_TUNING", "Decision", "Tuning"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a pass behaves; chosen by the judge (`tests/benchmarks/placement.py`)."""

    pipeline_s: float = 0.2
    """A worker whose queue is shorter than this, in expected seconds, may be given a next task."""
    worth_holding_s: float = 0.05
    """A task is not held for a busy worker to gain less than this."""
    worth_ranking_s: float = 0.0005
    """A task that is expected to take less, on the mean class of worker, goes to any worker that
    fits: to rank them would take as long."""


DEFAULT_TUNING: Final = Tuning()


@dataclass(slots=True)
class Decision:
    """A task goes to a worker: what was known when it was decided."""

    task: Task
    worker: Worker
    on_gpu: bool
    candidates: Candidates
    scores: Sequence[float]
    chosen: int
    reason: str = ""
