"""A real Prometheus scrapes a real driver, worker and scheduler, and answers with our figures."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from deepflow.observe import metrics

PROMETHEUS = shutil.which("prometheus")
SCRAPE_DEADLINE_S = 60.0

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        PROMETHEUS is None, reason="needs the Prometheus server (Debian package prometheus)"
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as reply:
        text: str = reply.read().decode()
    return text


class Prometheus:
    """A running Prometheus; `query` gives instant values by job."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> dict[str, float]:
        reply = json.loads(
            fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        )
        assert reply["status"] == "success", reply
        return {
            series["metric"].get("job", ""): float(series["value"][1])
            for series in reply["data"]["result"]
        }


@contextmanager
def prometheus_scraping(targets: dict[str, str], home: Path) -> Iterator[Prometheus]:
    """Debian's Prometheus on a free port, scraping job → address every second."""
    assert PROMETHEUS is not None
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [address]}]}
        for job, address in targets.items()
    ]
    config = home / "prometheus.yml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "scrape_configs": jobs,
            }
        )
    )
    port = free_port()
    log_path = home / "prometheus.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={home / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + SCRAPE_DEADLINE_S
            while True:
                assert process.poll() is None, log_path.read_text()[-3000:]
                assert time.monotonic() < deadline, log_path.read_text()[-3000:]
                try:
                    fetch(f"{url}/-/ready")
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            yield Prometheus(url)
        finally:
            process.terminate()
            process.wait(20)


def until_equal(wanted: float, ask: Callable[[], float | None]) -> None:
    """Poll until the answer is `wanted`: a scrape takes a moment to come round."""
    deadline = time.monotonic() + SCRAPE_DEADLINE_S
    while (got := ask()) != wanted:
        assert time.monotonic() < deadline, f"wanted {wanted}, Prometheus still says {got}"
        time.sleep(0.1)


def count_on_worker(n_completed: int, run_seconds: float) -> float:
    """What a task on a worker does: count, and tell what was counted there."""
    from deepflow.observe import metrics as on_worker

    on_worker.register()
    on_worker.inc("deepflow_tasks_total", n_completed, outcome="completed")
    on_worker.observe("deepflow_task_run_seconds", run_seconds)
    return on_worker.value("deepflow_tasks_total", outcome="completed")


def test_prometheus_sees_what_driver_worker_and_scheduler_counted(tmp_path: Path) -> None:
    driver_port = metrics.serve(0)
    try:
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            (worker,) = client.scheduler_info()["workers"].values()
            worker_port = worker["services"]["dashboard"]
            scheduler_port = cluster.scheduler.http_server.port
            targets = {
                "driver": f"127.0.0.1:{driver_port}",
                "worker": f"127.0.0.1:{worker_port}",
                "scheduler": f"127.0.0.1:{scheduler_port}",
            }
            with prometheus_scraping(targets, tmp_path) as prometheus:
                before = metrics.value("deepflow_events_sent_total")
                metrics.inc("deepflow_events_sent_total", 41)
                assert client.submit(count_on_worker, 7, 0.3).result(timeout=60) == 7

                completed = 'deepflow_tasks_total{outcome="completed"}'
                until_equal(7, lambda: prometheus.query(completed).get("worker"))
                sent = "deepflow_events_sent_total"
                until_equal(before + 41, lambda: prometheus.query(sent).get("driver"))

                # The figures move on, and each process tells its own.
                assert client.submit(count_on_worker, 5, 0.5).result(timeout=60) == 12
                until_equal(12, lambda: prometheus.query(completed).get("worker"))
                run_seconds = "deepflow_task_run_seconds_sum"
                until_equal(0.8, lambda: prometheus.query(run_seconds).get("worker"))
                assert prometheus.query(sent)["worker"] == 0

                # An embedded cluster's scheduler shares the driver's process and its registry.
                until_equal(before + 41, lambda: prometheus.query(sent).get("scheduler"))
                assert "dask_scheduler_workers" in fetch(
                    f"http://127.0.0.1:{scheduler_port}/metrics"
                )
    finally:
        metrics.stop_serving()
