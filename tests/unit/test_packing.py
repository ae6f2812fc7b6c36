"""What leaves a run: its state, whatever the user's value or exception does when it is pickled."""

from __future__ import annotations

import pickle
import threading
from typing import Any
from uuid import uuid4

import pytest
from prefect import task
from prefect.client.schemas import TaskRun
from prefect.states import Completed, Failed

from deepflow.errors import RemoteTaskError
from deepflow.intermediates.loading import HOME, Scope
from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.runner.runs import advance, new_task_run
from deepflow.runner.worker.packing import let_travel, packed


@task
def some_task() -> None: ...


def run_in(state: Any) -> TaskRun:
    """A task run that has ended in `state`."""
    run = new_task_run(
        some_task, run_id=uuid4(), name="call-0", dynamic_key="0", flow_run_id=uuid4(), tags=(),
        inputs={},
    )  # fmt: skip
    advance(run, state)
    return run


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class LikeAnOSError(OSError):
    def __init__(self, path: str, *, hint: str) -> None:
        super().__init__(2, "no such file", path)
        self.hint = hint


class Silent(Exception):
    """Comes out of its pickle without its text."""

    def __reduce__(self) -> Any:
        return Silent, ()


class HoldsLock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Hopeless(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("not to be pickled")

    def __str__(self) -> str:
        raise RuntimeError("not to be read")


class Odd:
    def __reduce__(self) -> Any:
        raise SystemExit("leaving")


def arrived(state: Any) -> Any:
    return Parcel.from_bytes(Parcel.of(state).to_bytes()).open(HOME)


@pytest.mark.parametrize(
    "exc",
    [
        KeywordOnly(code=7),
        TwoArguments(503, "busy"),
        LikeAnOSError("café.csv", hint="look"),
        Silent("silent"),
        HoldsLock("holds a lock"),
        TwoArguments(1, "again"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_exception_arrives_with_its_type_and_text_and_the_task_is_named(exc: Exception) -> None:
    state: Any = Failed(message="it failed", data=exc)
    let_travel(state, "call", Scope())
    back = arrived(state)
    assert isinstance(back.data, type(exc))
    assert type(back.data).__name__ == type(exc).__name__
    assert str(back.data) == str(exc)
    assert "task 'call'" in repr(back.data)
    assert "task 'call'" in back.message
    assert "__reduce__" in back.message
    assert any("Where it was raised" in note for note in back.data.__notes__)
    # Once more, as from a task that submits tasks and lets their exceptions through.
    assert str(arrived(back).data) == str(exc)


def test_an_exception_that_travels_is_left_as_it_is() -> None:
    exc = ValueError("plain")
    state: Any = Failed(message="it failed", data=exc)
    let_travel(state, "call", Scope())
    assert state.data is exc
    assert state.message == "it failed"


def test_an_exception_that_nothing_can_be_done_about_is_told_of_in_words() -> None:
    state: Any = Failed(message="it failed", data=Hopeless("x"))
    let_travel(state, "call", Scope())
    back = arrived(state)
    assert isinstance(back.data, Exception)
    assert "Hopeless" in f"{type(back.data).__name__} {back.data!r}"
    assert "task 'call'" in f"{back.data!r}"
    assert isinstance(back.data, (Hopeless, RemoteTaskError))


@pytest.mark.parametrize("value", [threading.Lock(), [threading.Lock()], Odd(), (i for i in "a")])
def test_a_result_that_cannot_be_pickled_says_so_and_keeps_its_record(value: Any) -> None:
    state: Any = Completed(data=value)
    run = run_in(state)
    content = packed(state, run, "make")
    assert isinstance(content, Stuck)
    assert content.value == (state,)
    for part in ("'make'", "'call-0'", type(value).__name__, "cannot be pickled", "return"):
        assert part in content.why
    record = pickle.loads(content.record)
    assert record.id == run.id
    assert record.state.type == state.type
    assert record.state.data is None


def test_a_result_too_deep_for_pickle_is_told_of_in_words() -> None:
    deep: Any = None
    for _ in range(200_000):
        deep = (deep,)
    content = packed(Completed(data=deep), run_in(Completed()), "make")
    assert isinstance(content, Stuck)
    assert "recursion" in content.why
    while deep is not None:  # taken apart, since the interpreter's own way there is as deep
        (deep,) = deep
