"""The names and addresses of machines, of this one among them."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from typing import Final

import psutil

from deepflow.decide.location import Holder, Location, bare_host
from deepflow.hints import Near
from deepflow.locate.resolvers import Resolver

__all__ = ["HostResolver", "lookup", "this_machine"]

_log = logging.getLogger("deepflow.locate.hosts")

DNS_TIMEOUT_S: Final = 1.0
"""Longest wait for DNS; below the locator's own, so that a name without an answer still counts."""


class HostResolver(Resolver):
    """Things to be near that are hosts: a name, an address, or a Dask address.

    A host that DNS does not know is matched by its name alone. One with a port is also taken for
    the address of a Dask worker.
    """

    schemes = ("host",)

    def __init__(self, *, dns_timeout_s: float = DNS_TIMEOUT_S) -> None:
        self._dns_timeout_s = dns_timeout_s

    def resolve(self, near: Near) -> Location:
        """The machine with every name it is known by."""
        host = bare_host(near.value)
        names = lookup(host, timeout_s=self._dns_timeout_s)
        has_port = near.value.split("://", 1)[-1].removesuffix("/").lower() not in (
            host,
            f"[{host}]",
            f"{host}.",
        )
        workers = (near.value,) if has_port else ()
        return Location(hosts=(Holder(host, aliases=names - {host}),), workers=workers)


def lookup(host: str, *, timeout_s: float = DNS_TIMEOUT_S) -> frozenset[str]:
    """Every name and address of a machine: as given, its full name, its addresses.

    An address is not looked up. A loopback address, as any other of this machine's, brings all of
    this machine's names. Without an answer within `timeout_s` (float, seconds) it is the name
    alone.
    """
    bare = bare_host(host)
    names = frozenset({bare})
    if not _is_address(bare) and bare not in this_machine():
        names |= _ask_dns(bare, timeout_s)
    ours = this_machine()
    if not names.isdisjoint(ours) or any(_is_loopback(name) for name in names):
        names |= ours
    return names


def this_machine() -> frozenset[str]:
    """The names and addresses of the machine this runs on. No DNS is asked."""
    own = {"localhost", bare_host(socket.gethostname())}
    for addresses in psutil.net_if_addrs().values():
        own |= {
            bare_host(found.address)
            for found in addresses
            if found.family in (socket.AF_INET, socket.AF_INET6)
        }
    own -= {name for name in own if _is_link_local(name)}  # the same on many machines
    return frozenset(own)


def _ask_dns(name: str, timeout_s: float) -> frozenset[str]:
    """Addresses and full name, or nothing within the time: `getaddrinfo` cannot be interrupted."""
    found: set[str] = set()
    problem: list[str] = [f"no answer from DNS within {timeout_s:g} s"]
    answered = threading.Event()

    def ask() -> None:
        try:
            for *_, full_name, address in socket.getaddrinfo(
                name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME
            ):
                found.update(bare_host(str(text)) for text in (full_name, address[0]) if text)
        except (OSError, UnicodeError) as error:
            problem[:] = [str(error)]
        answered.set()

    threading.Thread(target=ask, name="deepflow-dns", daemon=True).start()
    if answered.wait(timeout_s) and found:
        return frozenset(found)
    _log.info("Host %s is matched by its name alone: %s.", name, problem[0])
    return frozenset()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_link_local(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_link_local


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_loopback
