"""How many tiny runs share one Dask task.

A Dask task costs the scheduler and the wire the same whatever it does, so mapped runs are grouped
until a group is expected to take `target_s`. The expectation is learned in the run: the first
runs of a task go out alone, one for each slot, and their times decide how the rest go. A
misprediction is not corrected here but where it shows: a worker that meets a long run gives back
those behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

_WINDOW = 31


@dataclass(frozen=True, slots=True)
class RunTime:
    """The latest run times of one task, in seconds; a bounded window of them.

    Medians rather than means: the first run in a worker process imports what the task needs, and
    one such run of a second would make a thousand others of a millisecond look long.
    """

    recent_s: tuple[float, ...] = ()

    def seen(self, run_s: float) -> RunTime:
        """The estimate after one more run of `run_s` seconds."""
        return RunTime((*self.recent_s[-(_WINDOW - 1) :], run_s))

    @property
    def is_known(self) -> bool:
        """Whether any run has been seen."""
        return bool(self.recent_s)

    @property
    def typical_s(self) -> float:
        """The median run time in seconds; 0 where none is known."""
        return median(self.recent_s) if self.recent_s else 0.0

    @property
    def spread_s(self) -> float:
        """Median absolute deviation from the median, in seconds."""
        middle = self.typical_s
        return median(abs(s - middle) for s in self.recent_s) if self.recent_s else 0.0


_SURE_AFTER = 16


@dataclass(frozen=True, slots=True)
class Wave:
    """How many of the waiting runs to send now, and how many of them to a group."""

    n_items: int
    group_size: int


def next_wave(
    n_waiting: int,
    n_outstanding: int,
    n_slots: int,
    run_time: RunTime,
    *,
    target_s: float,
    max_items: int,
) -> Wave:
    """What to send of a map's waiting runs while `n_outstanding` of them are with the workers.

    While little is known of the run time, only enough is sent to keep every slot busy and one
    more run queued for each: what is sent is grouped for good, and the first runs in a fresh
    worker process look a hundred times as long as the rest. Once `_SURE_AFTER` run times are known
    all that waits is sent.
    """
    size = group_size(n_waiting, n_slots, run_time, target_s=target_s, max_items=max_items)
    if len(run_time.recent_s) >= _SURE_AFTER:
        return Wave(n_waiting, size)
    wanted = 2 * n_slots if run_time.is_known else n_slots
    if n_outstanding >= wanted:
        return Wave(0, size)
    return Wave(min(n_waiting, max(wanted - n_outstanding, wanted * size)), size)


def group_size(
    n_items: int,
    n_slots: int,
    run_time: RunTime,
    *,
    target_s: float,
    max_items: int,
) -> int:
    """How many runs to put into each Dask task; at least 1.

    Bounded by the work a group should hold (`target_s`, at the typical run time), by `max_items`,
    and by an even share: every slot gets at least two groups, so that the last ones to finish do
    not keep one worker busy while the others are idle. Runs whose times spread widely (median
    deviation above half the median) are grouped half as large.
    """
    if not run_time.is_known or n_items <= 1:
        return 1
    typical_s = max(run_time.typical_s, 1e-6)
    size = int(target_s / typical_s)
    if run_time.spread_s > typical_s / 2:
        size //= 2
    fair = -(-n_items // (2 * max(1, n_slots)))
    return max(1, min(size, max_items, fair))


def split_after_s(run_time: RunTime, target_s: float) -> float:
    """Seconds a run may take before those that wait behind it in its group go elsewhere."""
    return 2.0 * target_s + 4.0 * run_time.spread_s
