"""The only reader of Dask's state: its workers, tasks and flow runs, as `decide.place` has them.

What Dask does not know is added here: how long a task should take on each class of worker, how
much work comes after it (its upward rank), and how much its flow run has left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from deepflow.backend.placement.annotation import TaskNote, note_of
from deepflow.decide.estimate import Estimates
from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.links import GUESS_BYTES_PER_S, Links
from deepflow.decide.place.run_times import Kinds, mean_over_median, sound
from deepflow.decide.place.task import Job, Task
from deepflow.decide.rank import FlowShape
from deepflow.hints import GPU_RESOURCE

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState
    from distributed.scheduler import WorkerState as DaskWorker

__all__ = ["Known", "Mirror"]

_RANK_STEPS: Final = 256
_RANK_RISE: Final = 1.001
_NEAR_BYTES_GUESS: Final = 64_000_000
_OTHERS: Final = "dask"
"""The flow, and the job, of tasks that are not ours."""
_MAX_PAIRS: Final = 4096
Alike = dict[tuple[str, str, int], float]
"""Expected seconds by flow, task and input bytes, for the time of one call."""


class Known:
    """What is remembered of a Dask task from its submission until Dask forgets it."""

    __slots__ = (
        "expected_s",
        "input_bytes",
        "is_done",
        "is_on_gpu",
        "job",
        "key",
        "n_runs",
        "name",
        "note",
        "rank_s",
        "started_on",
        "worker_id",
    )

    def __init__(self, key: Any, name: str, note: TaskNote, job: Job) -> None:
        self.key = key
        self.name = name
        self.note = note
        self.job = job
        self.n_runs = int(note.get("n_runs", 1))
        self.expected_s = 0.0
        """On the mean class of worker."""
        self.rank_s = 0.0
        self.input_bytes = int(note.get("input_bytes", 0))
        self.worker_id = ""
        """Where it is, while a worker has it."""
        self.is_on_gpu = False
        self.is_done = False


class Mirror:
    """See the top of this file."""

    def __init__(self, estimates: Estimates, shapes: FlowShape) -> None:
        self.estimates = estimates
        self.shapes = shapes
        self.fleet = Fleet()
        self.links = Links()
        self.known: dict[Any, Known] = {}
        self.jobs: dict[str, Job] = {}
        self._n_left: dict[str, int] = {}
        """Tasks of each job that Dask has not forgotten."""
        self._n_done: dict[str, int] = {}
        self._open: dict[str, dict[Any, Known]] = {}
        """Tasks of each job that are not done, by key."""
        self._bandwidths: dict[tuple[str, str], float] = {}
        self._kinds = Kinds(estimates)

    def teach(self, flow: str, estimates: Estimates, shapes: FlowShape) -> None:
        """Take in what somebody else knows, unless the flow is known here already."""
        if not self.estimates.knows(flow):
            self.estimates.merge(estimates)
        if not self.shapes.is_known(flow):
            self.shapes = shapes

    # -- workers --------------------------------------------------------------------------------

    def worker_joined(self, dask_worker: DaskWorker) -> Worker:
        """A worker has come; what it was given before is taken over."""
        worker = Worker(
            dask_worker.address,
            name=str(dask_worker.name),
            threads=dask_worker.nthreads,
            memory_limit_bytes=dask_worker.memory_limit or 0,
            resources=dask_worker.resources,
            host=dask_worker.host,
            is_running=dask_worker.status.name == "running",
        )
        self.fleet.join(worker)
        return worker

    def sync_running(self, scheduler: Scheduler) -> None:
        """Which workers take tasks; Dask has no hook for a worker that pauses."""
        running = scheduler.running
        for worker in list(self.fleet):
            dask_worker = scheduler.workers.get(worker.id)
            if dask_worker is None:
                self.fleet.leave(worker.id)
            else:
                self.fleet.set_running(worker.id, dask_worker in running)

    def read_measurements(self, scheduler: Scheduler) -> None:
        """Bandwidths and memory, from the workers' heartbeats."""
        workers = self.fleet.workers
        pairs = scheduler.bandwidth_workers
        if len(pairs) <= _MAX_PAIRS or not self._bandwidths:
            for pair, bytes_per_s in pairs.items():
                if self._bandwidths.get(pair) != bytes_per_s:
                    self._bandwidths[pair] = bytes_per_s
                    target, source = workers.get(pair[0]), workers.get(pair[1])
                    if target is not None and source is not None:
                        self.links.measured(source, target, bytes_per_s)
        for address, dask_worker in scheduler.workers.items():
            worker = workers.get(address)
            if worker is not None:
                used = dask_worker.metrics.get("memory", 0) if dask_worker.metrics else 0
                worker.memory_used_bytes = max(int(used), int(dask_worker.nbytes))

    # -- tasks ----------------------------------------------------------------------------------

    def submitted(self, tasks: Iterable[TaskState], now_s: float) -> list[Known]:
        """Tasks came to the scheduler: what they should take, and how much comes after each."""
        new: list[tuple[TaskState, Known]] = []
        alike: Alike = {}
        for state in tasks:
            if state.key in self.known or state.run_spec is None:
                continue
            new.append((state, self._remember(state, now_s, alike)))
        # Dask numbers a graph's tasks so that what depends on another comes after it.
        new.sort(key=lambda pair: pair[0].priority or (), reverse=True)
        for state, known in new:
            known.rank_s = self._rank(state, known)
        for state, known in new:
            self._raise_ranks_before(state, known)
        return [known for _, known in new]

    def _remember(self, state: TaskState, now_s: float, alike: Alike) -> Known:
        note = note_of(state.annotations)
        if note is None:
            note = {"task": state.prefix.name, "flow": _OTHERS, "run": _OTHERS}
        run = note.get("run") or _OTHERS
        job = self.jobs.get(run)
        if job is None:
            flow = note.get("flow") or _OTHERS
            job = Job(run, flow, now_s, self.shapes.work_s(flow) or 0.0)
            if flow not in {other.flow for other in self.jobs.values()}:
                self.estimates.begin_run(flow)
            self.jobs[run] = job
            self._n_left[run] = self._n_done[run] = 0
            self._open[run] = {}
        known = Known(state.key, note.get("task") or state.prefix.name, note, job)
        self.known[state.key] = self._open[run][state.key] = known
        self._n_left[run] += 1
        known.expected_s = self._expected_s(known, alike)
        job.known_work_s += known.expected_s
        return known

    def _expected_s(self, known: Known, alike: Alike) -> float:
        """Seconds; `alike` keeps what was found for tasks of which nothing else is known."""
        flow, name = known.job.flow, known.name
        key = flow, name, known.input_bytes
        one = alike.get(key)
        if one is None:
            one = self.estimates.run_s(flow, name, None, known.input_bytes)
            one *= mean_over_median(self.estimates.spread(flow, name, None))
            alike[key] = one = sound(one, name, flow)
        return one * known.n_runs

    def _rank(self, state: TaskState, known: Known) -> float:
        after_s = max(
            (d.rank_s for dts in state.dependents if (d := self.known.get(dts.key)) is not None),
            default=0.0,
        )
        rank_s = known.expected_s + after_s
        learned_s = self.shapes.upward_rank_s(known.job.flow, known.name, known.expected_s)
        return rank_s if learned_s is None else max(rank_s, learned_s)

    def _raise_ranks_before(self, state: TaskState, known: Known) -> None:
        """What a task depends on ranks at least as high as both together."""
        work = [(state, known)]
        steps = 0
        while work and steps < _RANK_STEPS:
            state, known = work.pop()
            for dts in state.dependencies:
                before = self.known.get(dts.key)
                if before is None or before.is_done:
                    continue
                steps += 1
                rank_s = before.expected_s + known.rank_s
                if rank_s > before.rank_s * _RANK_RISE:
                    before.rank_s = rank_s
                    work.append((dts, before))

    def ready_task(self, state: TaskState, now_s: float) -> Task:
        """A task whose inputs are all there, as the policies see it."""
        known = self.known.get(state.key)
        if known is None:
            known = self._remember(state, now_s, {})
            known.rank_s = known.expected_s
        note, job = known.note, known.job
        inputs = [
            (dts.nbytes if dts.nbytes > 0 else 0, [ws.address for ws in dts.who_has or ()])
            for dts in state.dependencies
        ]
        outside = int(note.get("input_bytes", 0))
        known.input_bytes = outside + sum(n for n, _ in inputs)
        only, near = self._confined(state)
        near = near.union(note.get("near", ()))
        return Task(
            state.key,
            known.name,
            job,
            run_s=self._kinds.times(job.flow, known.name, known.input_bytes, known.n_runs),
            ready_s=now_s,
            rank_s=known.rank_s,
            priority=-int(state.priority[0]) if state.priority else 0,
            dask_order=state.priority,
            inputs=inputs,
            input_bytes=known.input_bytes,
            needs=tuple(sorted((state.resource_restrictions or {}).items())),
            soft_gpu=float(note.get("soft_gpu", 0.0)),
            memory_bytes=int(note.get("memory_bytes", 0)),
            n_runs=known.n_runs,
            only=only,
            near=near,
            away_s=(outside or _NEAR_BYTES_GUESS) / GUESS_BYTES_PER_S["rack"] if near else 0.0,
        )

    def _confined(self, state: TaskState) -> tuple[frozenset[str] | None, frozenset[str]]:
        """The workers it must be on (None: any), and those it should be on."""
        addresses: set[str] = set(state.worker_restrictions or ())
        if state.host_restrictions:
            for worker in self.fleet:
                if worker.host in state.host_restrictions:
                    addresses.add(worker.id)
        elif not addresses:
            return None, frozenset()
        if state.loose_restrictions:
            return None, frozenset(a for a in addresses if a in self.fleet.workers)
        return frozenset(addresses), frozenset()

    def finished(self, known: Known, run_s: float, output_bytes: int) -> None:
        """A task ended with a result after `run_s` seconds: the next estimates know more."""
        worker = self.fleet.workers.get(known.worker_id)
        if worker is not None and run_s > 0:
            name = f"{worker.worker_class}+gpu" if known.is_on_gpu else worker.worker_class
            self.estimates.observe(
                known.job.flow,
                known.name,
                name,
                run_s / known.n_runs,
                known.input_bytes,
                output_bytes / known.n_runs,
            )
        if not known.is_done:
            known.is_done = True
            self._open[known.job.run].pop(known.key, None)
            known.job.done_work_s += known.expected_s
            self._n_done[known.job.run] += 1

    def learned_enough(self, known: Known) -> bool:
        """Whether a job has so many more finished tasks that its ranks should be renewed."""
        n_done = self._n_done[known.job.run]
        return n_done >= 4 and n_done & (n_done - 1) == 0

    def renew(self, scheduler: Scheduler, job: Job) -> list[Known]:
        """Work out anew what a job's open tasks should take and how they rank; those it changed."""
        states = [
            state for key in self._open[job.run] if (state := scheduler.tasks.get(key)) is not None
        ]
        states.sort(key=lambda state: state.priority or (), reverse=True)
        job.known_work_s = job.done_work_s
        renewed = []
        alike: Alike = {}
        for state in states:
            known = self.known[state.key]
            known.expected_s = self._expected_s(known, alike)
            job.known_work_s += known.expected_s
            known.rank_s = self._rank(state, known)
            renewed.append(known)
        return renewed

    def forget(self, key: Any) -> Known | None:
        """Dask has forgotten a task."""
        known = self.known.pop(key, None)
        if known is not None:
            run = known.job.run
            self._n_left[run] -= 1
            self._open[run].pop(key, None)
            if not self._n_left[run]:
                del self.jobs[run], self._n_left[run], self._n_done[run], self._open[run]
        return known


def gpu_needs(soft_gpu: float) -> tuple[tuple[str, float], ...]:
    """The Dask resource that a task which can use a GPU takes where it is given one."""
    return ((GPU_RESOURCE, soft_gpu),)
