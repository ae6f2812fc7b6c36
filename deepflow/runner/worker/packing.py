"""A run's final state as it leaves the run: in a parcel of its own, whatever the user's value is.

Pickling runs the user's code, so it is done in the run, and a failure in it is that run's alone.
A result that cannot be pickled stays in its process (`Stuck`). An exception that does not come out
of its pickle as it went in is rebuilt from its class, arguments and attributes, without calling its
constructor; where that fails as well, a `RemoteTaskError` carries its type and text.
"""

from __future__ import annotations

import copy
import functools
import pickle
import traceback
from typing import TYPE_CHECKING, Any

from prefect._internal.result_records import ResultRecord

from deepflow.errors import RemoteTaskError
from deepflow.intermediates.loading import Scope
from deepflow.intermediates.parcel import Parcel, Stuck
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.staged import StagedRecord

if TYPE_CHECKING:
    from prefect.client.schemas import TaskRun
    from prefect.client.schemas.objects import State

__all__ = ["let_travel", "packed", "value_of"]

_MAX_TEXT = 2_000
_SCALARS = (int, float, str, bool, type(None))


def value_of(state: State[Any]) -> Any:
    """What a final state holds: a result or an exception."""
    return state.data.result if isinstance(state.data, ResultRecord) else state.data


def packed(state: State[Any], task_run: TaskRun, task_name: str) -> Parcel | Stuck:
    """The state with its value, ready to leave the run. Never raises."""
    try:
        if isinstance(state.data, StagedRecord):
            state.data._run = _record_of(task_run, state)
        if type(value_of(state)) in _SCALARS:  # nothing that the plain pickler does not know
            return Parcel(pickle.dumps(state, protocol=5))
        return Parcel.of(state)
    except BaseException as exc:  # noqa: BLE001 - pickling runs the user's code
        fell_back(Fallback.UNPICKLABLE_RESULT)
        why = (
            f"the result of task {task_name!r} (run {task_run.name!r}) is a "
            f"{_type_name(type(value_of(state)))} that cannot be pickled ({_text_of(exc)}), so it "
            "cannot leave the worker process that made it; return plain data instead, or use the "
            "object within the task that makes it"
        )
        return Stuck(state, why, _record_of(task_run, state))


def _record_of(task_run: TaskRun, state: State[Any]) -> bytes:
    """The pickled task run, its state without the value."""
    without_value = copy.copy(state)  # Prefect's `model_copy` gives it another time
    without_value.data = None
    return pickle.dumps(task_run.model_copy(update={"state": without_value}), protocol=5)


def let_travel(state: State[Any], task_name: str, scope: Scope) -> None:
    """Make sure that the exception in a failed state comes out of its pickle. Never raises.

    Where it does not, `state` gets one that does, of the same type if that is possible, and a
    message that names the task.
    """
    exc = value_of(state)
    if not isinstance(exc, BaseException):
        return
    why = _why_not(exc, scope)
    if why is None:
        return
    fell_back(Fallback.UNPICKLABLE_EXCEPTION)
    story = (
        f"task {task_name!r}: the exception does not come out of its pickle ({why}); give its "
        "class a __reduce__, or pass all arguments of __init__ to super().__init__"
    )
    lines = _traceback_of(exc)
    substitute: BaseException = _Rebuilt.of(exc, story, lines)
    if _why_not(substitute, scope) is not None:
        kind = _type_name(type(exc))
        substitute = RemoteTaskError(
            f"{kind}: {_text_of(exc, with_type=False)} [{story}]", original_type=kind
        )
        substitute.add_note(lines)
    if isinstance(state.data, ResultRecord):
        state.data.result = substitute
    else:
        state.data = substitute
    state.message = f"{state.message or _text_of(exc)} [{story}]"


def _why_not(exc: BaseException, scope: Scope) -> str | None:
    """Why an exception does not travel; None if it comes out of its pickle with type and text."""
    try:
        again = Parcel.of(exc).open(scope)
        if type(again).__qualname__ != type(exc).__qualname__ or str(again) != str(exc):
            return f"it comes out as {again!r:.200}"
    except BaseException as problem:  # noqa: BLE001 - pickling runs the user's code
        return _text_of(problem)
    return None


class _Rebuilt:
    """Makes classes whose exceptions are rebuilt from their parts."""

    @classmethod
    def of(cls, exc: BaseException, story: str, lines: str) -> BaseException:
        """An exception of the same kind, with what of its parts can be pickled."""
        kind = getattr(type(exc), "_deepflow_original", type(exc))
        args = tuple(_portable(arg) for arg in _arguments(kind, exc))
        held = {name: _portable(value) for name, value in vars(exc).items()}
        held["__notes__"] = [*getattr(exc, "__notes__", []), story, lines]
        return _rebuilt(kind, args, held, story)


def _rebuilt(
    kind: type[BaseException], args: tuple[Any, ...], held: dict[str, Any], story: str
) -> BaseException:
    """An exception of a subclass of `kind`, made without its constructor."""
    base = _built_in(kind)
    make: Any = base.__new__
    initialize: Any = vars(base).get("__init__", Exception.__init__)
    travelling: Any = _travelling
    made: BaseException = make(travelling(kind), *args)
    try:
        initialize(made, *args)
    except Exception:  # noqa: BLE001 - a built-in that wants other arguments
        made.args = args
    vars(made).update(held)
    vars(made)["_deepflow_story"] = story
    return made


def _built_in(kind: type[BaseException]) -> type[BaseException]:
    return next(one for one in kind.__mro__ if one.__module__ == "builtins")


def _arguments(kind: type[BaseException], exc: BaseException) -> tuple[Any, ...]:
    """What the built-in class is made with again: `OSError` keeps a file's name apart."""
    reduce: Any = _built_in(kind).__reduce__
    arguments: tuple[Any, ...] = reduce(exc)[1]
    return arguments


@functools.lru_cache(maxsize=256)
def _travelling(kind: Any) -> type[BaseException]:
    """A class like `kind`, for `except` and for the eye, whose exceptions can be pickled again."""

    def reduce(self: Any, protocol: Any = None) -> Any:
        held = dict(vars(self))
        story = held.pop("_deepflow_story", "")
        return _rebuilt, (kind, _arguments(kind, self), held, story)

    def show(self: Any) -> str:
        inner = ", ".join(map(repr, self.args))
        return f"{kind.__name__}({inner}) [{vars(self).get('_deepflow_story', '')}]"

    body = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
        "__repr__": show,
        "_deepflow_original": kind,
    }
    make: Any = type(kind)
    made: type[BaseException] = make(kind.__name__, (kind,), body)
    return made


def _portable(value: Any) -> Any:
    """`value`, or how it looks where it cannot be pickled."""
    try:
        Parcel.of(value)
    except BaseException:  # noqa: BLE001 - pickling runs the user's code
        return _shown(value)
    return value


def _traceback_of(exc: BaseException) -> str:
    try:
        lines = "".join(traceback.format_exception(exc))
    except BaseException:  # noqa: BLE001 - its text is the user's code
        lines = "".join(traceback.format_tb(exc.__traceback__))
    return f"Where it was raised:\n{lines}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_MAX_TEXT]
    except BaseException:  # noqa: BLE001 - the user's code
        return f"<{_type_name(type(value))} whose repr fails>"


def _text_of(exc: BaseException, *, with_type: bool = True) -> str:
    try:
        text = str(exc)[:_MAX_TEXT]
    except BaseException:  # noqa: BLE001 - the user's code
        text = "its text cannot be had"
    return f"{_type_name(type(exc))}: {text}" if with_type else text


def _type_name(kind: type) -> str:
    module = kind.__module__
    return (
        kind.__qualname__
        if module in ("builtins", "__main__")
        else (f"{module}.{kind.__qualname__}")
    )
