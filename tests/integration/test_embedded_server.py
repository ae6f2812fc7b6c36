"""The embedded server starts, answers, keeps to itself, and never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepflow.runner.server import RECORDER_SETTINGS, EmbeddedServer, ServerStartError


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(claim: object, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not claim():  # type: ignore[operator]
        assert time.monotonic() < end, f"not so within {deadline_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


def test_it_answers_at_its_api_and_shows_a_ui(server: EmbeddedServer) -> None:
    assert get(f"{server.api_url}/health") == "true"
    assert "<html" in get(server.ui_url).lower()


def test_its_ui_talks_to_its_own_api(server: EmbeddedServer) -> None:
    assert json.loads(get(f"{server.ui_url}/ui-settings"))["api_url"] == server.api_url


def test_it_runs_with_the_recorder_settings(server: EmbeddedServer) -> None:
    settings = json.loads(get(f"{server.api_url}/admin/settings"))["server"]["services"]
    assert settings["task_run_recorder"]["batch_size"] == 200
    assert settings["task_run_recorder"]["read_batch_size"] == 200
    assert settings["task_run_recorder"]["flush_interval"] == 1
    assert settings["event_persister"]["batch_size"] == 500


def test_every_recorder_setting_is_one_that_this_prefect_knows() -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = _get_settings_fields(Settings)
    assert set(RECORDER_SETTINGS) <= set(known)


def test_starting_twice_is_starting_once(server: EmbeddedServer) -> None:
    before = server.pid
    assert server.start() is server
    assert server.pid == before


def test_the_callers_prefect_settings_do_not_reach_it(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.invalid/api")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite:////elsewhere.db")
    environment = server._environment(4200)
    assert "PREFECT_API_URL" not in environment
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in environment


def test_it_stops_twice_and_leaves_no_port_and_no_home(tmp_path: Path) -> None:
    server = EmbeddedServer().start()
    port = int(server.ui_url.rsplit(":", 1)[1])
    home = server.log_path.parent
    server.stop()
    assert not is_listening(port)
    assert not home.exists()
    server.stop()
    with pytest.raises(ServerStartError, match=r"start\(\) first"):
        _ = server.api_url


def test_a_port_that_is_taken_in_between_is_told_with_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepflow.runner.server._is_free", lambda port: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=f"(?s)status 1.*port {port}.*already in use"):
            EmbeddedServer(home=tmp_path, port=port).start()


def test_silence_is_told_at_the_deadline_and_leaves_no_process(tmp_path: Path) -> None:
    server = EmbeddedServer(home=tmp_path, start_deadline_s=0.2)
    with pytest.raises(ServerStartError, match=r"within 0\.2 s"):
        server.start()
    assert server.pid is None


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from deepflow.runner.server import EmbeddedServer\n"
        f"server = EmbeddedServer(home={str(tmp_path)!r}).start()\n"
        "print(server.pid, server.ui_url.rsplit(':', 1)[1], flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert is_listening(port)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    until(lambda: not is_listening(port), 20)
    until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 20)


def _is_zombie(pid: int) -> bool:
    """Dead but not reaped: the new parent of an orphan takes its time in some containers."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
