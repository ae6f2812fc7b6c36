"""Unlike workers on one machine: steps of a flow take longer on workers of slower classes.

`Throttle` wraps the *step functions* that tasks call (`flows._genome.variants.sequence`), on the
workers, and sleeps after each until it has taken as long as it would have on such a machine. So
flows stay as they are, any task runner is slowed alike, each run of a group is slowed on its own,
and what a task runner adds around a task is not: it costs everybody what it costs on this machine.

A step's duration is its CPU time × the *stretch* of its worker's class, in wall seconds per CPU
second. CPU time, because two cores are shared by more workers: what a step waits for a core is part
of its duration, not on top of it, as long as the durations leave the cores enough to spare.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin


@dataclass(frozen=True, slots=True)
class Stretch:
    """Wall seconds per CPU second of a class of workers."""

    usual: float
    of_steps: tuple[tuple[str, float], ...] = ()
    """Patterns (as in `fnmatch`) of steps, `module.function`, that have another one."""

    def of(self, step: str) -> float:
        """The stretch of one step: that of the first pattern which matches, else the usual one."""
        return next((s for pattern, s in self.of_steps if fnmatchcase(step, pattern)), self.usual)


def slowed(
    function: Callable[..., Any],
    stretch: float,
    *,
    wall_s: Callable[[], float] = time.perf_counter,
    cpu_s: Callable[[], float] = time.thread_time,
    sleep: Callable[[float], None] = time.sleep,
) -> Callable[..., Any]:
    """`function`, taking `stretch` times its CPU time; an error takes as long as a result."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        wall_from_s, cpu_from_s = wall_s(), cpu_s()
        try:
            return function(*args, **kwargs)
        finally:
            wanted_s = (cpu_s() - cpu_from_s) * stretch
            left_s = wanted_s - (wall_s() - wall_from_s)
            if left_s > 0:
                sleep(left_s)

    return wrapper


class Throttle(WorkerPlugin):
    """Slows the steps on each worker by its class, the part of its name before the last dash.

    `warm` names modules to import beforehand: what an import costs is no property of a step.
    A worker process of its own is needed for each worker, since a module's functions are replaced.
    Raises `KeyError` on a worker of a class without a stretch.
    """

    name = "throttle"

    def __init__(
        self, steps: Sequence[str], classes: Mapping[str, Stretch], warm: Sequence[str] = ()
    ) -> None:
        self.steps = tuple(steps)
        self.classes = dict(classes)
        self.warm = tuple(warm)
        self._replaced: list[tuple[str, str, Callable[..., Any]]] = []

    def setup(self, worker: Any) -> None:
        """Replace the steps."""
        for module in self.warm:
            import_module(module)
        stretch = self.classes[str(worker.name).rpartition("-")[0]]
        for step in self.steps:
            module, _, function = step.rpartition(".")
            original = getattr(import_module(module), function)
            self._replaced.append((module, function, original))
            setattr(sys.modules[module], function, slowed(original, stretch.of(step)))

    def teardown(self, worker: Any) -> None:
        """Put the steps back."""
        while self._replaced:
            module, function, original = self._replaced.pop()
            setattr(sys.modules[module], function, original)
