"""What `deepflow demo` does: a server if there is none, two classes of workers, the flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepflow.cli._demo_server import Artifact, DemoError, DemoServer, cause_of
from deepflow.decide.model import WorkerClass
from deepflow.errors import JournalError
from deepflow.observe import metrics

POLL_S = 2.0
"""Between two looks at how far a flow run is; each costs the server some work."""
API_PATIENCE_S = 10.0
RECORD_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done now, and of a flow run how far it is, as the Prefect server has it recorded."""

    stage: str
    n_done: int = 0
    n_known: int = 0
    running: tuple[str, ...] = ()
    """Names of tasks of which the server knows that they run."""


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds until there was something to run on; no figure of the runs has them in it."""

    server_s: float | None
    """Starting a Prefect server; None: one was there."""
    workers_s: float
    libraries_s: float
    """Importing pandas, torch and the flow on the workers."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the wall time of the run with deepflow went, in seconds."""

    before_s: float
    """From the call of the flow to its first submit: connecting, and making the flow run."""
    tasks_s: float
    """From the first submit to the end of the last task."""
    after_s: float
    """From there until the flow returned: the server's records, the report."""
    busy_share: float
    """Of the workers' time between the first submit and the last end: spent in tasks."""
    work_s: float
    """In tasks, on all workers together."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """Figures of one demo. Times in seconds of wall clock, sizes in bytes.

    The three wall times compare like with like: each is of the same flow, with libraries loaded and
    workers there before its clock starts.
    """

    size: str
    flow_run_id: str
    flow_run_name: str
    state: str
    tasks_completed: int
    tasks_total: int
    start_up: StartUp
    wall_s: float
    """With deepflow."""
    phases: Phases | None
    """None: the run left no journal."""
    one_process_wall_s: float | None
    """None: not compared."""
    prefect_dask_wall_s: float | None
    """None: not compared, or not installed."""
    prefect_dask_version: str | None
    """None: not installed."""
    speed_up: float | None
    """One process's time over ours; None: not compared."""
    wire_bytes: int
    """Served by workers (to each other and to the driver), plus results that came inline with a
    report or through the scheduler."""
    worker_classes: Mapping[str, int]
    artifacts: tuple[Artifact, ...]
    ui_url: str | None
    """The flow run's page; None where the UI ends with the demo."""
    journals: str | None
    """Where the run's journal lies; None: it left none."""
    flow: Mapping[str, Any]
    """What the flow itself says about its run."""


def worker_classes_for(n_cores: int, has_gpu: bool) -> tuple[WorkerClass, ...]:
    """Two classes for this machine: many small workers, and one that trains.

    Together they have as many threads as the machine has cores, and never fewer than two.
    """
    n_small = max(1, min(n_cores - 1, 15))
    return (
        WorkerClass("small", count=n_small, threads=1, labels=(("tier", "standard"),)),
        WorkerClass("large", count=1, threads=1, labels=(("tier", "fast"),), gpu=int(has_gpu)),
    )


def demo_classes() -> tuple[WorkerClass, ...]:
    """The workers of the demo on this machine."""
    return worker_classes_for(os.cpu_count() or 1, _has_gpu())


@contextmanager
def demo_cluster() -> Iterator[Any]:
    """The demo's workers, with their libraries loaded."""
    from deepflow.backend.clusters.local import local_cluster

    classes = demo_classes()
    with local_cluster(classes) as cluster:
        cluster.wait_for_workers(sum(one.count for one in classes))
        _load_libraries_on(cluster)
        yield cluster


@contextmanager
def api() -> Iterator[tuple[str, bool]]:
    """The Prefect API to use as `(url, is_ours)`: the configured one, or a server for the while.

    Raises `DemoError` where the configured one does not answer.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        _check_api(str(configured))
        yield str(configured), False
        return
    from deepflow.runner.server import EmbeddedServer

    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        # For this process, for the processes it starts, and for links that the flow makes.
        stack.enter_context(_environment("PREFECT_API_URL", server.api_url))
        stack.enter_context(temporary_settings(updates={PREFECT_API_URL: server.api_url}))
        yield server.api_url, True


def _check_api(url: str) -> None:
    """Ask the configured API how it is."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True, httpx_settings={"timeout": API_PATIENCE_S}) as client:
        failed = client.api_healthcheck()
    if failed is not None:
        raise DemoError(
            f"no Prefect API answers at PREFECT_API_URL={url} ({cause_of(failed)}); start it "
            "(`prefect server start`), correct the address (it ends in /api), or unset it: then "
            "the demo brings a server of its own"
        )


@contextmanager
def _environment(name: str, text: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = text
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def run_demo(
    size: str,
    api_url: str,
    *,
    server_start_s: float | None,
    is_compared: bool,
    is_ui_kept: bool,
    tell: Tell,
) -> DemoSummary:
    """Run the flow on a local cluster of two worker classes; then, to compare, with prefect-dask on
    a cluster like it (where that is installed) and in one process.

    `server_start_s`: what starting the API's server took, None where it was there. `is_ui_kept`:
    the server outlives the demo, so a link to it is of use. `tell` is called from another thread
    whenever the progress changes. Raises `DemoError` when the flow run does not end `Completed` in
    the server.
    """
    from prefect.settings import PREFECT_UI_URL

    from deepflow import DeepflowTaskRunner
    from deepflow.backend.clusters.local import local_cluster
    from deepflow.cli._flows import flight_delays

    flow = flight_delays()
    server = DemoServer(api_url)
    run_ids: list[str] = []
    classes = demo_classes()

    def remember(flow: Any, flow_run: Any, state: Any) -> None:
        run_ids.append(str(flow_run.id))

    tell(Progress(f"starting workers: {in_words(classes)}"))
    began_s = time.perf_counter()
    with local_cluster(classes) as cluster:
        cluster.wait_for_workers(sum(one.count for one in classes))
        workers_s = time.perf_counter() - began_s
        tell(Progress("importing pandas, torch and the flow on each worker"))
        began_s = time.perf_counter()
        _load_libraries_on(cluster)
        start_up = StartUp(server_start_s, workers_s, time.perf_counter() - began_s)
        ours = flow.with_options(
            # `cluster=` rather than `local=`: the workers must outlive the flow, to be asked
            # afterwards how much they moved.
            task_runner=DeepflowTaskRunner(cluster=cluster),
            on_running=[*flow.on_running_hooks, remember],
        )
        moved_before = _results_not_served_by_workers()
        served_before = _served_by_workers(cluster)
        with _watched(
            server, lambda: run_ids[-1] if run_ids else None, f"running the flow, size {size}", tell
        ):
            called_at_s, began_s = time.time(), time.perf_counter()
            result = ours(size=size)
            wall_s = time.perf_counter() - began_s
        wire_bytes = (
            _served_by_workers(cluster)
            - served_before
            + _results_not_served_by_workers()
            - moved_before
        )
        tell(Progress("closing the workers"))

    flow_run_id = run_ids[-1]
    run = server.flow_run(flow_run_id)
    counts = server.wait_for_records(flow_run_id, RECORD_DEADLINE_S)
    if run["state_type"] != "COMPLETED":
        raise DemoError(
            f"the flow run {run['name']} is {run['state_name']} in the server, not Completed; "
            "its page in the UI tells why"
        )
    peer = _prefect_dask_version()
    prefect_dask_s = one_process_s = None
    if is_compared and peer is not None:
        stage = f"running it with prefect-dask {peer} on workers like these"
        prefect_dask_s = _wall_s_of("prefect-dask", size, server, stage, tell)
    if is_compared:
        stage = "running it in one process, one task at a time"
        one_process_s = _wall_s_of("one-process", size, server, stage, tell)
    ui_url = str(PREFECT_UI_URL.value() or api_url.removesuffix("/api")).rstrip("/")
    journal = _journal_of(flow_run_id)
    told_by_flow = result.as_dict()
    if not is_ui_kept:
        told_by_flow["flow_run_url"] = None  # it leads nowhere when the server has ended
    return DemoSummary(
        size=size,
        flow_run_id=flow_run_id,
        flow_run_name=run["name"],
        state=run["state_name"],
        tasks_completed=counts["COMPLETED"],
        tasks_total=sum(counts.values()),
        start_up=start_up,
        wall_s=wall_s,
        phases=None if journal is None else _phases(journal, called_at_s, wall_s),
        one_process_wall_s=one_process_s,
        prefect_dask_wall_s=prefect_dask_s,
        prefect_dask_version=peer,
        speed_up=None if one_process_s is None else one_process_s / wall_s,
        wire_bytes=wire_bytes,
        worker_classes={one.name: one.count for one in classes},
        artifacts=server.artifacts(flow_run_id),
        ui_url=f"{ui_url}/runs/flow-run/{flow_run_id}" if is_ui_kept else None,
        journals=None if journal is None else str(journal.parent),
        flow=told_by_flow,
    )


def in_words(classes: tuple[WorkerClass, ...]) -> str:
    """`1 × small, 1 × large`."""
    return ", ".join(f"{one.count} × {one.name}" for one in classes)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _load_libraries_on(cluster: Any) -> None:
    from distributed import Client

    from deepflow.cli._flows import load_libraries

    with Client(cluster) as client:
        client.run(load_libraries)


def _journal_of(flow_run_id: str) -> Path | None:
    """The journal that the run has left, if it has."""
    from deepflow.settings import load_settings

    folder = load_settings().state_dir.expanduser() / "journals"
    path = folder / f"{flow_run_id}.journal.zst"
    return path if path.is_file() else None


def _phases(journal: Path, called_at_s: float, wall_s: float) -> Phases | None:
    from deepflow.decide.trail import Trail
    from deepflow.observe.journal import read_journal

    try:
        trail = Trail.of(read_journal(journal))
    except JournalError:
        return None  # as without one: `deepflow explain` says what is wrong with it
    before_s = max(0.0, trail.begin_s - called_at_s)
    work_s = sum(one.run_s or 0.0 for task in trail.tasks.values() for one in task.attempts)
    capacity_s = sum(
        worker.threads * worker.present_s(trail.begin_s, trail.end_s)
        for worker in trail.workers.values()
    )
    return Phases(
        before_s=before_s,
        tasks_s=trail.makespan_s,
        after_s=max(0.0, wall_s - before_s - trail.makespan_s),
        busy_share=work_s / capacity_s if capacity_s else 0.0,
        work_s=work_s,
    )


def _results_not_served_by_workers() -> int:
    """Bytes of results that reached this process in another way than straight from a worker."""
    name = "deepflow_result_moved_bytes_total"
    return int(metrics.value(name, path="inline") + metrics.value(name, path="scheduler"))


def _served_by_workers(cluster: Any) -> int:
    """Bytes that the cluster's workers sent to whoever asked them for data, since they started."""
    from distributed import Client

    def sent(dask_worker: Any) -> int:
        return int(dask_worker.transfer_outgoing_bytes_total)

    with Client(cluster) as client:
        return sum(client.run(sent).values())


def _prefect_dask_version() -> str | None:
    try:
        return version("prefect-dask")
    except PackageNotFoundError:
        return None


def _wall_s_of(contender: str, size: str, server: DemoServer, stage: str, tell: Tell) -> float:
    """Seconds that the flow takes without deepflow's runner."""
    name = f"{contender}-{uuid.uuid4().hex[:8]}"
    with _watched(server, lambda: server.find_flow_run(name), stage, tell):
        done = subprocess.run(
            [sys.executable, "-m", "deepflow.cli._demo_contender", contender, size, name],
            env={**os.environ, "PREFECT_API_URL": server.api_url},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise DemoError(
            f"the comparison ({contender}) ended with status {done.returncode}; "
            f"leave it out with --no-compare. The end of what it said:\n{done.stderr[-2000:]}"
        )
    wall_s: float = json.loads(done.stdout.splitlines()[-1])["wall_s"]
    return wall_s


@contextmanager
def _watched(
    server: DemoServer, find: Callable[[], str | None], stage: str, tell: Tell
) -> Iterator[None]:
    """Ask the server now and then how far a flow run is, on a thread, while the block runs.

    `find` gives the flow run's id, None while there is none.
    """
    ended = threading.Event()
    progress = Progress(stage)
    tell(progress)

    def watch() -> None:
        while not ended.wait(POLL_S):
            try:
                flow_run_id = find()
                if flow_run_id is None:
                    continue
                n_known, n_done = (server.count(flow_run_id, s) for s in (None, "COMPLETED"))
                running = server.running(flow_run_id)
            except DemoError:
                continue  # a server too busy to answer; the flow itself tells if it is gone
            tell(replace(progress, n_done=n_done, n_known=n_known, running=running))

    thread = threading.Thread(target=watch, name="demo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
