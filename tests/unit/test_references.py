"""Which futures and states become values, which are refused, and what is large."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import pydantic
import pytest
from prefect.client.schemas.objects import State, StateDetails
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.utilities.annotations import allow_failure, opaque, quote

from deepflow.errors import UnresolvedInputError
from deepflow.intermediates.loading import HOME, loads
from deepflow.intermediates.parcel import Parcel
from deepflow.runner.driver.references import References
from deepflow.runner.wire import Ended, dumps


class Settled(PrefectFuture[Any]):
    """A future of another runner whose run has ended."""

    def __init__(self, state: State[Any]) -> None:
        self._state, self._run_id = state, uuid4()
        state.state_details = StateDetails(task_run_id=self._run_id)

    @property
    def task_run_id(self) -> Any:
        return self._run_id

    @property
    def state(self) -> State[Any]:
        return self._state

    def wait(self, timeout: float | None = None) -> None: ...

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        return self._state.result(raise_on_failure=raise_on_failure)

    def add_done_callback(self, fn: Any) -> None:
        fn(self)


@dataclasses.dataclass
class Plain:
    inner: Any


@dataclasses.dataclass(init=False)
class OwnInit:
    inner: Any

    def __init__(self, *, given: Any) -> None:
        self.inner = given


@dataclasses.dataclass
class Derived:
    inner: Any
    count: int = dataclasses.field(init=False, default=1)


class Model(pydantic.BaseModel):
    inner: Any


class Subclass(np.ndarray): ...


class Opaque:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


Pair = namedtuple("Pair", "first second")


class Shared:
    """Keeps what would be sent to the cluster."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def of(self, value: Any, parcel: Parcel, client: Any) -> Any:
        self.sent.append(value)
        return parcel


def references() -> tuple[References, Shared]:
    shared = Shared()
    session = SimpleNamespace(
        settings=SimpleNamespace(share_argument_bytes=65_536),
        shared=shared,
        client=None,
        dispatcher=object(),
    )
    return References(cast(Any, session)), shared


def travelled(value: Any) -> Any:
    """`value` as it would arrive, with the values of its futures and states in their places."""
    known, _ = references()
    known.visit(value)
    blob = dumps(value, known.find)

    made: dict[int, Any] = {}

    def find(pid: tuple[int, bool]) -> Any:
        number = pid[0]
        found: Any = known.found[number]
        if number not in made:
            made[number] = (
                found.open(HOME)
                if isinstance(found, Parcel)
                else Parcel.from_bytes(found).open(HOME).data
            )
        return made[number]

    return loads(blob, HOME, find=find)


def one() -> Settled:
    return Settled(Completed(data=1))


@pytest.mark.parametrize("make", [one, lambda: Completed(data=1)], ids=["future", "state"])
@pytest.mark.parametrize(
    ("wrap", "inside"),
    [
        (lambda f: f, lambda v: v),
        (lambda f: [f], lambda v: v[0]),
        (lambda f: (f, 2), lambda v: v[0]),
        (lambda f: {"a": f}, lambda v: v["a"]),
        (lambda f: OrderedDict(a=f), lambda v: v["a"]),
        (lambda f: defaultdict(list, a=f), lambda v: v["a"]),
        (lambda f: Plain(f), lambda v: v.inner),
        (lambda f: OwnInit(given=f), lambda v: v.inner),
        (lambda f: Derived(f), lambda v: v.inner),
        (lambda f: Model(inner=f), lambda v: v.inner),
        (lambda f: Pair(f, 2), lambda v: v.first),
        (lambda f: allow_failure(f), lambda v: v.unwrap()),
        (lambda f: opaque(f), lambda v: v.unwrap()),
        (lambda f: [{"a": (Plain([f]),)}], lambda v: v[0]["a"][0].inner[0]),
    ],
)
def test_a_value_takes_its_place_wherever_prefect_resolves(
    make: Any, wrap: Any, inside: Any
) -> None:
    value = wrap(make())
    arrived = travelled(value)
    assert inside(arrived) == 1
    assert type(arrived) is type(value) or isinstance(value, (PrefectFuture, State))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: deque([f]),
        lambda f: {"a": f}.values(),
        lambda f: {"a": f}.items(),
        lambda f: np.array([f, None], dtype=object),
        lambda f: {"deep": [deque([f])]},
    ],
)
@pytest.mark.parametrize("make", [one, lambda: Completed(data=1)], ids=["future", "state"])
def test_elsewhere_a_future_or_state_is_refused_in_words(make: Any, wrap: Any) -> None:
    with pytest.raises(UnresolvedInputError, match="puts no value in its place"):
        travelled(wrap(make()))


@pytest.mark.parametrize(
    "wrap",
    [lambda f: Opaque(f), lambda f: frozenset([f]), lambda f: quote(f), lambda f: quote([f])],
)
def test_a_future_in_an_object_a_frozen_set_or_a_quote_is_refused_in_words(wrap: Any) -> None:
    with pytest.raises(UnresolvedInputError, match="puts no value in its place"):
        travelled(wrap(one()))


def test_a_quoted_state_stays_a_state() -> None:
    assert isinstance(travelled(quote(Completed(data=1))).unwrap(), State)
    assert isinstance(travelled(quote([Completed(data=1)])).unwrap()[0], State)


def test_a_future_may_fail_only_if_each_of_its_places_allows_it() -> None:
    strict, lenient = one(), one()
    known, _ = references()
    known.visit([allow_failure(strict), strict, allow_failure(lenient)])
    assert known.find(strict) == (0, False)
    assert known.find(lenient) == (1, True)


@pytest.mark.parametrize(
    "wrap", [lambda f: f, lambda f: [f], lambda f: {"a": f}, lambda f: ((f,),)]
)
def test_what_is_waited_for_may_be_one_or_in_any_container(wrap: Any) -> None:
    future = Settled(Failed(data=ValueError("no")))
    known, _ = references()
    inputs = known.wait_for(wrap(future))
    assert known.waits == [(Ended(future.task_run_id, "FAILED", False), False)]
    assert [one.id for one in inputs] == [future.task_run_id]


def test_a_state_in_wait_for_counts_by_how_it_ended() -> None:
    known, _ = references()
    state: Any = Failed(data=ValueError("no"))
    known.wait_for([state, allow_failure(Completed(data=1))])
    assert [(waited.state_type, may_fail) for waited, may_fail in known.waits] == [  # type: ignore[union-attr]
        ("FAILED", False),
        ("COMPLETED", True),
    ]


def test_equal_large_arguments_stay_two_and_the_same_one_stays_one() -> None:
    frame = pd.DataFrame({"x": np.zeros(50_000)})
    known, shared = references()
    value = {"a": frame, "again": frame, "b": frame.copy()}
    arrived = travelled(value)
    known.visit(value)
    dumps(value, known.find)
    assert len(shared.sent) == 2
    assert arrived["a"] is arrived["again"]
    assert arrived["a"] is not arrived["b"]
    arrived["a"]["x"] = 7.0
    assert arrived["b"]["x"].iloc[0] == 0.0


def test_what_cannot_be_shared_goes_with_the_call_and_fails_there_if_it_must() -> None:
    frame = pd.DataFrame({"f": [threading.Lock()] * 20_000})
    known, shared = references()
    assert known.find(frame) is None
    assert shared.sent == []
    with pytest.raises(TypeError, match="lock"):
        dumps(frame, known.find)


def test_a_future_in_a_cell_of_a_large_frame_is_refused_in_words() -> None:
    frame = pd.DataFrame({"f": [one()] * 20_000})
    known, _ = references()
    known.visit(frame)
    with pytest.raises(UnresolvedInputError):
        dumps(frame, known.find)


def test_bytes_within_another_object_are_not_shared_since_it_may_build_itself_on_them() -> None:
    masked = np.ma.masked_array(np.zeros(50_000), mask=False)
    for value in (masked, np.zeros(50_000).view(Subclass)):
        known, shared = references()
        known.visit(value)
        dumps(value, known.find)
        assert shared.sent == []
    known, shared = references()
    value = {"a": bytes(100_000), "b": [bytearray(100_000)]}
    known.visit(value)
    dumps(value, known.find)
    assert len(shared.sent) == 2
