"""A runner that can never work is refused when it is made, in one sentence with the remedy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed
import pytest

from deepflow import DeepflowTaskRunner, WorkerClass
from deepflow.decide.place.policy import Policy
from deepflow.errors import ConfigurationError, UnknownArgumentError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("DEEPFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"address": "127.0.0.1:8786x"}, r"address='127\.0\.0\.1:8786x' has the port '8786x'"),
        ({"address": "http://h:8787"}, "'http', which Dask does not speak.*tcp://h:8786"),
        ({"address": "h"}, "names no port.*tcp://h:8786"),
        ({"adress": "tcp://h:1"}, "DeepflowTaskRunner takes no argument 'adress'.*'address'"),
        ({"local": "cpu"}, "local='cpu' is str; give a list of deepflow.WorkerClass"),
        ({"local": WorkerClass("cpu")}, "is one WorkerClass; give a list"),
        ({"local": []}, "no worker in it"),
        ({"local": [WorkerClass("a", count=0)]}, "no worker in it"),
        ({"local": [WorkerClass("a"), WorkerClass("a")]}, "two worker classes named 'a'"),
        ({"local": [WorkerClass("a", memory="900 TiB")]}, "memory=900 TiB .*mean 900 GiB"),
        ({"cluster": "tcp://h:1"}, "address= "[:-1]),
        ({"cluster": distributed.LocalCluster}, "cluster_class="),
        (
            {"cluster_class": "dask.distributed.LocalClutser"},
            "'dask.distributed.LocalClutser' cannot be imported .*"
            "did you mean 'dask.distributed.LocalCluster'",
        ),
        ({"cluster_class": "no.such.Cluster"}, "cannot be imported .*No module named 'no'"),
        ({"cluster_class": 5}, "is int, which makes no cluster"),
        ({"cluster_kwargs": {"n_worker": 2}}, "takes no 'n_worker'; did you mean 'n_workers'"),
        (
            {"cluster_class": distributed.LocalCluster, "cluster_kwargs": {"n_worker": 2}},
            "LocalCluster takes no 'n_worker'",
        ),
        ({"cluster_kwargs": {"n_workers": -1}}, "n_workers=-1; give a whole number from 0"),
        ({"cluster_kwargs": {"threads_per_worker": 0}}, "a whole number from 1"),
        ({"cluster_kwargs": {"memory_limit": "4 GiBB"}}, "memory_limit='4 GiBB' is no size"),
        ({"cluster_kwargs": [1]}, "no mapping"),
        ({"adapt_kwargs": {"maximun": 2}}, "takes no 'maximun'; did you mean 'maximum'"),
        ({"adapt_kwargs": {"minimum": 3, "maximum": 2}}, "minimum=3 is above maximum=2"),
        ({"client_kwargs": {"timout": 2}}, "takes no 'timout'; did you mean 'timeout'"),
        ({"policy": "hetf"}, "did you mean 'heft'"),
        ({"policy": 4}, "policy=4 is int"),
        ({"performance_report_path": "no/such/report.html"}, "there is no folder no/such"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        DeepflowTaskRunner(**arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_misspelt_argument_is_a_type_error_as_in_python() -> None:
    with pytest.raises(TypeError, match="did you mean 'cluster_kwargs'"):
        DeepflowTaskRunner(cluster_kwarg={})  # type: ignore[call-arg]
    assert issubclass(UnknownArgumentError, ValueError)


def test_a_subclass_checks_its_own_arguments() -> None:
    class Own(DeepflowTaskRunner):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    assert Own(size=3).size == 3
    with pytest.raises(TypeError, match="Own takes no argument 'sise'; did you mean 'size'"):
        Own(sise=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "arguments",
    [
        {"address": "tcp://10.0.0.1:8786"},
        {"address": "ws://head/dask"},
        {"address": "auto://head"},
        {"local": (WorkerClass("a"),)},
        {"cluster_class": "dask.distributed.LocalCluster", "cluster_kwargs": {"nthreads": 2}},
        {"cluster_class": lambda **anything: None, "cluster_kwargs": {"whatever": 2}},
        {"cluster_kwargs": {"n_workers": 0, "memory_limit": "auto", "lifetime": "1 hour"}},
        {"adapt_kwargs": {"minimum": 0, "maximum": 4}},
        {"client_kwargs": {"timeout": 5, "name": "x"}},
        {"policy": Policy()},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_arguments_that_can_be(arguments: dict[str, Any]) -> None:
    assert DeepflowTaskRunner(**arguments) == DeepflowTaskRunner(**arguments)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PLACEMENT": "hetf"}, "placement='hetf' .* did you mean 'heft'"),
        ({"INFRA_RETRIES": "many"}, "infra_retries='many' .* is no whole number"),
        ({"ADDRESS": "http://h:1"}, "address='http://h:1' .* does not speak"),
        ({"TLS": "/no/such"}, "tls='/no/such': there is no folder"),
        ({"TLS": "genrated"}, "did you mean 'generated'"),
        ({"TLS": "generated", "ADDRESS": "tcp://h:1"}, "is not encrypted"),
        ({"STATE_DIR": "{file}/x"}, "state_dir=.* is no folder"),
        ({"HISTORY": "mysql://h/x"}, "cannot be kept in 'mysql'"),
        ({"HISTORY": "://u:secret@h"}, "URL cannot be read"),
        ({"HISTORY": "{file}/x"}, "is no folder"),
        ({"METRICS_PORT": "0", "METRICS_HOST": "192.0.2.1"}, "metrics_host='192.0.2.1'"),
        ({"TIER_URL": "memry://x"}, "fsspec does not know; did you mean memory"),
        ({"CONFIG": "{file}"}, "cannot be read as TOML .*; correct it"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "a-file"
    file.write_text("no TOML")
    for name, value in variables.items():
        monkeypatch.setenv(f"DEEPFLOW_{name}", value.format(file=file))
    with pytest.raises(ConfigurationError, match=said) as caught:
        DeepflowTaskRunner()
    assert "secret" not in str(caught.value)


def test_a_port_that_another_run_exports_on_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("DEEPFLOW_METRICS_PORT", str(other.getsockname()[1]))
        DeepflowTaskRunner()


UNGUARDED = """
from prefect import flow
from deepflow import DeepflowTaskRunner

@flow(task_runner=DeepflowTaskRunner({arguments}))
def nightly():
    pass

{call}
"""


def imported(tmp_path: Path, arguments: str, call: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "nightly.py"
    script.write_text(UNGUARDED.format(arguments=arguments, call=call))
    return subprocess.run(
        [sys.executable, str(script)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_script_that_its_workers_would_run_again_is_told_before_it_begins(
    tmp_path: Path,
) -> None:
    done = imported(tmp_path, "", "for _ in range(2):\n    nightly()")
    assert done.returncode == 1
    assert "nightly.py runs the flow 'nightly' in line 10, outside of" in done.stderr
    assert done.stderr.count("__main__") == 2  # where it is, and where to put it
    assert len(done.stderr.splitlines()) < 15


def test_a_script_with_a_guard_or_without_processes_is_left_alone(tmp_path: Path) -> None:
    for arguments, call in (
        ("", 'if __name__ == "__main__" and not __debug__:\n    nightly()'),
        ('cluster_kwargs={"processes": False}', "len([lambda: nightly()])"),
    ):
        done = imported(tmp_path, arguments, call)
        assert done.returncode == 0, done.stderr
