"""How fast the link to each host is, learned from what the kernel says of the sockets in use."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from typing import Final

__all__ = ["Links", "delivery_rate"]

_KEPT: Final = 16
_MAX_HOSTS: Final = 4_096
_RATE: Final = struct.Struct("<Q")
_RATE_AT: Final = 160
_APP_LIMITED_AT: Final = 7


def delivery_rate(sock: socket.socket) -> tuple[float, bool] | None:
    """Bytes per second that arrived of late, and whether the sender had too little to send.

    None where the kernel does not say: other systems than Linux, nothing sent yet. From
    ``struct tcp_info`` in linux/tcp.h: ``tcpi_delivery_rate``, since 4.9.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, _RATE_AT + _RATE.size)
    except OSError:
        return None
    if len(info) < _RATE_AT + _RATE.size:
        return None
    (rate,) = _RATE.unpack_from(info, _RATE_AT)
    return (float(rate), bool(info[_APP_LIMITED_AT] & 1)) if rate else None


class Links:
    """Bytes per second to each host; thread-safe. The last 4,096 hosts are remembered.

    The upper quartile of the last 16 measurements: what is measured while a core is short of time
    is too little, and a burst is too much.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: dict[str, deque[float]] = {}
        self._speeds: dict[str, float] = {}

    def speed(self, host: str) -> float:
        """Bytes per second, 0 where nothing is known."""
        return self._speeds.get(host, 0.0)

    def observe(self, host: str, bytes_per_s: float, is_lower_bound: bool = False) -> float:
        """Take in a measurement; one that only says "at least" never makes a link slower."""
        with self._lock:
            known = self._speeds.get(host, 0.0)
            if is_lower_bound and bytes_per_s <= known:
                return known
            measured = self._measured.pop(host, None) or deque(maxlen=_KEPT)
            measured.append(bytes_per_s)
            if len(self._measured) >= _MAX_HOSTS:
                oldest = next(iter(self._measured))
                del self._measured[oldest], self._speeds[oldest]
            self._measured[host] = measured
            speed = sorted(measured)[3 * (len(measured) - 1) // 4]
            self._speeds[host] = max(speed, known) if is_lower_bound else speed
            return self._speeds[host]
