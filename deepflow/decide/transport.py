"""Which way to speak to a scheduler: what can be tried, and which of what answered is taken.

Pure: measurements come in, a choice goes out. The way is taken on which a typical exchange, 20
round trips and 16 MB, takes least; a later one in the order of trying has to be a tenth better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deepflow.errors import ConfigurationError

__all__ = ["AUTO", "Trial", "candidates", "choose", "exchange_s"]

AUTO: Final = "auto"
DEFAULT_PORT: Final = 8786
_WEB_PORTS: Final = {"ws": 80, "wss": 443}
_ROUND_TRIPS: Final = 20
_EXCHANGED_BYTES: Final = 16_000_000
_MARGIN: Final = 0.1


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying one address; `error` is empty where a scheduler answered."""

    address: str
    error: str = ""
    connect_s: float = 0.0
    round_trip_s: float = 0.0
    bytes_per_s: float = 0.0


def candidates(address: str, is_encrypted: bool) -> tuple[str, ...]:
    """What to try for ``auto://host`` or ``auto://host:port``, the likeliest first.

    The scheduler's own protocol on the port (8786 unless given), websockets there and on the next
    one, and, where no port is given, websockets where HTTP is served. With certificates only what
    encrypts. `ConfigurationError` for no host or no port.
    """
    scheme, _, rest = address.partition("://")
    host, port = rest.rstrip("/"), ""
    if not host.endswith("]"):  # an IPv6 address without a port
        before, colon, after = host.rpartition(":")
        if colon:
            host, port = before, after
    if scheme != AUTO or not host or (port and not (port.isascii() and port.isdigit())):
        raise ConfigurationError(
            f"{address!r} is no address to try: write auto://host or auto://host:port"
        )
    number = int(port) if port else DEFAULT_PORT
    if not 0 < number < 65_535:
        raise ConfigurationError(f"{address!r}: there is no port {number}; use 1 to 65534")
    plain, web = ("tls", "wss") if is_encrypted else ("tcp", "ws")
    found = [
        f"{plain}://{host}:{number}",
        f"{web}://{host}:{number}",
        f"{web}://{host}:{number + 1}",
    ]
    if not port:
        found.append(f"{web}://{host}:{_WEB_PORTS[web]}")
    return tuple(found)


def exchange_s(trial: Trial) -> float:
    """Seconds that a typical exchange takes on this way."""
    return _ROUND_TRIPS * trial.round_trip_s + _EXCHANGED_BYTES / max(trial.bytes_per_s, 1.0)


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The best of what answered; None where nothing did."""
    chosen: Trial | None = None
    for trial in trials:
        if trial.error:
            continue
        if chosen is None or exchange_s(trial) < (1 - _MARGIN) * exchange_s(chosen):
            chosen = trial
    return chosen
