"""A Prefect server of one's own: started with the run, fast enough for it, gone afterwards.

Two things are different from `prefect server start` by hand. The server keeps up: with Prefect's
defaults it commits every task run by itself and falls far behind a fast runner; `RECORDER_SETTINGS`
make it write hundreds in one transaction. And it belongs to its parent: it has its own home and
database, takes nothing from the user's profile, and ends when the parent ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from deepflow.backend.contract import LAST_LINES, may_use
from deepflow.errors import ConfigurationError, DeepflowError

__all__ = ["RECORDER_SETTINGS", "EmbeddedServer", "ServerStartError"]

RECORDER_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # Task runs written in one transaction; the default is 1. Much larger batches would hold
        # SQLite's only write lock longer.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        # Messages asked of the broker at once. The in-memory broker ignores it; Redis does not.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
        # Seconds that a task run which fills no batch waits. Whole seconds: the server cuts the
        # rest off, and 0 would spin.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        # The same events are also kept for the event feed, by a service that shares the server's
        # one loop and SQLite's one lock: its default of 20 a transaction slows the recorder.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "500",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "2",
        # Automations look at every event too.
        "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "200",
        # A batch of 200 may hold the write lock for longer than the default 10 s on a slow disk;
        # API calls then wait instead of failing with `database is locked`.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    }
)
"""Settings with which a Prefect server keeps up with this runner, as environment variables.

Used by `EmbeddedServer`, and by the profile for a separate server under `deployments/profiles`.
"""

START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 10.0
LAST_WORDS_S = 5.0
_MAX_PORTS_TRIED = 3
_LOG_TAIL_LINES = 30
_HOST = "127.0.0.1"


class ServerStartError(DeepflowError, RuntimeError):
    """The embedded server ended or stayed silent instead of answering its health check."""


class EmbeddedServer:
    """A Prefect server in a process of its own, for as long as the `with` block lasts.

        with EmbeddedServer() as server:
            os.environ["PREFECT_API_URL"] = server.api_url

    `home` is the server's PREFECT_HOME (database, log); left out, a temporary directory that is
    removed at the end. `port` 0 takes a free one. `settings` are more environment variables for the
    server, and win over `RECORDER_SETTINGS`. `start()` and `stop()` may each be called twice.

    Raises `ConfigurationError` for arguments that cannot be.
    """

    def __init__(
        self,
        *,
        home: str | os.PathLike[str] | None = None,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        _check(home, port, settings, start_deadline_s)
        self._given_home = None if home is None else Path(home).absolute()
        self._given_port = port
        self._settings = dict(settings or {})
        self._start_deadline_s = start_deadline_s
        self._home: Path | None = None
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    # What a caller asks for

    @property
    def api_url(self) -> str:
        """Address for `PREFECT_API_URL`. `ServerStartError` when the server is not running."""
        return f"http://{_HOST}:{self._running_port()}/api"

    @property
    def ui_url(self) -> str:
        """Address that a person opens. `ServerStartError` when the server is not running."""
        return f"http://{_HOST}:{self._running_port()}"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running. Also its process group."""
        return None if self._process is None else self._process.pid

    @property
    def log_path(self) -> Path:
        """File with what the server printed. `ServerStartError` when the server is not running."""
        if self._home is None:
            raise ServerStartError("the embedded server is not running; call start() first")
        return self._home / "server.log"

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> EmbeddedServer:
        """Start the server and wait until it is healthy. Does nothing when it runs already.

        Raises `ServerStartError`, with the end of the server's log, when it exits early or is not
        healthy within the deadline.
        """
        with self._lock:
            if self._process is not None:
                return self
            if self._given_home is None:
                self._home = Path(tempfile.mkdtemp(prefix="deepflow-server-"))
            else:
                self._home = self._given_home
                self._home.mkdir(parents=True, exist_ok=True)
            try:
                self._start_on_some_port()
            except BaseException:
                self.stop()
                raise
            return self

    def stop(self) -> None:
        """Stop the server and everything it started. Does nothing when it is not running."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                _say_last_words()
            self._end_process()
            if self._home is not None and self._given_home is None:
                shutil.rmtree(self._home, ignore_errors=True)
            self._home = self._port = None

    # How it is done

    def _running_port(self) -> int:
        if self._port is None or self._process is None:
            raise ServerStartError("the embedded server is not running; call start() first")
        return self._port

    def _start_on_some_port(self) -> None:
        """Start on the given port, or on free ones until none is snatched away in between."""
        if self._given_port and not _is_free(self._given_port):
            # Another Prefect server there would be taken for this one: it is healthy, too.
            raise ServerStartError(
                f"port={self._given_port}: something listens there already; give another one, or "
                "0 for any that is free"
            )
        tries = 1 if self._given_port else _MAX_PORTS_TRIED
        for left in reversed(range(tries)):
            port = self._given_port or _free_port()
            self._launch(port)
            try:
                self._wait_until_healthy(port)
            except ServerStartError:
                if left and "already in use" in self._log_tail():
                    self._end_process()
                    continue
                raise
            self._port = port
            return

    def _launch(self, port: int) -> None:
        assert self._home is not None
        command = [
            *(sys.executable, "-m", "deepflow.runner._server_process"),
            *("server", "start", "--host", _HOST, "--port", str(port), "--analytics-off"),
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                # Prefect reads prefect.toml, pyproject.toml and .env of the working directory.
                cwd=self._home,
                env=self._environment(port),
                stdin=subprocess.PIPE,  # held open: the server ends when it closes
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal must reach the driver only: it still has states to send.
                start_new_session=True,
            )

    def _environment(self, port: int) -> dict[str, str]:
        """The server's environment: the caller's, without what would point it elsewhere."""
        assert self._home is not None
        environment = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith("PREFECT_")
            or (
                name.startswith("PREFECT_SERVER_")
                and not name.startswith(("PREFECT_SERVER_DATABASE_", "PREFECT_SERVER_API_"))
            )
        }
        # The working directory is the server's own, so a checkout that is importable only because
        # the caller stands in it must be named.
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [path for path in (package_root, environment.get("PYTHONPATH", "")) if path]
        return (
            environment
            | {
                "PYTHONPATH": os.pathsep.join(paths),
                "PREFECT_HOME": str(self._home),
                "PREFECT_SERVER_API_HOST": _HOST,
                "PREFECT_SERVER_API_PORT": str(port),
                "PREFECT_SERVER_UI_API_URL": f"http://{_HOST}:{port}/api",
                "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
                # The memory broker logs every message at DEBUG and the API every call at INFO.
                "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            }
            | dict(RECORDER_SETTINGS)
            | self._settings
        )

    def _wait_until_healthy(self, port: int) -> None:
        """Ask the health check until it answers. `ServerStartError` at exit or at the deadline."""
        assert self._process is not None
        # A proxy from the environment must not be asked for this machine's own address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"http://{_HOST}:{port}/api/health"
        deadline = time.monotonic() + self._start_deadline_s
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                raise ServerStartError(
                    f"the embedded Prefect server ended with status {status} before it answered "
                    f"on port {port}; the end of its log says why:\n{self._log_tail()}"
                )
            try:
                with opener.open(url, timeout=2.0) as reply:
                    if reply.status == 200:
                        return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                pass  # not listening yet: the loop's own deadline decides
            time.sleep(0.1)
        raise ServerStartError(
            f"the embedded Prefect server did not answer {url} within {self._start_deadline_s:g} s "
            f"(start_deadline_s); the end of its log:\n{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        text = self.log_path.read_text(errors="replace")
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:]) or "(the log is empty)"

    def _end_process(self) -> None:
        """SIGTERM, a bounded wait, then SIGKILL to the group; the process is always reaped."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kill below is the answer
                process.wait(STOP_DEADLINE_S)
        with contextlib.suppress(ProcessLookupError):  # nobody of the group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _say_last_words() -> None:
    """Send this process's queued log lines and events while somebody listens.

    Without it a driver tries for more than a minute at exit to reach a server that is gone.
    """
    for module_name, service in (
        ("prefect.logging.handlers", "APILogWorker"),
        ("prefect.events.worker", "EventsWorker"),
    ):
        module = sys.modules.get(module_name)
        if module is None:
            continue  # nothing was ever queued
        if not may_use(LAST_LINES):
            return
        waiting = getattr(module, service).drain_all(timeout=LAST_WORDS_S, at_exit=False)
        if inspect.iscoroutine(waiting):
            waiting.close()  # called from an event loop, which must not be blocked


def _check(
    home: str | os.PathLike[str] | None,
    port: object,
    settings: Mapping[str, str] | None,
    start_deadline_s: float,
) -> None:
    """Refuse what no server can be started with."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65_536:
        raise ConfigurationError(
            f"port={port!r}; give a whole number from 1 to 65535, or 0 for any free one"
        )
    if not start_deadline_s > 0:
        raise ConfigurationError(f"start_deadline_s={start_deadline_s!r}; give seconds above 0")
    if home is not None and Path(home).exists() and not Path(home).is_dir():
        raise ConfigurationError(
            f"home={str(home)!r} is no folder; give one that can be written to"
        )
    for name, value in (settings or {}).items():
        if not name.startswith("PREFECT_") or not isinstance(value, str):
            raise ConfigurationError(
                f"settings has {name!r}: {value!r}; give environment variables of Prefect, "
                "PREFECT_… to text"
            )


def _is_free(port: int) -> bool:
    try:
        socket.create_server((_HOST, port)).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    """A port that nobody listens on now. Another program may take it before we do."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
