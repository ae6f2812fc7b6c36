from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from deepflow.decide.rank import NameShape, RunShape
from deepflow.errors import HistoryError
from deepflow.observe import history as module
from deepflow.observe import metrics
from deepflow.observe.history import History, Observation, open_or_cold

SHAPE = RunShape({"a": NameShape(4, 2.0, 5.0), "b": NameShape(1, 3.0, 3.0)})


def seen(
    run_s: float = 1.0,
    *,
    flow: str = "f",
    run: str = "r",
    task: str = "t",
    worker_class: str = "c",
    at_s: float = 0.0,
    input_bytes: int = 10,
) -> Observation:
    return Observation(flow, run, task, worker_class, at_s, run_s, input_bytes, 20)


def postgres_programs() -> Path | None:
    """Where PostgreSQL's server programs are, if they are installed."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists()), None)


def postgres_user() -> str | None:
    """The user to run the server as: it refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of this test's own, reached over a socket in its folder."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    user = postgres_user()
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if user is not None:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", str(folder / "db"), *arguments]
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

        try:
            run("initdb", "-U", "tester", "-A", "trust", "--no-sync")
        except (KeyError, LookupError, PermissionError) as error:
            pytest.skip(f"the server cannot be run as user {user!r}: {error}")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def change(url: str, act: Callable[[sa.Connection], object]) -> None:
    """Do something to a PostgreSQL database, without looking whether it is a history."""
    engine = module._engine(module._url(url), url)
    with engine.begin() as connection:
        act(connection)
    engine.dispose()


@pytest.fixture(params=["memory", "file", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of place a history can be in, empty."""
    if request.param == "memory":
        return ":memory:"
    if request.param == "file":
        return str(tmp_path / "deep" / "history.db")
    url: str = request.getfixturevalue("postgres_url")
    change(url, module._metadata.drop_all)
    return url


@pytest.fixture
def history(target: str) -> Iterator[History]:
    opened = History.open(target)
    yield opened
    opened.close()


def test_what_is_recorded_comes_back_in_order(history: History) -> None:
    late, early = seen(2.0, at_s=9.0), seen(3.0, at_s=1.0, worker_class="d")
    history.record([late, early])
    assert history.observations() == [early, late]
    assert history.observations("other") == []


def test_nothing_to_record_is_no_mistake(history: History) -> None:
    history.record([])
    history.record_run("f", 0.0, RunShape({}))
    assert history.observations() == []
    assert not history.shapes().is_known("f")


def test_estimates_are_learned_from_what_was_recorded(history: History) -> None:
    history.record([seen(40.0)] * 9 + [seen(7.0, flow="g")])
    estimates = history.estimates()
    assert estimates.run_s("f", "t", "c", 10) == pytest.approx(40, rel=0.05)
    assert estimates.is_known("g", "t")
    only = history.estimates("g")
    assert only.is_known("g", "t")
    assert not only.is_known("f", "t")


def test_runs_are_told_apart_when_they_are_learned_from(history: History) -> None:
    for i in range(6):
        run_s = 1.0 if i % 2 else 10.0
        history.record([seen(run_s, run=f"r{i}", at_s=i) for _ in range(20)])
    estimates = history.estimates()
    last_run_s = estimates.run_s("f", "t", "c", 10)
    estimates.begin_run("f")
    assert last_run_s == pytest.approx(1.0, rel=0.3)
    assert 2.0 < estimates.run_s("f", "t", "c", 10) < 5.0


def test_shapes_of_runs_come_back(history: History) -> None:
    history.record_run("f", 1.0, SHAPE)
    shapes = history.shapes()
    assert shapes.upward_rank_s("f", "a") == 5.0
    assert shapes.work_s("f") == 11.0


def test_only_the_newest_of_each_cell_are_kept(history: History) -> None:
    n = module.MAX_PER_CELL
    history.record([seen(float(i), at_s=i) for i in range(n + 50)])
    history.record([seen(1.0, worker_class="d")])
    for i in range(module.MAX_RUNS + 5):
        history.record_run("f", float(i), SHAPE)
    history.prune()
    kept = [s.run_s for s in history.observations() if s.worker_class == "c"]
    assert kept == [float(i) for i in range(50, n + 50)]
    assert len(history.observations()) == n + 1
    with history._reading() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM deepflow_history_run").scalar()
    assert count == module.MAX_RUNS


def test_the_oldest_flows_go_when_there_are_too_many_rows(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    for age, flow in enumerate(["new", "middle", "old"]):
        history.record([seen(flow=flow, at_s=-age)] * 4)
        history.record_run(flow, -age, SHAPE)
    history.prune()
    assert {s.flow for s in history.observations()} == {"new", "middle"}
    assert not history.shapes().is_known("old")
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    history.prune()
    assert [s.flow for s in history.observations()] == ["new"] * 3


def test_the_oldest_flows_go_when_there_are_too_many_flows(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FLOWS", 2)
    for i in range(4):
        history.record([seen(flow=f"f{i}", at_s=i)])
    history.prune()
    assert {s.flow for s in history.observations()} == {"f2", "f3"}


def test_recording_removes_what_is_too_much_by_itself(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_AFTER", 300)
    for _ in range(30):
        history.record([seen()] * 50)
    assert len(history.observations()) < module.MAX_PER_CELL + 300


@pytest.mark.parametrize("n_bytes", [-5, 2**70])
def test_sizes_that_no_column_holds_are_cut_off(history: History, n_bytes: int) -> None:
    history.record([seen(input_bytes=n_bytes)])
    assert history.observations()[0].input_bytes == min(max(n_bytes, 0), 2**63 - 1)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(HistoryError, match="nan"):
        seen(float("nan"))


def test_a_history_is_there_when_it_is_opened_again(target: str) -> None:
    if target == ":memory:":
        pytest.skip("a history in memory ends with its process")
    first = History.open(target)
    first.record([seen()])
    first.close()
    second = History.open(target)
    assert second.observations() == [seen()]
    second.close()


def write_many(target: str, flow: str) -> None:
    for _ in range(20):
        history = History.open(target)
        history.record([seen(flow=flow)] * 5)
        history.prune()
        history.close()


def test_several_processes_write_at_once(target: str) -> None:
    if target == ":memory:":
        pytest.skip("a history in memory belongs to one process")
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(target, f"f{i}")) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    history = History.open(target)
    counts = [len(history.observations(f"f{i}")) for i in range(3)]
    history.close()
    assert counts == [100, 100, 100]


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk " * 100)
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="move it away") as caught:
        History.open(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    history = History.open(path)
    history.record([seen(float(i)) for i in range(5000)])
    history.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HistoryError, match="move it away"):
        History.open(path)


def test_a_database_with_other_tables_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    with pytest.raises(HistoryError, match="customers"):
        History.open(path)
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert tables == [("customers",)]


def test_a_history_of_another_version_is_refused(target: str) -> None:
    if target == ":memory:":
        pytest.skip("a history in memory is always new")
    history = History.open(target)
    with history._writing() as connection:
        connection.exec_driver_sql("UPDATE deepflow_history_schema SET version = 99")
    history.close()
    with pytest.raises(HistoryError, match="99"):
        History.open(target)


def test_a_history_that_lacks_a_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    history = History.open(path)
    with history._writing() as connection:
        module._shape.drop(connection)
    history.close()
    with pytest.raises(HistoryError, match="deepflow_history_run"):
        History.open(path)


def test_a_damaged_shape_is_refused(history: History) -> None:
    history.record_run("f", 0.0, SHAPE)
    with history._writing() as connection:
        connection.exec_driver_sql("UPDATE deepflow_history_run SET shape = '[[1]]'")
    with pytest.raises(HistoryError, match="'f' is damaged"):
        history.shapes()


def test_postgresql_shares_its_database_with_other_tables(postgres_url: str) -> None:
    change(postgres_url, module._metadata.drop_all)
    change(postgres_url, lambda c: c.exec_driver_sql("CREATE TABLE customers (name TEXT)"))
    history = History.open(postgres_url)
    history.record([seen()])
    assert history.observations() == [seen()]
    history.close()


@pytest.mark.parametrize(
    ("target", "driver"),
    [
        ("postgres://u:secret@h/d", "postgresql+psycopg"),
        ("postgresql://u:secret@h/d", "postgresql+psycopg"),
        ("postgresql+asyncpg://u:secret@h/d", "postgresql+psycopg"),
        ("sqlite+aiosqlite:///x.db", "sqlite"),
        ("some/path.db", "sqlite"),
        (Path("x.db"), "sqlite"),
    ],
)
def test_a_url_gets_the_driver_that_is_used_here(target: str | Path, driver: str) -> None:
    assert module._url(target).drivername == driver


@pytest.mark.parametrize("target", ["mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"])
def test_a_url_that_cannot_be_used_is_refused_without_its_password(target: str) -> None:
    with pytest.raises(HistoryError, match="postgresql://") as caught:
        History.open(target)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(HistoryError, match="check the server") as caught:
        History.open(f"postgresql://u:secret@/d?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "secret" not in (caught.value.source or "")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="can be written"):
        History.open(tmp_path / "file" / "history.db")


def test_a_history_that_cannot_be_used_means_a_cold_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    path.write_text("damaged " * 1000)
    before = metrics.value("deepflow_fallbacks_total", kind="history")
    history = open_or_cold(path, logging.getLogger("test"))
    assert history.is_cold
    history.record([seen()])
    history.record_run("f", 0.0, SHAPE)
    assert not history.estimates().is_known("f", "t")
    assert not history.shapes().is_known("f")
    history.close()
    assert len(caplog.records) == 1
    assert metrics.value("deepflow_fallbacks_total", kind="history") == before + 1


def test_a_history_lost_on_the_way_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.db"
    history = open_or_cold(path, logging.getLogger("test"))
    history.record([seen()])
    assert history.estimates().is_known("f", "t")
    path.write_text("damaged " * 1000)
    history.record([seen()])
    history.record([seen()])
    assert history.is_cold
    assert not history.estimates().is_known("f", "t")
    assert len(caplog.records) == 1


def test_a_useable_history_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = open_or_cold(tmp_path / "history.db", logging.getLogger("test"))
    history.record([seen()])
    history.record_run("f", 0.0, SHAPE)
    assert not history.is_cold
    assert history.estimates("f").n_seen("f", "t", "c") == 1
    assert history.shapes().is_known("f")
    history.close()
    assert not caplog.records
