"""Events that deepflow builds are what Prefect's server understands, field by field."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
import pytest
from prefect import task
from prefect.client.schemas import TaskRun
from prefect.server.events.schemas.events import Event, ReceivedEvent
from prefect.server.services.task_run_recorder import task_run_from_event
from prefect.states import Completed, Running

from deepflow.runner.engine import advance
from deepflow.runner.events import complete_event, renewed, state_event, with_note
from deepflow.runner.runs import new_task_run

FLOW_RUN = uuid.uuid4()
RELATED = orjson.dumps(
    [
        {
            "prefect.resource.id": f"prefect.flow-run.{FLOW_RUN}",
            "prefect.resource.role": "flow-run",
        }
    ]
)


@task(retries=2, retry_delay_seconds=3, tags={"a"})
def some_task() -> None: ...


@pytest.fixture
def task_run() -> TaskRun:
    return new_task_run(
        some_task,
        run_id=uuid.uuid4(),
        name="some_task-7",
        dynamic_key="7-x",
        flow_run_id=FLOW_RUN,
        tags=("b",),
        inputs={"x": set()},
    )


def received(text: str) -> ReceivedEvent:
    """What the server makes of an event's text."""
    return Event.model_validate_json(text).receive()


def test_the_server_rebuilds_the_run_from_its_final_event_alone(task_run: TaskRun) -> None:
    advance(task_run, Running())
    task_run.start_time = task_run.state.timestamp
    state: Any = Completed(message="done")
    before = advance(task_run, state)
    record = state_event(task_run, before, state)
    rebuilt = task_run_from_event(received(complete_event(record, RELATED)))
    assert rebuilt.id == task_run.id
    assert rebuilt.flow_run_id == FLOW_RUN
    assert rebuilt.name == "some_task-7"
    assert rebuilt.dynamic_key == "7-x"
    assert set(rebuilt.tags) == {"a", "b"}
    assert rebuilt.run_count == 1
    assert rebuilt.start_time == task_run.start_time
    assert rebuilt.end_time == task_run.end_time
    assert rebuilt.empirical_policy.retries == 2
    assert rebuilt.state is not None
    assert (rebuilt.state.type.value, rebuilt.state.name) == ("COMPLETED", "Completed")
    assert rebuilt.state.message == "done"
    assert rebuilt.state.id == state.id
    assert rebuilt.state.timestamp == state.timestamp


def test_an_event_follows_the_one_before_only_when_that_was_sent(task_run: TaskRun) -> None:
    first = task_run.state
    state: Any = Running()
    before = advance(task_run, state)
    assert first is not None
    alone = received(complete_event(state_event(task_run, before, state), RELATED))
    follows = (first.id, first.timestamp)
    after = received(complete_event(state_event(task_run, before, state, follows), RELATED))
    assert alone.follows is None
    assert after.follows == first.id


def test_two_states_of_a_run_never_share_a_timestamp(task_run: TaskRun) -> None:
    running, done = Running(), Completed()
    done.timestamp = running.timestamp
    advance(task_run, running)
    advance(task_run, done)
    assert done.timestamp > running.timestamp


def test_a_renewed_event_has_an_id_of_its_own_and_the_same_content(task_run: TaskRun) -> None:
    state: Any = Completed()
    before = advance(task_run, state)
    record = state_event(task_run, before, state)
    again = received(complete_event(renewed(record), RELATED))
    first = received(complete_event(record, RELATED))
    assert again.id != first.id
    assert again.payload == first.payload
    assert again.occurred == first.occurred


def test_a_note_does_not_replace_a_message(task_run: TaskRun) -> None:
    silent, telling = Running(), Completed(message="mine")
    record = state_event(task_run, advance(task_run, silent), silent)
    noted = received(complete_event(with_note(record, "note"), RELATED))
    assert noted.payload["validated_state"]["message"] == "note"
    record = state_event(task_run, advance(task_run, telling), telling)
    kept = received(complete_event(with_note(record, "note"), RELATED))
    assert kept.payload["validated_state"]["message"] == "mine"


def test_a_message_beyond_the_limit_is_cut(task_run: TaskRun) -> None:
    state: Any = Completed(message="x" * 200_000)
    record = state_event(task_run, advance(task_run, state), state)
    event = received(complete_event(record, RELATED))
    assert len(event.payload["validated_state"]["message"]) == 100_000
