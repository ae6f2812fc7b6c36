"""Every kind of value comes back as it was from every way of packing it, small and large."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from deepflow.intermediates import stored, values
from deepflow.intermediates.loading import Scope
from deepflow.intermediates.parcel import Parcel
from deepflow.intermediates.places import Disk, InMemory, Place
from deepflow.intermediates.tiers import Hooks, TieredStore, Use
from tests.differential.kinds import KINDS, Kind, missing
from tests.differential.same import differs

SIZES = [
    pytest.param(10, id="10"),
    pytest.param(20_000, id="20000"),
    pytest.param(1_000_000, id="1000000", marks=pytest.mark.slow),
]
EVICTED_S = 20.0


def _envelope(value: Any) -> Any:
    return values.load(b"".join(values.dump(value)))


def _parcel(value: Any) -> Any:
    return Parcel.of(value).open(Scope())


def _parcel_in_bytes(value: Any) -> Any:
    return Parcel.from_bytes(Parcel.of(value).to_bytes()).open(Scope())


def _file(value: Any) -> Any:
    return stored.unpack(stored.pack(value))


WAYS: dict[str, Callable[[Any], Any]] = {
    "envelope": _envelope,
    "parcel": _parcel,
    "parcel in bytes": _parcel_in_bytes,
    "file": _file,
}


def made(kind: Kind, n: int) -> Any:
    """A value of the kind; skips where its library is missing."""
    reason = missing(kind)
    if reason:
        pytest.skip(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of prototypes and of what is to come
        return kind.make(min(n, kind.most))


def differs_more_than_pickled(found: Any, kind: Kind, n: int) -> str | None:
    """How a value differs from what was made; None if that is all that pickle itself loses."""
    said = differs(found, made(kind, n))
    if said:
        try:
            pickled = cloudpickle.loads(cloudpickle.dumps(made(kind, n), protocol=5))
        except Exception:  # noqa: BLE001 - then pickle is no excuse
            return said
        if differs(found, pickled) is None:
            return None
    return said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("n", SIZES)
def test_a_value_comes_back_as_it_was(kind: Kind, n: int) -> None:
    value = made(kind, n)
    said = {}
    for name, way in WAYS.items():
        try:
            said[name] = differs_more_than_pickled(way(value), kind, n)
        except Exception as exc:  # noqa: BLE001 - told with the way's name
            said[name] = repr(exc)[:300]
    wrong = {name: told for name, told in said.items() if told}
    assert wrong == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("n", SIZES)
def test_values_come_back_as_they_were_after_their_eviction(
    n: int, place: str, tmp_path: Path
) -> None:
    to: Place = InMemory(1 << 40) if place == "memory" else Disk(tmp_path / "tiers", None)
    store = TieredStore([to], 1, quiet_hooks())
    try:
        kinds = [kind for kind in KINDS if missing(kind) is None]
        for kind in kinds:
            store[kind.name] = made(kind, n)
        end_s = time.monotonic() + EVICTED_S
        while time.monotonic() < end_s and not _is_evicted(store, place):
            store.look()
            time.sleep(0.02)
        # Small values stay in the heap.
        assert n == 10 or any(store.tier_of(kind.name) == place for kind in kinds)
        wrong = {}
        for kind in kinds:
            try:
                said = differs_more_than_pickled(store[kind.name], kind, n)
            except Exception as exc:  # noqa: BLE001 - told with the kind's name
                said = repr(exc)[:300]
            if said:
                wrong[kind.name] = said
    finally:
        store.close()
    assert wrong == {}


def _is_evicted(store: TieredStore, place: str) -> bool:
    used = store.used_bytes()
    return used["heap"] == 0 and used[place] > 0


def quiet_hooks() -> Hooks:
    """Hooks of a store that nobody watches."""

    def nothing(*_: Any) -> None:
        return None

    return Hooks(
        uses=lambda keys: {key: Use(1.0, None) for key in keys},
        over_bytes=lambda: 0,
        wanted=list,
        left=nothing,
        lost=nothing,
        moved=nothing,
        waited=nothing,
        fallback=nothing,
    )
