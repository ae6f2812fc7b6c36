"""What a worker tells its drivers of: which states, counted how, and to whom no longer."""

from __future__ import annotations

import os
import threading
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect import task
from prefect.client.schemas import TaskRun
from prefect.states import Completed, Running

from deepflow.observe import metrics
from deepflow.runner.runs import advance, new_task_run
from deepflow.runner.wire import Batch, BatchOptions, BlobRef, Message, OutcomeReport, unpack
from deepflow.runner.worker.agent import Agent, RunningBatch

DRIVER = "the-driver"
NOT_UTF8 = os.fsdecode(b"caf\xe9.csv")


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


def batch(*, coalesce: bool = False, driver: str = DRIVER) -> Batch:
    """A batch without items."""
    ref = BlobRef("name", "digest")
    return Batch(driver, driver, ref, b"", (), (), None, (), (), BatchOptions(coalesce=coalesce))


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


def live(agent: Agent, of: Batch, run: TaskRun, *, to_the_end: bool = True) -> None:
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
    live(agent, batch(), new_run())
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"]


def test_a_run_that_ends_before_its_states_are_due_is_told_of_in_one_event(
    agent: Agent, worker: FakeWorker
) -> None:
    live(agent, batch(coalesce=True), new_run())
    agent.flush()
    assert worker.states() == ["Completed"]
    assert sum(message.coalesced for _, message in worker.sent) == 2


def test_the_states_of_a_run_that_goes_on_are_sent_when_they_are_due(
    agent: Agent, worker: FakeWorker
) -> None:
    run = new_run()
    live(agent, batch(coalesce=True), run, to_the_end=False)
    agent.flush()
    assert worker.states() == ["Pending", "Running"]
    before = advance(run, Completed())
    assert run.state is not None
    agent.emit(batch(coalesce=True), run, before, run.state, persisted=False)
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"]
    assert sum(message.coalesced for _, message in worker.sent) == 0


def test_a_driver_that_departs_hears_how_much_was_sent_and_nothing_more(
    agent: Agent, worker: FakeWorker
) -> None:
    for _ in range(3):
        live(agent, batch(), new_run())
        agent.flush()
    live(agent, batch(driver="another"), new_run())
    agent.flush()
    assert agent.depart(DRIVER) == 3
    live(agent, batch(), new_run())
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


# -- what must not end the watcher ---------------------------------------------------------------


class Broken(FakeWorker):
    """Fails to send so many times."""

    def __init__(self, n_failures: int, fault: BaseException) -> None:
        super().__init__()
        self.left, self.fault = n_failures, fault

    def log_event(self, topic: str, blob: bytes) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.fault
        super().log_event(topic, blob)


def test_what_could_not_be_sent_is_sent_later_in_order() -> None:
    worker = Broken(2, OSError("the scheduler is away"))
    agent = Agent(cast(Any, worker))
    first, second = new_run(), new_run()
    before = metrics.value("deepflow_fallbacks_total", kind="service_fault")
    live(agent, batch(), first)
    agent.flush()
    live(agent, batch(), second)
    agent.flush()
    assert worker.sent == []
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"] * 2
    assert agent.depart(DRIVER) == 1, "counted as sent only once it was"
    assert metrics.value("deepflow_fallbacks_total", kind="service_fault") == before + 2


def test_a_report_that_could_not_be_sent_does_not_fail_the_job() -> None:
    worker = Broken(1, RuntimeError("no"))
    agent = Agent(cast(Any, worker))
    running = RunningBatch(batch())
    running.reports.append(OutcomeReport(uuid4(), "done", b"", "COMPLETED", 0.1))
    agent.end(running)
    assert worker.sent == []
    agent._report(running)
    assert len(worker.sent[0][1].outcomes) == 1


@pytest.mark.parametrize("fault", [ValueError("odd"), SystemExit(1)])
def test_the_watcher_goes_on_after_a_fault(
    worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    agent = Agent(cast(Any, worker))
    faults = [fault, fault]
    sent = threading.Event()
    send_events = agent._send_events

    def once_more() -> None:
        if faults:
            raise faults.pop()
        send_events()
        if worker.sent:
            sent.set()

    monkeypatch.setattr(agent, "_send_events", once_more)
    running = RunningBatch(batch())
    agent.begin(running)
    live(agent, batch(), new_run())
    assert sent.wait(30)
    assert not faults
    agent.close()


def test_odd_text_reaches_the_driver(agent: Agent, worker: FakeWorker) -> None:
    run = new_run()
    run.name, run.tags = NOT_UTF8, [NOT_UTF8]
    live(agent, batch(), run)
    agent.flush()
    assert worker.states() == ["Pending", "Running", "Completed"]
