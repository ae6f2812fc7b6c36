"""`deepflow runs` lists what ran, by the names that other commands take."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from deepflow.cli import main
from deepflow.decide.events import Finished, RunNamed, Submitted, TasksNamed, WorkerJoined
from deepflow.observe.journal import JournalWriter, recent_runs

NAMES = ("amber-owl", "blue-bee", "cyan-cat")
FLOWS = ("train", "report", "train")
IDS = tuple(f"019b0000-0000-7000-8000-00000000000{i}" for i in range(3))
BEGAN_S = 1.79e9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Journals of three runs, the last one the newest; the second did not finish a task."""
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path))
    journals = tmp_path / "journals"
    journals.mkdir()
    for i, (run, name, flow) in enumerate(zip(IDS, NAMES, FLOWS, strict=True)):
        at_s = BEGAN_S + 100.0 * i
        path = journals / f"{run}.journal.zst"
        with JournalWriter(path, clock="unix") as writer:
            writer.write(RunNamed(at_s + 9.0, run, name, flow))
            writer.write(WorkerJoined(0.0, "w-0", "plain", 1))
            writer.write(Submitted(at_s, f"a-{i}", "a", flow, run, n_runs=8))
            writer.write(Submitted(at_s, f"b-{i}", "b", flow, run))
            writer.write(Finished(at_s + 2.0, f"a-{i}", "w-0", at_s + 1.0, at_s + 2.0, 10))
            if i != 1:
                writer.write(Finished(at_s + 5.0, f"b-{i}", "w-0", at_s + 2.0, at_s + 5.0, 10))
        os.utime(path, (at_s, at_s))
    return journals


@pytest.fixture(autouse=True)
def without_a_server() -> Iterator[None]:
    with temporary_settings(restore_defaults={PREFECT_API_URL, PREFECT_UI_URL}):
        yield


def deepflow(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "80"})


def listed(*arguments: str) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(deepflow("runs", "--json", *arguments).output)
    return document


def test_runs_are_listed_the_newest_first(folder: Path) -> None:
    done = deepflow("runs")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == list(reversed(NAMES))
    assert max(map(len, lines[:-1])) <= 80
    assert "PREFECT_API_URL is not set" in done.output
    assert lines[-1] == f"Journals: {folder}"
    newest, unfinished, _ = listed()
    assert (newest["name"], newest["flow"], newest["seconds"]) == ("cyan-cat", "train", 5.0)
    assert (newest["task_runs"], newest["task_runs_finished"]) == (9, 9)
    assert newest["state"] is None
    assert (unfinished["seconds"], unfinished["task_runs_finished"]) == (None, 8)


def test_runs_are_chosen_by_number_and_flow(folder: Path) -> None:
    assert [run["name"] for run in listed("--limit", "1")] == ["cyan-cat"]
    assert [run["name"] for run in listed("--flow", "train")] == ["cyan-cat", "amber-owl"]
    assert "Did you mean train?" in deepflow("runs", "--flow", "trian").output


@pytest.mark.parametrize("column", ["name", "id", "journal", "flow"])
def test_explain_and_replay_take_whatever_is_listed(folder: Path, column: str) -> None:
    for run in listed():
        is_newest = run["name"] != "amber-owl" or column != "flow"
        name = run["name"] if is_newest else "cyan-cat"
        assert f"{name} of flow {run['flow']}" in deepflow("explain", run[column]).output
    told = deepflow("replay", listed()[0][column], "--policy", "stock", "--seeds", "1")
    assert told.exit_code == 0, told.output
    assert "train, run cyan-cat" in told.output


def test_a_run_that_left_two_journals_is_listed_once(folder: Path) -> None:
    with JournalWriter(folder / f"{IDS[0]}-17.journal.zst", clock="unix") as writer:
        writer.write(RunNamed(BEGAN_S + 900.0, IDS[0], NAMES[0], FLOWS[0]))
        writer.write(Submitted(BEGAN_S + 800.0, "a-9", "a", FLOWS[0], IDS[0]))
    assert [run["name"] for run in listed()] == ["amber-owl", "cyan-cat", "blue-bee"]


def test_a_damaged_journal_is_passed_over(folder: Path) -> None:
    (folder / "zz.journal").write_text("no journal")
    whole = (folder / f"{IDS[2]}.journal.zst").read_bytes()
    with JournalWriter(folder / "yy.journal", clock="unix") as writer:
        writer._out.write(b'{"Submitted":{"key":"a"}}\n')
    (folder / "xx.journal.zst").write_bytes(whole[:60] + b"\0" * 60)
    assert [run.name for run in recent_runs(folder, 1)] == ["cyan-cat"]


def test_a_task_run_that_was_sent_twice_counts_once(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "a.journal", clock="unix") as writer:
        writer.write(Submitted(BEGAN_S, "a-1", "a", "train", IDS[0], n_runs=2))
        writer.write(Submitted(BEGAN_S, "a-2", "a", "train", IDS[0]))
        writer.write(Finished(2.0, "a-1", "w-0", 1.0, 2.0, 10))
        writer.write(TasksNamed(9.0, "a-1", (("id-1", "a-0"), ("id-2", "a-1"))))
        writer.write(TasksNamed(9.0, "a-2", (("id-2", "a-1"),)))
    (run,) = recent_runs(tmp_path)
    assert (run.n_runs, run.n_finished) == (2, 2)


def test_a_journal_of_an_older_version_has_no_name_but_an_id(tmp_path: Path) -> None:
    path = tmp_path / "old.journal"
    with JournalWriter(path, clock="unix") as writer:
        writer.write(Submitted(BEGAN_S, "a-1", "a", "train", IDS[0]))
    (run,) = recent_runs(tmp_path)
    assert (run.run, run.name, run.flow, run.began_s) == (IDS[0], "", "train", BEGAN_S)


def test_where_journals_would_be_is_said_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path / "none"))
    done = deepflow("runs")
    assert done.exit_code == 0
    assert str(tmp_path / "none" / "journals") in done.output
    assert "DEEPFLOW_STATE_DIR" in done.output
    assert listed() == []
    assert "~/.deepflow" in deepflow("runs", "--help").output


def test_names_of_runs_are_completed(folder: Path) -> None:
    environment = {
        "_DEEPFLOW_COMPLETE": "bash_complete",
        "COMP_WORDS": "deepflow explain b",
        "COMP_CWORD": "2",
    }
    done = CliRunner().invoke(main, [], env=environment, prog_name="deepflow")
    assert done.output.splitlines() == ["plain,blue-bee"]


class _Server(ThreadingHTTPServer):
    """Answers as Prefect's server does; knows the two newer runs, and a report of the newest."""

    class RequestHandlerClass(BaseHTTPRequestHandler):
        """One request."""

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/flow_runs/filter":
                ids = asked["flow_runs"]["id"]["any_"]
                states = {IDS[1]: "Failed", IDS[2]: "Completed"}
                told = [{"id": i, "state": {"name": states[i]}} for i in ids if i in states]
            else:
                told = [{"id": "report-1", "flow_run_id": IDS[2]}]
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with _Server(("127.0.0.1", 0), _Server.RequestHandlerClass) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{one.server_port}"
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            yield url
        one.shutdown()
        thread.join()


def test_states_and_reports_come_from_the_server(folder: Path, server: str) -> None:
    newest, failed, unknown = listed()
    assert (newest["state"], failed["state"], unknown["state"]) == ("Completed", "Failed", None)
    assert newest["report"] == f"{server}/artifacts/artifact/report-1"
    assert newest["page"] == f"{server}/runs/flow-run/{IDS[2]}"
    assert failed["report"] is None
    told = deepflow("runs").output
    assert "Completed" in told
    assert "Without states" not in told
    assert newest["report"] in told
    assert max(map(len, told.splitlines()[:-1])) <= 80
    assert newest["report"] in deepflow("runs", "--wide").output


def test_runs_are_chosen_by_their_state(folder: Path, server: str) -> None:
    assert [run["name"] for run in listed("--state", "failed")] == ["blue-bee"]
    assert "There are: 1 Completed, 1 Failed." in deepflow("runs", "--state", "Late").output


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "127.0.0.1:4200/api"])
def test_a_server_that_does_not_answer_costs_only_its_columns(folder: Path, url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        done = deepflow("runs")
        assert len(listed()) == 3
    assert done.exit_code == 0
    assert f"PREFECT_API_URL={url} does not answer" in done.output.replace("\n", " ")


def test_something_else_that_answers_is_not_taken_for_a_server(
    folder: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    monkeypatch.setattr(_Server.RequestHandlerClass, "do_POST", odd)
    done = deepflow("runs")
    assert done.exit_code == 0, done.output
    assert "what answers there is no Prefect API" in done.output.replace("\n", " ")
