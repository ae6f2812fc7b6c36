"""Names, tags, messages and log lines that cannot be sent as they are: every run gets its end.

File names that are not UTF-8 come as lone surrogates (`os.fsdecode`). JSON encoders, message packs
and databases refuse them; some refuse NUL, and the server drops what is too large.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from distributed import LocalCluster
from prefect import flow, get_run_logger, tags, task
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from deepflow import DeepflowTaskRunner, hints
from tests.integration.api import Api

NOT_UTF8 = os.fsdecode(b"caf\xe9.csv")
SHOWN = "caf\\udce9.csv"
ODD = {
    "not UTF-8": (NOT_UTF8, 1),
    "half a pair": ("a\ud83db", 1),
    "NUL": ("a\x00b", 1),
    "control characters": ("\x01", 200_000),
    "megabytes": ("x", 3_000_000),
    "a wide alphabet": ("\N{SNAKE}", 700_000),
}
"""A text, and how often it is repeated."""


class Unspeakable(Exception):
    """It does not say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


def raises(text: str, times: int = 1) -> None:
    raise FileNotFoundError(text * times)


def answers(text: str, times: int) -> State[Any]:
    return Completed(message=text * times)


def fails(text: str, times: int) -> State[Any]:
    return Failed(message=text * times)


def gives(text: str, times: int = 1) -> str:
    return text * times


def named(parameters: dict[str, Any]) -> str:
    name: str = parameters["text"] * parameters["times"]
    return name


def takes(**several: int) -> int:
    return len(several)


def logs(text: str) -> str:
    logger = get_run_logger()
    logger.info("before")
    logger.info("the file %s", text)
    logger.info("after")
    return text


def speaks_not(text: str) -> None:
    raise Unspeakable(text)


def durable(of: Any, text: str, times: int) -> Any:
    with hints(durable=True):
        return of.submit(text, times)


def agreed(api: Api, states: dict[str, State[Any]]) -> dict[str, dict[str, Any]]:
    """The server's records, once each says what the flow's state says; by what was tried."""
    (flow_run_id,) = {state.state_details.flow_run_id for state in states.values()}
    assert flow_run_id is not None
    by_id = {str(state.state_details.task_run_id): what for what, state in states.items()}
    wanted = {what: (state.type.value, state.name) for what, state in states.items()}

    def records() -> dict[str, dict[str, Any]]:
        return {by_id[run["id"]]: run for run in api.task_runs(flow_run_id) if run["id"] in by_id}

    return api.until(
        records,
        lambda found: (
            {what: (run["state_type"], run["state_name"]) for what, run in found.items()} == wanted
        ),
    )


@pytest.mark.parametrize("kind", list(ODD))
def test_runs_end_alike_in_the_flow_and_in_the_server(
    cluster: LocalCluster, api: Api, kind: str
) -> None:
    odd, times = ODD[kind]
    short = odd * min(times, 300)
    tried: dict[str, Callable[[], Any]] = {
        "an error": lambda: task(raises).submit(odd, times),
        "an answer": lambda: task(answers).submit(odd, times),
        "a failure": lambda: task(fails).submit(odd, times),
        "a value": lambda: task(gives).submit(odd, times),
        "a run's name": lambda: task(gives, task_run_name=named).submit(odd, times),
        "a task's name": lambda: task(gives, name=f"task {short}").submit("x"),
        "a task's tag": lambda: task(gives, tags={short}).submit("x"),
        "a parameter's name": lambda: task(takes).submit(**{short: 1}),
        "a durable run's name": lambda: durable(
            task(gives, task_run_name=named, persist_result=True), odd, times
        ),
        "a log line": lambda: task(logs).submit(short),
    }

    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def odd_text() -> dict[str, State[Any]]:
        futures = {what: submit() for what, submit in tried.items()}
        with tags(short):
            futures["the flow's tag"] = task(gives).submit("x")
            mapped = task(raises).map([odd] * 4, times)
        futures |= {f"mapped {i}": future for i, future in enumerate(mapped)}
        for future in futures.values():
            future.wait()
        return {what: future.state for what, future in futures.items()}

    states = odd_text()
    bad = {"an error", "a failure", *(f"mapped {i}" for i in range(4))}
    assert {what for what, state in states.items() if not state.is_completed()} == bad
    error = states["an error"].result(raise_on_failure=False)
    assert isinstance(error, FileNotFoundError)
    assert error.args == (odd * times,), "the user's own values stay as they are"
    found = agreed(api, states)
    assert states["a value"].result() == odd * times
    if odd == NOT_UTF8:
        assert found["a run's name"]["name"] == SHOWN
        assert found["a task's tag"]["tags"] == [SHOWN]
        assert SHOWN in found["an error"]["state"]["message"]
        said = api.until(
            lambda: api.logs(found["a log line"]["flow_run_id"]),
            lambda said: "before" in said and "after" in said,
        )
        assert f"the file {SHOWN}" in said, "a line does not take its neighbours with it"


def test_an_exception_without_words_fails_its_run_alone(cluster: LocalCluster, api: Api) -> None:
    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def wordless() -> dict[str, State[Any]]:
        futures = {str(i): future for i, future in enumerate(task(speaks_not).map(["x"] * 3))}
        futures["fine"] = task(gives).submit("x")
        for future in futures.values():
            future.wait()
        return {what: future.state for what, future in futures.items()}

    states = wordless()
    assert states["fine"].is_completed()
    assert all(states[str(i)].is_failed() for i in range(3))
    assert all(run["run_count"] <= 1 for run in agreed(api, states).values()), "nothing ran twice"


def test_a_run_with_more_tags_than_the_server_takes_is_recorded(
    cluster: LocalCluster, api: Api
) -> None:
    many = {f"tag-{i}" for i in range(300)}

    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def tagged() -> dict[str, State[Any]]:
        futures = {"before": task(gives).submit("x")}
        futures["many"] = task(gives, tags=many).submit("x")
        futures["after"] = task(gives).submit("x")
        for future in futures.values():
            future.wait()
        return {what: future.state for what, future in futures.items()}

    assert set(agreed(api, tagged())["many"]["tags"]) == many


def test_log_lines_of_this_process_are_clean(cluster: LocalCluster, api: Api) -> None:
    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def speaking() -> Any:
        future = task(gives).submit("x")
        future.wait()
        logging.getLogger("prefect.flow_runs").info("the file %s", NOT_UTF8)
        get_run_logger().info("and another %s", NOT_UTF8)
        return future.state.state_details.flow_run_id

    flow_run_id = speaking()
    api.until(lambda: api.logs(flow_run_id), lambda said: f"and another {SHOWN}" in said)


@pytest.mark.parametrize("kind", ["not UTF-8", "NUL", "megabytes"])
def test_a_flow_that_fails_with_an_odd_text_has_failed_in_the_server_too(
    cluster: LocalCluster, api: Api, kind: str
) -> None:
    seen = []

    @flow(task_runner=DeepflowTaskRunner(address=cluster.scheduler_address))
    def failing() -> None:
        seen.append(flow_run.id)
        task(raises).submit(*ODD[kind]).result()

    state = failing(return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), FileNotFoundError)
    assert api.flow_run(seen[0])["state_type"] == "FAILED"
