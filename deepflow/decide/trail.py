"""What became of each task, worker and run, folded from the event log.

A fold without memory of anything else: the same for a live journal, one of a simulation, and a
part of either. A log may begin late or end early; what it does not say is None, never a guess.

The picture and its fold are in one file: what a field means is what the fold puts there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from deepflow.decide.events import (
    Candidate,
    Event,
    Failed,
    Finished,
    Held,
    Moved,
    Placed,
    RunNamed,
    Started,
    Submitted,
    TasksNamed,
    Transferred,
    WorkerJoined,
    WorkerLeft,
)

__all__ = ["Attempt", "RunTrail", "TaskTrail", "Trail", "WorkerTrail"]

_GIVEN_BACK = "given back before it began"
"""The cause in older journals where a worker let go of a task when asked, which is no failure."""

Outcome = Literal["finished", "failed", "running"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a task on a worker."""

    key: str
    task: str
    run: str
    worker: str
    """Empty where it failed before it had one."""
    started_s: float
    """When it began; when it failed, where only that is known."""
    stopped_s: float | None
    """None: the log ends before it does."""
    outcome: Outcome
    cause: str = ""
    """Why it failed."""
    on_gpu: bool = False
    """It used a GPU that it can do without."""

    @property
    def run_s(self) -> float | None:
        """Seconds it ran; None while it runs."""
        return None if self.stopped_s is None else self.stopped_s - self.started_s


@dataclass(frozen=True, slots=True)
class TaskTrail:
    """What became of one task (one Dask key)."""

    key: str
    task: str
    flow: str
    run: str
    submitted_s: float
    """First time; a task that is submitted again keeps it."""
    depends_on: tuple[str, ...] = ()
    input_bytes: int = 0
    needs: tuple[tuple[str, float], ...] = ()
    soft_gpu: float = 0.0
    priority: int = 0
    n_runs: int = 1
    ready_s: float | None = None
    """When it was submitted and all its inputs had finished; None: they have not. An input that
    the log does not know counts as finished."""
    placed_s: float | None = None
    """When it was given to the worker that it first ran on, or to the last one if it never ran."""
    policy: str = ""
    candidates: tuple[Candidate, ...] = ()
    reason: str = ""
    """Why it was placed there, where the scores do not say it."""
    holds: tuple[tuple[float, str], ...] = ()
    """When and why it was kept back."""
    attempts: tuple[Attempt, ...] = ()
    """In the order in which they began."""
    transfer_s: float = 0.0
    """Seconds during which at least one input of its first attempt was on the wire."""
    transfer_bytes: int = 0
    """Bytes copied for all its attempts. A copy counts for the first task that used it."""
    output_bytes: int = 0
    runs: tuple[tuple[str, str], ...] = ()
    """Id and name of each task run in it; empty where the log does not tell."""

    @property
    def name(self) -> str:
        """What people call it: the name of its task run, of several the first and the last, and
        its key where the log has no names."""
        if not self.runs:
            return self.key
        first, last = self.runs[0][1], self.runs[-1][1]
        return first if len(self.runs) == 1 else f"{first} … {last} ({len(self.runs)} runs)"

    @property
    def started_s(self) -> float | None:
        """When it first began to run."""
        return self.attempts[0].started_s if self.attempts else None

    @property
    def success(self) -> Attempt | None:
        """The first attempt that ended with a result. (A result that is lost is made again.)"""
        return next((one for one in self.attempts if one.outcome == "finished"), None)

    @property
    def finished_s(self) -> float | None:
        """When its first result was there."""
        done = self.success
        return None if done is None else done.stopped_s

    @property
    def run_s(self) -> float | None:
        """Seconds that its first success took."""
        done = self.success
        return None if done is None else done.run_s

    @property
    def worker(self) -> str | None:
        """Where it finished, else where it was tried last."""
        done = self.success or (self.attempts[-1] if self.attempts else None)
        return None if done is None else done.worker

    @property
    def wait_s(self) -> float | None:
        """Seconds from ready to its first start; 0 where the clocks of two workers cross."""
        if self.started_s is None or self.ready_s is None:
            return None
        return max(0.0, self.started_s - self.ready_s)

    @property
    def response_s(self) -> float | None:
        """Seconds from ready to its first result."""
        if self.finished_s is None or self.ready_s is None:
            return None
        return max(0.0, self.finished_s - self.ready_s)


@dataclass(frozen=True, slots=True)
class WorkerTrail:
    """What one worker did."""

    worker: str
    worker_class: str
    """Empty where the log does not tell of its joining."""
    threads: int
    present: tuple[tuple[float, float | None], ...]
    """From when to when it could take tasks; None: to the end of the log."""
    attempts: tuple[Attempt, ...] = ()
    """What it ran, in the order in which it began."""
    memory_bytes: int = 0
    host: str = ""
    rack: str = ""
    zone: str = ""
    tier: str = ""
    resources: tuple[tuple[str, float], ...] = ()

    def present_s(self, from_s: float, to_s: float) -> float:
        """Seconds between the two times in which it could take tasks."""
        spans = ((max(a, from_s), min(to_s if b is None else b, to_s)) for a, b in self.present)
        return sum(max(0.0, b - a) for a, b in spans)


def count_task_runs(groups: Iterable[tuple[Iterable[str], int]]) -> int:
    """How many task runs are in these tasks of Dask's.

    Of each task: the ids of the runs in it, none where the log does not tell, and how many there
    are. A run that a worker gave back is in the task that it was sent with again, too, and counts
    once; without ids it counts twice.
    """
    known: set[str] = set()
    n_nameless = 0
    for ids, n_runs in groups:
        seen = set(ids)
        known |= seen
        n_nameless += 0 if seen else n_runs
    return len(known) + n_nameless


@dataclass(frozen=True, slots=True)
class RunTrail:
    """What became of one flow run (a job)."""

    run: str
    flow: str
    first_submit_s: float
    last_finish_s: float | None
    """When the last of its tasks had its first result; None: some have none."""
    n_tasks: int
    n_finished: int
    name: str = ""
    """The flow run's name; empty where the log does not tell."""

    @property
    def called(self) -> str:
        """What people call it: its name, else its id."""
        return self.name or self.run

    @property
    def completion_s(self) -> float | None:
        """Seconds from its first submit to its last finish."""
        return None if self.last_finish_s is None else self.last_finish_s - self.first_submit_s


@dataclass(frozen=True, slots=True)
class Trail:
    """The whole log, by task, worker and run; each in the order of first mention."""

    tasks: Mapping[str, TaskTrail]
    workers: Mapping[str, WorkerTrail]
    runs: Mapping[str, RunTrail]
    transfers: tuple[Transferred, ...] = ()
    moved: tuple[Moved, ...] = ()
    """What results cost on their ways, by task and worker."""

    @staticmethod
    def of(events: Iterable[Event]) -> Trail:
        """Fold `events`, in the order in which they were emitted. O(events × log)."""
        fold = _Fold()
        for event in events:
            fold.take[type(event)](event)
        return fold.result()

    @property
    def begin_s(self) -> float:
        """The first submit; 0 where nothing was submitted."""
        return min((task.submitted_s for task in self.tasks.values()), default=0.0)

    @property
    def end_s(self) -> float:
        """The last end or beginning of an attempt; the first submit where there is none."""
        times = (
            a.started_s if a.stopped_s is None else a.stopped_s
            for task in self.tasks.values()
            for a in task.attempts
        )
        return max(times, default=self.begin_s)

    @property
    def makespan_s(self) -> float:
        """Seconds from the first submit to the last end of an attempt."""
        return self.end_s - self.begin_s

    def only(self, runs: Iterable[str]) -> Trail:
        """The part that is about these runs; workers stay, with what they did for them."""
        kept = set(runs)
        tasks = {key: task for key, task in self.tasks.items() if task.run in kept}
        workers = {
            name: replace(worker, attempts=tuple(a for a in worker.attempts if a.run in kept))
            for name, worker in self.workers.items()
        }
        return Trail(
            MappingProxyType(tasks),
            MappingProxyType(workers),
            MappingProxyType({name: run for name, run in self.runs.items() if name in kept}),
            tuple(one for one in self.transfers if one.key in tasks),
            tuple(one for one in self.moved if one.run in kept),
        )


@dataclass(slots=True)
class _Task:
    """A task while the log is read."""

    submitted: Submitted
    placed: list[Placed] = field(default_factory=list)
    holds: list[tuple[float, str]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    """Worker → start of an attempt that has not ended."""
    output_bytes: int = 0


@dataclass(slots=True)
class _Worker:
    """A worker while the log is read."""

    joined: WorkerJoined | None = None
    seen_s: float = 0.0
    present: list[tuple[float, float | None]] = field(default_factory=list)


class _Fold:
    """The state of `Trail.of`; one method per kind of event."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._workers: dict[str, _Worker] = {}
        self._transfers: list[Transferred] = []
        self._moved: list[Moved] = []
        self._run_names: dict[str, str] = {}
        self._task_names: dict[str, tuple[tuple[str, str], ...]] = {}
        self.take: dict[type, Callable[..., None]] = {
            Submitted: self._submitted,
            Placed: self._placed,
            Held: self._held,
            Started: self._started,
            Transferred: self._transfers.append,
            Moved: self._moved.append,
            Finished: self._finished,
            Failed: self._failed,
            WorkerJoined: self._joined,
            WorkerLeft: self._left,
            RunNamed: self._run_named,
            TasksNamed: self._tasks_named,
        }

    def _submitted(self, event: Submitted) -> None:
        self._tasks.setdefault(event.key, _Task(event))

    def _task(self, key: str, at_s: float) -> _Task:
        """The task, also where the log began after its submission."""
        if key not in self._tasks:
            self._tasks[key] = _Task(Submitted(at_s, key, task="?", flow="?", run="?"))
        return self._tasks[key]

    def _worker(self, name: str, at_s: float) -> _Worker:
        if name not in self._workers:
            self._workers[name] = _Worker(seen_s=at_s)
        return self._workers[name]

    def _placed(self, event: Placed) -> None:
        self._task(event.key, event.at_s).placed.append(event)

    def _held(self, event: Held) -> None:
        self._task(event.key, event.at_s).holds.append((event.at_s, event.reason))

    def _started(self, event: Started) -> None:
        self._worker(event.worker, event.at_s)
        self._task(event.key, event.at_s).running[event.worker] = event.at_s

    def _finished(self, event: Finished) -> None:
        self._worker(event.worker, event.started_s)
        task = self._task(event.key, event.started_s)
        task.running.pop(event.worker, None)
        task.output_bytes = event.output_bytes
        attempt = _attempt(task, event.worker, event.started_s, event.stopped_s, "finished")
        task.attempts.append(replace(attempt, on_gpu=True) if event.on_gpu else attempt)

    def _failed(self, event: Failed) -> None:
        if event.cause == _GIVEN_BACK:
            return
        if event.worker:  # a task may fail before it has one
            self._worker(event.worker, event.at_s)
        task = self._task(event.key, event.at_s)
        started_s = task.running.pop(event.worker, event.at_s)
        task.attempts.append(
            _attempt(task, event.worker, started_s, event.at_s, "failed", event.cause)
        )

    def _joined(self, event: WorkerJoined) -> None:
        worker = self._worker(event.worker, event.at_s)
        worker.joined = event
        if not worker.present or worker.present[-1][1] is not None:
            worker.present.append((event.at_s, None))

    def _left(self, event: WorkerLeft) -> None:
        worker = self._worker(event.worker, event.at_s)
        began_s = worker.present.pop()[0] if worker.present else worker.seen_s
        worker.present.append((began_s, event.at_s))

    def _run_named(self, event: RunNamed) -> None:
        self._run_names[event.run] = event.name

    def _tasks_named(self, event: TasksNamed) -> None:
        self._task_names[event.key] = event.runs

    def result(self) -> Trail:
        for task in self._tasks.values():
            for worker, started_s in task.running.items():
                task.attempts.append(_attempt(task, worker, started_s, None, "running"))
            task.attempts.sort(key=lambda a: a.started_s)
        finished_s = {key: _first_finish(task) for key, task in self._tasks.items()}
        copies = self._copies()
        tasks = {
            key: _task_trail(task, finished_s, copies.get(key, {}), self._task_names.get(key, ()))
            for key, task in self._tasks.items()
        }
        return Trail(
            MappingProxyType(tasks),
            MappingProxyType(self._worker_trails(tasks)),
            MappingProxyType(_run_trails(tasks, self._run_names)),
            tuple(self._transfers),
            tuple(self._moved),
        )

    def _copies(self) -> dict[str, dict[str, list[Transferred]]]:
        """Task → worker → the copies made for it: each goes to the first that used it there.

        An input had arrived before the task ended, which unlike "before it began" is also so where
        two clocks differ a little.
        """
        arrived: dict[tuple[str, str], list[Transferred]] = {}
        for copy in self._transfers:
            arrived.setdefault((copy.key, copy.target), []).append(copy)
        made: dict[str, dict[str, list[Transferred]]] = {}
        if not arrived:
            return made
        attempts = [a for task in self._tasks.values() for a in task.attempts]
        for attempt in sorted(attempts, key=lambda a: a.started_s):
            for source in self._tasks[attempt.key].submitted.depends_on:
                waiting = arrived.get((source, attempt.worker))
                if not waiting:
                    continue
                until_s = attempt.started_s if attempt.stopped_s is None else attempt.stopped_s
                used = [copy for copy in waiting if copy.at_s <= until_s]
                if used:
                    of_task = made.setdefault(attempt.key, {})
                    of_task.setdefault(attempt.worker, []).extend(used)
                    arrived[source, attempt.worker] = [c for c in waiting if c.at_s > until_s]
        return made

    def _worker_trails(self, tasks: Mapping[str, TaskTrail]) -> dict[str, WorkerTrail]:
        ran: dict[str, list[Attempt]] = {name: [] for name in self._workers}
        for task in tasks.values():
            for attempt in task.attempts:
                if attempt.worker:
                    ran[attempt.worker].append(attempt)
        return {
            name: _worker_trail(name, worker, sorted(ran[name], key=lambda a: a.started_s))
            for name, worker in self._workers.items()
        }


def _attempt(
    task: _Task,
    worker: str,
    started_s: float,
    stopped_s: float | None,
    outcome: Outcome,
    cause: str = "",
) -> Attempt:
    of = task.submitted
    return Attempt(of.key, of.task, of.run, worker, started_s, stopped_s, outcome, cause)


def _first_finish(task: _Task) -> float | None:
    return min(
        (a.stopped_s for a in task.attempts if a.outcome == "finished" and a.stopped_s is not None),
        default=None,
    )


def _task_trail(
    task: _Task,
    finished_s: Mapping[str, float | None],
    copies: Mapping[str, list[Transferred]],
    runs: tuple[tuple[str, str], ...],
) -> TaskTrail:
    of = task.submitted
    inputs_s = [finished_s[key] for key in of.depends_on if key in finished_s]
    known_s = [at_s for at_s in inputs_s if at_s is not None]
    ready_s = max([of.at_s, *known_s]) if len(known_s) == len(inputs_s) else None
    first = task.attempts[0] if task.attempts else None
    placed = _placing(task.placed, first)
    to_first = copies.get(first.worker, []) if first else []
    return TaskTrail(
        key=of.key,
        task=of.task,
        flow=of.flow,
        run=of.run,
        submitted_s=of.at_s,
        depends_on=of.depends_on,
        input_bytes=of.input_bytes,
        needs=of.needs,
        soft_gpu=of.soft_gpu,
        priority=of.priority,
        n_runs=of.n_runs,
        ready_s=ready_s,
        placed_s=placed.at_s if placed else None,
        policy=placed.policy if placed else "",
        candidates=placed.candidates if placed else (),
        reason=placed.reason if placed else "",
        holds=tuple(task.holds),
        attempts=tuple(task.attempts),
        transfer_s=_covered_s((c.at_s - c.duration_s, c.at_s) for c in to_first),
        transfer_bytes=sum(c.n_bytes for of_worker in copies.values() for c in of_worker),
        output_bytes=task.output_bytes,
        runs=runs,
    )


def _placing(placed: list[Placed], first: Attempt | None) -> Placed | None:
    """The decision that the first attempt carried out; the latest one if there was no attempt."""
    if not placed:
        return None
    if first is None:
        return placed[-1]
    before = bisect_right(placed, first.started_s, key=lambda p: p.at_s)
    there = [p for p in placed[:before] if p.worker == first.worker]
    return there[-1] if there else placed[max(0, before - 1)]


def _covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the spans."""
    covered_s, reached_s = 0.0, float("-inf")
    for begin_s, end_s in sorted(spans):
        covered_s += max(0.0, end_s - max(begin_s, reached_s))
        reached_s = max(reached_s, end_s)
    return covered_s


def _worker_trail(name: str, worker: _Worker, attempts: list[Attempt]) -> WorkerTrail:
    of = worker.joined
    present = tuple(worker.present) or ((worker.seen_s, None),)
    if of is None:
        return WorkerTrail(name, "", 1, present, tuple(attempts))
    return WorkerTrail(
        name,
        of.worker_class,
        of.threads,
        present,
        tuple(attempts),
        of.memory_bytes,
        of.host,
        of.rack,
        of.zone,
        of.tier,
        of.resources,
    )


def _run_trails(tasks: Mapping[str, TaskTrail], names: Mapping[str, str]) -> dict[str, RunTrail]:
    by_run: dict[str, list[TaskTrail]] = {}
    for task in tasks.values():
        by_run.setdefault(task.run, []).append(task)
    return {run: _run_trail(run, of_run, names.get(run, "")) for run, of_run in by_run.items()}


def _run_trail(run: str, tasks: list[TaskTrail], name: str) -> RunTrail:
    finished_s = [at_s for at_s in (task.finished_s for task in tasks) if at_s is not None]
    return RunTrail(
        run=run,
        flow=tasks[0].flow,
        first_submit_s=min(task.submitted_s for task in tasks),
        last_finish_s=max(finished_s) if len(finished_s) == len(tasks) else None,
        n_tasks=len(tasks),
        n_finished=len(finished_s),
        name=name,
    )
