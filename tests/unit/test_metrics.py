"""The table of metrics is well formed, and counting refuses what the table does not have."""

from __future__ import annotations

import logging
import re
import socket
import urllib.request
from collections.abc import Iterator

import pytest

from deepflow.errors import DeepflowError
from deepflow.observe import metrics
from deepflow.runner.driver.session import Session
from deepflow.settings import load_settings


@pytest.fixture
def exporter_port() -> Iterator[int]:
    yield metrics.serve(0)
    metrics.stop_serving()


def test_every_name_says_deepflow_and_counters_end_in_total() -> None:
    for row in metrics.table():
        assert re.fullmatch(r"deepflow_[a-z]+(_[a-z]+)*", row.name)
        assert row.name.endswith("_total") == (row.type == "counter")
        if row.unit in ("seconds", "bytes"):
            assert re.search(rf"_{row.unit}(_total)?$", row.name)
        assert row.meaning.endswith(".")


def test_names_are_unique() -> None:
    names = [row.name for row in metrics.table()]
    assert len(names) == len(set(names))


def test_histograms_and_only_histograms_have_rising_buckets() -> None:
    for row in metrics.table():
        assert bool(row.buckets) == (row.type == "histogram")
        assert list(row.buckets) == sorted(set(row.buckets))


def test_a_counter_adds_up_by_label_and_over_labels() -> None:
    before = metrics.value("deepflow_tasks_total")
    before_failed = metrics.value("deepflow_tasks_total", outcome="failed")
    metrics.inc("deepflow_tasks_total", outcome="completed")
    metrics.inc("deepflow_tasks_total", 3, outcome="failed")
    assert metrics.value("deepflow_tasks_total", outcome="failed") - before_failed == 3
    assert metrics.value("deepflow_tasks_total") - before == 4


def test_a_histogram_tells_count_and_sum() -> None:
    count = metrics.value("deepflow_batch_items")
    total = metrics.value("deepflow_batch_items_sum")
    metrics.observe("deepflow_batch_items", 12)
    metrics.observe("deepflow_batch_items", 30)
    assert metrics.value("deepflow_batch_items") - count == 2
    assert metrics.value("deepflow_batch_items_sum") - total == 42


def test_a_gauge_is_what_was_last_said() -> None:
    metrics.set_gauge("deepflow_events_backlog", 7)
    metrics.set_gauge("deepflow_events_backlog", 5)
    assert metrics.value("deepflow_events_backlog") == 5


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(metrics.MetricError, match="nearest: 'deepflow_tasks_total'"):
        metrics.inc("deepflow_task_total", outcome="completed")
    with pytest.raises(DeepflowError, match="nearest"):
        metrics.value("deepflow_nonsense")


def test_the_wrong_verb_is_refused_with_the_right_one() -> None:
    with pytest.raises(metrics.MetricError, match=r"metrics\.observe\(\)"):
        metrics.inc("deepflow_task_run_seconds")
    with pytest.raises(metrics.MetricError, match=r"metrics\.set_gauge\(\)"):
        metrics.observe("deepflow_events_backlog", 1)


def test_labels_must_be_the_tables_own() -> None:
    with pytest.raises(metrics.MetricError, match=r"\['outcome'\]"):
        metrics.inc("deepflow_tasks_total")
    with pytest.raises(metrics.MetricError, match="nearest: 'completed'"):
        metrics.inc("deepflow_tasks_total", outcome="complete")
    with pytest.raises(metrics.MetricError, match="key"):
        metrics.inc("deepflow_batches_total", key="my-task-1")


def test_a_refused_increment_changes_nothing() -> None:
    before = metrics.value("deepflow_tasks_total")
    with pytest.raises(metrics.MetricError):
        metrics.inc("deepflow_tasks_total", -1, outcome="failed")
    with pytest.raises(metrics.MetricError):
        metrics.inc("deepflow_tasks_total", outcome="nonsense")
    assert metrics.value("deepflow_tasks_total") == before


def test_an_open_label_folds_into_other_when_it_has_too_many_values() -> None:
    before = metrics.value("deepflow_infra_retries_total", cause=metrics.OTHER)
    for i in range(metrics.MAX_OPEN_LABEL_VALUES + 25):
        metrics.inc("deepflow_infra_retries_total", cause=f"cause-{i}")
    folded = metrics.value("deepflow_infra_retries_total", cause=metrics.OTHER) - before
    assert folded >= 25
    assert metrics.value("deepflow_infra_retries_total", cause="cause-0") >= 1


def test_the_exporter_serves_the_whole_table(exporter_port: int) -> None:
    metrics.inc("deepflow_context_fetches_total", 2)
    want = metrics.value("deepflow_context_fetches_total")
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter_port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    for row in metrics.table():
        exported = row.name.removesuffix("_total") if row.type == "counter" else row.name
        assert f"# TYPE {row.name} " in text or f"# TYPE {exported} " in text
    assert f"deepflow_context_fetches_total {want}" in text
    assert 'deepflow_tasks_total{outcome="crashed"}' in text


def test_serving_twice_is_serving_once(exporter_port: int) -> None:
    assert metrics.serve(0) == exporter_port
    assert metrics.serve(exporter_port) == exporter_port


def test_a_taken_port_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(metrics.MetricError, match=f"127.0.0.1:{port}.*to another port"):
            metrics.serve(port)


def test_a_flow_goes_on_without_its_exporter_where_the_port_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = Session.__new__(Session)
    session.logger = logging.getLogger("test")
    before = metrics.value("deepflow_fallbacks_total", kind="metrics_port_taken")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        session.settings = load_settings(metrics_port=taken.getsockname()[1])
        session._serve_metrics()
    assert metrics.value("deepflow_fallbacks_total", kind="metrics_port_taken") == before + 1
    assert "metrics are not exported" in caplog.text


def test_a_metrics_host_that_is_not_this_machine_is_an_error() -> None:
    session = Session.__new__(Session)
    session.settings = load_settings(metrics_port=0, metrics_host="192.0.2.1")
    with pytest.raises(metrics.MetricError, match=r"192\.0\.2\.1"):
        session._serve_metrics()
