"""What travels between the driver and a worker: specs, outcomes, and references inside pickles.

A call's parameters are pickled once, on the driver, in the thread that submits. A future among
them becomes a numbered reference (`pickle`'s persistent ids), and so does a large argument; the
worker puts the values in their place. The pickles are opaque bytes to Dask: the scheduler never
needs the user's modules, and no value is unpickled but in the run that uses it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple
from uuid import UUID

import zstandard
from prefect.utilities.annotations import BaseAnnotation

from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.intermediates.pickling import EnvelopePickler, fallbacks
from deepflow.observe.fallbacks import Fallback, fell_back

_PLAIN = (int, float, str, bool, bytes, type(None))
_COMPRESS_ABOVE_BYTES = 4096

fallbacks.on_fallback = partial(fell_back, Fallback.PICKLED_PLAINLY)


class BlobRef(NamedTuple):
    """Where a worker finds a shared blob: a name on the scheduler, a digest for its cache."""

    name: str
    digest: str


class Inline(NamedTuple):
    """An upstream's state, as bytes of a parcel, sent along with the call because it is small."""

    blob: bytes


class Remote(NamedTuple):
    """An upstream's state in worker memory: the entry of `run_id` in Dask dependency `dep`."""

    dep: int
    run_id: UUID


class Shared(NamedTuple):
    """A large argument that travels once: Dask dependency `dep` is its parcel."""

    dep: int


class Foreign(NamedTuple):
    """A value that the user has put on the cluster: Dask dependency `dep` is the value itself."""

    dep: int


Source = Inline | Remote | Shared | Foreign


class Ended(NamedTuple):
    """An upstream that is only waited for: how it ended is all that counts."""

    run_id: UUID
    state_type: str
    may_fail: bool


class Awaited(NamedTuple):
    """An upstream that is only waited for and is under way in Dask dependency `dep`."""

    dep: int
    run_id: UUID
    may_fail: bool


Wait = Ended | Awaited


class ItemSpec(NamedTuple):
    """One task run to execute."""

    run_id: UUID
    name: str
    dynamic_key: str
    call: bytes
    sources: tuple[Source, ...] = ()
    waits: tuple[Wait, ...] = ()
    """Upstream runs that must have ended well; their values are not used."""
    inputs: bytes | None = None
    """Pickled `task_inputs`, where the call has upstream runs."""
    assets: bytes | None = None
    resume: bytes | None = None
    """Pickled `(TaskRun, retries so far)` of a run that waited for its retry off the worker."""
    rerun: str | None = None
    """Why this run is executed again although it had finished or started before."""


class BatchOptions(NamedTuple):
    """How a group of runs is to be executed."""

    coalesce: bool = False
    inline_bytes: int = 16384
    split_after_s: float = 0.25
    durable: bool = False
    isolate: bool = False
    announce: bool = False
    """Tell the driver when a run begins: a worker may die of it."""


class Batch(NamedTuple):
    """One Dask task: one or more runs of the same Prefect task in the same context."""

    results_topic: str
    events_topic: str
    context: BlobRef
    code: bytes | BlobRef
    """The pickled Prefect task as it was when it was submitted, or where to fetch that."""
    code_sources: tuple[Source, ...]
    """What the task's code has captured of large values."""
    tags: tuple[str, ...]
    static: bytes | None
    static_sources: tuple[Source, ...]
    items: tuple[ItemSpec, ...]
    options: BatchOptions


Kind = Literal["done", "retry", "returned", "deferred", "begun"]


class Entry(NamedTuple):
    """What became of one run of a batch."""

    run_id: UUID
    kind: Kind
    content: Parcel | Stuck | bytes | None = None
    """For `done` the final state, in a parcel of its own; for `retry` the pickled
    `(TaskRun, retries, ready_at)`."""
    state_type: str = ""
    run_s: float = 0.0


@dataclass(slots=True)
class Outcomes:
    """A batch's result as Dask keeps it: one entry per item, values inside their states."""

    entries: list[Entry] = field(default_factory=list)

    def find(self, run_id: UUID) -> Entry | None:
        """The entry of a run, or None where it was given back."""
        return next((entry for entry in self.entries if entry.run_id == run_id), None)

    def __deepflow_payload__(self) -> object:
        """What counts as this object's size (see `intermediates.sizes`)."""
        return [entry.content for entry in self.entries]

    def __deepflow_on_disk_bytes__(self) -> int:
        """How much of it lies in files on disk: to write that again would free nothing."""
        return sum(e.content.on_disk_bytes for e in self.entries if isinstance(e.content, Parcel))

    def __deepflow_pinned__(self) -> bool:
        """Whether it holds a value that lives in this process only, so that it must stay."""
        return any(isinstance(e.content, Stuck) and e.content.is_here for e in self.entries)


class OutcomeReport(NamedTuple):
    """What a worker tells the submitting driver about one run, ahead of the result itself."""

    run_id: UUID
    kind: Kind
    blob: bytes | None
    """The state as bytes of its parcel (`done`) or the resume record (`retry`); None where it is
    too large."""
    state_type: str
    run_s: float


class EventRecord(NamedTuple):
    """One task-run event, ready to send but for the related resources."""

    run_id: UUID
    flow_run_id: UUID | None
    state_type: str
    state_name: str
    tags: tuple[str, ...]
    body: bytes
    """JSON object without its closing brace and without `related`."""
    name: str = ""
    """Of the task run, with its final state: it may have been made up on the worker."""


class Message(NamedTuple):
    """A worker's report: what happened to which runs, and the events to pass on."""

    worker: str
    driver: str
    """The events topic of the flow run: sessions inside tasks of several share a results topic."""
    outcomes: tuple[OutcomeReport, ...]
    events: tuple[EventRecord, ...]
    coalesced: int


def pack(message: Message) -> bytes:
    """Serialize a report; compressed when large, since Dask keeps the last 1,000 of a topic."""
    raw = pickle.dumps(tuple(message), protocol=5)
    if len(raw) > _COMPRESS_ABOVE_BYTES:
        return b"z" + zstandard.ZstdCompressor(level=1).compress(raw)
    return b"r" + raw


def unpack(blob: bytes) -> Message:
    """Inverse of `pack`."""
    raw = blob[1:]
    if blob[:1] == b"z":
        raw = zstandard.ZstdDecompressor().decompress(raw)
    return Message(*pickle.loads(raw))


Find = Callable[[Any], Any]
"""Gives an object's persistent id, or None for what is to be pickled."""


class _Pickler(EnvelopePickler):
    """The envelope of all values, with references."""

    def __init__(self, file: io.BytesIO, find: Find) -> None:
        super().__init__(file, protocol=5)
        self._find = find

    def persistent_id(self, obj: Any) -> Any:
        return self._find(obj)

    def reducer_override(self, obj: Any) -> Any:
        # Prefect's annotations are tuples whose own pickle wraps the value once more.
        if isinstance(obj, BaseAnnotation):
            return type(obj), (obj.unwrap(),)
        return super().reducer_override(obj)


def is_plain(value: object) -> bool:
    """True for values that need neither cloudpickle nor a search for references."""
    return type(value) in _PLAIN


def dumps(value: Any, find: Find) -> bytes:
    """Pickle `value`; objects for which `find` gives an id become references."""
    buffer = io.BytesIO()
    _Pickler(buffer, find).dump(value)
    return buffer.getvalue()


def dumps_plain(value: Any) -> bytes:
    """Pickle a value made only of plain scalars in plain containers (see `is_plain`)."""
    return pickle.dumps(value, protocol=5)
