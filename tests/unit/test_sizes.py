from __future__ import annotations

import dataclasses
import inspect
import logging
import random
import sys
from collections import deque, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize
from prefect.client.schemas.objects import State
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import PickleSerializer
from prefect.states import Completed
from pydantic import BaseModel

from deepflow.intermediates import registration, sizes
from deepflow.intermediates.sizes import measure

registration.register()

MB = 1_000_000
FLOATS = np.arange(float(MB))


def enveloped(value: object) -> State[Any]:
    """As Prefect's engine returns it."""
    metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key="k")
    return Completed(data=ResultRecord(result=value, metadata=metadata))


@dataclasses.dataclass
class Plain:
    array: np.ndarray
    note: str = "n"


@dataclasses.dataclass(slots=True)
class Slotted:
    array: np.ndarray


class Private:
    __slots__ = ("__array",)

    def __init__(self, array: np.ndarray) -> None:
        self.__array = array


class Model(BaseModel, arbitrary_types_allowed=True):
    array: Any
    name: str = "m"


Pair = namedtuple("Pair", "left right")

# Each with its size worked out by hand, from how it was made.
PAYLOADS: dict[str, tuple[object, int]] = {
    "array": (FLOATS, 8 * MB),
    "every second element": (FLOATS[::2], 4 * MB),
    "slice": (FLOATS[: MB // 2], 4 * MB),
    "transposed": (FLOATS.reshape(1000, 1000).T, 8 * MB),
    "float32": (FLOATS.astype("f4"), 4 * MB),
    "broadcast": (np.broadcast_to(FLOATS[:100_000], (50, 100_000)), 800_000),
    "objects": (
        np.array([b"x" * 1000 + bytes([i % 256]) for i in range(2000)], dtype=object),
        2000 * (1001 + 33 + 8),
    ),
    "record array": (np.zeros(100_000, dtype=[("a", "f8"), ("b", "i4")]), 1_200_000),
    "masked": (np.ma.masked_array(FLOATS, mask=np.zeros(MB, bool)), 9 * MB),
    "bytes": (b"x" * MB, MB),
    "bytearray": (bytearray(MB), MB),
    "memoryview": (memoryview(bytes(MB)), MB),
    "str": ("x" * MB, MB),
    "wide str": ("\N{SNOWMAN}" * MB, 2 * MB),
    "tensor": (torch.zeros(MB), 4 * MB),
    "bfloat16": (torch.zeros(MB, dtype=torch.bfloat16), 2 * MB),
    "tensor slice": (torch.zeros(MB)[: MB // 2], 2 * MB),
    "expanded tensor": (torch.zeros(MB // 4).expand(50, MB // 4), MB),
    "sparse tensor": (
        torch.sparse_coo_tensor(
            torch.arange(100_000).repeat(2, 1), torch.ones(100_000), check_invariants=True,
        ), 100_000 * (16 + 4),
    ),
    "parameter": (torch.nn.Parameter(torch.zeros(MB)), 4 * MB),
    "module": (torch.nn.Linear(1000, 1000), 4_004_000),
    "state dict": (torch.nn.Linear(1000, 1000).state_dict(), 4_004_000),
    "frame": (pd.DataFrame({"a": FLOATS, "b": np.arange(MB, dtype="i4")}), 12 * MB),
    "frame of objects": (
        pd.DataFrame({"s": pd.Series(["x" * 200 + str(i) for i in range(10_000)], dtype=object)}),
        sum(sys.getsizeof("x" * 200 + str(i)) + 8 for i in range(10_000)),
    ),
    "frame of repeated objects": (
        pd.DataFrame({"s": pd.Series(["north", "south"] * 100_000, dtype=object)}), 1_600_000,
    ),
    "frame with an index": (pd.DataFrame({"a": FLOATS}, index=FLOATS + 1), 16 * MB),
    "categories": (
        pd.DataFrame({"c": pd.Categorical(["a", "b"] * 500_000)}), MB,
    ),
    "series": (pd.Series(FLOATS), 8 * MB),
    "index": (pd.Index(FLOATS), 8 * MB),
    "several indexes": (
        pd.MultiIndex.from_arrays([np.arange(100_000), np.arange(100_000)]),
        2 * 100_000 * (8 + 4),
    ),
    "arrow table": (pa.table({"a": FLOATS}), 8 * MB),
    "arrow slice": (pa.table({"a": FLOATS})[: MB // 2], 4 * MB),
    "record batch": (pa.record_batch({"a": FLOATS}), 8 * MB),
    "arrow array": (pa.array(FLOATS), 8 * MB),
    "list of arrays": ([FLOATS + i for i in range(3)], 24 * MB),
    "list of unlike arrays": ([np.zeros(i * 100) for i in range(500)], 8 * 100 * 500 * 499 // 2),
    "the same array often": ([FLOATS] * 1000, 8 * MB + 8000),
    "array among numbers": ([*range(100), *([7] * 100_000), FLOATS], 8 * MB + 800_000),
    "dict": ({"x": [FLOATS, FLOATS[:1000] + 1], "s": "q" * 1000}, 8 * MB),
    "deep": ({"a": {"b": ({"c": [FLOATS]},)}}, 8 * MB),
    "set": ({bytes([i % 256]) * 5000 + bytes([i // 256]) for i in range(512)}, 512 * 5034),
    "dataclass": (Plain(FLOATS), 8 * MB),
    "slotted": (Slotted(FLOATS), 8 * MB),
    "private slot": (Private(FLOATS), 8 * MB),
    "pydantic": (Model(array=FLOATS), 8 * MB),
    "named tuple": (Pair(FLOATS, FLOATS + 1), 16 * MB),
    "state in state": (enveloped(FLOATS), 8 * MB),
}  # fmt: skip


@pytest.mark.parametrize("name", PAYLOADS)
def test_dask_sees_the_size_of_what_a_state_holds_within_five_percent(name: str) -> None:
    value, n_bytes = PAYLOADS[name]
    assert sizeof(enveloped(value)) == pytest.approx(n_bytes, rel=0.05)


def deep_size(value: object, seen: set[int]) -> int:
    """Every object once, by the interpreter's own count: slow and exact."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    n_bytes = sys.getsizeof(value)
    if isinstance(value, dict):
        return n_bytes + sum(deep_size(x, seen) for pair in value.items() for x in pair)
    if isinstance(value, (list, tuple, set)):
        return n_bytes + sum(deep_size(x, seen) for x in value)
    return n_bytes


def scalar_containers() -> dict[str, object]:
    rng = random.Random(5)
    words = [f"word-{i}" * rng.randint(1, 5) for i in range(300)]
    return {
        "integers": list(range(100_000)),
        "floats": [rng.random() for _ in range(100_000)],
        "vocabulary": [rng.choice(words) for _ in range(100_000)],
        "texts": ["x" * rng.randint(0, 200) for _ in range(100_000)],
        "one object": ["same"] * 100_000,
        "mapping": {f"key {i}": float(i) for i in range(100_000)},
        "members": {f"member {i}" for i in range(100_000)},
        "rows": [(i, float(i), str(i)) for i in range(3000)],
    }


@pytest.mark.parametrize("name", scalar_containers())
def test_a_long_container_of_scalars_is_measured_by_sampling_within_five_percent(name) -> None:
    value = scalar_containers()[name]
    assert measure(value) == pytest.approx(deep_size(value, set()), rel=0.05)


@pytest.mark.parametrize("name", ["integers", "floats", "mapping", "members"])
def test_of_a_hundred_thousand_scalars_about_a_thousand_are_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = scalar_containers()[name]
    looked_at: list[int] = []

    def getsizeof(item: object, *default: int) -> int:
        looked_at.append(id(item))
        return sys.getsizeof(item, *default)

    monkeypatch.setattr(sizes, "sys", SimpleNamespace(getsizeof=getsizeof, modules=sys.modules))
    assert measure(value) > 100_000
    assert sizes.SAMPLE / 2 < len(looked_at) < 3 * sizes.SAMPLE


def test_distinct_objects_of_a_very_long_container_are_estimated() -> None:
    rng = random.Random(5)
    words = [f"a rather long word {i}" * 20 for i in range(2000)]
    value = [rng.choice(words) for _ in range(300_000)]
    assert measure(value) == pytest.approx(deep_size(value, set()), rel=0.05)


def test_no_more_objects_are_visited_than_allowed() -> None:
    rows = [[np.zeros(100)] for _ in range(50_000)]
    assert measure(rows, max_nodes=2000) == pytest.approx(50_000 * (800 + 112 + 72), rel=0.05)


class Hostile:
    """Raises wherever it is touched."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)

    def __sizeof__(self) -> int:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class Lying(list[int]):
    def __len__(self) -> int:
        return -1


def test_nothing_makes_it_raise_and_failures_are_counted() -> None:
    before = sizes.failures.count
    cycle: list[object] = []
    cycle.append(cycle)
    weird = [Hostile(), Lying(), cycle, type, sys, len, lambda: 0, (i for i in ()), object(), ...]
    for value in weird:
        assert measure(value) > 0
    assert measure([FLOATS, *weird]) == pytest.approx(8 * MB, rel=0.05)
    assert sizes.failures.count > before


class Envelope:
    """Stands for an envelope of ours, which Dask was not told of."""

    def __init__(self, payload: object) -> None:
        self._payload = payload

    def __deepflow_payload__(self) -> object:
        return [self._payload]


class RegisteredEnvelope(Envelope):
    pass


def test_an_envelope_of_ours_is_measured_by_its_payload_without_being_registered() -> None:
    assert sizeof(Envelope(FLOATS)) == pytest.approx(8 * MB, rel=0.05)
    assert isinstance(Envelope(1), sizes.SupportsPayload)
    assert sizeof(object()) == sys.getsizeof(object())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.requires_grad == b.requires_grad and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, (pa.Table, pa.RecordBatch, pd.DataFrame)):
        return type(a) is type(b) and a.equals(b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    "name",
    ["array", "every second element", "slice", "float32", "broadcast", "bytes", "bytearray",
     "tensor", "bfloat16", "tensor slice", "parameter", "frame", "arrow table", "arrow slice",
     "record batch"],
)  # fmt: skip
def test_the_data_of_an_envelope_travels_in_frames_of_its_own(name: str) -> None:
    registration.register(RegisteredEnvelope)
    value, n_bytes = PAYLOADS[name]
    header, frames = serialize(RegisteredEnvelope(enveloped(value)))
    assert len(frames[0]) < 20_000
    assert sum(memoryview(f).nbytes for f in frames) == pytest.approx(n_bytes, rel=0.05)
    arrived = deserialize(header, frames)._payload
    assert isinstance(arrived, State)
    assert same(arrived.data.result, value)


@pytest.mark.parametrize("register", [False, True])
def test_a_contiguous_array_is_not_copied_either_way(register: bool) -> None:
    """Without registration too: pickle's protocol 5 does it, so no code of ours is needed."""
    kind = RegisteredEnvelope if register else Envelope
    if register:
        registration.register(RegisteredEnvelope)
    array = np.arange(float(MB))
    header, frames = serialize(kind([enveloped(array)]))
    assert header["serializer"] == ("dask" if register else "pickle")
    arrived = deserialize(header, frames)._payload[0].data.result
    assert np.shares_memory(arrived, array)


def test_registering_again_changes_nothing() -> None:
    before = sizeof.dispatch(object), sizeof.dispatch(State)
    registration.register(RegisteredEnvelope)
    registration.register(RegisteredEnvelope)
    assert (sizeof.dispatch(object), sizeof.dispatch(State)) == before


def test_what_was_one_object_stays_one_and_odd_tensors_keep_their_form() -> None:
    registration.register(RegisteredEnvelope)
    tied = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expanded = torch.ones(3).expand(4, 3)
    value = {"a": tied, "b": tied, "last": last, "expanded": expanded, "none": torch.zeros(0, 3)}
    arrived = deserialize(*serialize(RegisteredEnvelope(value)))._payload
    assert arrived["a"] is arrived["b"]
    assert isinstance(arrived["a"], torch.nn.Parameter)
    assert not arrived["a"].requires_grad
    assert arrived["last"].is_contiguous(memory_format=torch.channels_last)
    assert arrived["expanded"].stride() == expanded.stride()
    assert arrived["none"].shape == (0, 3)
    assert torch.equal(arrived["last"], last)


def test_a_local_class_inside_an_envelope_travels_by_value() -> None:
    registration.register(RegisteredEnvelope)

    class Local:
        def __init__(self) -> None:
            self.array = FLOATS

    header, frames = serialize(RegisteredEnvelope(Local()))
    assert memoryview(frames[1]).nbytes == 8 * MB
    assert (deserialize(header, frames)._payload.array == FLOATS).all()


def test_an_envelope_can_be_sent_while_another_thread_is_importing_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library in the middle of its import is in `sys.modules` and has next to nothing in it."""
    import sys
    import types
    from uuid import uuid4

    import numpy as np
    from distributed.protocol import deserialize, serialize

    from deepflow.intermediates import registration
    from deepflow.intermediates.loading import HOME
    from deepflow.intermediates.parcel import Parcel
    from deepflow.runner.wire import Entry, Outcomes

    registration.register(Outcomes, Parcel)
    for name in ("torch", "pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    value = np.arange(50_000)[::2]
    header, frames = serialize(Outcomes([Entry(uuid4(), "done", Parcel.of({"a": value}))]))
    back = deserialize(header, frames)
    assert header["serializer"] == "dask"
    assert np.array_equal(back.entries[0].content.open(HOME)["a"], value)


class _Raising:
    """Every question that measuring might ask raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class _RaisingMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)

    def __hash__(cls) -> int:
        raise RuntimeError("not to be hashed")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("not to be compared")


class _OfRaisingMeta(metaclass=_RaisingMeta):
    pass


def _hostile(base: type, error: type[Exception] = RuntimeError) -> type:
    """A subclass whose every own method raises."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise error("not to be asked")

    names = ("__sizeof__", "__len__", "__iter__", "__eq__", "__hash__", "__getattr__", "__bool__")
    contents = dict.fromkeys(names, refuse) | {"nbytes": property(refuse), "__dir__": refuse}
    if issubclass(base, dict):
        contents |= dict.fromkeys(("keys", "values", "items"), refuse)
    return type("Hostile", (base,), contents)


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, AttributeError, MemoryError])
@pytest.mark.parametrize(
    "base", [object, list, tuple, dict, set, frozenset, deque, str, int, bytes]
)
def test_an_object_that_refuses_every_question_is_measured(
    base: type, error: type[Exception]
) -> None:
    item = _hostile(base, error)()
    assert 0 < sizes.measure([item]) < 10_000


def test_what_a_container_holds_counts_although_its_class_refuses_to_say() -> None:
    content = np.zeros(100_000)
    for base, filled in ((list, [content]), (tuple, (content,)), (dict, {"a": content})):
        assert sizes.measure(_hostile(base)(filled)) >= content.nbytes


def test_a_type_that_refuses_every_question_is_measured_as_a_shell() -> None:
    assert 0 < sizes.measure([_Raising(), _OfRaisingMeta()]) < 1_000


@pytest.mark.parametrize("claimed", [-5, 10**400, 1 << 60])
def test_a_size_that_no_object_has_is_not_believed(claimed: int) -> None:
    class Claims:
        __slots__ = ()
        nbytes = claimed

        def __sizeof__(self) -> int:
            return min(claimed, 1 << 60)

    assert 0 < sizes.measure(Claims()) < 1_000


@pytest.mark.parametrize("n_levels", [200, 100_000])
def test_depth_costs_no_stack(n_levels: int) -> None:
    nested: Any = None
    attributes: Any = None
    for _ in range(n_levels):
        nested = {"inner": [nested]}
        attributes = SimpleNamespace(inner=attributes)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        assert sizes.measure(nested) > 200 * 100
        assert sizes.measure(attributes) > 200 * 40
    finally:
        sys.setrecursionlimit(limit)
        # One by one: freeing them all at once would recurse in the interpreter.
        while nested is not None:
            nested = nested["inner"].pop()
        while attributes is not None:
            rest, attributes.inner = attributes.inner, None
            attributes = rest


def test_a_container_of_itself_is_measured_once() -> None:
    recursive: list[Any] = [np.zeros(10_000)]
    recursive.append(recursive)
    assert 80_000 <= sizes.measure(recursive) < 82_000


def test_one_that_cannot_be_measured_is_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refuses:
        __slots__ = ()

        @property
        def nbytes(self) -> int:
            raise RuntimeError("no")

    before = sizes.failures.count
    with caplog.at_level(logging.WARNING):
        sizes.measure([Refuses(), Refuses()])
    assert sizes.failures.count == before + 2
    assert caplog.text.count("cannot measure") == 1


@pytest.mark.filterwarnings("ignore:Sparse ")
def test_a_sparse_tensor_counts_its_indices_and_values() -> None:
    eye = torch.eye(1_000)
    assert 20_000 <= sizes.measure(eye.to_sparse()) < 22_000
    for compressed in (eye.to_sparse_csr(), eye.to_sparse_csc()):
        assert 20_000 <= sizes.measure(compressed) < 22_000
    assert sizes.measure(torch.zeros(10**9, device="meta")) < 1_000
    with_attribute = torch.zeros(3)
    with_attribute.kept = torch.zeros(10_000)
    assert sizes.measure(with_attribute) >= 40_000
