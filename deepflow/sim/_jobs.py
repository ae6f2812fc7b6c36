"""The jobs of a simulation: their arrival, their clients, and what has come of their tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from statistics import NormalDist
from typing import Any

from distributed.scheduler import ClientState

from deepflow.decide.events import Failed, Finished, Submitted
from deepflow.sim._clock import StableHash
from deepflow.sim._dask import Mailbox, ordered, step, task_keys
from deepflow.sim._stage import Stage
from deepflow.sim.cluster import SimWorkerClass
from deepflow.sim.workload import SimJob, SimTask, Workload

__all__ = ["Jobs", "normal_draw"]

_SHORTEST_RUN_S = 1e-5


@dataclass(slots=True)
class _Client:
    """The client of a job that has arrived."""

    wanted: set[str]
    """Dask keys whose results the client still waits for."""


class Jobs:
    """All jobs of a workload on one scheduler.

    Args:
        stage: time and journal.
        scheduler: Dask's.
        noise: standard deviation of the logarithm of run times.
        noise_seed: decides the noise on each task's run time.
        stable_hash: decides what Dask leaves to the order of its sets.
        progress: is told how many tasks have finished, and how many there are.
    """

    def __init__(
        self,
        workload: Workload,
        stage: Stage,
        scheduler: Any,
        *,
        noise: float,
        noise_seed: int,
        stable_hash: StableHash,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._n_tasks = workload.n_tasks
        self._stage = stage
        self._scheduler = scheduler
        self._noise = noise
        self._noise_seed = noise_seed
        self._stable_hash = stable_hash
        self._progress = progress
        self.n_open = len(workload.jobs)
        """Jobs that are not done."""
        self.n_failures = 0
        """Tasks that Dask gave up."""
        self.last_stop_s = 0.0
        self._tasks: dict[str, tuple[SimJob, SimTask]] = {}
        self._clients: dict[str, _Client] = {}
        self._on_gpu: set[str] = set()
        """Tasks whose latest execution used a GPU that they could do without."""
        self._finished: set[str] = set()
        self._given_up: set[str] = set()

    # --- jobs and their clients

    def arrives(self, job: SimJob) -> None:
        """A job is submitted by a client of its own."""
        keys = task_keys(job)
        self._tasks.update((keys[task.key], (job, task)) for task in job.tasks)
        for key in keys.values():
            self._stable_hash(key)
        read = {dependency for task in job.tasks for dependency in task.depends_on}
        wanted = {keys[task.key]: None for task in job.tasks if task.key not in read}
        client = f"client-{job.run}"
        self._clients[client] = _Client(set(wanted))
        for task in job.tasks:
            self._stage.emit(_submitted(self._stage.clock.now_s, job, task, keys))
        if not wanted:
            self._job_ends(client)
            return
        scheduler = self._scheduler
        scheduler.clients[client] = ClientState(client)
        mailbox = scheduler.client_comms[client] = Mailbox()
        mailbox.connect(lambda messages: self._send_to_client(client, messages))
        for plugin in list(scheduler.plugins.values()):
            plugin.add_client(scheduler=scheduler, client=client)
        scheduler._create_taskstate_from_graph(
            # One generation for each graph, also for those that arrive together.
            start=float(len(self._clients)),
            dsk={
                keys[task.key]: step(keys[task.key], (keys[d] for d in task.depends_on))
                for task in job.tasks
            },
            keys=wanted.keys(),
            ordered=ordered(job.tasks, keys, self._stable_hash),
            client=client,
            annotations_by_type=_annotations(job, keys),
            global_annotations=None,
            stimulus_id=f"update-graph-{job.run}",
            submitting_task=None,
            span_metadata={},
        )

    def _send_to_client(self, client: str, messages: tuple[dict[str, Any], ...]) -> None:
        self._stage.arrive(self._client_hears, client, messages)

    def _client_hears(self, client: str, messages: tuple[dict[str, Any], ...]) -> None:
        wanted = self._clients[client].wanted
        if not wanted:
            return
        for message in messages:
            if message["op"] == "key-in-memory":
                wanted.discard(message["key"])
            elif message["op"] in ("lost-data", "task-retried"):
                wanted.add(message["key"])
            elif message["op"] == "task-erred":
                wanted.discard(message["key"])
                self._give_up(message["key"])
        if not wanted:
            self._job_ends(client)

    def _give_up(self, key: str) -> None:
        """Book the task whose failure made `key` fail."""
        ts = self._scheduler.tasks[key]
        blamed = ts.exception_blame or ts
        if blamed.key in self._given_up:
            return
        self._given_up.add(blamed.key)
        self.n_failures += 1
        workers = sorted(blamed.erred_on or ())
        at_last = self._stage.worker_names[workers[-1]] if workers else ""
        cause = "given up: its workers died" if blamed.suspicious else "given up: inputs too large"
        self._stage.emit(Failed(self._stage.clock.now_s, blamed.key, at_last, cause))

    def _job_ends(self, client: str) -> None:
        self.n_open -= 1
        if self.n_open and client in self._scheduler.clients:
            self._stage.arrive(self._scheduler.remove_client, client)

    def task(self, key: str) -> SimTask:
        """The task of a Dask key."""
        return self._tasks[key][1]

    def run_s(
        self, task: SimTask, key: str, worker_class: SimWorkerClass, *, on_gpu: bool
    ) -> float:
        """Seconds that a task runs on a worker, its noise in them."""
        speed = worker_class.speed_for(task.kind or task.task, on_gpu=on_gpu)
        (self._on_gpu.add if on_gpu else self._on_gpu.discard)(key)
        factor = 1.0
        if self._noise:
            run = self._tasks[key][0].run
            factor = math.exp(self._noise * normal_draw(self._noise_seed, run, task.key))
        # Nothing real takes no time, and Dask's stealing asserts so.
        return max(task.run_s / speed * factor, _SHORTEST_RUN_S)

    # --- results

    def note_result(self, worker_name: str, message: dict[str, Any]) -> None:
        """Book a result that the scheduler is about to accept."""
        key = message["key"]
        ts = self._scheduler.tasks.get(key)
        if ts is None or ts.state != "processing" or ts.run_id != message["run_id"]:
            return
        run = next(s for s in reversed(message["startstops"]) if s["action"] == "compute")
        self._stage.emit(
            Finished(
                self._stage.clock.now_s,
                key,
                worker_name,
                run["start"],
                run["stop"],
                message["nbytes"],
                key in self._on_gpu,
            )
        )
        self.last_stop_s = max(self.last_stop_s, run["stop"])
        self._stage.has_progressed()
        self._finished.add(key)
        if self._progress is not None:
            self._progress(len(self._finished), self._n_tasks)

    def unfinished(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of these keys that have no result, or one that a client still waits for."""
        missing = {key for client in self._clients.values() for key in client.wanted}
        return tuple(k for k in keys if k not in self._finished or k in missing)


def _submitted(now_s: float, job: SimJob, task: SimTask, keys: Mapping[str, str]) -> Submitted:
    return Submitted(
        now_s,
        keys[task.key],
        task.task,
        job.flow,
        job.run,
        depends_on=tuple(keys[dependency] for dependency in task.depends_on),
        input_bytes=task.input_bytes,
        needs=task.needs,
        soft_gpu=task.soft_gpu,
        priority=task.priority,
    )


def _annotations(job: SimJob, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """As `dask.annotate` around each task would leave them: annotation → key → value."""
    return {
        "deepflow": {
            keys[task.key]: {
                "task": task.task,
                "flow": job.flow,
                "run": job.run,
                "input_bytes": task.input_bytes,
                "soft_gpu": task.soft_gpu,
                "memory_bytes": task.memory_bytes,
                "n_runs": 1,
            }
            for task in job.tasks
        },
        "resources": {keys[task.key]: dict(task.needs) for task in job.tasks if task.needs},
        "priority": {keys[task.key]: task.priority for task in job.tasks if task.priority},
    }


_NORMAL = NormalDist()


def normal_draw(seed: int, run: str, key: str) -> float:
    """A standard normal number that depends on nothing but the arguments."""
    digest = blake2b(f"{seed}\0{run}\0{key}".encode(), digest_size=8).digest()
    return _NORMAL.inv_cdf((int.from_bytes(digest, "little") >> 14 | 1) / 2.0**50)
