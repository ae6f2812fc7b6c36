"""What earlier runs teach: run times, output sizes and the shapes of flows, folded from events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deepflow.decide.estimate import Estimates
from deepflow.decide.events import Event, Finished, Submitted, WorkerJoined
from deepflow.decide.rank import FlowShape, RunShape, RunTask

__all__ = ["Experience", "Observation", "observations"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished task: what `Estimates.observe` takes."""

    flow: str
    task: str
    worker_class: str
    """With `+gpu` where it ran on a GPU that it can do without."""
    run_s: float
    """Of one task run, where several travelled together."""
    input_bytes: int
    output_bytes: float
    run: str
    key: str
    at_s: float


def observations(events: Iterable[Event]) -> tuple[list[Observation], dict[str, Submitted]]:
    """The finished tasks of a log in order, and what was submitted, by key."""
    submitted: dict[str, Submitted] = {}
    output_bytes: dict[str, int] = {}
    classes: dict[str, str] = {}
    found = []
    for event in events:
        match event:
            case Submitted():
                submitted.setdefault(event.key, event)
            case WorkerJoined():
                classes[event.worker] = event.worker_class
            case Finished() if event.key in submitted:
                task = submitted[event.key]
                output_bytes[event.key] = event.output_bytes
                worker_class = classes.get(event.worker, "default")
                found.append(
                    Observation(
                        task.flow,
                        task.task,
                        f"{worker_class}+gpu" if event.on_gpu else worker_class,
                        max(event.stopped_s - event.started_s, 0.0) / task.n_runs,
                        task.input_bytes + sum(output_bytes.get(d, 0) for d in task.depends_on),
                        event.output_bytes / task.n_runs,
                        task.run,
                        event.key,
                        event.at_s,
                    )
                )
    return found, submitted


@dataclass(slots=True)
class Experience:
    """What is known before a run begins, and learns from it when it has ended."""

    estimates: Estimates = field(default_factory=Estimates)
    shapes: FlowShape = field(default_factory=FlowShape)

    def learn(self, events: Iterable[Event]) -> list[tuple[str, RunShape]]:
        """Take in the log of finished runs; gives each one's flow and shape.

        A run's shape is on the mean class of worker. A run of which the log lacks tasks has none.
        """
        found, submitted = observations(events)
        for flow in sorted({seen.flow for seen in found}):
            self.estimates.begin_run(flow)
        for seen in found:
            if seen.run_s > 0:
                self.estimates.observe(
                    seen.flow,
                    seen.task,
                    seen.worker_class,
                    seen.run_s,
                    seen.input_bytes,
                    seen.output_bytes,
                )
        runs: dict[tuple[str, str], list[RunTask]] = {}
        for seen in {one.key: one for one in found}.values():
            task = submitted[seen.key]
            speed = self.estimates.speed(seen.flow, seen.task, seen.worker_class)
            runs.setdefault((task.flow, task.run), []).append(
                RunTask(
                    task.key,
                    task.task,
                    tuple(d for d in task.depends_on if d in submitted),
                    seen.run_s * task.n_runs * speed,
                )
            )
        learned = []
        for (flow, _), tasks in runs.items():
            known = {task.key for task in tasks}
            if all(set(task.depends_on) <= known for task in tasks):
                learned.append((flow, self.shapes.learn_run(flow, tasks)))
        return learned
