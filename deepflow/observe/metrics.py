"""The one table of deepflow's metrics, and the way to count into it.

Where to scrape
---------------
All metrics live in `prometheus_client.REGISTRY` of the process that counts them:

=========  =====================================================================================
driver     `serve(port)` starts an exporter: `http://<driver>:<port>/metrics`. The runner calls it
           when the setting `metrics_port` (`DEEPFLOW_METRICS_PORT`) is given; it listens on
           `metrics_host`, by default this machine only.
worker     Dask's own HTTP server, on the worker's dashboard port: `http://<worker>:<port>/metrics`
           (`dask worker --dashboard-address :<port>`). Dask serves the default registry there, so
           ours appear beside `dask_worker_*`.
scheduler  the same on the scheduler's dashboard port: `http://<scheduler>:8787/metrics`.
=========  =====================================================================================

`register()` makes every metric appear before it is first counted; the worker plugin calls it.

All rows of the table are in one file, so that a name is found once.

Trap: with an embedded local cluster the scheduler runs *inside* the driver's process, so its
`/metrics` and the driver's exporter serve the same registry. Scrape one of the two, or sums double.
"""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from deepflow.decide.fallbacks import Fallback
from deepflow.errors import DeepflowError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "Exporter",
    "Label",
    "Metric",
    "MetricError",
    "inc",
    "observe",
    "register",
    "serve",
    "set_gauge",
    "stop_serving",
    "table",
    "value",
]

_log = logging.getLogger("deepflow.observe.metrics")

MetricType = Literal["counter", "gauge", "histogram"]

MAX_OPEN_LABEL_VALUES = 50
"""Distinct values kept for a label whose values the table does not list; the rest are `other`."""

OTHER = "other"

_RUN_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
_WAIT_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_BATCH_ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class MetricError(DeepflowError, ValueError):
    """A metric was named, labelled or served as the table or the machine does not allow."""


@dataclass(frozen=True, slots=True)
class Label:
    """A dimension of a metric. `values`: what it may be; empty: open, but bounded in number."""

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `buckets` are the upper bounds of a histogram, in the metric's unit."""

    name: str
    type: MetricType
    unit: str
    meaning: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()


_TABLE: tuple[Metric, ...] = (
    Metric(
        "deepflow_tasks_total",
        "counter",
        "tasks",
        "Prefect task runs that reached a final state, by that state.",
        (
            Label(
                "outcome",
                ("completed", "failed", "crashed", "cancelled", "timedout", "cached", "other"),
            ),
        ),
    ),
    Metric(
        "deepflow_task_run_seconds",
        "histogram",
        "seconds",
        "Time a task run spent in the task's own code on a worker.",
        buckets=_RUN_SECONDS,
    ),
    Metric(
        "deepflow_queue_wait_seconds",
        "histogram",
        "seconds",
        "Time between a task's submission and its start on a worker.",
        buckets=_WAIT_SECONDS,
    ),
    Metric(
        "deepflow_batches_total",
        "counter",
        "batches",
        "Dask tasks that carried more than one Prefect task run.",
    ),
    Metric(
        "deepflow_batch_items",
        "histogram",
        "tasks",
        "Prefect task runs carried by one batch.",
        buckets=_BATCH_ITEMS,
    ),
    Metric(
        "deepflow_batch_splits_total",
        "counter",
        "batches",
        "Batches cut in two because their items turned out longer than predicted.",
    ),
    Metric(
        "deepflow_result_moved_bytes_total",
        "counter",
        "bytes",
        "Result bytes that crossed the wire to the driver, by the way they took.",
        (Label("path", ("direct", "scheduler", "inline")),),
    ),
    Metric(
        "deepflow_transfer_bytes_total",
        "counter",
        "bytes",
        "Bytes of values that left a worker: raw (as in memory) and sent (over the network) of "
        "those that travelled, shared: handed over in shared memory, copied: copied into it.",
        (Label("kind", ("raw", "sent", "shared", "copied")),),
    ),
    Metric(
        "deepflow_transfer_seconds_total",
        "counter",
        "seconds",
        "Time in which values were on their way to other processes.",
    ),
    Metric(
        "deepflow_codec_bytes_total",
        "counter",
        "bytes",
        "Bytes of values that were sent, before and after coding, by codec.",
        (Label("codec"), Label("kind", ("raw", "stored"))),
    ),
    Metric(
        "deepflow_shared_memory_bytes",
        "gauge",
        "bytes",
        "Shared memory that this worker owns, what is kept for the next values included.",
    ),
    Metric(
        "deepflow_tier_bytes",
        "gauge",
        "bytes",
        "What a worker's results take in each tier: in the heap as they are, elsewhere as stored.",
        (Label("tier", ("heap", "memory", "disk", "remote")),),
    ),
    Metric(
        "deepflow_tier_moved_bytes_total",
        "counter",
        "bytes",
        "Stored bytes of results that were evicted to a tier, or read back from it.",
        (Label("tier", ("memory", "disk", "remote")), Label("direction", ("to", "from"))),
    ),
    Metric(
        "deepflow_tier_waited_seconds_total",
        "counter",
        "seconds",
        "Seconds that worker threads were held back until results had left the heap.",
    ),
    Metric(
        "deepflow_shared_argument_bytes_total",
        "counter",
        "bytes",
        "Bytes of arguments shipped once for many calls instead of with each call.",
    ),
    Metric(
        "deepflow_fallbacks_total",
        "counter",
        "fallbacks",
        "Times a fast or exact way was not possible and the plain one was taken, by kind.",
        (Label("kind", tuple(Fallback)),),
    ),
    Metric(
        "deepflow_flow_runs_cancelled_total",
        "counter",
        "cancelled",
        "Flow runs that were cancelled through Prefect's API and whose task runs were stopped.",
    ),
    Metric(
        "deepflow_infra_retries_total",
        "counter",
        "retries",
        "Task attempts repeated because the infrastructure failed, not the task, by cause.",
        (Label("cause"),),
    ),
    Metric(
        "deepflow_recomputed_total",
        "counter",
        "tasks",
        "Finished tasks run again because their result died with a worker.",
    ),
    Metric(
        "deepflow_events_sent_total",
        "counter",
        "events",
        "Task run events sent to the Prefect server, those sent again not included.",
    ),
    Metric(
        "deepflow_events_resent_total",
        "counter",
        "events",
        "Task run events sent again because the server had not recorded them.",
    ),
    Metric(
        "deepflow_events_coalesced_total",
        "counter",
        "events",
        "Intermediate task run events left out because a later one of the same run says it all.",
    ),
    Metric(
        "deepflow_events_missing",
        "gauge",
        "events",
        "Task runs whose final state the server had not recorded at the last comparison.",
    ),
    Metric(
        "deepflow_events_backlog",
        "gauge",
        "events",
        "Task run events that wait in this process for the server to take them in.",
    ),
    Metric(
        "deepflow_durable_reads_total",
        "counter",
        "tasks",
        "Results read back from result storage instead of running the task again.",
    ),
    Metric(
        "deepflow_damaged_results_total",
        "counter",
        "results",
        "Persisted results that were damaged or unreadable, and so were computed again.",
    ),
    Metric(
        "deepflow_result_storage_retries_total",
        "counter",
        "calls",
        "Calls of result storage that failed and were tried again.",
    ),
    Metric(
        "deepflow_context_fetches_total",
        "counter",
        "fetches",
        "Times a worker had to ask for a flow run's shared context because it did not have it.",
    ),
)

_BY_NAME: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


class _Counts(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class _Observes(Protocol):
    def observe(self, amount: float) -> None: ...


class _Sets(Protocol):
    def set(self, value: float) -> None: ...


# Prometheus objects by metric name, made on first use: importing this module costs no
# prometheus-client, and a process that counts nothing exports nothing.
_objects: dict[str, Counter | Gauge | Histogram] = {}
_children: dict[tuple[str, tuple[tuple[str, str], ...]], object] = {}
_open_values: dict[tuple[str, str], set[str]] = {}
_lock = threading.RLock()


def table() -> list[Metric]:
    """Every metric there is, in the order in which a person would read them."""
    return list(_TABLE)


def _row(name: str, *allowed: MetricType) -> Metric:
    """The row called `name`, if its type is among `allowed`; else `MetricError`."""
    row = _BY_NAME.get(name)
    if row is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise MetricError(
            f"no metric is called {name!r} (nearest: {near[0]!r}); "
            "use that one, or add a row to the table in deepflow.observe.metrics"
        )
    if allowed and row.type not in allowed:
        verb = {"counter": "inc", "gauge": "set_gauge", "histogram": "observe"}[row.type]
        raise MetricError(f"{name} is a {row.type}: record it with metrics.{verb}()")
    return row


def _object(row: Metric) -> Counter | Gauge | Histogram:
    """The Prometheus object of `row`, made and put into the default registry when first asked."""
    made = _objects.get(row.name)
    if made is not None:
        return made
    with _lock:
        made = _objects.get(row.name)
        if made is None:
            from prometheus_client import Counter, Gauge, Histogram

            label_names = tuple(label.name for label in row.labels)
            help_text = f"{row.meaning} Unit: {row.unit}."
            if row.type == "counter":
                made = Counter(row.name, help_text, label_names)
            elif row.type == "gauge":
                made = Gauge(row.name, help_text, label_names)
            else:
                made = Histogram(row.name, help_text, label_names, buckets=row.buckets)
            _objects[row.name] = made
    return made


def _checked_labels(row: Metric, labels: dict[str, str]) -> dict[str, str]:
    """`labels` in the table's order; an open label with too many values becomes `other`."""
    names = tuple(label.name for label in row.labels)
    if set(labels) != set(names):
        raise MetricError(
            f"{row.name} takes the labels {list(names)}, not {sorted(labels)}; name each of them"
        )
    checked: dict[str, str] = {}
    for label in row.labels:
        given = labels[label.name]
        if label.values:
            if given not in label.values:
                near = difflib.get_close_matches(given, label.values, n=1, cutoff=0.0)
                raise MetricError(
                    f"{row.name}: {label.name}={given!r} is not one of {list(label.values)} "
                    f"(nearest: {near[0]!r})"
                )
        else:
            seen = _open_values.setdefault((row.name, label.name), set())
            if given not in seen:
                with _lock:
                    if len(seen) >= MAX_OPEN_LABEL_VALUES:
                        given = OTHER
                    else:
                        seen.add(given)
        checked[label.name] = given
    return checked


def _child(row: Metric, labels: dict[str, str]) -> object:
    """The thing that counts for exactly these label values. A dictionary look-up once it exists."""
    key = (row.name, tuple(sorted(labels.items())))
    child = _children.get(key)
    if child is None:
        made = _object(row)
        checked = _checked_labels(row, labels)
        child = made.labels(**checked) if checked else made
        if checked == labels:  # not folded to `other`: the cache stays as bounded as the labels
            _children[key] = child
    return child


def inc(name: str, amount: float = 1, **labels: str) -> None:
    """Add `amount` (not negative) to the counter `name`. Thread-safe; about a microsecond.

    Raises `MetricError` for a name, type or label that the table does not have.
    """
    if amount < 0:
        raise MetricError(f"{name}: a counter only goes up, not by {amount}; use a gauge")
    child: _Counts = _child(_row(name, "counter"), labels)  # type: ignore[assignment]
    child.inc(amount)


def observe(name: str, value: float, **labels: str) -> None:
    """Add one observation of `value`, in the table's unit, to the histogram `name`."""
    child: _Observes = _child(_row(name, "histogram"), labels)  # type: ignore[assignment]
    child.observe(value)


def set_gauge(name: str, value: float, **labels: str) -> None:
    """Say that the gauge `name` is now `value`."""
    child: _Sets = _child(_row(name, "gauge"), labels)  # type: ignore[assignment]
    child.set(value)


def value(name: str, **labels: str) -> float:
    """What this process has counted so far under `name`: 0.0 if nothing.

    Labels left out are summed over. For a histogram: the number of observations, or with
    `<name>_sum` their sum. Other processes' counts are not in it.
    """
    row_name, suffix = name, ""
    for ending in ("_sum", "_count"):
        base = name.removesuffix(ending)
        if base != name and base in _BY_NAME and _BY_NAME[base].type == "histogram":
            row_name, suffix = base, ending
    row = _row(row_name)
    known = {label.name for label in row.labels}
    if not set(labels) <= known:
        raise MetricError(f"{row.name} takes the labels {sorted(known)}, not {sorted(labels)}")
    made = _objects.get(row.name)
    if made is None:
        return 0.0
    wanted = row.name + (suffix or "_count") if row.type == "histogram" else row.name
    return sum(
        sample.value
        for family in made.collect()
        for sample in family.samples
        if sample.name == wanted
        and all(sample.labels.get(label) == text for label, text in labels.items())
    )


def register() -> None:
    """Make every metric of the table appear in this process's registry, at zero. Idempotent.

    Called by the worker plugin, so that a worker's `/metrics` shows the whole table from the start.
    Series of labels whose values the table lists appear too.
    """
    for row in _TABLE:
        _object(row)
        for labels in _listed_labels(row):
            _child(row, labels)


def _listed_labels(row: Metric) -> Iterator[dict[str, str]]:
    """Every combination of listed label values; none where a label is open. One label at most."""
    if len(row.labels) == 1:
        yield from ({row.labels[0].name: text} for text in row.labels[0].values)


@dataclass(frozen=True, slots=True)
class Exporter:
    """A running HTTP exporter of this process's registry."""

    addr: str
    port: int
    server: WSGIServer
    thread: threading.Thread


_exporters: dict[tuple[str, int], Exporter] = {}


def serve(port: int, addr: str = "127.0.0.1") -> int:
    """Serve this process's metrics at `http://addr:port/metrics`; returns the port.

    Port 0 takes any free one, or the one already served on `addr`. Asking again for a port that is
    already served does nothing. Raises `MetricError` when the port is taken by another program.
    """
    if not 0 <= port <= 65535:
        raise MetricError(f"metrics port {port} is not between 0 and 65535; 0 takes any free one")
    from prometheus_client import start_http_server

    with _lock:
        for exporter in _exporters.values():
            if exporter.addr == addr and port in (0, exporter.port):
                return exporter.port
        register()
        try:
            server, thread = start_http_server(port, addr=addr)
        except OSError as error:
            raise MetricError(
                f"cannot serve metrics on {addr}:{port}: {error}; "
                "set DEEPFLOW_METRICS_PORT to another port, or to 0 for any free one"
            ) from error
        exporter = Exporter(addr, server.server_port, server, thread)
        _exporters[addr, exporter.port] = exporter
        _log.info("metrics served on http://%s:%d/metrics", addr, exporter.port)
        return exporter.port


def stop_serving() -> None:
    """Close every exporter that `serve` started in this process. The counts stay."""
    with _lock:
        exporters = list(_exporters.values())
        _exporters.clear()
    for exporter in exporters:
        exporter.server.shutdown()
        exporter.server.server_close()
        exporter.thread.join()
