"""Functions are new with each load; classes are the same, and none changes under a run."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest

from deepflow.intermediates.loading import HOME, Scope, loads

SOURCE = """
import enum
seen = set()

class Model:
    factor = {factor}
    kept = []

    def scaled(self, x):
        return x * self.factor

class Special(Model):
    pass

class Colour(enum.Enum):
    RED = 1

class Broken(Exception):
    pass

def note(x, grown=[]):
    seen.add(x)
    grown.append(x)
    return sorted(seen), len(grown)

def make():
    return Special()
"""


def defined(factor: int = 1) -> dict[str, Any]:
    """The names of a script that another process runs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE.format(factor=factor), names)
    return names


def forget(blob: bytes) -> bytes:
    """`blob` with identities that this process has not met, as if from another process."""
    for class_id in list(cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID):
        blob = blob.replace(class_id.encode(), class_id[::-1].encode())
    return blob


def test_globals_and_defaults_are_fresh_with_each_load() -> None:
    blob = cloudpickle.dumps(defined()["note"])
    assert loads(blob, Scope())(1) == ([1], 1)
    assert loads(blob, Scope())(2) == ([2], 1)


def test_runs_one_after_the_other_get_the_same_class_as_it_was_submitted() -> None:
    blob = forget(cloudpickle.dumps(defined()["Model"]))
    scope = Scope()
    first = loads(blob, scope)
    first.kept.append("left behind")
    first.added = "left behind"
    scope.release()
    second = loads(blob, Scope())
    assert second is first
    assert second.kept == []
    assert not hasattr(second, "added")


def test_an_attribute_that_changed_between_submits_arrives_on_the_same_class() -> None:
    names = defined()
    one = cloudpickle.dumps(names["Model"])
    names["Model"].factor = 10
    ten = cloudpickle.dumps(names["Model"])
    one, ten = forget(one), forget(ten)
    scope = Scope()
    first = loads(one, scope)
    assert first().scaled(2) == 2
    scope.release()
    assert loads(ten, Scope()) is first
    assert first().scaled(2) == 20


def test_a_class_does_not_change_under_a_run_that_is_under_way() -> None:
    names = defined()
    one = cloudpickle.dumps(names["Model"])
    names["Model"].factor = 10
    one, ten = forget(one), forget(cloudpickle.dumps(names["Model"]))
    under_way = Scope()
    first = loads(one, under_way)
    other = Scope()
    second = loads(ten, other)
    assert first().scaled(2) == 2
    assert second().scaled(2) == 20
    # Both are the same class to whoever gets their instances next.
    under_way.release()
    other.release()
    assert type(loads(cloudpickle.dumps(second()), Scope())) is first


def test_within_a_run_classes_are_one_also_from_several_pickles() -> None:
    names = defined()
    code, argument = cloudpickle.dumps(names["make"]), cloudpickle.dumps(names["Special"]())
    code, argument = forget(code), forget(argument)
    busy = Scope()
    loads(argument, busy)
    scope = Scope()
    made, given = loads(code, scope)(), loads(argument, scope)
    assert type(made) is type(given)
    assert isinstance(given, type(made).__bases__[0])


@pytest.mark.parametrize("name", ["Model", "Special", "Colour", "Broken"])
def test_at_home_a_class_is_that_class_and_stays_as_it_is(name: str) -> None:
    names = defined()
    blob = cloudpickle.dumps(names[name])
    if name != "Colour":
        names[name].factor = "changed since"
    assert loads(blob, HOME) is names[name]
    assert name == "Colour" or names[name].factor == "changed since"


def test_a_run_in_the_process_of_the_flow_gets_the_flow_s_class_as_it_is() -> None:
    names = defined()
    blob = cloudpickle.dumps(names["Model"])
    names["Model"].factor = "changed since"
    assert loads(blob, Scope()) is names["Model"]
    assert names["Model"].factor == "changed since"


def test_members_of_an_enumeration_are_the_same_in_each_run() -> None:
    blob = forget(cloudpickle.dumps(defined()["Colour"].RED))
    scope = Scope()
    first = loads(blob, scope)
    scope.release()
    assert loads(blob, Scope()) is first
