"""`auto://` with real schedulers: tcp where it passes, websockets through what lets only HTTP."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from prefect import flow, task

from deepflow import DeepflowTaskRunner
from deepflow.backend.tls import security_of, write_certificates
from deepflow.backend.transport import pick_now
from deepflow.cli import main
from deepflow.errors import ClusterUnreachableError


def free_pair() -> int:
    """A port that is free, as is the next one."""
    while True:
        with closing(socket.socket()) as one, closing(socket.socket()) as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with suppress(OSError):
                other.bind(("127.0.0.1", port + 1))
                return int(port)


@contextmanager
def scheduler(port: int, protocols: str = "tcp,ws", *words: str) -> Iterator[None]:
    """`dask scheduler`, speaking one protocol on the port and the other on the next one."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    command += ["--protocol", protocols, "--port", f"{port},{port + 1}", "--no-dashboard", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += "Scheduler at:" in line
        if seen == 2:
            break
    else:
        raise AssertionError("the scheduler did not start")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


class HttpOnly:
    """Lets through what begins as an HTTP request, as an ingress does, and ends all else."""

    def __init__(self, to_port: int) -> None:
        self.to_port, self.n_refused = to_port, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            first = sock.recv(65_536)
            if not first.startswith(b"GET "):
                self.n_refused += 1
                return
            with socket.create_connection(("127.0.0.1", self.to_port)) as there:
                there.sendall(first)
                back = threading.Thread(target=self._pipe, args=(there, sock), daemon=True)
                back.start()
                self._pipe(sock, there)
                back.join()

    @staticmethod
    def _pipe(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_pair()
    with scheduler(number):
        yield number


def test_tcp_is_taken_where_it_passes(port: int) -> None:
    choice = pick_now(f"auto://127.0.0.1:{port}", None)
    assert choice.address == f"tcp://127.0.0.1:{port}"
    by_address = {trial.address: trial for trial in choice.trials}
    assert not by_address[f"ws://127.0.0.1:{port + 1}"].error
    assert by_address[f"ws://127.0.0.1:{port}"].error
    assert choice.in_words().startswith(f"tcp://127.0.0.1:{port} (")


def test_websockets_are_taken_where_only_http_passes(port: int) -> None:
    with closing(HttpOnly(port + 1)) as proxy:
        choice = pick_now(f"auto://127.0.0.1:{proxy.port}", None)
        assert choice.address == f"ws://127.0.0.1:{proxy.port}"
        assert proxy.n_refused == 1


def test_the_command_shows_what_was_tried(port: int) -> None:
    done = CliRunner().invoke(main, ["connect", f"auto://127.0.0.1:{port}", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["address"] == f"tcp://127.0.0.1:{port}"
    assert len(told["trials"]) == 3
    table = CliRunner().invoke(
        main, ["connect", f"auto://127.0.0.1:{port}"], env={"COLUMNS": "160"}
    )
    assert re.search(rf"tcp://127.0.0.1:{port} .*taken", table.output)
    one = CliRunner().invoke(main, ["connect", f"tcp://127.0.0.1:{port}", "--json"])
    assert json.loads(one.output)["address"] == f"tcp://127.0.0.1:{port}"


def test_nobody_there_is_said_with_what_was_tried() -> None:
    port = free_pair()
    with pytest.raises(ClusterUnreachableError, match="--protocol tcp,ws") as caught:
        pick_now(f"auto://127.0.0.1:{port}", None)
    assert f"ws://127.0.0.1:{port + 1}" in str(caught.value)
    done = CliRunner().invoke(main, ["connect", f"auto://127.0.0.1:{port}"])
    assert done.exit_code == 2
    assert "no Dask scheduler answers" in done.output


def test_with_certificates_only_encrypted_ways_are_tried(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    port = free_pair()
    words = ["--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
    with scheduler(port, "tls,wss", *words):
        address = f"auto://127.0.0.1:{port}"
        choice = pick_now(address, security_of(str(tmp_path), address=address))
        assert choice.address.startswith("tls://")
        assert all(trial.address.startswith(("tls://", "wss://")) for trial in choice.trials)
        with pytest.raises(ClusterUnreachableError):
            pick_now(address, None)
        other = tmp_path / "other"
        write_certificates(other)
        with pytest.raises(ClusterUnreachableError):
            pick_now(address, security_of(str(other), address=address))


@task
def double(x: int) -> int:
    return 2 * x


def test_a_flow_connects_by_what_passes_and_picks_again_when_that_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path))
    said: list[str] = []
    # Not by a handler: Prefect may set up logging anew when the flow begins.
    monkeypatch.setattr(
        logging.getLogger("deepflow.runner.driver.client"),
        "warning",
        lambda text, *words: said.append(text % words),
    )
    port = free_pair()
    first = scheduler(port)
    first.__enter__()
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}"),
            *("--nthreads", "1", "--no-dashboard", "--no-nanny"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:

        @flow(task_runner=DeepflowTaskRunner(address=f"auto://127.0.0.1:{port}"))
        def pipeline() -> list[int]:
            from prefect.context import FlowRunContext

            context = FlowRunContext.get()
            assert context is not None
            client = context.task_runner.client
            results = [double.submit(1).result()]
            assert client.scheduler.address == f"tcp://127.0.0.1:{port}"
            # The way is cut, not the scheduler: as a proxy does that is restarted.
            was = client.choice
            client.sync(abort, client)
            results.append(double.submit(2).result())
            assert client.choice is not None
            assert client.choice is not was
            return results

        async def abort(client: object) -> None:
            client.scheduler_comm.comm.abort()  # type: ignore[attr-defined]

        assert pipeline() == [2, 4]
        assert [text for text in said if text.startswith("connecting again by tcp://")]
    finally:
        worker.terminate()
        worker.wait()
        first.__exit__(None, None, None)
