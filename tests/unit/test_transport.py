"""What `auto://` tries, and which of what answered it takes."""

from __future__ import annotations

import asyncio
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deepflow.backend import transport
from deepflow.decide.transport import Trial, address_fault, candidates, choose, endpoint
from deepflow.errors import ClusterUnreachableError, ConfigurationError


def test_the_ways_that_are_tried() -> None:
    assert candidates("auto://head", False) == (
        "tcp://head:8786",
        "ws://head:8786",
        "ws://head:8787",
        "ws://head:80",
    )
    assert candidates("auto://head:9000/", True) == (
        "tls://head:9000",
        "wss://head:9000",
        "wss://head:9001",
    )
    assert candidates("auto://[::1]", False)[0] == "tcp://[::1]:8786"
    assert candidates("auto://[::1]:9", False)[0] == "tcp://[::1]:9"


@pytest.mark.parametrize("address", ["auto://", "auto://:1", "auto://h:x", "auto://h:0", "tcp://h"])
def test_what_is_no_address_to_try(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"auto://host|port"):
        candidates(address, False)


def test_the_fastest_is_taken_and_the_first_of_like_ones() -> None:
    tcp = Trial("tcp://h:1", "", 0.01, 0.001, 1e9)
    like = Trial("ws://h:1", "", 0.01, 0.001, 1.05e9)
    faster = Trial("ws://h:2", "", 0.01, 0.0001, 3e9)
    refused = Trial("tcp://h:1", "ConnectionRefusedError")
    assert choose([tcp, like]) is tcp
    assert choose([tcp, like, faster]) is faster
    assert choose([refused, like]) is like
    assert choose([refused]) is None
    slow_start = Trial("ws://h:3", "", 0.0, 0.2, 3e9)
    assert choose([slow_start, tcp]) is tcp


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:8786x", "has the port '8786x'.*did you mean 127.0.0.1:8786"),
        ("tcp://h:99999", "no number from 1 to 65535; did you mean h:8786"),
        ("tcp://h:8786/", "did you mean h:8786"),
        ("tcp://h", "names no port.*tcp://h:8786"),
        ("h", "names no port"),
        ("tcp://", "names no host"),
        ("::1:8786", r"brackets, \[::1\]:8786"),
        ("http://h:8787/status", "'http', which Dask does not speak.*tcp://h:8786"),
        ("tpc://h:1", "did you mean tcp://h:1"),
        ("tcp://u@h:1", "has the host 'u@h'"),
        ("auto://h:x", "write auto://host"),
        ("", "is empty"),
        (" tcp://h:1", "blanks"),
        (("h", 1), "is tuple"),
    ],
)
def test_what_is_no_address_is_told_with_the_nearest(address: object, said: str) -> None:
    fault = address_fault(address)
    assert fault is not None
    assert re.search(said, fault), fault


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("h:8786", ("h", 8786)),
        ("tcp://10.0.0.1:1", ("10.0.0.1", 1)),
        ("tls://[::1]:8786", ("::1", 8786)),
        ("ws://h/path", ("h", 80)),
        ("wss://h:9000/path", ("h", 9000)),
        ("inproc://10.0.0.1/1/2", None),
        ("ucx://h:1", None),
        ("auto://h", None),
    ],
)
def test_addresses_and_where_their_socket_is(address: str, where: tuple[str, int] | None) -> None:
    assert address_fault(address) is None
    assert endpoint(address) == where


@contextmanager
def web_server() -> Iterator[int]:
    """A server of this process that speaks HTTP; its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


class Quiet(BaseHTTPRequestHandler):
    """Knows nothing, and says so to who asks only."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


class TestReaching:
    @pytest.fixture(autouse=True)
    def little_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "_STARTING_S", 0.3)
        monkeypatch.setattr(transport, "_LOOK_EVERY_S", 0.05)
        monkeypatch.setattr(transport, "_SPEAKS_WITHIN_S", 0.3)
        monkeypatch.setattr(transport, "_ANSWERS_WITHIN_S", 60.0)

    def port(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            return int(free.getsockname()[1])

    def test_nobody_of_this_machine_is_told_long_before_the_deadline(self) -> None:
        with pytest.raises(
            ClusterUnreachableError,
            match=r"connection refused, nothing listens there; waited 0\.\d s.*DEEPFLOW_ADDRESS",
        ) as caught:
            transport.reach_now(f"tcp://127.0.0.1:{self.port()}", None, 3600)
        assert caught.value.__cause__ is None

    def test_a_name_that_nobody_has_too(self) -> None:
        with pytest.raises(ClusterUnreachableError, match="no host of this name is known"):
            transport.reach_now("tcp://no-such-host.invalid:8786", None, 3600)

    def test_what_listens_but_is_no_scheduler_is_told_at_the_deadline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "_ANSWERS_WITHIN_S", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ClusterUnreachableError, match="nothing that is a scheduler"):
                transport.reach_now(address, None, 0.5)

    def test_a_web_server_is_told_long_before_the_deadline(self) -> None:
        with web_server() as port, pytest.raises(ClusterUnreachableError) as caught:
            transport.reach_now(f"tcp://127.0.0.1:{port}", None, 3600)
        assert "a web server answers there, such as Prefect's API" in str(caught.value)

    def test_a_web_server_is_none_of_the_ways(self) -> None:
        with web_server() as port:
            trial = asyncio.run(
                transport.try_address(f"127.0.0.1:{port}", None, 3600, is_patient=False)
            )
        assert trial.error.startswith("a web server answers there")

    def test_who_speaks_first_is_not_asked_whether_it_is_a_web_server(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transport, "_SPEAKS_WITHIN_S", 60.0)
        asked: list[bytes] = []

        class Speaks(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(b"as a scheduler does")
                asked.append(self.request.recv(100))

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Speaks) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

            async def look() -> bool:
                where = server.server_address
                reader, writer = await asyncio.open_connection(*where)
                try:
                    return await transport._is_web_server(f"tcp://{where[0]}:{where[1]}", reader)
                finally:
                    writer.close()

            assert not asyncio.run(look())
            server.shutdown()
        assert asked in ([], [b""])

    def test_a_scheduler_that_is_starting_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = self.port()
        listening: list[socket.socket] = []
        monkeypatch.setattr(transport, "_STARTING_S", 60.0)
        monkeypatch.setattr(transport, "_ANSWERS_WITHIN_S", 0.3)
        sleep = asyncio.sleep

        async def starts_meanwhile(seconds: float) -> None:
            if not listening:
                listening.append(socket.create_server(("127.0.0.1", port)))
            await sleep(0)

        class Comm:
            was_closed = threading.Event()

            def abort(self) -> None:
                self.was_closed.set()

        async def greet(*_: object) -> tuple[Comm, float]:
            return Comm(), 0.0

        monkeypatch.setattr(transport.asyncio, "sleep", starts_meanwhile)
        monkeypatch.setattr(transport, "_greet", greet)
        transport.reach_now(f"tcp://127.0.0.1:{port}", None, 60)
        assert Comm.was_closed.is_set()
        (one,) = listening
        one.close()
