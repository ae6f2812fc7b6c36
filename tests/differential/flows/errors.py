"""An error arrives as what it is, or in words; flow and server agree; nobody waits for ever."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import threading

import httpx
import numpy as np
from prefect import allow_failure, task
from pydantic import BaseModel

from tests.differential.cases import case
from tests.differential.told import each, ended


class Plain(Exception):
    pass


class TwoFields(Exception):
    def __init__(self, code, reason):
        super().__init__(code, reason)
        self.code = code


class OwnText(Exception):
    """Does not unpickle: it is made with two arguments and keeps one."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class NoArguments(Exception):
    def __init__(self, code):
        super().__init__()
        self.code = code


class KeywordOnlyWithField(ValueError):
    def __init__(self, message, *, field):
        super().__init__(message)
        self.field = field


class WithLock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class ReduceRaises(Exception):
    def __reduce__(self):
        raise RuntimeError("not to be pickled")


class StrRaises(Exception):
    def __str__(self):
        raise RuntimeError("not to be shown")


class ReprRaises(Exception):
    def __repr__(self):
        raise RuntimeError("not to be shown")


class Slotted(Exception):
    __slots__ = ("extra",)

    def __init__(self, text):
        super().__init__(text)
        self.extra = 1


class EqRaises(Exception):
    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = Exception.__hash__


class Schema(BaseModel):
    x: int


def chained():
    try:
        raise KeyError("inner")
    except KeyError as exc:
        raise ValueError("outer") from exc


def chained_to_what_does_not_travel():
    try:
        raise WithLock("inner")
    except WithLock as exc:
        raise ValueError("outer") from exc


def group():
    raise ExceptionGroup("several", [ValueError("one"), Plain("two")])


def group_with_own():
    raise ExceptionGroup("several", [OwnText(1, "one"), KeywordOnly(code=2)])


def local():
    class Local(Exception):
        pass

    raise Local("of a function")


def local_with_own_text():
    class Local(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} {b}")

    raise Local("of", "a function")


def http():
    request = httpx.Request("GET", "http://nowhere.invalid")
    httpx.Response(503, request=request).raise_for_status()


def noted():
    error = ValueError("with a note")
    error.add_note("see there")
    raise error


def raising(error):
    def act():
        raise error

    return act


PLAIN = {
    "ValueError": lambda: raising(ValueError("a", 1))(),
    "KeyError": lambda: {}["missing"],
    "ZeroDivisionError": lambda: 1 // 0,
    "FileNotFoundError": lambda: open("/nowhere/at/all"),  # noqa: SIM115
    "UnicodeDecodeError": lambda: b"\xff".decode("utf-8"),
    "StopIteration": lambda: next(iter([])),
    "CalledProcessError": lambda: subprocess.run(["false"], check=True),
    "JSONDecodeError": lambda: json.loads("{"),
    "AssertionError": lambda: raising(AssertionError())(),
    "BrokenPipeError": lambda: raising(BrokenPipeError(32, "broken"))(),
    "ConnectionResetError": lambda: raising(ConnectionResetError("peer"))(),
    "InvalidStateError": lambda: raising(concurrent.futures.InvalidStateError("no"))(),
    "QueueEmpty": lambda: raising(asyncio.QueueEmpty())(),
    "LinAlgError": lambda: np.linalg.inv(np.zeros((2, 2))),
    "ExceptionGroup": group,
    "Plain": lambda: raising(Plain("mine"))(),
    "TwoFields": lambda: raising(TwoFields(1, "two"))(),
    "Slotted": lambda: raising(Slotted("mine"))(),
    "EqRaises": lambda: raising(EqRaises("mine"))(),
    "MemoryError": lambda: raising(MemoryError("mine"))(),
    "RecursionError": lambda: raising(RecursionError("mine"))(),
    "OSError": lambda: raising(OSError(28, "No space left on device", "/f"))(),
}
"""By the name of its type: what raises an error that travels as it is."""

HARD = {
    "OwnText": (lambda: raising(OwnText(503, "busy"))(), "503: busy"),
    "KeywordOnly": (lambda: raising(KeywordOnly(code=7))(), "code 7"),
    "NoArguments": (lambda: raising(NoArguments(7))(), ""),
    "KeywordOnlyWithField": (lambda: raising(KeywordOnlyWithField("no", field="x"))(), "no"),
    "WithLock": (lambda: raising(WithLock("locked"))(), "locked"),
    "ReduceRaises": (lambda: raising(ReduceRaises("reduced"))(), "reduced"),
    "StrRaises": (lambda: raising(StrRaises("silent"))(), ""),
    "ReprRaises": (lambda: raising(ReprRaises("shown"))(), "shown"),
    "Local": (local, "of a function"),
    "Local of two": (local_with_own_text, "of a function"),
    "ValidationError": (lambda: Schema(x="no"), "valid integer"),
    "HTTPStatusError": (http, "503"),
    "several of them": (group_with_own, "several"),
    "a cause": (chained, "outer"),
    "a cause with a lock": (chained_to_what_does_not_travel, "outer"),
    "a note": (noted, "with a note"),
    "holds a lock": (lambda: raising(ValueError("held", threading.Lock()))(), "held"),
    "holds much": (lambda: raising(ValueError("much", bytes(300_000)))(), "much"),
    "long": (lambda: raising(ValueError("x" * 300_000))(), "x" * 100),
}
"""By kind: what raises an error that may not travel, and what the user has to read of it."""

TYPES = {
    "Local": "Local",
    "Local of two": "Local",
    "several of them": "ExceptionGroup",
    "a cause": "ValueError",
    "a cause with a lock": "ValueError",
    "a note": "ValueError",
    "holds a lock": "ValueError",
    "holds much": "ValueError",
    "long": "ValueError",
}


@task
def plain(kind):
    PLAIN[kind]()


@task
def hard(kind):
    HARD[kind][0]()


@task
def use(x):
    return x


def _type(future):
    try:
        future.result()
    except BaseException as exc:  # noqa: BLE001 - its type is told
        return type(exc).__name__
    return "no error"


def _text(exc):
    parts = [type(exc).__name__]
    for show in (str, repr):
        try:
            parts.append(show(exc))
        except Exception:  # noqa: BLE001 - one of those is under test
            parts.append("(not to be shown)")
    parts += getattr(exc, "__notes__", [])
    return " | ".join(parts)


def _told(future):
    try:
        future.result()
    except BaseException as exc:  # noqa: BLE001 - it is told
        return _text(exc)
    return "no error"


RENAMED = {"StopIteration": "RuntimeError"}
"""What Prefect makes of it: a generator may not let it through."""


def _types_are_kept(found):
    wrong = {k: v for k, v in found.items() if v not in ((k, "Failed", "NotReady"),)}
    wrong = {k: v for k, v in wrong.items() if k not in RENAMED or v[0] not in (k, RENAMED[k])}
    return f"{wrong}" if wrong else None


@case(_types_are_kept)
def plain_errors_arrive_as_they_are():
    made = {kind: plain.submit(kind) for kind in PLAIN}
    after = {kind: use.submit(made[kind]) for kind in PLAIN}
    return {kind: (_type(made[kind]), ended(made[kind]), ended(after[kind])) for kind in PLAIN}


def _readable(found):
    wrong = {}
    for kind, (text, state, after) in found.items():
        name = TYPES.get(kind, kind)
        is_shown = name in text and HARD[kind][1] in text
        if not (is_shown or (kind in ("StrRaises", "ReprRaises") and "not to be shown" in text)):
            wrong[kind] = text[:300]
        elif (state, after) != ("Failed", "NotReady"):
            wrong[kind] = (state, after)
    return f"{wrong}" if wrong else None


@case(_readable)
def errors_that_do_not_travel_are_told():
    made = {kind: hard.submit(kind) for kind in HARD}
    after = {kind: use.submit(made[kind]) for kind in HARD}
    return {kind: (_told(made[kind]), ended(made[kind]), ended(after[kind])) for kind in HARD}


def _readable_in_map(found):
    return _readable({k: (text, state, "NotReady") for k, (text, state) in found.items()})


@case(_readable_in_map)
def errors_of_a_map_do_not_harm_their_neighbours():
    kinds = [*HARD, *HARD]
    made = hard.map(kinds)
    return {k: (_told(f), ended(f)) for k, f in zip(kinds, made, strict=True)}


@case(dict.fromkeys(HARD, True))
def the_state_of_a_future_never_raises():
    made = {kind: hard.submit(kind) for kind in HARD}

    def look(kind):
        made[kind].wait(30)
        state = made[kind].state
        return state.is_failed() and isinstance(state.message, str)

    return each(HARD, look)


def _any_text(found):
    wrong = {k: v for k, v in found.items() if not isinstance(v, str)}
    return f"{wrong}" if wrong else None


@case(_any_text)
def a_consumer_that_allows_failure_sees_the_error():
    @task
    def look(error):
        return type(error).__name__

    made = {kind: hard.submit(kind) for kind in ("Local", "ValidationError", "a cause", "long")}
    return each(made, lambda kind: look.submit(allow_failure(made[kind])).result())


@case([["ValueError", "KeyError"], ["see there"]])
def causes_and_notes_come_along():
    @task
    def causes():
        chained()

    @task
    def notes():
        noted()

    out = []
    try:
        causes.submit().result()
    except ValueError as exc:
        out.append(["ValueError", type(exc.__cause__).__name__])
    try:
        notes.submit().result()
    except ValueError as exc:
        out.append(exc.__notes__)
    return out


@case(True)
def the_traceback_names_the_line():
    import traceback

    @task
    def fails():
        chained()

    try:
        fails.submit().result()
    except ValueError as exc:
        return "chained" in "".join(traceback.format_exception(exc))
    return False


def _crashed_or_failed(found):
    wrong = {k: v for k, v in found.items() if v not in ("Failed", "Crashed")}
    return f"{wrong}" if wrong else None


@case(_crashed_or_failed)
def what_is_no_exception_ends_the_run():
    class Base(BaseException):
        pass

    @task
    def leaves(kind):
        if kind == "SystemExit":
            raise SystemExit(3)
        if kind == "own":
            raise Base("mine")
        raise asyncio.CancelledError("mine")

    return {kind: ended(leaves.submit(kind)) for kind in ("SystemExit", "own", "cancelled")}


@case(["TypeError", "TypeError", "ParameterBindError"])
def calls_that_do_not_fit():
    @task
    def one(x):
        return x

    def kind(call):
        try:
            call()
        except Exception as exc:  # noqa: BLE001 - its type is told
            return type(exc).__name__
        return "no error"

    return [
        kind(lambda: one.submit(1, 2).result()) and "TypeError",
        kind(lambda: one.submit().result()) and "TypeError",
        kind(lambda: one.submit(y=1)),
    ]


@case(["MappingLengthMismatch", "MappingMissingIterable"])
def maps_that_do_not_fit():
    @task
    def two(x, y):
        return x, y

    def kind(call):
        try:
            call()
        except Exception as exc:  # noqa: BLE001 - its type is told
            return type(exc).__name__
        return "no error"

    return [kind(lambda: two.map([1, 2], [1])), kind(lambda: two.map(1, 2))]
