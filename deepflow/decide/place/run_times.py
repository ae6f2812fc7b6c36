"""Seconds that tasks of one kind take on each class of worker, kept until more is learned.

Every task of a map over inputs of one size shares one of these, and with it what was worked out.
"""

from __future__ import annotations

import math
from typing import Final

from deepflow.decide.estimate import Estimates

__all__ = ["Kinds", "RunTimes", "mean_over_median", "sound"]

_MOST_SPREAD: Final = 1.2
_GPU_HEAD_START: Final = 0.25
"""A GPU never tried is taken to need this share of the time: so that it is tried."""
_MAX_KINDS: Final = 4096
_SIZE_BITS: Final = 4
"""Input sizes that agree in so many leading bits, within some 6 %, are taken to be the same."""


class RunTimes:
    """Expected seconds by worker class (`<class>+gpu`: with a GPU) of tasks that are alike.

    Args:
        input_bytes: what each of the tasks reads.
        n_runs: how often each of them runs what the estimates know.
    """

    __slots__ = (
        "_by_class",
        "_estimates",
        "_factor",
        "_flow",
        "_input_bytes",
        "_mean_s",
        "_n_runs",
        "_name",
        "_state",
    )

    def __init__(
        self, estimates: Estimates, flow: str, name: str, input_bytes: float, n_runs: int = 1
    ) -> None:
        self._estimates = estimates
        self._flow = flow
        self._name = name
        self._input_bytes = input_bytes
        self._n_runs = n_runs
        self._by_class: dict[str, float] = {}
        self._factor = 0.0
        self._mean_s = 0.0
        self._state: object = None

    def by_class(self) -> dict[str, float]:
        """The classes asked for so far, as long as nothing was learned about the tasks since."""
        state = self._estimates.state_of(self._flow, self._name)
        if state is not self._state:
            spread = self._estimates.spread(self._flow, self._name, None)
            self._by_class = {}
            self._factor = self._n_runs * mean_over_median(spread)
            mean_s = self._estimates.run_s(self._flow, self._name, None, self._input_bytes)
            self._mean_s = mean_s * self._factor
            self._state = state
        return self._by_class

    def mean_s(self) -> float:
        """Seconds on the mean class."""
        self.by_class()
        return self._mean_s

    def __call__(self, worker_class: str) -> float:
        """Seconds on a class. ValueError for an estimate that is no number of seconds."""
        seconds = self.by_class().get(worker_class)
        return self.ask(worker_class) if seconds is None else seconds

    def ask(self, worker_class: str) -> float:
        """Seconds on a class that `by_class` lacks, which has them from then on."""
        estimates, flow, name = self._estimates, self._flow, self._name
        seconds = estimates.run_s(flow, name, worker_class, self._input_bytes) * self._factor
        if worker_class.endswith("+gpu") and not estimates.n_seen(flow, name, worker_class):
            seconds *= _GPU_HEAD_START
        self._by_class[worker_class] = seconds = sound(seconds, name, flow)
        return seconds


class Kinds:
    """The run times of all tasks; those of one name and about one input size share theirs."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._known: dict[tuple[str, str, int, int], RunTimes] = {}

    def times(self, flow: str, name: str, input_bytes: int, n_runs: int = 1) -> RunTimes:
        """The run times of a task; see `RunTimes`."""
        spare_bits = input_bytes.bit_length() - _SIZE_BITS
        if spare_bits > 0:
            input_bytes = (input_bytes >> spare_bits << spare_bits) | (1 << spare_bits >> 1)
        key = (flow, name, input_bytes, n_runs)
        times = self._known.get(key)
        if times is None:
            if len(self._known) >= _MAX_KINDS:
                self._known.clear()
            times = self._known[key] = RunTimes(self._estimates, flow, name, input_bytes, n_runs)
        return times


def mean_over_median(spread: float) -> float:
    """The factor for a log-normal run time; queues are sums, and sums go by the mean."""
    return math.exp(min(spread, _MOST_SPREAD) ** 2 / 2)


def sound(seconds: float, name: str, flow: str) -> float:
    """The estimate itself; ValueError for what is no number of seconds, before it spoils a sort."""
    if 0.0 <= seconds < math.inf:
        return seconds
    raise ValueError(f"the estimate for task {name!r} of {flow!r} is {seconds} s")
