"""What the driver knows of a submitted call: item, template, batch, map plan, shared argument."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas import TaskRun

from deepflow.errors import InfrastructureError
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.runner.driver.lifecycle import Life, RunState
from deepflow.runner.runs import new_task_run
from deepflow.runner.wire import BlobRef, Ended, ItemSpec, Source, Wait

if TYPE_CHECKING:
    from distributed import Client, Future
    from prefect.client.schemas.objects import State
    from prefect.tasks import Task

    from deepflow.backend.placement.annotation import TaskNote
    from deepflow.hints import Hints


@dataclass(slots=True)
class Template:
    """What the runs of one `submit` or `map` call have in common."""

    name: str
    salt: str
    prefect_task: Task[Any, Any]
    learned_as: str
    """Under what the run times of its runs are known."""
    code_references: tuple[Any, ...]
    """Large values that the task's code has captured."""
    context: BlobRef
    tags: tuple[str, ...]
    hints: Hints
    annotations: dict[str, Any]
    note: TaskNote
    resources: dict[str, float]
    workers: list[str]
    allow_other_workers: bool
    priority: int
    may_batch: bool
    ship_again: Callable[[Code], None]
    static: bytes | None = None
    static_references: tuple[Any, ...] = ()

    @property
    def placement(self) -> tuple[Any, ...]:
        """What a whole Dask graph is sent with: tasks that differ in it need graphs apart."""
        return (
            self.annotations,
            self.note,
            self.resources,
            self.workers,
            self.allow_other_workers,
            self.priority,
        )


class Code:
    """A task's code as it was when it was submitted: its pickle, and where that was put.

    Small code travels with each batch. Larger code is put on the scheduler once, and taken away
    when no run needs it any more.
    """

    __slots__ = ("__weakref__", "blob", "ref")

    def __init__(self, blob: bytes, ref: BlobRef | None) -> None:
        self.blob = blob
        self.ref = ref

    @property
    def on_the_way(self) -> bytes | BlobRef:
        """What a batch carries of it."""
        return self.blob if self.ref is None else self.ref


class SharedArgument:
    """A large argument that is sent to the cluster once, and again if the cluster loses it."""

    __slots__ = ("__weakref__", "_digest", "_future", "_lock", "_parcel", "_value", "n_bytes")

    def __init__(
        self, value: Any, parcel: Parcel, digest: bytes, compute_digest: Callable[[], bytes]
    ) -> None:
        self._value = value
        self._parcel: Parcel | None = parcel
        self._digest = (compute_digest, digest)
        self.n_bytes = parcel.n_bytes
        self._future: Future[Any] | None = None
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        """Dask's key of the value, once it was `put`."""
        assert self._future is not None, "arguments are put before they are referred to"
        return str(self._future.key)

    def put(self, client: Client) -> None:
        """Send the value where the cluster does not have it; waits for the network.

        Raises:
            InfrastructureError: the cluster lost the value and its owner has changed it since.
        """
        with self._lock:
            if self._future is None:
                parcel, self._parcel = self._parcel, None
                assert parcel is not None
                assert client.scheduler is not None, "arguments are sent while connected"
                if str(client.scheduler.address).startswith("inproc"):
                    # Within one process nothing is copied on the way; the caller may go on
                    # writing to its array, and what was passed must not change.
                    parcel.detach()
                self._send(client, parcel)
            elif self._future.status in ("lost", "cancelled", "error"):
                compute, digest = self._digest
                if compute() != digest:
                    raise InfrastructureError(
                        "a large argument was lost together with its worker, and has been changed "
                        "since it was passed, so it cannot be sent again; pass a copy"
                    )
                self._send(client, Parcel.of(self._value))

    def _send(self, client: Client, parcel: Parcel) -> None:
        self._future = client.scatter([parcel], hash=False)[0]
        metrics.inc("deepflow_shared_argument_bytes_total", self.n_bytes)


class ReleasedFuture:
    """Stands where a Dask future was whose result the driver has: the cluster may forget it."""

    __slots__ = ("_state", "key")

    status = "finished"

    def __init__(self, key: str, state: Callable[[], State[Any]]) -> None:
        self.key = key
        self._state = state

    def result(self, timeout: float | None = None) -> State[Any]:
        """The run's final state, as Dask's future of it would give."""
        return self._state()

    def done(self) -> bool:
        """Always true."""
        return True

    def cancelled(self) -> bool:
        """Always false."""
        return False

    def __repr__(self) -> str:
        return f"<ReleasedFuture: finished, key: {self.key}>"


class SentBatch:
    """A Dask task under way or finished, and the items in it."""

    __slots__ = (
        "__weakref__",
        "future",
        "is_announced",
        "items",
        "key",
        "last_begun",
        "n_kept",
        "returned",
    )

    def __init__(self, key: str, items: list[Item]) -> None:
        self.key = key
        self.items = items
        self.future: Future[Any] | None = None
        self.returned: list[Item] = []
        self.is_announced = False
        self.last_begun: Item | None = None
        self.n_kept = len(items)

    def open_items(self) -> list[Item]:
        """Those of its items that are still to be done by this batch."""
        return [item for item in self.items if item.batch is self and not item.is_done]

    def let_go(self, item: Item) -> None:
        """`item` no longer needs the batch's result; when none does, Dask may forget it."""
        item.released_key = self.key
        item.batch = None
        self.n_kept -= 1
        if self.n_kept == 0:
            self.future = None


class Item:
    """One task run on the driver."""

    __slots__ = (
        "__weakref__",
        "_event",
        "assets",
        "batch",
        "blob",
        "call",
        "callbacks",
        "code",
        "dependents",
        "dynamic_key",
        "inputs",
        "is_called_back",
        "is_done",
        "life",
        "n_done_upstreams",
        "name",
        "needs_done",
        "plan",
        "references",
        "released_key",
        "rerun",
        "resume",
        "run_id",
        "sent_at_s",
        "state_type",
        "template",
        "upstreams",
        "waits",
        "worker",
    )

    def __init__(
        self,
        run_id: UUID,
        template: Template,
        name: str,
        dynamic_key: str,
        code: Code,
        call: bytes,
        references: tuple[Any, ...],
        waits: tuple[tuple[Item | Ended, bool], ...] = (),
        inputs: bytes | None = None,
        assets: bytes | None = None,
    ) -> None:
        self.run_id = run_id
        self.template = template
        self.name = name
        self.dynamic_key = dynamic_key
        self.code: Code | None = code
        self.call = call
        self.references = references
        self.waits = waits
        """Runs that are only waited for, and whether each may fail."""
        met = (*references, *template.static_references, *(waited for waited, _ in waits))
        self.upstreams: tuple[Item, ...] = tuple(one for one in met if isinstance(one, Item))
        self.inputs = inputs
        self.assets = assets
        self.resume: bytes | None = None
        self.rerun: str | None = None
        self.batch: SentBatch | None = None
        self.released_key: str | None = None
        self.dependents: list[Item] = []
        self.plan: MapPlan | None = None
        self.needs_done = False
        self.n_done_upstreams = 0
        self.life = Life()
        self.is_done = False
        """Whether its end is noted, and all that belongs to it."""
        self.sent_at_s = 0.0
        self.worker: str | None = None
        self.blob: bytes | None = None
        self.state_type = ""
        self.callbacks: list[Callable[[], None]] = []
        """What is to be called once the run is done and was not called yet; the board's."""
        self.is_called_back = False
        """Whether those that were there at the run's end have been put in line."""
        self._event: threading.Event | None = None

    def spec(self, sources: tuple[Source, ...], waits: tuple[Wait, ...]) -> ItemSpec:
        """The item as it travels."""
        return ItemSpec(
            self.run_id,
            self.name,
            self.dynamic_key,
            self.call,
            sources,
            waits,
            self.inputs,
            self.assets,
            self.resume,
            self.rerun,
        )

    @property
    def state(self) -> RunState:
        """Where the run stands."""
        return self.life.state

    def task_run(self, flow_run_id: UUID | None) -> TaskRun:
        """The run's record as the driver knows it (in Pending, or as it was handed back)."""
        if self.resume is not None:
            record: TaskRun = pickle.loads(self.resume)[0]
            return record
        return new_task_run(
            self.template.prefect_task,
            run_id=self.run_id,
            name=self.name,
            dynamic_key=self.dynamic_key,
            flow_run_id=flow_run_id,
            tags=self.template.tags,
            inputs=pickle.loads(self.inputs) if self.inputs else {},
        )

    def settle(self, blob: bytes | None, state_type: str) -> None:
        """Note the final state. What only a further attempt would need is dropped."""
        self.blob = blob
        self.state_type = state_type
        self.is_done = True
        self.upstreams = ()
        self.n_done_upstreams = 0
        self.references = ()
        self.waits = ()
        self.code = None
        self.call = b""
        self.resume = None
        if self._event is not None:
            self._event.set()

    def wait(self, timeout_s: float | None) -> bool:
        """Block until the item is done; False if `timeout_s` seconds pass first."""
        if self.is_done:
            return True
        event = self._event
        if event is None:
            event = self._event = threading.Event()
        if self.is_done:
            return True
        return event.wait(timeout_s)


@dataclass(eq=False)
class MapPlan:
    """The items of a map that wait until it is known how to group them."""

    learned_as: str
    waiting: deque[Item]
    n_outstanding: int = 0

    def take(self, n_items: int) -> list[Item]:
        """The next `n_items` of those that are still to be sent."""
        taken: list[Item] = []
        while self.waiting and len(taken) < n_items:
            item = self.waiting.popleft()
            if item.state is RunState.HELD_FOR_PILOT:
                item.plan = self
                taken.append(item)
        self.n_outstanding += len(taken)
        return taken
