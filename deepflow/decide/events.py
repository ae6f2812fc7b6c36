"""What happens to tasks and workers, as frozen values: the vocabulary of the journal.

The live scheduler plugin and the simulator emit the same events, so that metrics, estimates,
pictures, explanations and replays are each a fold over one log. Times are seconds on the clock of
whoever emits them (Unix time when live, virtual time in a simulation), sizes are bytes. A task's
parameters and results are never part of an event.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Candidate",
    "CodecChoice",
    "Event",
    "Failed",
    "Finished",
    "Held",
    "Moved",
    "Placed",
    "RunNamed",
    "Started",
    "Submitted",
    "TasksNamed",
    "Transferred",
    "WorkerJoined",
    "WorkerLeft",
]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task became known to the scheduler."""

    at_s: float
    key: str
    """The Dask key; one per group of runs."""
    task: str
    """The name of the Prefect task, or of a workflow's task category."""
    flow: str
    run: str
    """The flow run (a *job* where runs share a cluster)."""
    depends_on: tuple[str, ...] = ()
    input_bytes: int = 0
    """Bytes it reads that are no task's output."""
    needs: tuple[tuple[str, float], ...] = ()
    """Dask resources it takes, sorted by name; labels among them."""
    soft_gpu: float = 0.0
    """GPUs it can use where there are some, and does without elsewhere."""
    priority: int = 0
    n_runs: int = 1
    """How many task runs travel in this one Dask task."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker that a decision looked at, and what was expected of it, in seconds from then."""

    worker: str
    queue_s: float
    transfer_s: float
    run_s: float
    score: float
    """What the policy compared; the lowest wins."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A task was given to a worker."""

    at_s: float
    key: str
    worker: str
    policy: str
    candidates: tuple[Candidate, ...] = ()
    """The best few, the chosen one first; empty where Dask itself decided."""
    reason: str = ""
    """Why this one, where the scores do not say it: a fallback, a prefetch."""


@dataclass(frozen=True, slots=True)
class Held:
    """A ready task was kept back. Said once for each reason, not at each look."""

    at_s: float
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """A task began to run."""

    at_s: float
    key: str
    worker: str


@dataclass(frozen=True, slots=True)
class Transferred:
    """A task's output was copied from one worker to another."""

    at_s: float
    """When it had arrived."""
    key: str
    source: str
    target: str
    n_bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A task ended with a result."""

    at_s: float
    key: str
    worker: str
    started_s: float
    stopped_s: float
    output_bytes: int
    on_gpu: bool = False
    """It used a GPU that it can do without."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A task ended without a result, or its worker was lost with it."""

    at_s: float
    key: str
    worker: str
    cause: str


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker can take tasks from now on."""

    at_s: float
    worker: str
    worker_class: str
    threads: int
    memory_bytes: int = 0
    """0: no limit is known."""
    host: str = ""
    rack: str = ""
    zone: str = ""
    tier: str = ""
    resources: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker takes no more tasks."""

    at_s: float
    worker: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """How often a codec was chosen for large buffers, and what came of it. Seconds, in sum."""

    codec: str
    n: int
    predicted_s: float
    raw_s: float
    """Predicted for sending them raw; 0 where nothing was."""
    actual_s: float
    why: str
    """Of the last one."""

    def plus(self, later: CodecChoice) -> CodecChoice:
        """Both together."""
        return CodecChoice(
            self.codec,
            self.n + later.n,
            self.predicted_s + later.predicted_s,
            self.raw_s + later.raw_s,
            self.actual_s + later.actual_s,
            later.why,
        )


@dataclass(frozen=True, slots=True)
class Moved:
    """What the results of a task cost on their ways from a worker, over a whole run.

    In a sum over runs or workers, `run` or `worker` is empty.
    """

    at_s: float
    run: str
    task: str
    worker: str
    n_values: int
    raw_bytes: int
    """Of values that went over a network, as they are in memory."""
    wire_bytes: int
    """What went over the network for them."""
    shared_bytes: int
    """Handed over in shared memory instead."""
    copied_bytes: int
    """Copied into shared memory."""
    duration_s: float
    """Of sending and copying, added up."""
    codecs: tuple[tuple[str, int, int], ...] = ()
    """By codec: its name, and bytes before and after."""
    choices: tuple[CodecChoice, ...] = ()
    """For large buffers, by codec."""

    @property
    def saved_s(self) -> float:
        """Seconds less than sending raw was predicted to take, where that was; negative: a loss."""
        return sum(
            one.raw_s - one.actual_s for one in self.choices if one.codec != "raw" and one.raw_s > 0
        )


@dataclass(frozen=True, slots=True)
class RunNamed:
    """What people call a flow run. It stands before everything else in its journal."""

    at_s: float
    run: str
    """Its id, as in `Submitted`."""
    name: str
    """Empty where none is known."""
    flow: str


@dataclass(frozen=True, slots=True)
class TasksNamed:
    """What people call the task runs in one Dask task. The driver says so when the run is over."""

    at_s: float
    key: str
    runs: tuple[tuple[str, str], ...]
    """Id and name of each."""


Event = (
    Submitted
    | Placed
    | Held
    | Started
    | Transferred
    | Moved
    | Finished
    | Failed
    | WorkerJoined
    | WorkerLeft
    | RunNamed
    | TasksNamed
)
