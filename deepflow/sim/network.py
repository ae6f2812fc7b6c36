"""The network between simulated workers: flows of bytes that share links max–min fairly.

Hosts stand in racks, racks in zones. Every link carries as much each way at once. A flow waits for
the latency of its distance, then its bytes cross all links of its path at one rate, which is worked
out anew whenever a flow begins or ends or a link fails or returns.

Topologies (`NetworkSpec.topology`):

`tiers`
    One switch a rack and one a zone, one uplink each: `rack_uplink_bytes_per_s`,
    `zone_uplink_bytes_per_s`. One path between two hosts.
`fat-tree`
    k-ary (Al-Fares et al. 2008): zones are pods of k/2 access and k/2 aggregation switches, k/2
    hosts at each access switch, (k/2)² core switches. Departure: links are as wide as
    the spec says and not all alike: the k/2 uplinks of a rack have `rack_uplink_bytes_per_s`
    together, the (k/2)² uplinks of a zone `zone_uplink_bytes_per_s` together.
`three-layer`
    An access switch a rack, two aggregation switches a zone, two core switches, each joined to all
    of the next layer; uplinks of a rack and of a zone have the spec's bandwidth together.
    Oversubscription is what these leave: at a rack, its hosts' bandwidth ÷ its uplinks'.

Where there are several paths, a hash of the pair of hosts chooses one (ECMP), and one that is whole
where the chosen one is broken. In each topology a zone of tier `edge` is built as in `tiers` and
joined to the rest by one link of `edge_uplink_bytes_per_s`.

Names, for `LinkFailure`: links `nic:<host>`, `process:<host>`, `rack-uplink:<zone>/<rack>`,
`zone-uplink:<zone>`, `edge-uplink:<zone>`, `<lower switch>=<upper switch>`; switches
`access:<zone>/<rack>`, `zone:<zone>` (in `tiers` and edge zones), `aggregation:<zone>/<n>`,
`core:<n>`. A switch that fails takes all its links with it.

Wiring and flows are in one file, since rates are worked out over both whenever a link fails.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from zlib import crc32

from deepflow.errors import ConfigurationError, nearest
from deepflow.sim.cluster import ClusterSpec, NetworkSpec

__all__ = ["TOPOLOGIES", "Distance", "HostSite", "Network", "distance", "sites"]

EDGE = "edge"
TOPOLOGIES = ("tiers", "fat-tree", "three-layer")


@dataclass(frozen=True, slots=True)
class HostSite:
    """Where a worker's host stands."""

    host: str
    rack: str
    """Unique within its zone."""
    zone: str
    tier: str = ""
    """`edge`: its zone is behind a thin uplink."""
    nic_bytes_per_s: float = 125e6


class Distance(IntEnum):
    """How far two hosts are apart: the index into `NetworkSpec.latency_s`."""

    SAME_HOST = 0
    SAME_RACK = 1
    SAME_ZONE = 2
    OTHER_ZONE = 3
    EDGE = 4


def distance(source: HostSite, target: HostSite) -> Distance:
    """How far two sites are apart."""
    if source.host == target.host:
        return Distance.SAME_HOST
    if source.zone != target.zone:
        return Distance.EDGE if EDGE in (source.tier, target.tier) else Distance.OTHER_ZONE
    return Distance.SAME_RACK if source.rack == target.rack else Distance.SAME_ZONE


def sites(cluster: ClusterSpec) -> dict[str, HostSite]:
    """The site of each worker, by its name `<class>-<n>` with n from 0.

    A rack or zone among a class's labels is that of all its workers. Other hosts fill racks and
    zones in the order of the classes, `hosts_per_rack` and `racks_per_zone` at a time (k/2 in a
    fat-tree), those of tier `edge` apart from the rest.
    """
    half = cluster.network.fat_tree_k // 2
    is_fat_tree = cluster.network.topology == "fat-tree"
    hosts_per_rack = half if is_fat_tree else cluster.network.hosts_per_rack
    racks_per_zone = half if is_fat_tree else cluster.network.racks_per_zone
    n_in_realm: dict[str, int] = {}
    n_in_zone: dict[str, int] = {}
    zone_of_rack: dict[tuple[str, str], str] = {}

    def place(tier: str, zone: str | None, rack: str | None) -> tuple[str, str]:
        realm = "edge-" if tier == EDGE else ""
        if zone is None and rack is not None and (realm, rack) in zone_of_rack:
            return zone_of_rack[realm, rack], rack
        if zone is None:
            n = n_in_realm[realm] = n_in_realm.get(realm, -1) + 1
            zone = f"{realm}zone-{n // (hosts_per_rack * racks_per_zone)}"
            if rack is not None:
                zone_of_rack[realm, rack] = zone
        if rack is None:
            n = n_in_zone[zone] = n_in_zone.get(zone, -1) + 1
            rack = f"rack-{n // hosts_per_rack}"
        return zone, rack

    found: dict[str, HostSite] = {}
    for worker_class in cluster.classes:
        labels = dict(worker_class.labels)
        tier = labels.get("tier", "")
        for n in range(worker_class.count):
            if n % worker_class.workers_per_host == 0:
                zone, rack = place(tier, labels.get("zone"), labels.get("rack"))
            host = f"{worker_class.name}-host-{n // worker_class.workers_per_host}"
            found[f"{worker_class.name}-{n}"] = HostSite(
                host, rack, zone, tier, worker_class.nic_bytes_per_s
            )
    return found


class _Flow:
    """Bytes on their way."""

    __slots__ = ("anchor_s", "ends_s", "flow_id", "left_bytes", "links", "pair", "rate")

    def __init__(self, flow_id: int, pair: tuple[str, str], n_bytes: float) -> None:
        self.flow_id = flow_id
        self.pair = pair
        self.left_bytes = n_bytes
        """At `anchor_s`, when its rate last changed."""
        self.anchor_s = 0.0
        self.rate = 0.0
        self.ends_s = math.inf
        self.links: tuple[int, ...] = ()
        """The links that may limit it; empty while it has no path."""


class _Wiring:
    """Links and switches by number and name, and the paths between two hosts.

    Link `2n` is the way up of the n-th cable, `2n + 1` the way down.
    """

    def __init__(self, spec: NetworkSpec, hosts: Iterable[HostSite]) -> None:
        self.spec = spec
        self.capacity: list[float] = []
        self.names: list[str] = []
        """Of cables; links 2n and 2n + 1 are the n-th."""
        self.cables_at: dict[str, list[int]] = {}
        """Of each switch, the cables it ends."""
        self._cable: dict[str, int] = {}
        self.site = {host.host: host for host in hosts}
        self._behind: list[float] = []
        """Of each cable, what the hosts on its lower side can send together."""
        self._edge_zones = {host.zone for host in self.site.values() if host.tier == EDGE}
        self._check()
        self._set_widths()
        self._build()
        self.can_fill = tuple(
            2 * cable + way
            for cable, behind in enumerate(self._behind)
            for way in (0, 1)
            if behind > self.capacity[2 * cable]
        )

    def _check(self) -> None:
        spec = self.spec
        if spec.topology not in TOPOLOGIES:
            close = nearest(spec.topology, TOPOLOGIES)
            hint = f"did you mean {close!r}?" if close else f"use one of {', '.join(TOPOLOGIES)}"
            raise ConfigurationError(f"{spec.topology!r} is not a topology; {hint}")
        mixed = [
            host.zone
            for host in self.site.values()
            if host.tier != EDGE and host.zone in self._edge_zones
        ]
        if mixed:
            raise ConfigurationError(
                f"zone {mixed[0]!r} has hosts of tier 'edge' and others; a zone is wholly of tier "
                "'edge' or not at all: give the edge hosts a zone of their own"
            )

    def _add(self, name: str, bandwidth: float, ends: Sequence[str], behind: float) -> None:
        if not bandwidth > 0 or not math.isfinite(bandwidth):
            raise ConfigurationError(
                f"link {name!r} has {bandwidth!r} bytes/s; a bandwidth is finite and more than 0"
            )
        cable = len(self.names)
        self._cable[name] = cable
        self.names.append(name)
        self.capacity += [bandwidth, bandwidth]
        self._behind.append(behind)
        for switch in ends:
            self.cables_at.setdefault(switch, []).append(cable)

    def _build(self) -> None:
        """Lay the cables: of hosts, then of racks, then of zones."""
        spec = self.spec
        nic_of_rack: dict[tuple[str, str], float] = {}
        nic_of_zone: dict[str, float] = {}
        for host in self.site.values():
            access = f"access:{host.zone}/{host.rack}"
            # A flow is alone at its host's own links in the worst case: they can always be full.
            self._add(f"process:{host.host}", spec.process_bytes_per_s, (), math.inf)
            self._add(f"nic:{host.host}", host.nic_bytes_per_s, (access,), math.inf)
            rack = (host.zone, host.rack)
            nic_of_rack[rack] = nic_of_rack.get(rack, 0.0) + host.nic_bytes_per_s
            nic_of_zone[host.zone] = nic_of_zone.get(host.zone, 0.0) + host.nic_bytes_per_s
        for (zone, rack_name), nic in nic_of_rack.items():
            access = f"access:{zone}/{rack_name}"
            width = spec.rack_uplink_bytes_per_s
            if self._is_tree(zone):
                self._add(f"rack-uplink:{zone}/{rack_name}", width, (access, f"zone:{zone}"), nic)
                continue
            for a in range(self._n_aggregation):
                above = f"aggregation:{zone}/{a}"
                self._add(f"{access}={above}", width / self._n_aggregation, (access, above), nic)
        for zone, nic in nic_of_zone.items():
            width = spec.zone_uplink_bytes_per_s
            if zone in self._edge_zones:
                width = spec.edge_uplink_bytes_per_s
            if self._is_tree(zone):
                self._add(self._zone_uplink(zone), width, (f"zone:{zone}",), nic)
                continue
            uplinks = [(a, c) for a in range(self._n_aggregation) for c in self._cores(a)]
            for a, c in uplinks:
                below, above = f"aggregation:{zone}/{a}", f"core:{c}"
                self._add(f"{below}={above}", width / len(uplinks), (below, above), nic)

    def _set_widths(self) -> None:
        """How many switches there are in each layer; refuses what a fat-tree has no ports for."""
        self._n_aggregation, self._n_core = 2, 2
        if self.spec.topology != "fat-tree":
            return
        k = self.spec.fat_tree_k
        if k < 2 or k % 2:
            raise ConfigurationError(f"fat_tree_k={k} cannot be; use an even number from 2")
        half = k // 2
        self._n_aggregation, self._n_core = half, half * half
        inside = [host for host in self.site.values() if host.zone not in self._edge_zones]
        hosts = Counter((host.zone, host.rack) for host in inside)
        racks = Counter(zone for zone, _ in hosts)
        most_hosts = max(hosts.values(), default=0)
        most_racks = max(racks.values(), default=0)
        needed = max(len(racks), 2 * most_racks, 2 * most_hosts)
        if needed > k:
            raise ConfigurationError(
                f"a fat-tree of k={k} has {k} zones of {half} racks of {half} hosts; here are "
                f"{len(racks)} zones of up to {most_racks} racks of up to {most_hosts} hosts: "
                f"use fat_tree_k={needed + needed % 2}"
            )

    def _zone_uplink(self, zone: str) -> str:
        return f"{'edge' if zone in self._edge_zones else 'zone'}-uplink:{zone}"

    def _is_tree(self, zone: str) -> bool:
        return self.spec.topology == "tiers" or zone in self._edge_zones

    def _cores(self, aggregation: int) -> range:
        """The core switches that the aggregation switch of this number is joined to."""
        if self.spec.topology == "three-layer":
            return range(self._n_core)
        return range(aggregation * self._n_aggregation, (aggregation + 1) * self._n_aggregation)

    def paths(self, source: HostSite, target: HostSite) -> list[tuple[int, ...]]:
        """All shortest paths, as links."""
        if source.host == target.host:
            return [(2 * self._cable[f"process:{source.host}"],)]
        first = 2 * self._cable[f"nic:{source.host}"]
        last = 2 * self._cable[f"nic:{target.host}"] + 1
        if (source.zone, source.rack) == (target.zone, target.rack):
            return [(first, last)]
        if source.zone == target.zone:
            n_turns = 1 if self._is_tree(source.zone) else self._n_aggregation
            middle = [
                self._climb(source, a, None) + self._descend(target, a, None)
                for a in range(n_turns)
            ]
        else:
            middle = [
                self._climb(source, a, c) + self._descend(target, b, c)
                for c in range(self._n_core)
                for a in self._joined(source.zone, c)
                for b in self._joined(target.zone, c)
            ]
            # Zones that are trees do not tell one core switch from another.
            middle = list(dict.fromkeys(middle))
        return [(first, *links, last) for links in middle]

    def _joined(self, zone: str, core: int) -> list[int]:
        """The aggregation switches of a zone that are joined to a core switch."""
        if self._is_tree(zone):
            return [0]
        return [a for a in range(self._n_aggregation) if core in self._cores(a)]

    def _climb(self, site: HostSite, aggregation: int, core: int | None) -> tuple[int, ...]:
        """Links from a host's rack up to a zone's switch, or on to a core switch."""
        zone = site.zone
        if self._is_tree(zone):
            names = [f"rack-uplink:{zone}/{site.rack}"]
            if core is not None:
                names.append(self._zone_uplink(zone))
        else:
            above = f"aggregation:{zone}/{aggregation}"
            names = [f"access:{zone}/{site.rack}={above}"]
            if core is not None:
                names.append(f"{above}=core:{core}")
        return tuple(2 * self._cable[name] for name in names)

    def _descend(self, site: HostSite, aggregation: int, core: int | None) -> tuple[int, ...]:
        return tuple(link + 1 for link in reversed(self._climb(site, aggregation, core)))

    def cables_of(self, pattern: str) -> list[int]:
        """The cables that a `LinkFailure` means, by their own names or those of switches."""
        cables = {n for n, name in enumerate(self.names) if fnmatchcase(name, pattern)}
        for switch, ends in self.cables_at.items():
            if fnmatchcase(switch, pattern):
                cables.update(ends)
        if not cables:
            known = [*self.names, *self.cables_at]
            close = nearest(pattern, known)
            hint = f"did you mean {close!r}?" if close else f"names are such as {known[1]!r}"
            raise ConfigurationError(f"no link or switch is named {pattern!r}; {hint}")
        return sorted(cables)


class Network:
    """Flows under way, and when each ends.

    A state machine without a clock: the caller says what time it is, never earlier than before.
    The same calls give the same answers to the last bit in every process.
    """

    def __init__(self, spec: NetworkSpec, hosts: Mapping[str, HostSite]) -> None:
        """`hosts`: where each worker's host stands, by the worker's name.

        Raises :class:`ConfigurationError` for a topology, bandwidth, site or failure that cannot
        be.
        """
        self._latency_s = spec.latency_s
        self._hosts = dict(hosts)
        self._wiring = _Wiring(spec, hosts.values())
        # A link that all hosts behind it together cannot fill never limits a flow.
        self._can_fill = frozenset(self._wiring.can_fill)
        self._capacity = self._wiring.capacity
        self._now_s = -math.inf
        self._flows: dict[int, _Flow] = {}
        self._moving: dict[int, _Flow] = {}
        """Flows past their latency, also those that are stalled."""
        self._users: dict[int, dict[int, _Flow]] = {}
        """Of each link in use, the flows that cross it."""
        self._is_stale = False
        self._next_end_s = math.inf
        self._starting: list[tuple[float, int, int, _Flow]] = []
        self._order = count()
        self._ended: list[int] = []
        self._n_failures = [0] * len(self._wiring.names)
        """Of each cable, how many failures hold it down now."""
        self._paths: dict[tuple[str, str], list[tuple[int, ...]]] = {}
        self._routes: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self._outages = self._plan_outages(spec)

    def _plan_outages(self, spec: NetworkSpec) -> list[tuple[float, int, int, list[int]]]:
        """Time, order, +1 for a failure or −1 for a return, cables; the latest first."""
        planned = []
        for n, failure in enumerate(spec.failures):
            if not failure.from_s < failure.to_s:
                raise ConfigurationError(
                    f"{failure.link!r} fails at {failure.from_s} s and returns at {failure.to_s} s;"
                    " it must return later than it fails"
                )
            cables = self._wiring.cables_of(failure.link)
            planned.append((failure.from_s, n, 1, cables))
            if math.isfinite(failure.to_s):
                planned.append((failure.to_s, n, -1, cables))
        return sorted(planned, key=lambda outage: outage[:3], reverse=True)

    def start(self, flow_id: int, source: str, target: str, n_bytes: float, now_s: float) -> None:
        """Let `n_bytes` set out from one worker to another.

        Raises ValueError for an id that is under way, a worker it does not know, a size that is
        not finite and at least 0, or a time before the last.
        """
        if flow_id in self._flows:
            raise ValueError(f"flow {flow_id} is under way already")
        if not 0 <= n_bytes < math.inf:
            raise ValueError(f"a flow of {n_bytes!r} bytes cannot be")
        for worker in (source, target):
            if worker not in self._hosts:
                raise ValueError(f"no worker is named {worker!r}")
        self._run_to(now_s)
        here, there = self._hosts[source], self._hosts[target]
        flow = _Flow(flow_id, (here.host, there.host), n_bytes)
        self._flows[flow_id] = flow
        starts_s = now_s + self._latency_s[distance(here, there)]
        heappush(self._starting, (starts_s, flow_id, next(self._order), flow))

    def cancel(self, flow_id: int, now_s: float) -> None:
        """Forget a flow; what it had carried is lost.

        One that ended by `now_s` but was not handed out yet is not handed out any more. Raises
        ValueError for an id that is not under way.
        """
        self._run_to(now_s)
        flow = self._flows.pop(flow_id, None)
        if flow is not None:
            self._stop(flow)
        elif flow_id in self._ended:
            self._ended.remove(flow_id)
        else:
            raise ValueError(f"flow {flow_id} is not under way")

    def next_event_s(self) -> float:
        """When to call :meth:`advance` next; inf if nothing will ever happen.

        A flow ends then, or sets out after its latency, or a link fails or returns.
        """
        return self._now_s if self._ended else self._next_s()

    def advance(self, now_s: float) -> list[int]:
        """The flows that ended by now and were not handed out before: by time, then by id."""
        self._run_to(now_s)
        ended, self._ended = self._ended, []
        return ended

    def rates(self) -> dict[int, float]:
        """Bytes per second of each flow past its latency; 0 for one that is stalled."""
        self._share_anew()
        return {flow_id: flow.rate for flow_id, flow in self._moving.items()}

    def route(self, source: str, target: str) -> tuple[str, ...] | None:
        """Names of the links between two workers now, each with `:up` or `:down`; None: no path."""
        links = self._route((self._hosts[source].host, self._hosts[target].host))
        if links is None:
            return None
        return tuple(
            f"{self._wiring.names[link // 2]}:{'down' if link % 2 else 'up'}" for link in links
        )

    def bandwidths(self) -> dict[str, float]:
        """Bytes per second that each link, by its name, carries each way when it is whole."""
        return {name: self._capacity[2 * n] for n, name in enumerate(self._wiring.names)}

    def _next_s(self) -> float:
        self._share_anew()
        starting = self._starting
        # Those cancelled before they set out.
        while starting and self._flows.get(starting[0][1]) is not starting[0][3]:
            heappop(starting)
        next_s = self._next_end_s
        if starting and starting[0][0] < next_s:
            next_s = starting[0][0]
        if self._outages and self._outages[-1][0] < next_s:
            next_s = self._outages[-1][0]
        return next_s

    def _run_to(self, now_s: float) -> None:
        """Let everything happen that happens by now."""
        if not now_s >= self._now_s:
            raise ValueError(f"time went back from {self._now_s} s to {now_s} s")
        while (at_s := self._next_s()) <= now_s:
            self._now_s = max(at_s, self._now_s)
            self._end_flows()
            self._begin_flows()
            self._turn_links()
        self._now_s = now_s

    def _end_flows(self) -> None:
        now_s = self._now_s
        if self._next_end_s > now_s:
            return
        done = [flow for flow in self._moving.values() if flow.ends_s <= now_s]
        for flow in sorted(done, key=lambda flow: (flow.ends_s, flow.flow_id)):
            del self._flows[flow.flow_id]
            self._stop(flow)
            self._ended.append(flow.flow_id)

    def _begin_flows(self) -> None:
        starting = self._starting
        while starting and starting[0][0] <= self._now_s:
            _, flow_id, _, flow = heappop(starting)
            if self._flows.get(flow_id) is flow:
                flow.anchor_s = self._now_s
                self._moving[flow_id] = flow
                self._put_on_route(flow)

    def _turn_links(self) -> None:
        """Let links fail and return, and every flow look for its way anew."""
        if not self._outages or self._outages[-1][0] > self._now_s:
            return
        while self._outages and self._outages[-1][0] <= self._now_s:
            _, _, change, cables = self._outages.pop()
            for cable in cables:
                self._n_failures[cable] += change
        self._routes.clear()
        for flow in self._moving.values():
            self._take_off_route(flow)
            self._put_on_route(flow)

    def _stop(self, flow: _Flow) -> None:
        if self._moving.pop(flow.flow_id, None) is not None:
            self._take_off_route(flow)

    def _put_on_route(self, flow: _Flow) -> None:
        for link in self._route(flow.pair) or ():
            if link in self._can_fill:
                flow.links += (link,)
                self._users.setdefault(link, {})[flow.flow_id] = flow
        self._is_stale = True

    def _take_off_route(self, flow: _Flow) -> None:
        for link in flow.links:
            users = self._users[link]
            del users[flow.flow_id]
            if not users:
                del self._users[link]
        flow.links = ()
        self._is_stale = True

    def _route(self, pair: tuple[str, str]) -> tuple[int, ...] | None:
        """The path that the hash of the pair chooses, or one that is whole; None if none is."""
        if pair not in self._routes:
            if pair not in self._paths:
                site = self._wiring.site
                self._paths[pair] = self._wiring.paths(site[pair[0]], site[pair[1]])
            self._routes[pair] = self._choose(pair, self._paths[pair])
        return self._routes[pair]

    def _choose(
        self, pair: tuple[str, str], paths: list[tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        hashed = crc32(">".join(pair).encode())
        chosen = paths[hashed % len(paths)]
        if self._is_whole(chosen):
            return chosen
        whole = [path for path in paths if self._is_whole(path)]
        return whole[hashed % len(whole)] if whole else None

    def _is_whole(self, path: tuple[int, ...]) -> bool:
        return not any(self._n_failures[link // 2] for link in path)

    def _share_anew(self) -> None:
        """Work out the rates, and when flows end, if a flow or a link has changed since."""
        if not self._is_stale:
            return
        self._is_stale = False
        now_s = self._now_s
        rates = self._fair_rates()
        next_end_s = math.inf
        for flow_id, flow in self._moving.items():
            rate = rates.get(flow_id, 0.0)
            # One whose rate stays is left as it is: no rounding, and nothing to do.
            if rate != flow.rate:
                left = flow.left_bytes - flow.rate * (now_s - flow.anchor_s)
                flow.left_bytes = left if left > 0.0 else 0.0
                flow.anchor_s = now_s
                flow.rate = rate
                flow.ends_s = now_s + flow.left_bytes / rate if rate > 0.0 else math.inf
            if flow.ends_s < next_end_s:
                next_end_s = flow.ends_s
        self._next_end_s = next_end_s

    def _fair_rates(self) -> dict[int, float]:
        """Max–min fair rates, by progressive filling (Bertsekas & Gallager 1992, 6.5.2).

        Again and again the link with the least left for each flow that is not settled yet settles
        all of them at that rate. What a link has left for each only grows as others settle at less,
        so links wait in a heap and are looked at again when their turn comes.
        O(flows × links of each × log links).
        """
        users = self._users
        capacity = self._capacity
        left = {link: capacity[link] for link in users}
        n_open = {link: len(flows) for link, flows in users.items()}
        heap = [(left[link] / n, link) for link, n in n_open.items()]
        heapify(heap)
        rates: dict[int, float] = {}
        while heap:
            rate, link = heap[0]
            n = n_open[link]
            if n == 0:
                heappop(heap)
                continue
            share = left[link] / n
            if share > rate:
                heapreplace(heap, (share, link))
                continue
            heappop(heap)
            for flow_id, flow in users[link].items():
                if flow_id not in rates:
                    rates[flow_id] = rate
                    for crossed in flow.links:
                        left[crossed] -= rate
                        n_open[crossed] -= 1
        return rates
