"""Workers that are forked from a process with the libraries loaded are as if they were spawned."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from deepflow.backend.clusters import warm
from deepflow.backend.clusters.local import local_cluster
from deepflow.decide.model import WorkerClass
from deepflow.errors import ConfigurationError
from deepflow.settings import load_settings

pytestmark = pytest.mark.skipif(not warm.is_possible(), reason="workers are forked on Linux only")

METHOD = "distributed.worker.multiprocessing-method"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of two workers, which began with a variable that is gone since."""
    text = tmp_path_factory.mktemp("preload") / "theirs.py"
    text.write_text("def dask_setup(worker):\n    worker.was_preloaded = True\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONLY_AT_FIRST", "yes")
        patch.setenv("BOTH_TIMES", "first")
        patch.setenv("PREFECT_API_KEY", "first")
        cluster = local_cluster(n_workers=2, threads_per_worker=1, preload=str(text))
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


def variables() -> tuple[str | None, str | None]:
    return os.environ.get("ONLY_AT_FIRST"), os.environ.get("BOTH_TIMES")


def key() -> str | None:
    from prefect.settings import PREFECT_API_KEY

    return str(PREFECT_API_KEY.value())


def parents_command() -> str:
    return Path(f"/proc/{os.getppid()}/cmdline").read_text()


def test_workers_have_one_parent_that_imported_for_them(client: Client) -> None:
    commands = set(client.run(parents_command).values())
    assert len(commands) == 1
    assert "forkserver" in commands.pop()


def test_dask_starts_other_workers_as_it_is_set_to(client: Client) -> None:
    assert dask.config.get(METHOD) == "spawn"


def test_each_worker_draws_other_random_numbers(client: Client) -> None:
    def drawn() -> tuple[float, float]:
        import random

        import numpy as np

        return random.random(), float(np.random.random())

    python, numpy = zip(*client.run(drawn).values(), strict=True)
    assert len(set(python)) == len(set(numpy)) == 2


def test_the_modules_of_the_user_are_preloaded_as_well(client: Client) -> None:
    def was_preloaded(dask_worker: Any) -> bool:
        return bool(dask_worker.was_preloaded)

    assert set(client.run(was_preloaded).values()) == {True}


def test_a_worker_begins_with_the_environment_of_the_moment(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(client.run(variables).values()) == {("yes", "first")}
    assert set(client.run(key).values()) == {"first"}
    monkeypatch.setenv("BOTH_TIMES", "second")
    monkeypatch.setenv("PREFECT_API_KEY", "second")
    client.restart()
    assert set(client.run(variables).values()) == {(None, "second")}
    assert set(client.run(key).values()) == {"second"}


def test_unlike_workers_are_forked_too() -> None:
    with (
        local_cluster([WorkerClass("one"), WorkerClass("two")]) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert all("forkserver" in command for command in client.run(parents_command).values())


def test_off_lets_each_worker_import_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed.deploy.local

    monkeypatch.setattr(distributed.deploy.local, "Nanny", distributed.Nanny)
    monkeypatch.setenv("DEEPFLOW_PRELOAD", "off")
    modules = load_settings().preloaded_modules
    assert modules is None
    with (
        local_cluster(n_workers=1, imported=modules) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert all("forkserver" not in command for command in client.run(parents_command).values())


def test_names_of_modules_are_read_and_what_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPFLOW_PRELOAD", "polars, sys")
    assert load_settings().preloaded_modules == ("polars", "sys")
    monkeypatch.setenv("DEEPFLOW_PRELOAD", "polars,my lib")
    with pytest.raises(ConfigurationError, match="'my lib' is no module's name"):
        load_settings()


def test_modules_in_use_are_imported_beforehand() -> None:
    assert "numpy" in sys.modules
    warm.preload(["tests.integration.notes"])
    assert {"numpy", "prefect", "tests.integration.notes"} <= set(warm._wanted)


def test_a_worker_with_little_memory_is_not_forked() -> None:
    """What it would have from its parent would be most of its memory."""
    with (
        local_cluster(n_workers=1, threads_per_worker=1, memory_limit="900 MB") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert "forkserver" not in set(client.run(parents_command).values()).pop()
