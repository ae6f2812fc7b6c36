"""How many tiny runs share one Dask task.

A Dask task costs the scheduler and the wire the same whatever it does, so mapped runs are grouped
until a group is expected to take `target_s`. The expectation is learned in the run: the first
runs of a task go out alone (the pilot), one for each free slot, and time the rest. A misprediction
is not corrected here but where it shows: a worker that meets a long run gives back those behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True, slots=True)
class RunTime:
    """Run times of one task seen so far, in seconds (Welford's running mean and variance)."""

    count: int = 0
    mean_s: float = 0.0
    squares: float = 0.0

    def seen(self, run_s: float) -> RunTime:
        """The estimate after one more run of `run_s` seconds."""
        count = self.count + 1
        off = run_s - self.mean_s
        mean_s = self.mean_s + off / count
        return RunTime(count, mean_s, self.squares + off * (run_s - mean_s))

    @property
    def spread_s(self) -> float:
        """Standard deviation in seconds; 0 with fewer than two runs."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


def pilot_size(n_items: int, n_slots: int) -> int:
    """How many of `n_items` unknown runs to send out alone to learn how long they take."""
    return min(n_items, max(1, n_slots))


def group_size(
    n_items: int,
    n_slots: int,
    run_time: RunTime,
    *,
    target_s: float,
    max_items: int,
) -> int:
    """How many runs to put into each Dask task; at least 1.

    Bounded by the work a group should hold (`target_s`, at the mean run time), by `max_items`,
    and by an even share: every slot gets at least two groups, so that the last ones to finish do
    not keep one worker busy while the others are idle. Runs whose times spread widely (standard
    deviation above their mean) are grouped half as large.
    """
    if run_time.count == 0 or n_items <= 1:
        return 1
    mean_s = max(run_time.mean_s, 1e-6)
    size = int(target_s / mean_s)
    if run_time.spread_s > mean_s:
        size //= 2
    fair = -(-n_items // (2 * max(1, n_slots)))
    return max(1, min(size, max_items, fair))


def split_after_s(run_time: RunTime, target_s: float) -> float:
    """Seconds a run may take before those that wait behind it in its group go elsewhere."""
    return 2.0 * target_s + 4.0 * run_time.spread_s
