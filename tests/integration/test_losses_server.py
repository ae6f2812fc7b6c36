"""The Prefect server away for a while, or for good; and a server that drops events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from deepflow import DeepflowTaskRunner, EmbeddedServer, hints
from deepflow.observe import metrics
from deepflow.runner.driver import server_link
from tests.integration.api import Api
from tests.integration.losses import (
    Heard,
    breakable_cluster,
    breakable_servers,
    listen,
    meanwhile,
    stop_server,
)
from tests.integration.notes import note, times_noted, until

TASK_S = 0.25


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server to break, which comes back at the same address with the same database."""
    with EmbeddedServer(home=tmp_path / "server") as first:
        url = first.api_url
        settings = {
            PREFECT_API_URL: url,
            # Log lines of the time without a server are Prefect's to lose.
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }
        with temporary_settings(settings), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url)
            breakable_servers.append(first)
            yield first
            breakable_servers.remove(first)


@pytest.mark.parametrize("gap_s", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_the_server_may_be_away_for_a_while(
    server: object, own_server: EmbeddedServer, tmp_path: Path, gap_s: int
) -> None:
    n_tasks = int((gap_s + 6) * 2 / TASK_S)
    done = str(tmp_path / "done")
    url = own_server.api_url
    port = int(url.split(":")[2].split("/")[0])

    @task
    def step(number: int) -> int:
        import time

        time.sleep(TASK_S)
        note(done, number)
        return number

    with breakable_cluster() as cluster:

        @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
        def run() -> tuple[str, list[int]]:
            from prefect.runtime import flow_run

            with hints(batch=False):
                futures = step.map(range(n_tasks))
            return flow_run.id, futures.result()

        again: list[EmbeddedServer] = []

        def break_it() -> None:
            until(lambda: len(times_noted(done)) >= 10, 60)
            own_server.stop()
            gone_s = time.monotonic()
            until(lambda: time.monotonic() - gone_s >= gap_s)
            assert len(times_noted(done)) < n_tasks, "the flow ended before the server was back"
            again.append(EmbeddedServer(home=tmp_path / "server", port=port))
            again[0].start()

        try:
            with meanwhile(break_it):
                flow_run_id, answer = run()
            assert answer == list(range(n_tasks))
            api = Api(url)
            runs = api.task_runs(flow_run_id)
            assert len(runs) == n_tasks
            assert {run["state_type"] for run in runs} == {"COMPLETED"}
            assert api.flow_run(flow_run_id)["state_type"] == "COMPLETED"
            api.close()
        finally:
            for running in again:
                running.stop()


def test_a_server_gone_for_good_ends_the_run_in_bounded_time_with_a_clear_line(
    server: object,
    own_server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPFLOW_RECORD_WAIT_S", "3")
    done = str(tmp_path / "done")
    answers: list[int] = []
    ended_s: list[float] = []

    @task
    def step(number: int) -> int:
        note(done, number)
        return number

    with breakable_cluster() as cluster:

        @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
        def run() -> None:
            first = step.submit(0)
            first.wait()
            listen()
            stop_server()
            answers.extend(step.map(range(1, 30)).result())
            ended_s.append(time.monotonic())

        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            pytest.raises(Exception, match=r"[Cc]onnect|reach"),
        ):
            run()
    took_s = time.monotonic() - ended_s[0]
    assert answers == list(range(1, 30)), "the work itself needs no server"
    assert took_s < 60
    assert any("has not recorded" in line for line in Heard.messages), Heard.messages


def test_events_that_the_server_drops_are_sent_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = server_link.complete_event
    dropped: set[Any] = set()

    def lossy(record: Any, related: bytes) -> str:
        text = complete(record, related)
        if record.state_type == "COMPLETED" and record.run_id not in dropped and len(dropped) < 7:
            dropped.add(record.run_id)
            # The server takes it in and records nothing of it, as when its queue is full.
            return text.replace('"event":"prefect.task-run.', '"event":"dropped.task-run.')
        return text

    monkeypatch.setattr(server_link, "complete_event", lossy)
    resent_before = metrics.value("deepflow_events_resent_total")

    @task
    def step(number: int) -> int:
        return number

    with breakable_cluster() as cluster:

        @flow(task_runner=DeepflowTaskRunner(cluster=cluster))
        def run() -> tuple[str, list[int]]:
            from prefect.runtime import flow_run

            return flow_run.id, step.map(range(40)).result()

        flow_run_id, answer = run()
    assert answer == list(range(40))
    assert len(dropped) == 7
    assert metrics.value("deepflow_events_resent_total") >= resent_before + 7
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 40
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
