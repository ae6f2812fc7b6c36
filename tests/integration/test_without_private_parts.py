"""Where Dask and Prefect have other private parts, flows give the same values by public ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import task
from prefect.transactions import transaction

from deepflow.backend import contract
from deepflow.backend.parts import there
from deepflow.observe import metrics
from tests.integration.api import Api
from tests.integration.parity import run_on

GONE = there("distributed.no_such_module.nothing", "For this test.")
PATIENCE_S = 60


@task
def square(x: int) -> int:
    return x * x


@task
def both(x: int) -> int:
    """Waits for two others, which need a thread each."""
    return sum(square.map([x, x + 1]).result(timeout=PATIENCE_S))


@task
def large(n: int) -> Any:
    return np.arange(n)


@task
def total(values: Any) -> int:
    return int(values.sum())


@task(persist_result=True)
def kept(x: int) -> int:
    return x + 1


@task
def fails() -> None:
    raise ValueError("as it should")


@pytest.fixture
def stock_cluster() -> Iterator[LocalCluster]:
    """A cluster, in this process, whose workers and driver find no feature's parts as expected."""
    lost = {
        feature: (*parts, GONE)
        for feature, parts in contract.CONTRACT.items()
        if not feature.is_needed
    }
    with pytest.MonkeyPatch.context() as patch:
        for feature, parts in lost.items():
            patch.setitem(contract.CONTRACT, feature, parts)
        contract.forget()
        with LocalCluster(
            n_workers=2,
            threads_per_worker=4,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
            memory_limit="2 GiB",
        ) as cluster:
            yield cluster
    contract.forget()


def test_a_flow_gives_its_values_without_any_of_them(
    stock_cluster: LocalCluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_RESULT_SERIALIZER", "deepflow")

    def body() -> tuple[Any, ...]:
        squares = square.map(range(20)).result()
        nested = both.submit(3).result()
        array = large.submit(300_000)
        summed = total.submit(array).result()
        fetched = int(array.result()[-1])
        persisted = kept.submit(1).result()
        with transaction():
            inside = kept.submit(2).result()
        error = fails.submit()
        error.wait()
        return squares, nested, summed, fetched, persisted, inside, error.state.name

    before = metrics.value("deepflow_fallbacks_total", kind="unknown_dask")
    run = run_on(stock_cluster, body)
    expected = [x * x for x in range(20)], 9 + 16, sum(range(300_000)), 299_999, 2, 3, "Failed"
    assert run.result() == expected
    assert metrics.value("deepflow_fallbacks_total", kind="unknown_dask") > before
    records = api.until(lambda: api.task_runs(run.id), lambda found: len(found) == 28)
    assert {one["state_type"] for one in records} == {"COMPLETED", "FAILED"}
