"""Policies by name: those that come with deepflow, those of installed packages, and objects.

A package offers policies through the entry point group `deepflow.policies`; each names a class
(or function) that is called without arguments. `stock` is a name here, but no policy: with it
Dask itself places every task.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

from deepflow.decide.place.policies import (
    BestFit,
    EarliestFinish,
    JobOrder,
    Random,
    RollingHeft,
    RoundRobin,
)
from deepflow.decide.place.policy import Policy
from deepflow.errors import ConfigurationError, nearest

__all__ = ["DEFAULT_POLICY", "STOCK", "policy_named", "policy_names"]

STOCK: Final = "stock"
DEFAULT_POLICY: Final = "srw-heft"
"""Chosen by `python -m tests.benchmarks.placement`."""
_GROUP: Final = "deepflow.policies"


def _fgd() -> Policy:
    from deepflow.decide.place.fgd import FragmentationGradientDescent  # numpy, where it is wanted

    return FragmentationGradientDescent()


_BUILT_IN: Final[dict[str, Callable[[], Policy]]] = {
    policy.name: policy
    for policy in (
        Policy,
        RoundRobin,
        Random,
        BestFit,
        EarliestFinish,
        RollingHeft,
        JobOrder,
    )
} | {"fgd": _fgd}


def policy_names() -> tuple[str, ...]:
    """Every name that `policy_named` knows, `stock` first."""
    return (STOCK, *_BUILT_IN, *sorted(e.name for e in entry_points(group=_GROUP)))


def policy_named(policy: str | Policy) -> Policy | None:
    """A fresh policy of this name, or the object itself; None for `stock`.

    Raises:
        ConfigurationError: there is none of that name, or what an entry point gives is no policy.
    """
    if isinstance(policy, Policy):
        return policy
    if policy == STOCK:
        return None
    make = _BUILT_IN.get(policy)
    if make is not None:
        return make()
    for entry in entry_points(group=_GROUP, name=policy):
        try:
            made = entry.load()()
        except Exception as exc:  # noqa: BLE001 - another package's code: it may raise anything
            cause = f"{type(exc).__name__}: {exc}"
        else:
            cause = ""
        if cause:
            raise ConfigurationError(
                f"the placement policy {policy!r} cannot be made by its entry point "
                f"{entry.value!r} ({cause}); correct that package, or name another policy"
            )
        if not isinstance(made, Policy):
            raise ConfigurationError(
                f"the entry point {entry.value!r} for the placement policy {policy!r} gives "
                f"{made!r}; it must give a deepflow.decide.place.policy.Policy"
            )
        return made
    names = policy_names()
    close = nearest(policy, names)
    advice = f"did you mean {close!r}?" if close else f"known are {', '.join(names)}"
    raise ConfigurationError(f"unknown placement policy {policy!r}; {advice}")
