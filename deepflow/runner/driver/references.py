"""What a call refers to: futures, large arguments and values on the cluster become numbers.

Prefect puts a future's value in its place in lists, tuples, sets, dicts, dataclasses, pydantic
models and annotations. The same places are visited here, before the call is pickled. A future that
the pickle meets anywhere else (in a deque, in an array of objects, in an object's attribute) is
refused in words, since the task would get a state, or nothing, in place of the value.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import distributed
from dask.base import is_dask_collection
from prefect.client.schemas.objects import State, TaskRunResult
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.utilities.annotations import allow_failure, quote
from prefect.utilities.collections import StopVisiting, visit_collection
from prefect.utilities.engine import get_state_for_result

from deepflow.errors import UnresolvedInputError
from deepflow.intermediates.parcel import Parcel
from deepflow.observe.fallbacks import Fallback, fell_back
from deepflow.runner.driver.future import DeepflowFuture
from deepflow.runner.driver.items import Item, SharedArgument
from deepflow.runner.driver.shared import is_shared_kind, large_size
from deepflow.runner.slots import slot_left
from deepflow.runner.wire import Ended

if TYPE_CHECKING:
    from deepflow.runner.driver.session import Session

Reference = Item | SharedArgument | distributed.Future[Any] | bytes
"""A run, a large argument, a value on the cluster, or the bytes of a state's parcel."""
Pid = tuple[int, bool]
"""A persistent id in a pickle: the number of a reference, and whether it may have failed."""

_UNVISITED: Final = (deque, frozenset, *map(type, ({}.keys(), {}.values(), {}.items())))
_OCTETS: Final = (bytes, bytearray)
_LOOKED_AT: Final = 10_000
"""Elements of such a container in which a state is looked for."""


class References:
    """Numbers what a pickle meets that is not to be pickled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._places: dict[int, tuple[Any, bool]] = {}
        """By `id`: a future or state at a place where Prefect resolves it; whether it may fail."""
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._is_quoting = False
        self._octets: set[int] = set()
        """By `id`: bytes that are an argument or an element of one. Bytes that the pickle meets
        elsewhere belong to an object's state, and some build themselves on their memory."""
        self.found: list[Reference] = []
        self.waits: list[tuple[Item | Ended, bool]] = []
        """Runs that are only waited for, and whether each may fail."""
        self.shared_bytes = 0
        """Bytes of the large values among what was found."""

    def __bool__(self) -> bool:
        return bool(self._places or self.found)

    # -- where Prefect looks -------------------------------------------------------------------

    def visit(self, value: Any) -> set[Any]:
        """The upstream runs in an argument; its futures and states may be met from now on."""
        inputs: set[Any] = set()

        def meet(one: Any, may_fail: bool) -> None:
            before = self._places.get(id(one))
            self._places[id(one)] = (one, may_fail and (before is None or before[1]))

        self._walk(value, meet, inputs)
        return inputs

    def wait_for(self, value: Any) -> set[Any]:
        """The upstream runs in `wait_for`: one future, or any container that Prefect visits."""
        inputs: set[Any] = set()

        def meet(one: Any, may_fail: bool) -> None:
            waited: Item | Ended
            if self._is_ours(one):
                waited = one._item
            else:
                state = _state_of(one)
                run_id = state.state_details.task_run_id or state.state_details.flow_run_id
                waited = Ended(run_id or state.id, state.type.value, may_fail)
            self.waits.append((waited, may_fail))

        self._walk(value, meet, inputs)
        return inputs

    def _walk(self, value: Any, meet: Callable[[Any, bool], None], inputs: set[Any]) -> None:
        def visit(one: Any, context: dict[str, Any]) -> Any:
            if isinstance(one, quote):
                self._is_quoting = True
                raise StopVisiting
            if isinstance(one, (PrefectFuture, State)):
                run_id = (
                    one.state_details.task_run_id if isinstance(one, State) else one.task_run_id
                )
                if run_id is not None:
                    inputs.add(TaskRunResult(id=run_id))
                meet(one, isinstance(context.get("annotation"), allow_failure))
                raise StopVisiting
            if type(one) in _OCTETS:
                self._octets.add(id(one))
            known = get_state_for_result(one)
            if known is not None and (result := known[0].state_details.to_run_result(known[1])):
                inputs.add(result)
            return one

        visit_collection(value, visit_fn=visit, return_data=False, max_depth=-1, context={})

    # -- what the pickle meets -----------------------------------------------------------------

    def find(self, value: Any) -> Pid | None:
        """The reference for what is not to be pickled; None for all else.

        Raises:
            UnresolvedInputError: a future or state at a place where Prefect resolves none.
        """
        kind = _kind_of(type(value))
        return None if kind is None else kind(self, value)

    def _future(self, future: Any) -> Pid:
        if id(future) not in self._places:
            where = " inside quote()" if self._is_quoting else ""
            raise UnresolvedInputError(
                f"the future {future!r} stands{where} where Prefect puts no value in its place; "
                "pass it itself or in a list, tuple, set, dict, dataclass or pydantic model, or "
                "pass its .result()"
            )
        return self._at_its_place(future, self._of_future)

    def _state(self, state: Any) -> Pid | None:
        if id(state) not in self._places:
            return None  # quoted, or a part of some object: a value like any other
        return self._at_its_place(state, lambda one: Parcel.of(one).to_bytes())

    def _at_its_place(self, one: Any, make: Callable[[Any], Reference]) -> Pid:
        return self._number(one, make), self._places[id(one)][1]

    def _large(self, value: Any) -> Pid | None:
        if type(value) in _OCTETS and id(value) not in self._octets:
            return None
        n_bytes = large_size(value, self._session.settings.share_argument_bytes)
        if not n_bytes:
            self._look_into(value)
            return None
        if (number := self._numbers.get(id(value))) is not None:
            return number, False
        try:
            parcel = Parcel.of(value, meet=_refuse_within)
        except UnresolvedInputError:
            raise
        except Exception:  # noqa: BLE001 - pickling runs the user's code; the call says what fails
            fell_back(Fallback.ARGUMENT_NOT_SHAREABLE)
            return None
        self.shared_bytes += n_bytes
        shared = self._session.shared.of(value, parcel, self._session.client)
        return self._number(value, lambda _: shared), False

    def _look_into(self, several: Any) -> None:
        """Refuse a state among the elements of what Prefect does not visit."""
        dtype = getattr(several, "dtype", None)
        if dtype is not None:
            if getattr(dtype, "kind", None) != "O" or not hasattr(several, "ravel"):
                return
            several = several.ravel()
        elif not isinstance(several, _UNVISITED):
            return
        if self._is_quoting:
            return
        for one in islice(several, _LOOKED_AT):
            for part in one if type(one) is tuple else (one,):
                if isinstance(part, State) and id(part) not in self._places:
                    raise UnresolvedInputError(
                        f"a {type(several).__name__} among the arguments holds the state {part}, "
                        "and Prefect puts no value in its place there; pass a list, tuple, set or "
                        "dict, or the state's .result()"
                    )

    def _on_cluster(self, value: Any) -> Pid:
        return self._number(value, self._foreign), False

    def _foreign(self, value: Any) -> Reference:
        client = self._session.client
        if not isinstance(value, distributed.Future):
            future: distributed.Future[Any] = client.compute(value)
            return future
        theirs = value.client.scheduler
        if theirs is None or theirs.address != client.scheduler.address:
            with slot_left():  # of another cluster: it has to come through here
                return Parcel.of(Completed(data=value.result())).to_bytes()
        return distributed.Future(value.key, client=client)

    def _number(self, value: Any, make: Callable[[Any], Reference]) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            self.found.append(make(value))
            number = self._numbers[id(value)] = len(self.found) - 1
            self._alive.append(value)
        return number

    def _is_ours(self, future: Any) -> bool:
        return isinstance(future, DeepflowFuture) and future._dispatcher is self._session.dispatcher

    def _of_future(self, future: Any) -> Item | bytes:
        if self._is_ours(future):
            item: Item = future._item
            return item
        # Another runner's future: its value has to come through here.
        return Parcel.of(_state_of(future)).to_bytes()


def _state_of(one: Any) -> State[Any]:
    if isinstance(one, State):
        return one
    with slot_left():
        one.wait()
    state: State[Any] = one.state
    return state


def _refuse_within(one: Any) -> None:
    if isinstance(one, (PrefectFuture, State)):
        raise UnresolvedInputError(
            f"{one!r} stands within a large argument, where Prefect puts no value in its place; "
            "pass it itself or in a list, tuple, set or dict, or pass its .result()"
        )


_Kind = Callable[[References, Any], "Pid | None"]
_kinds: dict[type, _Kind | None] = {}
_MAX_KINDS: Final = 10_000


def _kind_of(kind: type) -> _Kind | None:
    """What is to be done with objects of a type; found once for each type."""
    try:
        return _kinds[kind]
    except KeyError:
        pass
    found = _find_kind(kind)
    if len(_kinds) < _MAX_KINDS:  # tasks may make types as they run
        _kinds[kind] = found
    return found


def _find_kind(kind: type) -> _Kind | None:
    if issubclass(kind, PrefectFuture):
        return References._future
    if issubclass(kind, State):
        return References._state
    if issubclass(kind, distributed.Future):
        return References._on_cluster
    if issubclass(kind, type) or issubclass(kind, types.FunctionType):
        return None
    if callable(getattr(kind, "__dask_graph__", None)):
        return _collection
    if is_shared_kind(kind) or issubclass(kind, _UNVISITED):
        return References._large
    return None


def _collection(references: References, value: Any) -> Pid | None:
    return references._on_cluster(value) if is_dask_collection(value) else references._large(value)
