"""Where the blocks of a file on HDFS lie, asked of the name node by WebHDFS.

The operation is GETFILEBLOCKLOCATIONS of the WebHDFS REST API, which name nodes have from Hadoop
2.9 and 3.0 on (HttpFS from 3.4). The client is fsspec's `WebHDFS`, with its ways to authenticate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deepflow.decide.location import Holder, Location, bare_host
from deepflow.hints import Near
from deepflow.locate.resolvers import Resolver
from deepflow.locate.storage import HDFS_SCHEMES, filesystem, safe_text, scheme_of

__all__ = ["Block", "HdfsResolver", "block_locations", "holders"]

_NO_TOPOLOGY: Final = "/default-rack"
"""What Hadoop says of every node where nobody described the racks."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of bytes of a file, and the machines that have a replica of it."""

    start: int
    stop: int
    hosts: tuple[Holder, ...]
    racks: tuple[str, ...] = ()
    """Paths `/zone/rack`, each once; none where racks are not described."""


class HdfsResolver(Resolver):
    """Files on HDFS: the hosts and racks of their blocks, by the bytes that each holds."""

    schemes = HDFS_SCHEMES

    def __init__(self, options: Mapping[str, Mapping[str, object]] | None = None) -> None:
        self._options = options or {}

    def resolve(self, near: Near) -> Location:
        """Raises what fsspec raises: `OSError` and its kin."""
        fs, path = filesystem(near.value, self._options.get(scheme_of(near.value)))
        blocks = block_locations(fs, path)
        racks: dict[str, int] = defaultdict(int)
        for block in blocks:
            for rack in block.racks:
                racks[rack] += block.stop - block.start
        n_bytes = sum(block.stop - block.start for block in blocks)
        zones = [
            {rack.strip("/").rsplit("/", 1)[0] for rack in block.racks if rack.count("/") > 1}
            for block in blocks
        ]
        return Location(
            hosts=holders(blocks),
            racks=tuple(
                Holder(rack, n / max(1, n_bytes))
                for rack, n in sorted(racks.items(), key=lambda item: (-item[1], item[0]))
            ),
            zones=tuple(sorted(set.intersection(*zones))) if zones else (),
            n_bytes=n_bytes,
        )


def block_locations(fs: Any, path: str) -> list[Block]:
    """The blocks of a file in order. `fs` is fsspec's `WebHDFS`.

    Raises `ValueError` where the server does not know the operation, and for an answer that is not
    as documented; `FileNotFoundError`, `PermissionError` and other `OSError` as they come.
    """
    try:
        # Private, but the one way into fsspec's session with its authentication and its errors.
        answer = fs._call("GETFILEBLOCKLOCATIONS", path=path)
        found = answer.json()["BlockLocations"]["BlockLocation"]
        return sorted(map(_block, found), key=lambda block: block.start)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{safe_text(fs.url)} gives no block locations by WebHDFS ({error}); "
            "this needs Hadoop 2.9, 3.0 or newer, for HttpFS 3.4"
        ) from error


def holders(blocks: Sequence[Block]) -> tuple[Holder, ...]:
    """The machines of all `blocks` with the share of their bytes that each holds, most first."""
    total = max(1, sum(block.stop - block.start for block in blocks))
    held: dict[str, int] = defaultdict(int)
    aliases: dict[str, frozenset[str]] = {}
    for block in blocks:
        for host in block.hosts:
            held[host.name] += block.stop - block.start
            aliases[host.name] = aliases.get(host.name, frozenset()) | host.aliases
    most_first = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Holder(name, n / total, aliases[name]) for name, n in most_first)


def _block(answer: Mapping[str, Any]) -> Block:
    """From the JSON of one `BlockLocation`; `names` are `address:port`, parallel to `hosts`."""
    start, hosts = int(answer["offset"]), list(answer["hosts"])
    addresses = [bare_host(name) for name in answer.get("names") or []]
    if len(addresses) != len(hosts):
        addresses = [bare_host(host) for host in hosts]
    return Block(
        start,
        start + int(answer["length"]),
        tuple(
            Holder(bare_host(host), aliases=frozenset({address}))
            for host, address in zip(hosts, addresses, strict=True)
        ),
        tuple(_racks(answer.get("topologyPaths") or [])),
    )


def _racks(topology_paths: Iterable[str]) -> list[str]:
    """Of `/zone/rack/address:port` the rack's path, each once."""
    racks = dict.fromkeys(path.rsplit("/", 1)[0] for path in topology_paths)
    return [rack for rack in racks if rack not in ("", _NO_TOPOLOGY)]
