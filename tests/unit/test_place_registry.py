"""Policies by name, a user's own among them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from deepflow.decide.place import registry
from deepflow.decide.place.policies import RollingHeft
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK, policy_named, policy_names
from deepflow.errors import ConfigurationError


class Own(Policy):
    name = "own"


def no_policy() -> int:
    return 3


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two entry points."""
    group = "deepflow.policies"
    points = [
        EntryPoint("own", f"{__name__}:Own", group),
        EntryPoint("broken", f"{__name__}:no_policy", group),
    ]

    def entry_points(**wanted: Any) -> list[EntryPoint]:
        return [p for p in points if all(getattr(p, k) == v for k, v in wanted.items())]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.value.split(":")[1]])


@pytest.mark.parametrize("name", [n for n in policy_names() if n != STOCK])
def test_every_name_gives_a_fresh_policy_of_that_name(name: str) -> None:
    one, two = policy_named(name), policy_named(name)
    assert one is not None
    assert one.name == name
    assert one is not two


def test_stock_is_none_and_the_default_is_known() -> None:
    assert policy_named(STOCK) is None
    assert policy_names()[0] == STOCK
    assert DEFAULT_POLICY in policy_names()


def test_object_is_itself() -> None:
    own = Own()
    assert policy_named(own) is own


def test_entry_point_is_a_policy_by_its_name(installed: None) -> None:
    assert isinstance(policy_named("own"), Own)
    assert {"own", "broken"} <= set(policy_names())
    assert isinstance(policy_named("heft"), RollingHeft)


def test_entry_point_that_gives_something_else_is_refused(installed: None) -> None:
    with pytest.raises(ConfigurationError, match=r"no_policy.*'broken'.*gives 3"):
        policy_named("broken")


def test_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"'HEFTT'; did you mean 'heft'\?"):
        policy_named("HEFTT")


def test_name_like_no_other_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match="known are stock, first-free"):
        policy_named("qqqq")
