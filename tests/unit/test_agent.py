"""What a worker tells its drivers of: which states, counted how, and to whom no longer."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest
from prefect import task
from prefect.client.schemas import TaskRun
from prefect.states import Completed, Running

from deepflow.runner.agent import Agent
from deepflow.runner.engine import advance
from deepflow.runner.runs import new_task_run
from deepflow.runner.wire import BlobRef, Job, JobOptions, Message, unpack

DRIVER = "the-driver"


@task
def some_task() -> None: ...


class FakeWorker:
    """Keeps what the agent would send."""

    address = "tcp://worker"

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []

    def log_event(self, topic: str, blob: bytes) -> None:
        self.sent.append((topic, unpack(blob)))

    def states(self) -> list[str]:
        """The names of the states sent, in order."""
        return [event.state_name for _, message in self.sent for event in message.events]


def job(*, coalesce: bool = False, driver: str = DRIVER) -> Job:
    """A job without items."""
    ref = BlobRef("name", "digest")
    return Job(driver, driver, ref, b"", (), (), None, (), (), JobOptions(coalesce=coalesce))


def new_run() -> TaskRun:
    """A task run in state Pending."""
    return new_task_run(
        some_task,
        run_id=uuid4(),
        name="some_task-0",
        dynamic_key="0",
        flow_run_id=uuid4(),
        tags=(),
        inputs={},
    )


def live(agent: Agent, of: Job, run: TaskRun, *, to_the_end: bool = True) -> None:
    """Take a run through its states."""
    assert run.state is not None
    agent.emit(of, run, None, run.state, persisted=False)
    for state in [Running(), Completed()] if to_the_end else [Running()]:
        before = advance(run, state)
        agent.emit(of, run, before, state, persisted=False)


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def agent(worker: FakeWorker) -> Agent:
    return Agent(cast(Any, worker))


def test_every_state_is_sent_where_nothing_may_be_coalesced(
    agent: Agent, worker: FakeWorker
) -> None:
    live(agent, job(), new_run())
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"]


def test_a_run_that_ends_before_its_states_are_due_is_told_of_in_one_event(
    agent: Agent, worker: FakeWorker
) -> None:
    live(agent, job(coalesce=True), new_run())
    agent.flush()
    assert worker.states() == ["Completed"]
    assert sum(message.coalesced for _, message in worker.sent) == 2


def test_the_states_of_a_run_that_goes_on_are_sent_when_they_are_due(
    agent: Agent, worker: FakeWorker
) -> None:
    run = new_run()
    live(agent, job(coalesce=True), run, to_the_end=False)
    agent.flush()
    assert worker.states() == ["Pending", "Running"]
    before = advance(run, Completed())
    assert run.state is not None
    agent.emit(job(coalesce=True), run, before, run.state, persisted=False)
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"]
    assert sum(message.coalesced for _, message in worker.sent) == 0


def test_a_driver_that_departs_hears_how_much_was_sent_and_nothing_more(
    agent: Agent, worker: FakeWorker
) -> None:
    for _ in range(3):
        live(agent, job(), new_run())
        agent.flush()
    live(agent, job(driver="another"), new_run())
    agent.flush()
    assert agent.depart(DRIVER) == 3
    live(agent, job(), new_run())
    agent.flush()
    assert [topic for topic, _ in worker.sent] == [DRIVER] * 3 + ["another"]
    assert agent.depart("another") == 1
    assert agent.depart("never heard of") == 0


def test_what_a_driver_cancelled_is_forgotten_when_it_departs(agent: Agent) -> None:
    run_id = uuid4()
    agent.cancel(DRIVER, [run_id])
    assert agent.is_cancelled(DRIVER, run_id)
    assert not agent.is_cancelled("another", run_id)
    agent.depart(DRIVER)
    assert not agent.is_cancelled(DRIVER, run_id)
