"""What tests of your own flows and policies need.

Run flows on a small cluster of pretended workers, inside the test's own process, and ask afterwards
where each task run went::

    from deepflow import WorkerClass
    from deepflow.testing import deepflow_test_harness

    def test_training_runs_on_a_gpu():
        with deepflow_test_harness([WorkerClass("cpu", count=2), WorkerClass("gpu", gpu=1)]) as h:
            assert my_flow() == 42
        assert h.worker_class_of("train-0") == "gpu"

Play a workflow with a policy in the simulator, which is Dask's own scheduler in virtual time: build
the cluster and the work with the names that this module passes on from `deepflow.sim`, and give
them to `play`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deepflow.backend.contract import LAST_LINES, may_use
from deepflow.decide.events import Event
from deepflow.decide.model import WorkerClass
from deepflow.decide.trail import TaskTrail, Trail
from deepflow.errors import DeepflowError, nearest
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.compare import play
from deepflow.sim.generators import pipelines
from deepflow.sim.workload import Workload

__all__ = ["ClusterSpec", "Harness", "NoSuchRunError", "SimWorkerClass", "Workload"]
__all__ += ["deepflow_test_harness", "pipelines", "play"]

TWO_WORKERS: Final = (WorkerClass("worker", count=2),)
"""The cluster of a test that says nothing about it."""


class NoSuchRunError(DeepflowError, LookupError):
    """No task run of the flow runs within the harness is called so."""


@dataclass(frozen=True, slots=True)
class Harness:
    """What ran on the test's cluster. Ask when the flow has returned, also after the block."""

    address: str
    """Of the cluster's scheduler, for flows that name an address themselves."""
    state_dir: Path
    """Folder of journals and history."""
    _kept: list[Event]

    def trail(self) -> Trail:
        """The story of every flow run so far: tasks, workers, waits, attempts."""
        return Trail.of(self._kept or _events(self.state_dir))

    def workers(self) -> Mapping[str, str]:
        """Names of the workers that executed each task run, by the run's name in Prefect."""
        trail = self.trail()
        return {name: _place(trail, task)[0] for name, task in _named(trail).items()}

    def worker_class_of(self, task_run: str) -> str:
        """The class of the worker that executed a task run, by its name in Prefect: `train-0`.

        Raises :class:`NoSuchRunError`, which names the nearest.
        """
        trail = self.trail()
        runs = _named(trail)
        if task_run not in runs:
            close = nearest(task_run, list(runs))
            advice = f"did you mean {close!r}?" if close else f"there are {sorted(runs)[:10]}"
            raise NoSuchRunError(f"no task run is called {task_run!r}; {advice}")
        return _place(trail, runs[task_run])[1]


@contextlib.contextmanager
def deepflow_test_harness(
    workers: Sequence[WorkerClass] = TWO_WORKERS, *, server: bool = True
) -> Iterator[Harness]:
    """Run flows within the block on a cluster in this process, with everything in a new folder.

    Flows whose runner is `DeepflowTaskRunner()`, without an address or a cluster of its own, use
    it. The workers are threads: they start within a second, share the test's memory and debugger,
    and have the resources and labels of their classes; memory limits do not apply. History and
    journals go to a temporary folder, which is removed at the end.

    `server`: a Prefect server for the block, as `prefect_test_harness` has one; False to use the
    one that Prefect's settings name, for instance where `prefect_test_harness` is in use.
    """
    from distributed import Scheduler, SpecCluster, Worker

    kept: list[Event] = []
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepflow-test-")))
        options = {"host": "127.0.0.1", "dashboard": False}
        cluster = SpecCluster(
            scheduler={"cls": Scheduler, "options": {**options, "port": 0}},
            workers={
                name: {
                    "cls": Worker,
                    "options": {
                        **options,
                        "nthreads": worker_class.threads,
                        "memory_limit": 0,
                        "resources": worker_class.dask_resources(),
                        "local_directory": str(home / "workers"),
                    },
                }
                for worker_class in workers
                for name in worker_class.worker_names()
            },
            silence_logs=40,
        )
        variables = {
            "DEEPFLOW_ADDRESS": cluster.scheduler_address,
            "DEEPFLOW_STATE_DIR": str(home / "state"),
            "DEEPFLOW_JOURNAL": "true",
        }
        if server:
            stack.enter_context(_prefect_server(home))
        stack.enter_context(cluster)
        stack.enter_context(_variables(variables))
        yield Harness(cluster.scheduler_address, home / "state", kept)
        kept.extend(_events(home / "state"))


@contextlib.contextmanager
def _prefect_server(home: Path) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from deepflow.runner.server import EmbeddedServer

    with (
        EmbeddedServer(home=home / "server") as running,
        temporary_settings({PREFECT_HOME: home / "client", PREFECT_API_URL: running.api_url}),
    ):
        yield
        # Said while somebody listens; afterwards these threads would try for a minute.
        if may_use(LAST_LINES):
            from prefect.events.worker import EventsWorker
            from prefect.logging.handlers import APILogWorker

            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _events(state_dir: Path) -> list[Event]:
    from deepflow.observe.journal import iter_journal

    paths = sorted((state_dir / "journals").glob("*.journal.zst"))
    return [event for path in paths for event in iter_journal(path)]


def _named(trail: Trail) -> dict[str, TaskTrail]:
    """Tasks by the names of their runs in Prefect."""
    return {name: task for task in trail.tasks.values() for _, name in task.runs}


def _place(trail: Trail, task: TaskTrail) -> tuple[str, str]:
    """Name and class of the worker that a task ended on; empty for one that did not end."""
    worker = trail.workers.get(task.worker or "")
    return (task.worker or "", worker.worker_class if worker else "")
