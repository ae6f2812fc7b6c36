"""A run begins after what it waits for, and futures arrive as values wherever Prefect says so."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import numpy as np
from prefect import allow_failure, flow, task, unmapped
from prefect.states import Completed
from prefect.utilities.annotations import opaque, quote
from pydantic import BaseModel

from tests.differential.cases import case
from tests.differential.told import each, ended, tell

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Plain:
    value: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any


@dataclasses.dataclass
class Counted:
    value: Any
    twice: Any = dataclasses.field(init=False, default=2)


class Schema(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    value: Any


@task
def slow():
    time.sleep(0.15)
    return time.time()


@task
def now():
    return time.time()


@task
def give(x):
    return x


@task
def pause(x):
    time.sleep(0.15)
    return x


@task
def fail(text="on purpose"):
    time.sleep(0.05)
    raise ValueError(text)


WAITS = {
    "list": lambda f: [f],
    "one": lambda f: f,
    "tuple": lambda f: (f,),
    "set": lambda f: {f},
    "dict": lambda f: {"a": f},
    "nested": lambda f: [{"a": [f]}],
    "two": lambda f: [give.submit(1), f],
    "with others": lambda f: [1, "x", f, None],
    "dict in a list": lambda f: [{"a": f}],
}


@case(dict.fromkeys(WAITS, True))
def wait_for_is_waited_for(_=None):
    def ordered(how):
        first = slow.submit()
        return now.submit(wait_for=WAITS[how](first)).result() >= first.result()

    return each(WAITS, ordered)


@case(dict.fromkeys(WAITS, "NotReady"))
def a_failure_in_wait_for_is_a_reason_not_to_run():
    return each(WAITS, lambda how: ended(now.submit(wait_for=WAITS[how](fail.submit()))))


@case(dict.fromkeys(WAITS, "Completed"))
def a_failure_that_is_allowed_is_waited_for_only():
    return each(
        WAITS,
        lambda how: (
            ended(give.submit(1, wait_for=WAITS[how](allow_failure(fail.submit()))))
            if how != "set"
            else "Completed"
        ),
    )


@case({how: [True, True] for how in ("one", "list", "dict")})
def a_map_waits():
    def ordered(how):
        first = slow.submit()
        many = give.map([1, 2], wait_for=WAITS[how](first))
        late = now.submit(wait_for=many).result()
        return [late >= first.result(), many.result() == [1, 2]]

    return each(("one", "list", "dict"), ordered)


@case(["NotReady", "Completed", "NotReady"])
def a_state_in_wait_for_counts():
    failed = fail.submit(return_state=True)
    good = give.submit(1, return_state=True)
    return [
        ended(give.submit(1, wait_for=[failed])),
        ended(give.submit(1, wait_for=[good])),
        ended(give.submit(1, wait_for={"a": failed})),
    ]


@case([True, True])
def a_directly_called_task_waits():
    first = slow.submit()
    at_s = now(wait_for=[first])
    second = slow.submit()
    return [at_s >= first.result(), now(wait_for={"a": second}) >= second.result()]


CONTAINERS = {
    "alone": lambda f: f,
    "list": lambda f: [f, 2],
    "tuple": lambda f: (f, (f,)),
    "set": lambda f: {f},
    "dict": lambda f: {"a": f, "b": [f]},
    "dict of dict": lambda f: {"a": {"b": {"c": f}}},
    "ordered": lambda f: OrderedDict(a=f),
    "defaultdict": lambda f: defaultdict(list, a=f),
    "dataclass": lambda f: Plain(f),
    "frozen dataclass": lambda f: Frozen(f),
    "dataclass with a field that is not in __init__": lambda f: Counted(f),
    "dataclass in a dict": lambda f: {"p": Plain([f])},
    "namedtuple": lambda f: [f, Pair(1, 2)],
    "model": lambda f: Schema(value=f),
}
VALUES = {name: make(1) for name, make in CONTAINERS.items()}


@case({name: (type(value).__name__, repr(value)) for name, value in VALUES.items()})
def futures_in_containers_arrive_as_values():
    @task
    def look(v):
        return type(v).__name__, repr(v)

    return each(CONTAINERS, lambda how: look.submit(CONTAINERS[how](give.submit(1))).result())


@case({name: (type(value).__name__, repr(value)) for name, value in VALUES.items()})
def futures_under_way_in_containers_arrive_as_values():
    @task
    def look(v):
        return type(v).__name__, repr(v)

    return each(CONTAINERS, lambda how: look.submit(CONTAINERS[how](pause.submit(1))).result())


@case(dict.fromkeys(CONTAINERS, "NotReady"))
def a_failure_in_a_container_is_a_reason_not_to_run():
    made = {how: give.submit(CONTAINERS[how](fail.submit())) for how in CONTAINERS}
    return each(CONTAINERS, lambda how: ended(made[how]))


@case([{"a": [1, 2]}, {"a": [1, 2]}, [1, {"b": 2}], [[1, 2], [1, 2]]])
def what_is_quoted_arrives_as_it_is():
    return [
        give.submit(quote({"a": [1, 2]})).result(),
        give.submit(opaque({"a": [1, 2]})).result(),
        give.submit(opaque([1, {"b": 2}])).result(),
        give.map(quote([[1, 2], [1, 2]])).result(),
    ]


def _not_silent(found):
    """A future where Prefect does not look for one arrives as its value, or is refused in words."""
    wrong = {
        how: told
        for how, told in found.items()
        if not (
            told == "value" or (isinstance(told, str) and ":" in told and "\n" not in told[:40])
        )
    }
    return f"{wrong}" if wrong else None


@case(_not_silent)
def a_future_elsewhere_is_never_taken_for_a_value():
    @task
    def look(v):
        if isinstance(v, Plain):
            v = v.value
        one = next(iter(v.ravel())) if isinstance(v, np.ndarray) else next(iter(v))
        return "value" if one == 1 else ("silently", type(one).__name__)

    def array(f):
        made = np.empty(1, dtype=object)
        made[0] = f
        return made

    elsewhere = {
        "deque": lambda f: deque([f]),
        "frozenset": lambda f: frozenset([f]),
        "values": lambda f: {"a": f}.values(),
        "object array": array,
        "in a dataclass": lambda f: Plain(deque([f])),
    }
    return each(elsewhere, lambda how: look.submit(elsewhere[how](give.submit(1))).result())


@flow
def sub(x):
    return x


@flow
def sub_with_task(x):
    return give.submit(x).result()


@case([1, 1, [1], 1, 1, 1, [1, 1], 1])
def a_future_under_way_goes_anywhere():
    give([1])
    late = lambda: pause.submit(1)  # noqa: E731
    return [
        tell(lambda: give.submit(late()).result()),
        tell(lambda: give(late())),
        tell(lambda: give.map([1], wait_for=[late()]).result()),
        tell(lambda: sub(late())),
        tell(lambda: sub_with_task(late())),
        tell(lambda: give.submit({"a": late()}).result()["a"]),
        tell(lambda: give.map([late(), late()]).result()),
        tell(lambda: give({"a": [late()]})["a"][0]),
    ]


@case([1, 1, [2, 3], 1])
def a_future_under_way_inside_of_a_task():
    @task
    def add(x, y):
        return x + y

    @task
    def parent(how):
        f = pause.submit(1)
        if how == "direct":
            return give(f)
        if how == "submit":
            return give.submit([f]).result()[0]
        if how == "map":
            return add.map([1, 2], unmapped(f)).result()
        return sub(f)

    return [tell(lambda h=h: parent.submit(h).result()) for h in ("direct", "submit", "map", "sub")]


@case([1, [2, 2]])
def a_future_under_way_as_unmapped_and_in_a_direct_call_of_a_map():
    @task
    def add(x, y=0):
        return x + y

    give(0)
    one = pause.submit(1)
    return [add(one), add.map([1, 1], unmapped(one)).result()]


@case([5, 6, "Failed"])
def states_are_arguments_too():
    good = give.submit(5, return_state=True)
    bad = fail.submit(return_state=True)

    @task
    def kind(error):
        return "Failed" if isinstance(error, ValueError) else type(error).__name__

    return [
        give.submit(good).result(),
        give.submit([good, 1]).result()[0] + 1,
        kind.submit(allow_failure(bad)).result(),
    ]


@case(["named 1", "named 1"])
def a_naming_function_sees_values():
    from prefect.runtime import task_run

    def name():
        return f"named {task_run.parameters['x']}"

    @task(task_run_name=name)
    def by_function(x):
        return task_run.name

    @task(task_run_name="named {x}")
    def by_template(x):
        return task_run.name

    return [
        by_function.submit(pause.submit(1)).result(),
        by_template.submit(give.submit(1)).result(),
    ]


@case([3, [1, 4, 9], "ValueError: on purpose"])
def an_async_flow_passes_futures_on():
    @task
    async def square(x):
        await asyncio.sleep(0)
        return x * x

    @task
    async def add(x, y):
        return x + y

    return [
        add.submit(pause.submit(1), give.submit(2)).result(),
        square.map([give.submit(1), 2, pause.submit(3)]).result(),
        tell(lambda: fail.submit().result()),
    ]


@case("Completed")
def a_diamond():
    top = pause.submit(1)
    left, right = give.submit(top), give.submit([top])
    return ended(give.submit([left, right, top], wait_for=[left]))


@case([["NotReady", "NotReady"], "UnfinishedRun"])
def what_comes_after_a_failure_does_not_run():
    bad = fail.submit()
    one = give.submit(bad)
    two = give.submit(one)
    states = [ended(one), ended(two)]
    try:
        two.result()
    except Exception as exc:  # noqa: BLE001 - the type is what is told
        return [states, type(exc).__name__]
    return [states, "returned"]


@case([1, "Completed"])
def a_state_made_by_hand_is_an_argument():
    state = Completed(data=1)
    return [give.submit(state).result(), ended(give.submit(1, wait_for=[state]))]
