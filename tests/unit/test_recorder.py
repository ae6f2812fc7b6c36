"""What is sent when, and again, until the server has it: in virtual time, against a server that
is slow, drops events, or goes away."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from uuid import UUID, uuid4

import orjson
import pytest

from deepflow.observe import metrics
from deepflow.runner.driver import recorder
from deepflow.runner.driver.recording import RERUN_NOTE, Recording, Settled, Window
from deepflow.runner.wire import EventRecord
from tests.unit.virtual_time import run

LOGGER = logging.getLogger("deepflow.tests")
WINDOW = 10
WAIT_S = 60.0


def event(run_id: UUID, state_type: str = "COMPLETED", state_name: str = "") -> EventRecord:
    """An event as workers make them, as far as the recorder looks at it."""
    name = state_name or state_type.title()
    body = {
        "id": str(uuid4()),
        "resource": {},
        "payload": {"validated_state": {"type": state_type, "name": name}},
    }
    return EventRecord(run_id, None, state_type, name, (), orjson.dumps(body)[:-1])


def content(record: EventRecord) -> dict[str, object]:
    """The event's JSON object."""
    parsed: dict[str, object] = orjson.loads(record.body + b"}")
    return parsed


class FakeServer:
    """Records what it is sent, `per_s` events a second, but for those it drops."""

    def __init__(self, per_s: float = float("inf"), *, can_count: bool = True) -> None:
        self.per_s = per_s
        self.can_count = can_count
        self.is_away = False
        self.drops: Callable[[EventRecord], bool] = lambda _: False
        self.received: list[EventRecord] = []
        self.asked = 0
        self.most_under_way = 0
        self.is_closed = False
        self._connected = False
        self._lost = False
        self._due: list[tuple[float, EventRecord]] = []
        self._busy_until_s = 0.0

    def break_connection(self, *, losing: int = 0) -> None:
        """The connection breaks, and the last events that were not recorded are lost with it."""
        self._connected, self._lost = False, True
        if losing:
            self._due = self._due[:-losing]

    def recorded(self) -> dict[UUID, EventRecord]:
        """The newest recorded event of each run."""
        now_s = asyncio.get_running_loop().time()
        return {record.run_id: record for at_s, record in self._due if at_s <= now_s}

    def _check(self) -> None:
        if self.is_away:
            raise ConnectionError("the server is away")

    async def connect(self) -> bool:
        self._check()
        was_lost, self._lost, self._connected = self._lost, False, True
        return was_lost

    async def send(self, record: EventRecord) -> None:
        self._check()
        if not self._connected:
            raise ConnectionError("not connected")
        self.received.append(record)
        if not self.drops(record):
            now_s = asyncio.get_running_loop().time()
            self._busy_until_s = max(now_s, self._busy_until_s) + 1 / self.per_s
            self._due.append((self._busy_until_s, record))
            under_way = sum(at_s > now_s for at_s, _ in self._due)
            self.most_under_way = max(self.most_under_way, under_way)

    async def has(self, record: EventRecord) -> bool:
        self._check()
        self.asked += 1
        return self.recorded().get(record.run_id) == record

    async def count_final(self) -> int | None:
        self._check()
        if not self.can_count:
            return None
        return sum(r.state_type == "COMPLETED" for r in self.recorded().values())

    async def states(self, run_ids: Iterable[UUID]) -> dict[UUID, tuple[str, str]]:
        self._check()
        have = self.recorded()
        return {i: (have[i].state_type, have[i].state_name) for i in run_ids if i in have}

    async def close(self) -> None:
        self.is_closed = True


async def record_all(
    server: FakeServer, records: Iterable[EventRecord], wait_s: float = WAIT_S
) -> tuple[Recording, float]:
    """Put, finish, and wait for the end; returns also the seconds from `finish` to the end."""
    recording = Recording(WINDOW, LOGGER)
    recording.put(records)
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(recording.run(server))
    await asyncio.sleep(0)
    recording.finish(wait_s)
    began_s = loop.time()
    await running
    assert server.is_closed
    return recording, loop.time() - began_s


# -- the window ------------------------------------------------------------------------------------


def test_a_window_is_full_until_half_of_it_is_recorded() -> None:
    window = Window(4)
    records = [event(uuid4()) for _ in range(6)]
    for record in records[:4]:
        assert not window.is_full
        window.sent(record)
    assert window.is_full
    assert window.marker() == records[1]
    window.half_recorded()
    assert not window.is_full
    assert window.under_way() == records[2:4]
    for record in records[4:]:
        window.sent(record)
    assert window.is_full
    assert window.marker() == records[3]


def test_an_empty_window_has_no_marker() -> None:
    assert Window(4).marker() is None
    assert Window(4).under_way() == []


def test_no_more_than_a_window_is_under_way_at_a_slow_server() -> None:
    async def check() -> None:
        server = FakeServer(per_s=100)
        recording, _ = await record_all(server, [event(uuid4()) for _ in range(200)])
        assert server.most_under_way == WINDOW
        assert len(server.received) == 200, "each once"
        assert recording.settled.open_runs() == []

    run(check())


def test_a_server_that_dropped_the_marker_does_not_hold_up_the_others() -> None:
    async def check() -> None:
        records = [event(uuid4()) for _ in range(3 * WINDOW)]
        server = FakeServer()
        server.drops = lambda record: record is records[WINDOW // 2 - 1]
        before = metrics.value("deepflow_fallbacks_total", kind="recorder_probe_expired")
        recording, _ = await record_all(server, records)
        after = metrics.value("deepflow_fallbacks_total", kind="recorder_probe_expired")
        assert after == before + 1
        assert recording.settled.open_runs() == []
        assert len(server.recorded()) == 3 * WINDOW

    run(check())


# -- what is sent ----------------------------------------------------------------------------------


def test_a_settled_run_that_runs_again_shows_its_end_only_and_says_why() -> None:
    run_id, settled = uuid4(), Settled()
    first = event(run_id)
    assert settled.admit(event(run_id, "RUNNING")) is not None
    assert settled.admit(first) is first
    assert settled.admit(event(run_id, "PENDING")) is None
    assert settled.admit(event(run_id, "RUNNING")) is None
    again = settled.admit(event(run_id))
    assert again is not None
    assert orjson.dumps(RERUN_NOTE) in again.body
    assert settled.last(run_id) == again


def test_a_run_that_is_not_ready_is_settled_though_its_type_is_not_final() -> None:
    run_id, settled = uuid4(), Settled()
    settled.admit(event(run_id, "PENDING", "NotReady"))
    assert settled.open_runs() == [run_id]
    assert not settled.can_be_counted(), "the server does not count it among the final ones"


def test_events_reach_the_server_in_the_order_they_were_put() -> None:
    async def check() -> None:
        server, run_id = FakeServer(), uuid4()
        states = ["PENDING", "RUNNING", "COMPLETED"]
        await record_all(server, [event(run_id, state) for state in states])
        assert [record.state_type for record in server.received] == states

    run(check())


def test_what_is_put_while_it_runs_is_sent_without_waiting_for_the_end() -> None:
    async def check() -> None:
        server, recording = FakeServer(), Recording(WINDOW, LOGGER)
        running = asyncio.create_task(recording.run(server))
        await asyncio.sleep(100)
        recording.put([event(uuid4())])
        recording.wake()
        await asyncio.sleep(0.01)
        assert len(server.received) == 1
        recording.finish(WAIT_S)
        await running

    run(check())


# -- comparing, and sending again ------------------------------------------------------------------


def test_comparing_confirms_what_is_recorded_as_it_ended() -> None:
    settled = Settled()
    records = [event(uuid4()), event(uuid4(), "FAILED"), event(uuid4())]
    for record in records:
        settled.admit(record)
    done, other, unknown = (record.run_id for record in records)
    found = {done: ("COMPLETED", "Completed"), other: ("RUNNING", "Running")}
    assert settled.compare([done, other, unknown], found) == [other, unknown]
    assert settled.open_runs() == [other, unknown]
    assert not settled.can_be_counted(), "one is confirmed, so the count says nothing of the others"


@pytest.mark.parametrize("can_count", [True, False])
def test_what_the_server_dropped_is_sent_again_under_a_new_id(can_count: bool) -> None:
    async def check() -> None:
        records = [event(uuid4()) for _ in range(8)]
        dropped = records[2:4]
        server = FakeServer(can_count=can_count)
        server.drops = lambda record: record in dropped
        before = metrics.value("deepflow_events_resent_total")
        recording, _ = await record_all(server, records)
        assert recording.settled.open_runs() == []
        assert metrics.value("deepflow_events_resent_total") == before + 2
        again = server.received[8:]
        assert [r.run_id for r in again] == [r.run_id for r in dropped]
        assert {content(r)["id"] for r in again}.isdisjoint(content(r)["id"] for r in dropped)

    run(check())


def test_a_server_that_is_only_slow_is_not_sent_anything_twice() -> None:
    async def check() -> None:
        server = FakeServer(per_s=1)
        records = [event(uuid4()) for _ in range(WINDOW)]
        recording, took_s = await record_all(server, records)
        assert server.received == records
        assert recording.settled.open_runs() == []
        assert WINDOW - 1 <= took_s < WINDOW + 1

    run(check())


# -- a server that goes away -----------------------------------------------------------------------


def test_events_are_kept_while_the_server_is_away_and_sent_when_it_is_back() -> None:
    async def check() -> None:
        server, recording = FakeServer(), Recording(WINDOW, LOGGER)
        server.is_away = True
        records = [event(uuid4()) for _ in range(5)]
        recording.put(records)
        running = asyncio.create_task(recording.run(server))
        await asyncio.sleep(1000)
        assert server.received == []
        assert isinstance(recording.error, ConnectionError)
        server.is_away = False
        await asyncio.sleep(1)
        assert server.received == records
        recording.finish(WAIT_S)
        await running
        assert recording.error is None
        assert recording.settled.open_runs() == []

    run(check())


def test_what_was_under_way_when_the_connection_broke_is_sent_again() -> None:
    async def check() -> None:
        server, recording = FakeServer(per_s=0.01), Recording(WINDOW, LOGGER)
        first = [event(uuid4()) for _ in range(5)]
        recording.put(first)
        running = asyncio.create_task(recording.run(server))
        await asyncio.sleep(0.5)
        assert server.received == first
        server.break_connection(losing=5)
        server.per_s = float("inf")
        server._busy_until_s = 0.0
        last = event(uuid4())
        recording.put([last])
        recording.wake()
        await asyncio.sleep(5)
        assert server.received == [*first, *first, last]
        recording.finish(WAIT_S)
        await running
        assert recording.settled.open_runs() == []

    run(check())


# -- the wait is bounded ---------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["away", "drops everything", "slow"])
def test_the_wait_at_the_end_is_bounded_and_the_missing_runs_are_known(trouble: str) -> None:
    async def check() -> None:
        server = FakeServer(per_s=0.01 if trouble == "slow" else float("inf"))
        server.is_away = trouble == "away"
        server.drops = lambda _: trouble == "drops everything"
        records = [event(uuid4()) for _ in range(3)]
        recording, took_s = await record_all(server, records, wait_s=20.0)
        assert 20.0 <= took_s <= 21.0
        assert recording.settled.open_runs() == [record.run_id for record in records]
        assert recording.error is not None

    run(check())


def test_a_step_that_hangs_when_the_end_comes_is_broken_off() -> None:
    class Hanging(FakeServer):
        async def send(self, record: EventRecord) -> None:
            await asyncio.sleep(1e9)

    async def check() -> None:
        recording, took_s = await record_all(Hanging(), [event(uuid4())], wait_s=20.0)
        assert 20.0 <= took_s <= 21.0
        assert len(recording.settled.open_runs()) == 1

    run(check())


def test_without_time_to_wait_what_is_queued_is_sent_once() -> None:
    async def check() -> None:
        server = FakeServer()
        records = [event(uuid4()) for _ in range(3)]
        _, took_s = await record_all(server, records, wait_s=0.0)
        assert server.received == records
        assert took_s < 1.0

    run(check())


def test_a_flow_run_without_events_ends_at_once() -> None:
    async def check() -> None:
        server = FakeServer()
        _, took_s = await record_all(server, [])
        assert took_s < 2.0
        assert server.asked == 0

    run(check())


# -- events that are odd ---------------------------------------------------------------------------


class Strict(FakeServer):
    """Ends the connection over an event that it does not take, and loses what comes after it."""

    def __init__(self, refuses: Callable[[EventRecord], bool]) -> None:
        super().__init__()
        self.refuses = refuses

    async def send(self, record: EventRecord) -> None:
        await super().send(record)
        if self.refuses(record):
            self._due.pop()
            self.break_connection()


def test_an_event_over_which_the_server_ends_the_connection_is_told_bare() -> None:
    async def check() -> None:
        records = [event(uuid4()) for _ in range(6)]
        poison = records[2]
        server = Strict(lambda record: record.body == poison.body)
        recording, took_s = await record_all(server, records)
        assert recording.settled.open_runs() == []
        assert set(server.recorded()) == {record.run_id for record in records}
        assert took_s < WAIT_S / 2

    run(check())


def test_an_event_that_cannot_be_sent_is_told_bare_and_holds_up_no_other() -> None:
    class Choosy(FakeServer):
        async def send(self, record: EventRecord) -> None:
            if record.body == odd.body:
                raise TypeError("str is not valid UTF-8")
            await super().send(record)

    async def check() -> None:
        recording, took_s = await record_all(Choosy(), records)
        assert recording.settled.open_runs() == []
        assert took_s < 5.0

    records = [event(uuid4()) for _ in range(6)]
    odd = records[2]
    run(check())


def test_an_event_that_cannot_be_sent_in_any_form_leaves_one_run_open() -> None:
    class Choosy(FakeServer):
        async def send(self, record: EventRecord) -> None:
            if record.run_id == records[2].run_id:
                raise ValueError("no")
            await super().send(record)

    async def check() -> None:
        recording, took_s = await record_all(Choosy(), records, wait_s=20.0)
        assert recording.settled.open_runs() == [records[2].run_id]
        assert 20.0 <= took_s <= 21.0

    records = [event(uuid4()) for _ in range(6)]
    run(check())


def test_what_the_server_silently_refuses_is_told_bare_in_the_end() -> None:
    async def check() -> None:
        server = FakeServer()
        server.drops = lambda record: b'"resource":{}' in record.body and b"large" in record.body
        large = event(uuid4())
        large = large._replace(body=large.body[:-1] + b',"task_run":{"labels":"large"}}')
        recording, _ = await record_all(server, [event(uuid4()), large])
        assert recording.settled.open_runs() == []

    run(check())


def test_one_odd_record_keeps_no_other_back() -> None:
    recording = Recording(WINDOW, LOGGER)
    first, last = event(uuid4()), event(uuid4())
    torn = event(first.run_id)._replace(body=b"{torn")
    recording.put([first, torn, last])
    assert list(recording.queue) == [first, torn, last]


# -- the thread ------------------------------------------------------------------------------------


def test_a_recorder_whose_client_does_not_start_tries_again_and_its_end_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = threading.Event()
    n_tries = 0

    class NoClient:
        async def __aenter__(self) -> None:
            nonlocal n_tries
            n_tries += 1
            if n_tries > 1:
                tried.set()
            raise RuntimeError("the client does not start")

        async def __aexit__(self, *_: object) -> None: ...

    monkeypatch.setattr(recorder, "get_client", NoClient)
    recording = recorder.Recorder(window_events=WINDOW, logger=LOGGER)
    recording.put([event(uuid4())])
    assert tried.wait(30)
    assert recording.finish(0.2) == 1
    assert recording._thread is not None
    assert not recording._thread.is_alive()
