from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import task
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer

from deepflow import CONTENT, DeepflowSerializer
from deepflow.intermediates.stored import is_record
from deepflow.runner.results.converting import Folder, convert
from deepflow.runner.results.storage import DeepflowResultStore
from tests.integration.api import Api
from tests.integration.notes import names, note
from tests.integration.parity import run_on

N = 20_000


@pytest.fixture
def local(api: Api, tmp_path: Path) -> LocalFileSystem:
    """A saved block over a folder of the test's own."""
    block = LocalFileSystem(basepath=str(tmp_path / "results"))
    block.save(f"results-{os.getpid()}-{abs(hash(tmp_path))}", overwrite=True)
    return block


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, Any]]:
    """A real S3 server (moto) with a bucket."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto_server = pytest.importorskip("moto.server", reason="needs moto[s3], flask, flask-cors")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    fs = Folder("s3://results", options).fs
    fs.mkdir("results")
    yield options
    server.stop()


def steps(storage: Any, path: str, policy: Any = CONTENT, serializer: Any = "deepflow") -> Any:
    """A flow of two persisted steps that note when they run."""
    options: dict[str, Any] = {
        "persist_result": True,
        "result_storage": storage,
        "cache_policy": policy,
    }

    @task(**options, result_serializer=serializer)
    def make(n: int, where: str) -> np.ndarray:
        note(where, f"make {n}")
        return np.arange(n)

    @task(**options, result_serializer=serializer)
    def total(array: np.ndarray, where: str) -> int:
        note(where, "total")
        return int(array.sum())

    def body() -> Any:
        return total.submit(make.submit(N, path), path).result()

    return body


def test_a_second_run_reads_what_the_first_has_written(
    cluster: LocalCluster, local: LocalFileSystem, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    body = steps(local, path)
    assert run_on(cluster, body).result() == N * (N - 1) // 2
    files = list((tmp_path / "results").iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < N * 8 / 4
    assert run_on(cluster, body).result() == N * (N - 1) // 2
    assert sorted(names(path)) == [f"make {N}", "total"], "nothing ran twice"


def test_a_damaged_result_is_computed_again(
    cluster: LocalCluster, local: LocalFileSystem, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")
    body = steps(local, path)
    run_on(cluster, body)
    for file in (tmp_path / "results").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert run_on(cluster, body).result() == N * (N - 1) // 2
    assert sorted(names(path)) == [f"make {N}"] * 2 + ["total"] * 2


def test_records_of_prefect_are_hits_and_so_are_converted_ones(
    cluster: LocalCluster, local: LocalFileSystem, tmp_path: Path
) -> None:
    path = str(tmp_path / "notes")

    def key(_context: Any, parameters: dict[str, Any]) -> str:
        return f"made-{parameters['n']}"

    def body_with(serializer: Any) -> Any:
        @task(
            persist_result=True,
            result_storage=local,
            result_serializer=serializer,
            cache_key_fn=key,
        )
        def make(n: int, where: str) -> np.ndarray:
            note(where, "make")
            return np.arange(n)

        return lambda: int(make.submit(N, path).result().sum())

    for serializer in ("pickle", "deepflow"):
        assert run_on(cluster, body_with(serializer)).result() == N * (N - 1) // 2
    folder = Folder(str(tmp_path / "results"))
    assert [one.became for one in convert(folder, folder, "deepflow")] == ["converted"]
    assert run_on(cluster, body_with("deepflow")).result() == N * (N - 1) // 2
    assert names(path) == ["make"]


def test_one_setting_of_the_runner_does_it(
    cluster: LocalCluster,
    local: LocalFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPFLOW_RESULT_SERIALIZER", "deepflow")
    path = str(tmp_path / "notes")
    body = steps(local, path, serializer=None)
    assert run_on(cluster, body).result() == N * (N - 1) // 2
    assert [is_record(file.read_bytes()) for file in (tmp_path / "results").iterdir()] == [True] * 2


def test_the_state_of_a_run_leads_to_the_value(
    cluster: LocalCluster, local: LocalFileSystem, tmp_path: Path
) -> None:
    @task(persist_result=True, result_storage=local, result_serializer="deepflow")
    def make() -> np.ndarray:
        return np.arange(N)

    def body() -> Any:
        future = make.submit()
        future.wait()
        return str(future.task_run_id)

    run = run_on(cluster, body)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_task_run(run.result()).state
    assert state is not None
    assert np.array_equal(state.result(), np.arange(N))


def test_s3(cluster: LocalCluster, api: Api, s3_options: dict[str, Any], tmp_path: Path) -> None:
    block = RemoteFileSystem(basepath="s3://results/run", settings=s3_options)
    block.save(f"s3-{os.getpid()}", overwrite=True)
    path = str(tmp_path / "notes")
    body = steps(block, path)
    for _ in range(2):
        assert run_on(cluster, body).result() == N * (N - 1) // 2
    assert sorted(names(path)) == [f"make {N}", "total"]
    stored = Folder("s3://results/run", s3_options)
    assert len(stored.names()) == 2
    back = Folder("s3://results/as-prefect", s3_options)
    assert [one.became for one in convert(stored, back, "prefect")] == ["converted"] * 2
    plain = ResultStore(
        result_storage=RemoteFileSystem(basepath="s3://results/as-prefect", settings=s3_options),
        serializer=PickleSerializer(),
    )
    ours = DeepflowResultStore.of(
        ResultStore(result_storage=block, serializer=DeepflowSerializer())
    )
    for name in stored.names():
        assert np.array_equal(plain.read(name).result, ours.read(name).result)
