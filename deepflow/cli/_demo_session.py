"""What `deepflow demo` does: a server if there is none, two classes of workers, the flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from deepflow.decide.model import WorkerClass
from deepflow.errors import DeepflowError
from deepflow.observe import metrics

POLL_S = 0.5
API_PATIENCE_S = 10.0
RECORD_DEADLINE_S = 30.0

_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class DemoError(DeepflowError, RuntimeError):
    """The demo could not be carried through."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the flow run is, as the Prefect server has it recorded."""

    stage: str
    n_done: int = 0
    n_known: int = 0


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """Figures of one demo. Times in seconds of wall clock, sizes in bytes."""

    size: str
    flow_run_id: str
    flow_run_name: str
    state: str
    tasks_completed: int
    tasks_total: int
    cluster_start_s: float
    wall_s: float
    one_process_wall_s: float | None
    speed_up: float | None
    """One process's time over ours, the start of the cluster left out; None: not compared."""
    wire_bytes: int
    """Served by workers (to each other and to the driver), plus results that came inline with a
    report or through the scheduler."""
    worker_classes: Mapping[str, int]
    ui_url: str | None
    """The flow run's page; None where the UI ends with the demo."""
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
            f"no Prefect API answers at PREFECT_API_URL={url} ({_cause(failed)}); start it "
            "(`prefect server start`), correct the address (it ends in /api), or unset it: then "
            "the demo brings a server of its own"
        )


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


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
    is_compared: bool,
    is_ui_kept: bool,
    tell: Callable[[Progress | None], None],
) -> DemoSummary:
    """Run the flow on a local cluster of two worker classes, then alone in one process.

    `is_ui_kept`: the API's server outlives the demo, so a link to it is of use. `tell` is called
    from another thread whenever the progress changes. Raises `DemoError` when the flow run does not
    end `Completed` in the server.
    """
    from prefect.settings import PREFECT_UI_URL

    from deepflow import DeepflowTaskRunner
    from deepflow.backend.clusters.local import local_cluster
    from deepflow.cli._flows import flight_delays

    flow = flight_delays()
    server = _Server(api_url)
    run_ids: list[str] = []
    classes = worker_classes_for(os.cpu_count() or 1, _has_gpu())

    def remember(flow: Any, flow_run: Any, state: Any) -> None:
        run_ids.append(str(flow_run.id))

    tell(Progress("starting the workers"))
    began_s = time.perf_counter()
    with local_cluster(classes) as cluster:
        cluster.wait_for_workers(sum(one.count for one in classes))
        cluster_start_s = time.perf_counter() - began_s
        ours = flow.with_options(
            # `cluster=` rather than `local=`: the workers must outlive the flow, to be asked
            # afterwards how much they moved.
            task_runner=DeepflowTaskRunner(cluster=cluster),
            on_running=[*flow.on_running_hooks, remember],
        )
        moved_before = _results_not_served_by_workers()
        with _watched(server, run_ids, tell):
            began_s = time.perf_counter()
            result = ours(size=size)
            wall_s = time.perf_counter() - began_s
        wire_bytes = _served_by_workers(cluster) + _results_not_served_by_workers() - moved_before

    flow_run_id = run_ids[-1]
    run = server.flow_run(flow_run_id)
    counts = server.wait_for_records(flow_run_id, RECORD_DEADLINE_S)
    if run["state_type"] != "COMPLETED":
        raise DemoError(
            f"the flow run {run['name']} is {run['state_name']} in the server, not Completed; "
            "its page in the UI tells why"
        )
    one_process_s = None
    if is_compared:
        tell(Progress("running the same in one process, to compare"))
        one_process_s = _one_process_wall_s(size, api_url)
    ui_url = str(PREFECT_UI_URL.value() or api_url.removesuffix("/api")).rstrip("/")
    return DemoSummary(
        size=size,
        flow_run_id=flow_run_id,
        flow_run_name=run["name"],
        state=run["state_name"],
        tasks_completed=counts["COMPLETED"],
        tasks_total=sum(counts.values()),
        cluster_start_s=cluster_start_s,
        wall_s=wall_s,
        one_process_wall_s=one_process_s,
        speed_up=None if one_process_s is None else one_process_s / wall_s,
        wire_bytes=wire_bytes,
        worker_classes={one.name: one.count for one in classes},
        ui_url=f"{ui_url}/runs/flow-run/{flow_run_id}" if is_ui_kept else None,
        flow=result.as_dict(),
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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


def _one_process_wall_s(size: str, api_url: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "deepflow.cli._demo_baseline", size],
        env={**os.environ, "PREFECT_API_URL": api_url},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(
            f"the comparison in one process ended with status {done.returncode}; "
            f"leave it out with --no-compare. The end of what it said:\n{done.stderr[-2000:]}"
        )
    wall_s: float = json.loads(done.stdout.splitlines()[-1])["wall_s"]
    return wall_s


class _Server:
    """The few questions that the demo asks the Prefect server."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self._ask("GET", f"/flow_runs/{flow_run_id}", None)
        return run

    def count(self, flow_run_id: str, state: str | None = None) -> int:
        """Task runs of the flow run, in all or in one state."""
        asked: dict[str, Any] = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        if state is not None:
            asked["task_runs"] = {"state": {"type": {"any_": [state]}}}
        n: int = self._ask("POST", "/task_runs/count", asked)
        return n

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Raises `DemoError` where the server does not answer, or refuses."""
        import httpx

        try:
            reply = httpx.request(method, f"{self._api_url}{path}", json=body, timeout=30)
            return reply.raise_for_status().json()
        except httpx.HTTPError as error:
            cause = _cause(error)
        raise DemoError(
            f"the Prefect server at {self._api_url} did not answer {path} ({cause}); "
            "its log tells why"
        )

    def wait_for_records(self, flow_run_id: str, deadline_s: float) -> dict[str, int]:
        """Task runs by final state, once none is on its way any more or the deadline has passed."""
        end_s = time.monotonic() + deadline_s
        while True:
            counts = {state: self.count(flow_run_id, state) for state in _FINAL}
            unfinished = self.count(flow_run_id) - sum(counts.values())
            if unfinished == 0 or time.monotonic() > end_s:
                return counts | ({"UNFINISHED": unfinished} if unfinished else {})
            time.sleep(POLL_S)


@contextmanager
def _watched(
    server: _Server, run_ids: list[str], tell: Callable[[Progress | None], None]
) -> Iterator[None]:
    """Ask the server now and then how far the flow run is, on a thread, while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            if not run_ids:
                continue
            try:
                n_known = server.count(run_ids[-1])
                n_done = server.count(run_ids[-1], "COMPLETED")
            except DemoError:
                continue  # a server too busy to answer; the flow itself tells if it is gone
            tell(Progress("running the flow", n_done, n_known))

    tell(Progress("running the flow"))
    thread = threading.Thread(target=watch, name="demo-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
