"""How fast the link to each host is, learned from what the kernel says of the sockets in use."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from typing import Final

__all__ = ["Links", "Meter"]

_KEPT: Final = 16
_MAX_HOSTS: Final = 4_096
_WINDOW_S: Final = 0.01
"""Shorter ones show the bursts that a throttle lets through rather than the link."""
_WAITED_SHARE: Final = 0.2
_COUNTERS: Final = struct.Struct("<Q40xQQ")
_COUNTERS_AT: Final = 120


class Meter:
    """What of a socket's data was delivered, and in which time, from one reading to the next.

    From ``struct tcp_info`` in linux/tcp.h, since 4.10: ``tcpi_bytes_acked``, ``tcpi_busy_time``
    and ``tcpi_rwnd_limited``. Other systems and other sockets tell nothing.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._last = self._counters()

    def read(self) -> tuple[float, bool] | None:
        """Bytes per second while there was something to send, and whether it waited for the
        receiver rather than for the link; None until there is a hundredth of a second of it."""
        if self._last is None or (now := self._counters()) is None:
            return None
        n_bytes, busy_us, waited_us = (new - old for new, old in zip(now, self._last, strict=True))
        if busy_us < _WINDOW_S * 1e6 or n_bytes <= 0:
            return None
        self._last = now
        return n_bytes / busy_us * 1e6, waited_us > _WAITED_SHARE * busy_us

    def _counters(self) -> tuple[int, int, int] | None:
        option = getattr(socket, "TCP_INFO", None)
        if option is None or self._sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        wanted = _COUNTERS_AT + _COUNTERS.size
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, option, wanted)
        except OSError:
            return None
        if len(info) < wanted:
            return None
        acked, busy_us, waited_us = _COUNTERS.unpack_from(info, _COUNTERS_AT)
        return acked, busy_us, waited_us


class Links:
    """Bytes per second to each host; thread-safe. The last 4,096 hosts are remembered.

    The median of the last 16 measurements.
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
            speed = sorted(measured)[(len(measured) - 1) // 2]
            self._speeds[host] = max(speed, known) if is_lower_bound else speed
            return self._speeds[host]
