"""Events that deepflow builds are what Prefect's server understands, field by field."""

from __future__ import annotations

import os
import uuid
from typing import Any

import orjson
import pytest
from prefect import task
from prefect.client.schemas import State, TaskRun
from prefect.client.schemas.objects import TaskRunResult
from prefect.server.events.schemas.events import Event, ReceivedEvent
from prefect.server.services.task_run_recorder import task_run_from_event
from prefect.states import Completed, Running

from deepflow.observe import metrics
from deepflow.runner.events import bare, complete_event, renewed, state_event, with_note
from deepflow.runner.runs import advance, new_task_run
from deepflow.runner.wire import EventRecord

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


# -- what is odd ---------------------------------------------------------------------------------

NOT_UTF8 = os.fsdecode(b"caf\xe9.csv")
SHOWN = "caf\\udce9.csv"


def ended(task_run: TaskRun, state: Any) -> tuple[EventRecord, ReceivedEvent, TaskRun]:
    """The event of a run's end: as it is sent, as the server reads it, and as it records it."""
    record = state_event(task_run, advance(task_run, state), state)
    event = received(complete_event(record, RELATED))
    rebuilt: Any = task_run_from_event(event)
    return record, event, rebuilt


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        (NOT_UTF8, SHOWN),
        ("a\ud83db", "a\\ud83db"),
        ("a\x00b", "a\\x00b"),
        ("a\\u0000b", "a\\u0000b"),
        ("\N{SNAKE}", "\N{SNAKE}"),
    ],
)
def test_text_that_cannot_be_sent_is_shown_as_escapes_wherever_it_is(odd: str, shown: str) -> None:
    run = new_task_run(
        some_task,
        run_id=uuid.uuid4(),
        name=odd,
        dynamic_key="0",
        flow_run_id=FLOW_RUN,
        tags=(odd,),
        inputs={odd: set()},
    )
    run.labels = {odd: odd}
    record, event, rebuilt = ended(run, State(type="FAILED", name=odd, message=odd))
    assert (rebuilt.name, set(rebuilt.tags)) == (shown, {"a", shown})
    assert len(rebuilt.task_inputs) == 1
    assert rebuilt.state is not None
    assert (rebuilt.state.name, rebuilt.state.message) == (shown, shown)
    assert event.resource["prefect.state-message"] == shown
    assert record.state_name == shown, "as the server will say it when it is asked"
    assert set(record.tags) == {"a", shown}
    assert run.name == odd, "the run itself keeps it"


@pytest.mark.parametrize("character", ["x", "\x01", "\N{SNAKE}", NOT_UTF8])
def test_what_is_too_large_is_shortened_until_the_server_takes_it(
    task_run: TaskRun, character: str
) -> None:
    many = 3_000_000
    task_run.name = character * many
    task_run.task_inputs = {
        f"input {n}": [TaskRunResult(id=uuid.uuid4()) for _ in range(10_000)] for n in range(3)
    }
    record, event, rebuilt = ended(task_run, Completed(message=character * many))
    assert len(event.receive().model_dump_json().encode()) < 1_500_000
    assert rebuilt.state is not None
    assert rebuilt.state.name == "Completed"
    assert rebuilt.name.endswith("...")
    assert len(record.body) < 1_000_000


def test_a_run_that_cannot_be_told_in_full_is_told_by_its_state(task_run: TaskRun) -> None:
    before = metrics.value("deepflow_fallbacks_total", kind="bare_event")
    task_run.labels = {"more": 1 << 70}  # JSON has no such number
    _, _, rebuilt = ended(task_run, Completed(message="done"))
    assert metrics.value("deepflow_fallbacks_total", kind="bare_event") == before + 1
    assert (rebuilt.id, rebuilt.name, rebuilt.dynamic_key) == (task_run.id, "some_task-7", "7-x")
    assert rebuilt.state is not None
    assert (rebuilt.state.name, rebuilt.state.message) == ("Completed", "done")


def test_a_bare_event_still_records_the_state_with_its_times(task_run: TaskRun) -> None:
    advance(task_run, Running())
    task_run.start_time = task_run.state.timestamp if task_run.state else None
    record, event, rebuilt = ended(task_run, Completed(message="x" * 5_000))
    told = received(complete_event(bare(record), RELATED))
    again = task_run_from_event(told)
    assert told.id == event.id
    assert again.state is not None
    assert rebuilt.state is not None
    assert again.state.timestamp == rebuilt.state.timestamp
    assert (again.name, again.run_count) == (rebuilt.name, rebuilt.run_count)
    assert (again.start_time, again.end_time) == (rebuilt.start_time, rebuilt.end_time)
    assert len(bare(record).body) < 3_500
