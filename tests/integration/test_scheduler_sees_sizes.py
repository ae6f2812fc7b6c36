"""What the real scheduler and a real worker make of Prefect's envelopes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import dask
import pytest
from distributed import Client, Future, Scheduler, Worker, wait

from deepflow.backend.clusters.local import local_cluster
from deepflow.decide.model import WorkerClass
from deepflow.intermediates import registration

MB = 1_000_000
LIMIT_MB = 600


def enveloped(value: object) -> Any:
    from prefect.results import ResultRecord, ResultRecordMetadata
    from prefect.serializers import PickleSerializer
    from prefect.states import Completed

    metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key="k")
    return Completed(data=ResultRecord(result=value, metadata=metadata))


def array(n_mb: int = 4) -> Any:
    import numpy as np

    return np.full(n_mb * MB // 8, 1.5)


def view() -> Any:
    return array(8)[::2]


def frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"a": array(2), "b": array(2)})


def arrow() -> Any:
    import pyarrow as pa

    return pa.table({"a": array(4)})


def tensor() -> Any:
    import torch

    return torch.zeros(MB)


def nested() -> Any:
    return {"parts": [array(1), (array(1), array(1))], "last": {"x": array(1)}}


def raw() -> bytes:
    return b"x" * (4 * MB)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    workers = WorkerClass("w", count=2, memory="2 GiB")
    with local_cluster([workers]) as cluster, Client(cluster) as client:
        client.run(registration.register)
        registration.register()
        yield client


def bytes_known_to_scheduler(client: Client, future: Future) -> int:
    def look(key: str, dask_scheduler: Scheduler) -> int:
        return int(dask_scheduler.tasks[key].nbytes)

    return int(client.run_on_scheduler(look, future.key))


@pytest.mark.parametrize("make", [array, view, frame, arrow, tensor, nested, raw])
def test_the_scheduler_knows_the_size_of_a_result_within_five_percent(
    client: Client, make: Callable[[], object]
) -> None:
    future = client.submit(lambda: enveloped(make()), pure=False)
    future.result()
    assert bytes_known_to_scheduler(client, future) == pytest.approx(4 * MB, rel=0.05)


async def decided(key: str, held: dict[str, str], dask_scheduler: Scheduler) -> str:
    """Where the scheduler would send a task, but for its needs; nothing runs meanwhile."""
    end_s = time.monotonic() + 60
    tasks, workers = dask_scheduler.tasks, dask_scheduler.workers.values()
    while key not in tasks or any(worker.processing for worker in workers):
        assert time.monotonic() < end_s, "a worker is busy"
        await asyncio.sleep(0.01)
    assert len(dask_scheduler.running) == 2, "a worker is paused"
    assert {k: [ws.name for ws in tasks[k].who_has or ()] for k in held} == {
        k: [name] for k, name in held.items()
    }
    asked = tasks[key]
    needs, asked.resource_restrictions = asked.resource_restrictions, None
    chosen = dask_scheduler.decide_worker_non_rootish(asked)
    asked.resource_restrictions = needs
    assert chosen is not None
    return str(chosen.name)


def test_a_task_goes_to_the_worker_that_holds_the_larger_input(client: Client) -> None:
    """What the scheduler decides by sizes alone: nothing runs, and each input lies on one worker.

    The task needs what nobody has, so that it is not sent before the question is asked.
    """
    names = {w["name"]: a for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
    for large, small in (("w-0", "w-1"), ("w-1", "w-0")):
        big = client.submit(lambda: enveloped(array(30)), workers=names[large], pure=False)
        little = client.submit(lambda: enveloped(array(1)), workers=names[small], pure=False)
        wait([big, little])
        asked = client.submit(
            lambda *_: None, little, big, resources={"what nobody has": 1}, pure=False
        )
        held = {big.key: large, little.key: small}
        assert client.run_on_scheduler(decided, asked.key, held) == large


def test_a_worker_with_more_results_than_memory_spills_them_and_lives() -> None:
    """600 MB of memory, 900 MB of results in Prefect states, kept on purpose.

    Spilling by the process's memory, which needs no sizes, is turned off: what Dask believes of
    its data alone must keep the worker below the limit at which the nanny kills it.
    """
    registration.register()
    small = WorkerClass("small", memory=LIMIT_MB * MB)
    memory = "distributed.worker.memory"
    by_sizes_alone = {f"{memory}.spill": False, f"{memory}.pause": False}
    with (
        dask.config.set(by_sizes_alone),
        local_cluster([small], imported=None) as cluster,  # it has no memory for what others use
        Client(cluster) as client,
    ):
        client.run(registration.register)
        pid_before = client.run(os.getpid)
        futures = []
        for i in range(30):
            future = client.submit(lambda n=i: enveloped(array(30) + n), pure=False)
            client.submit(lambda _: None, future, pure=False).result()  # it is done and kept
            futures.append(future)

        def held(dask_worker: Worker) -> tuple[int, int]:
            return len(dask_worker.data.fast), len(dask_worker.data.slow)  # type: ignore[attr-defined]

        deadline = time.monotonic() + 120
        while True:
            ((in_memory, on_disk),) = client.run(held).values()
            if on_disk >= 10 or time.monotonic() > deadline:
                break
        assert on_disk >= 10
        assert in_memory + on_disk >= 30
        sums = client.gather(
            [client.submit(lambda s: float(s.data.result[0]), f, pure=False) for f in futures]
        )
        assert sums == [1.5 + i for i in range(30)]
        assert client.run(os.getpid) == pid_before
