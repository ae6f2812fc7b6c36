"""Where an input lies, and how close a worker is to it.

Pure values and functions: what looks things up (DNS, HDFS, object stores) is `deepflow.locate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = [
    "CLOSENESS",
    "Closeness",
    "Holder",
    "Location",
    "Match",
    "WorkerPlace",
    "bare_host",
    "match",
    "nearest_workers",
]

Closeness = Literal["process", "host", "rack", "zone", "remote"]
CLOSENESS: Final[tuple[Closeness, ...]] = ("process", "host", "rack", "zone", "remote")
"""From the closest to the farthest."""

_AVAILABILITY_ZONE: Final = r"-?[a-z]"
"""What clouds put behind a region's name for a zone of it: `eu-central-1a`, `europe-west1-b`."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine or a rack that holds an input, or a part of it."""

    name: str
    share: float = 1.0
    """The part of the input's bytes that is there, 0 to 1; with replicas the shares of all holders
    add up to more than 1."""
    aliases: frozenset[str] = frozenset()
    """Other names and addresses of the same machine."""

    names: frozenset[str] = field(init=False, repr=False, compare=False)
    """Every name it is known by, as :func:`bare_host` writes them; worked out once, not given."""

    def __post_init__(self) -> None:
        names = frozenset(map(bare_host, (self.name, *self.aliases)))
        object.__setattr__(self, "names", names)  # the dataclass is frozen


@dataclass(frozen=True, slots=True)
class Location:
    """Where an input lies. An empty one is an answer too: it is equally far from every worker."""

    hosts: tuple[Holder, ...] = ()
    """Machines, those that hold most first."""
    workers: tuple[str, ...] = ()
    """Dask addresses of processes that hold all of it."""
    racks: tuple[Holder, ...] = ()
    """Racks, those that hold most first; `/zone/rack` as Hadoop writes them, or a name alone."""
    zones: tuple[str, ...] = ()
    """Zones or regions that hold all of it."""
    n_bytes: int | None = None
    """Its size, if that is known."""

    def __bool__(self) -> bool:
        """Whether it says anything about where to run."""
        return bool(self.hosts or self.workers or self.racks or self.zones)

    @property
    def finest(self) -> Closeness:
        """The closest that is known of it: what a demand to run where it lies asks for."""
        if self.hosts or self.workers:
            return "host"
        return "rack" if self.racks else "zone"


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a worker runs."""

    address: str
    """Its Dask address."""
    names: frozenset[str]
    """Every name and address of its machine that is known, as :func:`bare_host` writes them."""
    rack: str | None = None
    zone: str | None = None

    @classmethod
    def of(
        cls, address: str, labels: Mapping[str, str] | None = None, aliases: Iterable[str] = ()
    ) -> WorkerPlace:
        """From its address, its labels (`host`, `rack` and `zone` are read) and other names."""
        labels = labels or {}
        host = [labels["host"]] if "host" in labels else []
        names = frozenset(map(bare_host, (address, *host, *aliases)))
        return cls(address, names, labels.get("rack"), labels.get("zone"))


@dataclass(frozen=True, slots=True)
class Match:
    """How close a worker is to an input."""

    closeness: Closeness
    share: float
    """The part of the input's bytes that is this close; 0 when remote. So a worker that matches on
    its host still has `n_bytes * (1 - share)` to fetch from elsewhere."""


def bare_host(text: str) -> str:
    """The name or address alone: no scheme, port, brackets, scope or last dot, in lower case.

    `tcp://[FE80::1%eth0]:8786` is `fe80::1`, `Node7.Example.org.:9866` is `node7.example.org`.
    """
    name = text.split("://", 1)[-1].split("/", 1)[0].strip().lower()
    if name.startswith("["):
        name = name[1:].split("]", 1)[0]
    elif name.count(":") == 1:
        name = name.split(":", 1)[0]
    return name.split("%", 1)[0].rstrip(".")


def match(location: Location, worker: WorkerPlace) -> Match:
    """How close `worker` is to what lies at `location`, and how much of it is that close.

    A host matches if the machines share a name, a full name and a short one (`node7.example.org`,
    `node7`) being the same. A zone matches by name, or as an availability zone of the region
    (`eu-central-1a` of `eu-central-1`). O(holders × names of the worker).
    """
    if location.workers and _without_scheme(worker.address) in map(
        _without_scheme, location.workers
    ):
        return Match("process", 1.0)
    share = max((h.share for h in location.hosts if _same_host(h.names, worker.names)), default=0)
    if share > 0:
        return Match("host", share)
    if worker.rack is not None:
        racks = (r.share for r in location.racks if _same_rack(r.name, worker.rack))
        share = max(racks, default=0)
        if share > 0:
            return Match("rack", share)
    if worker.zone is not None and any(_same_zone(z, worker.zone) for z in location.zones):
        return Match("zone", 1.0)
    return Match("remote", 0.0)


def nearest_workers(
    location: Location, workers: Iterable[WorkerPlace], *, within: Closeness = "zone"
) -> tuple[str, ...]:
    """Addresses of the workers that are closest to `location`, those with most of it first.

    All of them are equally close (all in its rack, say), and none is farther than `within`: for a
    demand to run where the data is, that is `location.finest`. Empty if there is no such worker.
    """
    farthest = min(CLOSENESS.index(within), CLOSENESS.index("zone"))
    found: dict[int, list[tuple[float, str]]] = {}
    for worker in workers:
        how = match(location, worker)
        rank = CLOSENESS.index(how.closeness)
        if rank <= farthest:
            found.setdefault(rank, []).append((-how.share, worker.address))
    return tuple(address for _, address in sorted(found[min(found)])) if found else ()


def _without_scheme(address: str) -> str:
    return address.split("://", 1)[-1].lower()


def _same_host(ours: frozenset[str], theirs: frozenset[str]) -> bool:
    return not ours.isdisjoint(theirs) or _is_short_for(ours, theirs) or _is_short_for(theirs, ours)


def _is_short_for(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether one of `some` is the first label of a full name among `others`."""
    short = [f"{name}." for name in some if name and "." not in name and ":" not in name]
    # An address has no first label: "10" is not short for "10.0.0.5".
    return any(
        full.startswith(name) and not re.fullmatch(r"[0-9.]+", full)
        for name in short
        for full in others
    )


def _same_rack(ours: str, label: str) -> bool:
    """By the whole path, or by its last part if the worker's label is only that."""
    path, wanted = ours.strip("/").lower(), label.strip("/").lower()
    return path == wanted or ("/" not in wanted and path.rsplit("/", 1)[-1] == wanted)


def _same_zone(ours: str, label: str) -> bool:
    zone, wanted = ours.lower(), label.lower()
    if not wanted.startswith(zone):
        return False
    rest = wanted[len(zone) :]
    return not rest or (zone[-1:].isdigit() and re.fullmatch(_AVAILABILITY_ZONE, rest) is not None)
