"""Every kind of value through real flows: as argument, as result used on the same worker and on
another, through the flow, persisted both ways.

One flow run for all kinds: each worker compares with the value that it makes itself.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.utilities.annotations import opaque

from deepflow import DeepflowTaskRunner
from deepflow.runner.server import EmbeddedServer
from tests.differential.kinds import KINDS, missing
from tests.differential.test_types import differs_more_than_pickled

BY_NAME = {kind.name: kind for kind in KINDS}
WAIT_S = 120.0


@pytest.fixture(scope="module")
def two_workers(server: EmbeddedServer) -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=50,
        memory_limit="4GB",
    ) as running:
        yield running


def made(name: str, n: int) -> Any:
    """The value of a kind."""
    kind = BY_NAME[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.make(min(n, kind.most))


def compared(name: str, n: int, found: Any) -> str | None:
    """How a value differs from what it was made as."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return differs_more_than_pickled(found, BY_NAME[name], n)


@task
def make(name: str, n: int) -> Any:
    return made(name, n)


@task
def check(name: str, n: int, found: Any) -> str | None:
    return compared(name, n, found)


@task(persist_result=True, result_serializer="deepflow", cache_policy=INPUTS)
def keep_as_deepflow(name: str, n: int, token: str) -> Any:
    return made(name, n)


@task(persist_result=True, result_serializer="pickle", cache_policy=INPUTS)
def keep_as_pickle(name: str, n: int, token: str) -> Any:
    return made(name, n)


Said = dict[str, dict[str, str]]
"""By kind and by leg: what differs."""


def _note(said: Said, name: str, leg: str, call: Any) -> None:
    try:
        told = call()
    except Exception as exc:  # noqa: BLE001 - told with the kind and the leg
        told = repr(exc)[:300]
    if told:
        said.setdefault(name, {})[leg] = told


@flow(name="types")
def through(names: list[str], n: int, workers: list[str], token: str) -> Said:
    """Send each kind along each leg."""
    said: Said = {}
    here, there = ([worker] for worker in workers)
    with dask.annotate(workers=here):
        results = {name: make.submit(name, n) for name in names}
        same = {name: check.submit(name, n, results[name]) for name in names}
        arguments = {name: check.submit(name, n, opaque(made(name, n))) for name in names}
        kept = {
            serializer: {name: keep.submit(name, n, token) for name in names}
            for serializer, keep in KEEPERS.items()
        }
        for futures in kept.values():
            for future in futures.values():
                future.wait(WAIT_S)
    with dask.annotate(workers=there):
        elsewhere = {name: check.submit(name, n, results[name]) for name in names}
        again = {
            serializer: {name: keep.submit(name, n, token) for name in names}
            for serializer, keep in KEEPERS.items()
        }
    for name in names:
        _note(said, name, "argument", lambda: arguments[name].result(WAIT_S))  # noqa: B023
        _note(said, name, "same worker", lambda: same[name].result(WAIT_S))  # noqa: B023
        _note(said, name, "other worker", lambda: elsewhere[name].result(WAIT_S))  # noqa: B023
        legs = {"driver": results[name]}
        for serializer in KEEPERS:
            legs[f"persisted as {serializer}"] = kept[serializer][name]
            legs[f"read back of {serializer}"] = again[serializer][name]
        for leg, future in legs.items():
            _note(said, name, leg, lambda: compared(name, n, future.result(WAIT_S)))  # noqa: B023
    return said


KEEPERS = {"deepflow": keep_as_deepflow, "pickle": keep_as_pickle}
NAMES = [kind.name for kind in KINDS if missing(kind) is None]


N_PARTS = 6
PARTS = [
    pytest.param(n, part, id=f"{n}-{part}", marks=[pytest.mark.slow] * ((n, part) != (20_000, 0)))
    for n in (10, 20_000, 1_000_000)
    for part in range(N_PARTS)
]


@pytest.mark.parametrize(("n", "part"), PARTS)
def test_values_come_through_flows_as_they_were(
    n: int, part: int, two_workers: LocalCluster
) -> None:
    runner = DeepflowTaskRunner(address=two_workers.scheduler_address)
    workers = sorted(two_workers.scheduler.workers)
    # Every part has kinds of all libraries.
    names = NAMES[part::N_PARTS]
    said = through.with_options(task_runner=runner)(names, n, workers, uuid.uuid4().hex)
    assert said == {}
