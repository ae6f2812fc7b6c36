"""What Dask's own placement would have made of a flow run that has just ended, for its report.

The simulator replaces parts of Dask while it runs, so it cannot run where a cluster is alive: it
gets a process of its own, at low priority, while the driver waits for the server anyway. How long
that may take is bounded by a share of what the flow run took, and a run that is too short or too
large for it is left to `deepflow replay`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import cloudpickle

from deepflow.decide.place.registry import STOCK
from deepflow.observe.artifact import Forecast

if TYPE_CHECKING:
    from deepflow.decide.events import Event
    from deepflow.decide.experience import Experience
    from deepflow.decide.place.policy import Policy
    from deepflow.decide.trail import Trail

__all__ = ["Forecasting", "budget_s", "why_not"]

SHARE: Final = 0.05
"""Of the time that the flow run took."""
LEAST_S: Final = 2.0
"""Starting the process takes about that long."""
MOST_S: Final = 10.0
MOST_TASKS: Final = 5000
_KILLED_IN_S: Final = 1.0
"""A process that is killed is gone by then."""


def budget_s(makespan_s: float) -> float:
    """The most seconds that a flow run of `makespan_s` seconds may wait for its forecast."""
    return min(MOST_S, max(LEAST_S, SHARE * makespan_s))


def why_not(trail: Trail) -> str:
    """Why a flow run gets no forecast, as a clause; empty where it gets one."""
    if len(trail.tasks) > MOST_TASKS:
        return f"with more than {MOST_TASKS:,} tasks it takes too long to do so now"
    if trail.makespan_s < LEAST_S / SHARE:
        return f"a run of less than {LEAST_S / SHARE:.0f} s is not made to wait for it"
    if any(task.finished_s is None for task in trail.tasks.values()):
        return "it is not done for a run that did not end well"
    return ""


class Forecasting:
    """A process that replays a flow run; begun when it is made, and asked for its findings once."""

    def __init__(
        self,
        events: Sequence[Event],
        makespan_s: float,
        policy: str | Policy,
        experience: Experience,
        *,
        most_s: float | None = None,
    ) -> None:
        """`experience`: what the policy knew when the run began. `most_s`: see `budget_s`."""
        self._happened_s = makespan_s
        self._policy = policy if isinstance(policy, str) else policy.name
        self._most_s = budget_s(makespan_s) if most_s is None else most_s
        self._due_s = time.monotonic() + self._most_s
        asked = cloudpickle.dumps((tuple(events), policy, experience, self._most_s))
        self._said = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepflow.sim._forecast_process"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._thread = threading.Thread(
            target=self._talk, args=(asked,), name="deepflow-forecast", daemon=True
        )
        self._thread.start()

    def _talk(self, asked: bytes) -> None:
        try:
            self._said, _ = self._process.communicate(asked, timeout=self._most_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def result(self) -> Forecast | str:
        """What was found, or why nothing was found in time, as a clause. Ends the process."""
        self._thread.join(max(0.0, self._due_s - time.monotonic()) + _KILLED_IN_S)
        if self._process.returncode is None or self._process.returncode == -signal.SIGKILL:
            return f"the simulator did not end within the {self._most_s:.1f} s that it had"
        try:
            found: dict[str, float] = json.loads(self._said)
        except ValueError:
            return f"the simulator failed with status {self._process.returncode}"
        seconds = (found["own"], found["other"])
        if not all(math.isfinite(one) for one in seconds):
            return "in the simulator not all of its tasks come to an end"
        return Forecast(self._policy, self._happened_s, seconds[0], STOCK, seconds[1])
