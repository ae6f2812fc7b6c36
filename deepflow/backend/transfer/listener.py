"""Serves what was laid ready for receivers, on a port beside Dask's own."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from deepflow.errors import FrameError
from deepflow.intermediates.stream import read_ask
from deepflow.observe.fallbacks import Fallback, fell_back

__all__ = ["Listener"]

_log = logging.getLogger(__name__)


class Listener:
    """Serves tickets on a port of its own: one thread waits, one per connection sends.

    `serve(socket, ticket)` sends what is asked for; what it raises ends that connection only.
    `wrap` puts TLS around an accepted socket. Daemon threads: they do not keep a process alive.
    """

    def __init__(
        self,
        host: str,
        serve: Callable[[socket.socket, bytes], None],
        wrap: Callable[[socket.socket], socket.socket],
        timeout_s: float,
    ) -> None:
        self._serve, self._wrap, self._timeout_s = serve, wrap, timeout_s
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=128)
        self.port = int(self._socket.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._is_closed = False
        threading.Thread(target=self._accept, name="deepflow-listen", daemon=True).start()

    def close(self) -> None:
        """Stop listening and break off what is being sent."""
        self._is_closed = True
        for sock in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                sock, _ = self._socket.accept()
                threading.Thread(
                    target=self._answer, args=(sock,), name="deepflow-send", daemon=True
                ).start()
            except (OSError, RuntimeError):
                if self._is_closed:
                    return
                time.sleep(0.1)  # out of descriptors or threads: others will end

    def _answer(self, sock: socket.socket) -> None:
        self._open.add(sock)
        wrapped = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self._timeout_s)
            wrapped = self._wrap(sock)
            self._open.add(wrapped)
            while not self._is_closed:
                wrapped.settimeout(None)  # kept for the next request
                ticket = read_ask(wrapped)
                if ticket is None:
                    return
                wrapped.settimeout(self._timeout_s)
                self._serve(wrapped, ticket)
        except (OSError, EOFError, FrameError):
            pass  # the receiver sees the connection end, and says so
        except Exception:  # noqa: BLE001 - see the class
            fell_back(Fallback.SERVICE_FAULT)
            _log.exception("sending a value failed; its receiver asks again by Dask's own means")
        finally:
            self._open -= {sock, wrapped}
            wrapped.close()
            sock.close()
