"""What travels between driver and worker comes out as it went in."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.intermediates.loading import HOME, loads
from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.runner.wire import (
    Entry,
    EventRecord,
    Message,
    OutcomeReport,
    Outcomes,
    dumps,
    dumps_plain,
    is_plain,
    pack,
    unpack,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Marked:
    """Something that a pickle refers to instead of holding."""


@dataclass
class Holder:
    inner: Any


def _find_marked(found: list[Any]) -> Any:
    def find(value: Any) -> int | None:
        if isinstance(value, Marked):
            found.append(value)
            return len(found) - 1
        return None

    return find


@given(plain)
def test_values_come_out_as_they_went_in(value: Any) -> None:
    assert loads(dumps(value, lambda _: None), HOME) == value
    assert loads(dumps_plain(value), HOME) == value


def test_references_are_found_at_any_depth_and_replaced_on_loading() -> None:
    found: list[Any] = []
    blob = dumps({"a": [Marked(), (1, Holder(Marked()))]}, _find_marked(found))
    assert len(found) == 2
    out = loads(blob, HOME, find=["first", "second"].__getitem__)
    assert out == {"a": ["first", (1, Holder("second"))]}


def test_functions_defined_here_travel_by_value() -> None:
    factor = 3

    def triple(x: int) -> int:
        return factor * x

    assert loads(dumps(triple, lambda _: None), HOME)(4) == 12


@pytest.mark.parametrize("value", [1, 1.5, "a", b"a", True, None])
def test_scalars_are_plain(value: object) -> None:
    assert is_plain(value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1,), Marked(), int, bytearray(b"a")])
def test_all_else_is_not(value: object) -> None:
    assert not is_plain(value)


@given(st.binary(max_size=20_000), st.integers(0, 5))
def test_a_message_survives_packing_small_or_large(body: bytes, coalesced: int) -> None:
    run_id = uuid.uuid4()
    message = Message(
        "tcp://w",
        "driver",
        (OutcomeReport(run_id, "done", body, "COMPLETED", 0.5),),
        (EventRecord(run_id, None, "COMPLETED", "Completed", ("a",), body),),
        coalesced,
    )
    assert unpack(pack(message)) == message


def test_large_messages_are_compressed() -> None:
    report = OutcomeReport(uuid.uuid4(), "done", b"x" * 100_000, "COMPLETED", 0.0)
    assert len(pack(Message("w", "driver", (report,), (), 0))) < 2_000


def test_outcomes_find_a_run_or_say_that_it_is_not_there() -> None:
    there, elsewhere = uuid.uuid4(), uuid.uuid4()
    outcomes = Outcomes([Entry(there, "done", Parcel.of("state"), "COMPLETED")])
    entry = outcomes.find(there)
    assert entry is not None
    assert entry.state_type == "COMPLETED"
    assert outcomes.find(elsewhere) is None


def test_outcomes_with_a_value_of_this_process_only_are_pinned() -> None:
    parcel, stuck = Parcel.of(1), Stuck(object(), "it cannot be pickled")
    assert not Outcomes([Entry(uuid.uuid4(), "done", parcel)]).__deepflow_pinned__()
    assert Outcomes([Entry(uuid.uuid4(), "done", stuck)]).__deepflow_pinned__()
