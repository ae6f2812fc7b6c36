"""A record that was persisted under one task runner is found under the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.filesystems import LocalFileSystem
from prefect.task_runners import ThreadPoolTaskRunner

from deepflow import CONTENT
from deepflow.intermediates.stored import is_record
from tests.integration.api import Api
from tests.integration.notes import note, times_noted
from tests.integration.parity import run_on

RUNNERS = ("deepflow", "threads")


def under(runner: str, cluster: LocalCluster, body: Callable[[], Any]) -> Any:
    """What a flow with this body returns under a task runner."""
    if runner == "deepflow":
        return run_on(cluster, body).result()
    return flow(body, task_runner=ThreadPoolTaskRunner())()


def steps(storage: LocalFileSystem, path: str, serializer: Any) -> Callable[[], Any]:
    """A flow of persisted tasks that note when they run; of its results, all but one stay."""

    def kept(**more: Any) -> Any:
        return task(
            persist_result=True, result_storage=storage, result_serializer=serializer, **more
        )

    @kept(cache_key_fn=lambda *_: "by-key")
    def by_key() -> list[int]:
        note(path, "by key")
        return [1, 2]

    @kept(cache_key_fn=lambda *_: "asynchronous")
    async def asynchronous() -> dict[str, Any]:
        note(path, "asynchronous")
        return {"a": np.arange(5_000)}

    @kept(result_storage_key="named-{parameters[n]}")
    def named(n: int) -> int:
        note(path, "named")
        return n + 1

    @kept(cache_policy=INPUTS, cache_expiration=timedelta(days=1))
    def for_a_day(where: str) -> str:
        note(path, "for a day")
        return where

    @kept(cache_key_fn=lambda *_: "gone", cache_expiration=timedelta(microseconds=1))
    def gone_at_once() -> int:
        note(path, "gone at once")
        return 5

    @kept(cache_policy=CONTENT)
    def by_content(array: Any) -> int:
        note(path, "by content")
        return int(array.sum())

    def body() -> Any:
        first = asynchronous.submit()
        futures = [
            by_key.submit(),
            named.submit(4),
            for_a_day.submit(path),
            gone_at_once.submit(),
            by_content.submit(np.arange(5_000)),
        ]
        return first.result()["a"].sum(), [future.result() for future in futures]

    return body


@pytest.mark.parametrize("serializer", ["deepflow", "pickle", None])
@pytest.mark.parametrize("first", RUNNERS)
@pytest.mark.parametrize("second", RUNNERS)
def test_what_one_runner_has_kept_the_other_finds(
    first: str, second: str, serializer: Any, cluster: LocalCluster, api: Api, tmp_path: Path
) -> None:
    storage = LocalFileSystem(basepath=str(tmp_path / "results"))
    storage.save(f"both-ways-{os.getpid()}-{abs(hash(tmp_path))}", overwrite=True)
    path = str(tmp_path / "notes")
    body = steps(storage, path, serializer)
    expected = 12_497_500, [[1, 2], 5, path, 5, 12_497_500]
    assert under(first, cluster, body) == expected
    assert under(second, cluster, body) == expected
    ran = times_noted(path)
    assert ran.pop("gone at once") == 2
    assert set(ran.values()) == {1}, ran
    assert len(ran) == 5


def test_who_writes_last_is_read_by_both(cluster: LocalCluster, api: Api, tmp_path: Path) -> None:
    """Each runner writes anew over the other one's record, which the next run finds."""
    storage = LocalFileSystem(basepath=str(tmp_path / "results"))
    storage.save(f"last-{os.getpid()}-{abs(hash(tmp_path))}", overwrite=True)
    path = str(tmp_path / "notes")

    def body_of(name: str, serializer: Any, refresh: bool) -> Any:
        @task(
            persist_result=True,
            result_storage=storage,
            result_serializer=serializer,
            cache_key_fn=lambda *_: "one",
            refresh_cache=refresh,
        )
        def write() -> str:
            note(path, name)
            return name

        return lambda: write.submit().result()

    file = tmp_path / "results" / "one"
    for runner, serializer, is_ours in (
        ("deepflow", "deepflow", True),
        ("threads", "pickle", False),
        ("deepflow", "deepflow", True),
        ("threads", "deepflow", False),
    ):
        name = f"{runner} {serializer}"
        assert under(runner, cluster, body_of(name, serializer, refresh=True)) == name
        assert is_record(file.read_bytes()) == is_ours
        for reader in RUNNERS:
            assert under(reader, cluster, body_of("again", serializer, refresh=False)) == name
    assert "again" not in times_noted(path)
