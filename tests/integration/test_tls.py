"""One setting encrypts a cluster, and nobody joins without the right certificate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributed import Client, get_worker
from prefect import flow, task

from deepflow import DeepflowTaskRunner, WorkerClass
from deepflow.backend.clusters.local import local_cluster
from deepflow.backend.tls import CA_FILE, CERT_FILE, KEY_FILE, security_of, write_certificates
from deepflow.cli import main
from deepflow.errors import ClusterUnreachableError, ConfigurationError


@task
def address_of_worker() -> str:
    return str(get_worker().address)


def run_with(runner: DeepflowTaskRunner) -> str:
    @flow(task_runner=runner)
    def ask() -> str:
        return address_of_worker.submit().result()

    answer: str = ask()
    return answer


@contextmanager
def encrypted(folder: Path) -> Iterator[str]:
    """A cluster with the certificates of a folder; its address."""
    with local_cluster(
        [WorkerClass("cpu", count=1)], security=security_of(str(folder)), silence_logs=50
    ) as cluster:
        yield str(cluster.scheduler_address)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with encrypted(folder) as address:
        yield address


@pytest.mark.parametrize("local", [None, (WorkerClass("cpu", count=1),)])
def test_an_embedded_cluster_is_encrypted_by_one_word(
    monkeypatch: pytest.MonkeyPatch, local: tuple[WorkerClass, ...] | None
) -> None:
    monkeypatch.setenv("DEEPFLOW_TLS", "generated")
    runner = DeepflowTaskRunner(local=local) if local else DeepflowTaskRunner()
    assert run_with(runner).startswith("tls://")


def test_a_flow_runs_on_an_encrypted_cluster_with_its_certificates(
    monkeypatch: pytest.MonkeyPatch, folder: Path, address: str
) -> None:
    assert address.startswith("tls://")
    monkeypatch.setenv("DEEPFLOW_TLS", str(folder))
    assert run_with(DeepflowTaskRunner(address=address)).startswith("tls://")


def test_no_driver_joins_with_another_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    write_certificates(tmp_path / "foreign")
    monkeypatch.setenv("DEEPFLOW_TLS", str(tmp_path / "foreign"))
    with pytest.raises(ClusterUnreachableError, match="certificate"):
        run_with(DeepflowTaskRunner(address=address, client_kwargs={"timeout": 5}))


@pytest.mark.parametrize("how", ["no certificate", "another certificate"])
def test_no_worker_joins_without_the_right_one(
    folder: Path, address: str, tmp_path: Path, how: str
) -> None:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny"]
    if how == "another certificate":
        write_certificates(tmp_path / "foreign")
        names = {"--tls-ca-file": CA_FILE, "--tls-cert": CERT_FILE, "--tls-key": KEY_FILE}
        for option, name in names.items():
            command += [option, str(tmp_path / "foreign" / name)]
    command += ["--death-timeout", "5", "--no-dashboard", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "Registered to" not in done.stderr
    with Client(address, security=security_of(str(folder))) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1


class TestRefused:
    def test_a_folder_without_the_files(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"no readable .*ca\.pem.*certificates"):
            security_of(str(tmp_path))

    def test_generating_for_a_scheduler_that_runs(self) -> None:
        with pytest.raises(ConfigurationError, match="has its own"):
            security_of("generated", address="tls://127.0.0.1:8786")

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "127.0.0.1:8786"])
    def test_an_address_that_is_not_encrypted(self, folder: Path, address: str) -> None:
        with pytest.raises(ConfigurationError, match="is not encrypted"):
            security_of(str(folder), address=address)

    def test_nothing_is_overwritten(self, folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="there already"):
            write_certificates(folder)


def test_the_command_makes_the_files_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["certificates", str(tmp_path / "new")])
    assert made.exit_code == 0, made.output
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == sorted([CA_FILE, CERT_FILE, KEY_FILE])
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "new").iterdir())
    again = CliRunner().invoke(main, ["certificates", str(tmp_path / "new")])
    assert again.exit_code == 2
    assert "there already" in again.output
