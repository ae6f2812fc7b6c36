"""Which way to speak to a scheduler: what can be tried, and which of what answered is taken.

Pure: measurements come in, a choice goes out. The way is taken on which a typical exchange, 20
round trips and 16 MB, takes least; a later one in the order of trying has to be a tenth better.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

from deepflow.errors import ConfigurationError, nearest

__all__ = ["AUTO", "Trial", "address_fault", "candidates", "choose", "endpoint", "exchange_s"]

AUTO: Final = "auto"
DEFAULT_PORT: Final = 8786
_WEB_PORTS: Final = {"ws": 80, "wss": 443}
_SOCKETS: Final = ("tcp", "tls", "ucx", "ucxx")
"""Schemes whose addresses are a host and a port."""
_WEB: Final = ("ws", "wss")
SCHEMES: Final = (*_SOCKETS, *_WEB, "inproc", AUTO)
_OTHER_SCHEMES: Final = "distributed.comm.backends"
"""The group of entry points in which packages offer further ones to Dask."""
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


def address_fault(address: object) -> str | None:
    """Why this can be no scheduler's address, and what to write; None for one that can.

    The words go after the address: "has the port '8786x', …". Nobody is asked whether anything is
    there.
    """
    if not isinstance(address, str):
        return f"is {type(address).__name__}; write the address as text, tcp://host:8786"
    if address.strip() != address or not address:
        return "is empty or has blanks around it; write tcp://host:8786"
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "tcp", address
    if scheme in ("http", "https"):
        host = rest.partition("/")[0].partition(":")[0] or "host"
        return (
            f"has the scheme {scheme!r}, which Dask does not speak; use one of "
            f"{', '.join(SCHEMES)}, most often tcp://{host}:{DEFAULT_PORT} (what has a web page, "
            "such as Dask's dashboard, is another port)"
        )
    if scheme not in SCHEMES and not entry_points(group=_OTHER_SCHEMES, name=scheme):
        close = nearest(scheme, SCHEMES)
        meant = f"did you mean {close}://{rest}? " if close else ""
        return (
            f"has the scheme {scheme!r}, which Dask does not speak; {meant}"
            f"use one of {', '.join(SCHEMES)}"
        )
    if not rest.strip("/"):
        return f"names no host; write {scheme}://host:{DEFAULT_PORT}"
    if scheme == AUTO:
        try:
            candidates(address, is_encrypted=False)
        except ConfigurationError:
            return f"is none to try; write {AUTO}://host or {AUTO}://host:port"
        return None
    if scheme in _SOCKETS:
        return _host_and_port_fault(scheme, rest)
    if scheme in _WEB:
        where = rest.partition("/")[0]
        return _host_and_port_fault(scheme, where) if _port_of(where) else _host_fault(where)
    return None


def _host_and_port_fault(scheme: str, rest: str) -> str | None:
    host, port = _host_of(rest), _port_of(rest)
    if rest.count(":") > 1 and not rest.startswith("["):
        return "is no host and port; write an IPv6 host in brackets, [::1]:8786"
    if fault := _host_fault(host):
        return fault
    if not port:
        return (
            f"names no port; a scheduler's is {DEFAULT_PORT} unless it was told another: write "
            f"{scheme}://{host}:{DEFAULT_PORT}"
        )
    if port.isascii() and port.isdigit() and 0 < int(port) < 65_536:
        return None
    digits = re.match(r"\d+", port)
    meant = digits.group() if digits and 0 < int(digits.group()) < 65_536 else str(DEFAULT_PORT)
    return (
        f"has the port {port!r}, which is no number from 1 to 65535; did you mean {host}:{meant}?"
    )


def _host_fault(host: str) -> str | None:
    if not host or re.search(r"[\s/@?#,;]", host):
        return f"has the host {host!r}, which cannot be one; write tcp://host:{DEFAULT_PORT}"
    return None


def _host_of(rest: str) -> str:
    if rest.startswith("["):
        return rest.partition("]")[0] + "]"
    return rest.partition(":")[0]


def _port_of(rest: str) -> str:
    return rest[len(_host_of(rest)) :].removeprefix(":")


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of a checked address that is one of a socket; None for other addresses."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "tcp", address
    if scheme not in ("tcp", "tls", *_WEB):
        return None
    where = rest.partition("/")[0]
    host, port = _host_of(where).strip("[]"), _port_of(where)
    if not host or not (port or scheme in _WEB):
        return None
    return host, int(port or _WEB_PORTS[scheme])


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
