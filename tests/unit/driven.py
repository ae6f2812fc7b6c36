"""A dispatcher whose cluster is a fake: each test says what workers report and what Dask does.

Nothing runs by itself: what the dispatcher has put off is performed by `settle`, and what it waits
for by `pass_time`, in the calling thread.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

from distributed import KilledWorker
from prefect import task
from prefect.states import Completed

from deepflow.hints import Hints
from deepflow.intermediates.parcel import Parcel
from deepflow.runner.driver.dispatch import Dispatcher
from deepflow.runner.driver.items import Code, Item, SentBatch, Template
from deepflow.runner.driver.lifecycle import RunState
from deepflow.runner.wire import Batch, BlobRef, EventRecord, Message, OutcomeReport, pack
from deepflow.runner.worker_side import WorkerSide
from deepflow.settings import load_settings

__all__ = ["IN_DASK", "Driven", "FakeFuture"]

TOPIC = "driver"
IN_DASK = frozenset({RunState.SENT, RunState.BEGUN, RunState.CANCELLING})


def _not_called(*_: Any, **__: Any) -> Any:
    raise AssertionError("the fake cluster calls nothing")


def _cancel_runs(*_: Any, **__: Any) -> Any:
    raise AssertionError("only named, never called")


class FakeFuture:
    """Dask's future of a task, which is what the test makes it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.status = "pending"
        self._state = SimpleNamespace(exception=None)
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """As Dask's."""
        self._callbacks.append(callback)

    def become(self, status: str, error: BaseException | None = None) -> None:
        """Dask says this of the task now."""
        self.status = status
        self._state.exception = error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class FakeClient:
    """As much of a Dask client as a dispatcher uses."""

    id = TOPIC

    def __init__(self) -> None:
        self.status = "running"
        self.futures: dict[str, FakeFuture] = {}
        self.sent: list[tuple[str, list[UUID]]] = []
        """Each Dask task, and the runs in it, in the order in which they were sent."""
        self.depends: dict[str, list[str]] = {}
        self.cancelled: list[str] = []
        self.told: list[list[UUID]] = []
        """The runs that workers were told to stop, by call."""
        self.at_work: set[str] = set()
        self.refuses: Exception | None = None
        """What sending a graph raises."""
        self.said: list[Any] = []
        self.outcomes: dict[str, Any] = {}

    def get(self, expr: Any, keys: Sequence[str], **_: Any) -> list[FakeFuture]:
        """Take a graph."""
        if self.refuses is not None:
            raise self.refuses
        graph = expr.operands[0]
        for key in keys:
            batch: Batch = pickle.loads(graph[key].args[0])
            self.sent.append((key, [spec.run_id for spec in batch.items]))
            self.depends[key] = [str(ref.key) for ref in graph[key].args[1:]]
            self.futures[key] = FakeFuture(key)
        return [self.futures[key] for key in keys]

    def run(self, function: Any, topic: str, run_ids: list[UUID], **_: Any) -> None:
        """Take what workers are told."""
        assert function is _cancel_runs
        self.told.append(run_ids)

    def cancel(self, futures: Iterable[FakeFuture], force: bool = False) -> None:
        """Take Dask's tasks away."""
        self.cancelled += [future.key for future in futures]

    def processing(self) -> dict[str, list[str]]:
        """What workers have."""
        return {"tcp://w1": sorted(self.at_work)}

    def nthreads(self) -> dict[str, int]:
        """Two threads."""
        return {"tcp://w1": 2}

    def gather(self, future: FakeFuture) -> Any:
        """The result of a Dask task."""
        found = self.outcomes[future.key]
        if isinstance(found, Exception):
            raise found
        return found

    def log_event(self, topic: str, message: Any) -> None:
        """Take what goes to a topic."""
        self.said.append((topic, message))


class ManualReactor:
    """A reactor that acts when it is told to."""

    def __init__(self) -> None:
        self._inbox: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def soon(self, action: Callable[[], None]) -> None:
        """Keep it."""
        self._inbox.append(action)

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Keep it, for when time passes."""
        heapq.heappush(self._timers, (when_s, next(self._numbers), action))

    @property
    def n_timers(self) -> int:
        """How many actions wait for their time."""
        return len(self._timers)

    def perform(self) -> None:
        """Perform what was put off, and what that puts off."""
        while self._inbox:
            self._inbox.popleft()()

    def pass_time(self) -> None:
        """Perform what waits for a time, all of it."""
        due, self._timers = sorted(self._timers), []
        for _, _, action in due:
            action()
            self.perform()

    def close(self) -> None:
        """As the real one: no timer any more."""
        self.perform()
        self._timers = []


class Driven:
    """A dispatcher on a fake cluster."""

    def __init__(self, *, infra_retries: int = 2, is_nested: bool = False, **settings: Any) -> None:
        self.client = FakeClient()
        self.reactor = ManualReactor()
        self.events: list[EventRecord] = []
        named = {one.name: _not_called for one in fields(WorkerSide)}
        side = WorkerSide(**{**named, "cancel_runs": _cancel_runs})
        recorder = None if is_nested else SimpleNamespace(put=self.events.extend)
        self.dispatcher = Dispatcher(
            cast(Any, self.client),
            load_settings(infra_retries=infra_retries, **settings),
            side,
            results_topic=TOPIC,
            events_topic=TOPIC,
            recorder=cast(Any, recorder),
            logger=logging.getLogger("deepflow.tests"),
            reactor=cast(Any, self.reactor),
        )
        self.shipped: list[Code] = []
        self._numbers = itertools.count()

    def template(self, *, retries: int = 0, may_batch: bool = False) -> Template:
        """What runs of one call have in common."""

        @task(name="step", retries=retries)
        def step() -> None:
            raise AssertionError("nothing runs here")

        return Template(
            name="step",
            salt="salt",
            prefect_task=step,
            learned_as="step",
            code_references=(),
            context=BlobRef("context", "digest"),
            tags=(),
            hints=Hints(),
            annotations={},
            note={"task": "step"},
            resources={},
            workers=[],
            allow_other_workers=False,
            priority=0,
            may_batch=may_batch,
            ship_again=self.shipped.append,
        )

    def item(
        self,
        template: Template | None = None,
        *,
        inputs: Sequence[Item] = (),
        waits: Sequence[Item] = (),
        retries: int = 0,
    ) -> Item:
        """A run that is not submitted yet."""
        number = next(self._numbers)
        return Item(
            uuid4(),
            template or self.template(retries=retries),
            f"step-{number}",
            str(number),
            Code(b"code", None),
            b"call",
            tuple(inputs),
            tuple((one, False) for one in waits),
        )

    def submit(self, **given: Any) -> Item:
        """A run, submitted; it is sent if its inputs allow."""
        item = self.item(**given)
        self.dispatcher.submit_item(item)
        self.settle()
        return item

    def map(self, n: int, *, inputs: Sequence[Item] = ()) -> list[Item]:
        """The runs of one map, submitted."""
        template = self.template(may_batch=True)
        items = [self.item(template, inputs=inputs) for _ in range(n)]
        self.dispatcher.submit_map(items)
        self.settle()
        return items

    def settle(self) -> None:
        """Let the dispatcher do what it has put off."""
        self.reactor.perform()

    def pass_time(self) -> None:
        """Let all times come that the dispatcher waits for now."""
        self.reactor.pass_time()

    # -- what the cluster does -----------------------------------------------------------------

    def report(self, *items: Item, kind: str = "done", blob: bytes | None = b"state") -> None:
        """A worker's report of these runs, in one message."""
        outcomes = tuple(
            OutcomeReport(
                one.run_id,
                cast(Any, kind),
                self._content(one, kind, blob),
                "COMPLETED" if kind == "done" else "",
                0.01,
            )
            for one in items
        )
        message = Message("tcp://w1", TOPIC, outcomes, (), 0)
        self.dispatcher.on_message((0.0, pack(message)))
        self.settle()

    @staticmethod
    def _content(item: Item, kind: str, blob: bytes | None) -> bytes | None:
        if kind == "done":
            return None if blob is None else Parcel.of(Completed()).to_bytes()
        if kind == "retry":
            return pickle.dumps((item.task_run(None), 1, 0.0))
        return None

    def future(self, item: Item) -> FakeFuture:
        """Dask's future of the task that the run is in."""
        batch = item.batch
        assert isinstance(batch, SentBatch)
        return self.client.futures[batch.key]

    def kill_worker(self, item: Item, *, of: str | None = None) -> None:
        """The worker with the run's Dask task dies; `of`: the key of the task that it died of."""
        future = self.future(item)
        worker = cast(Any, SimpleNamespace(address="tcp://w1"))
        error = KilledWorker(of or future.key, worker, 0)
        self.end(item, "error", error)

    def end(self, item: Item, status: str, error: BaseException | None = None) -> None:
        """Dask says this of the run's Dask task."""
        self.future(item).become(status, error)
        self.settle()

    # -- what is to be seen --------------------------------------------------------------------

    def times_sent(self, item: Item) -> int:
        """How often the run went to Dask."""
        return sum(item.run_id in run_ids for _, run_ids in self.client.sent)

    def told_server(self, item: Item) -> list[str]:
        """The states that the driver has told the server of, for this run."""
        return [one.state_name for one in self.events if one.run_id == item.run_id]

    def states(self, items: Iterable[Item]) -> list[RunState]:
        """Where these runs stand."""
        return [one.state for one in items]
