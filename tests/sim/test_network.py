import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.errors import ConfigurationError
from deepflow.sim.cluster import ClusterSpec, LinkFailure, NetworkSpec, SimWorkerClass
from deepflow.sim.network import Distance, HostSite, Network, distance, sites

MB = 1e6
NO_LATENCY = (0.0,) * 5


def spec(topology="tiers", **changes):
    return replace(NetworkSpec(topology=topology, latency_s=NO_LATENCY), **changes)


def site(host, zone="z", rack="r", tier="", nic=100 * MB):
    return HostSite(host, rack, zone, tier, nic)


def run(network, until_s=math.inf):
    """Each flow's end, by its id, played from event to event."""
    ends = {}
    while (at_s := network.next_event_s()) < math.inf and at_s <= until_s:
        for flow_id in network.advance(at_s):
            ends[flow_id] = at_s
    return ends


def mixed_cluster(topology="tiers", **changes):
    """Two zones of unlike hosts and one at the edge, behind uplinks that can be full."""
    narrow = {
        "hosts_per_rack": 2,
        "rack_uplink_bytes_per_s": 150 * MB,
        "zone_uplink_bytes_per_s": 300 * MB,
        "edge_uplink_bytes_per_s": 20 * MB,
        "fat_tree_k": 8,
    }
    return ClusterSpec(
        "mixed",
        (
            SimWorkerClass(
                "fast", 4, nic_bytes_per_s=1000 * MB, workers_per_host=2, labels=(("zone", "a"),)
            ),
            SimWorkerClass("plain", 7, nic_bytes_per_s=100 * MB, labels=(("zone", "b"),)),
            SimWorkerClass(
                "far", 4, nic_bytes_per_s=50 * MB, labels=(("zone", "e"), ("tier", "edge"))
            ),
        ),
        network=spec(topology, **(narrow | changes)),
    )


def mixed_network(topology="tiers", **changes):
    cluster = mixed_cluster(topology, **changes)
    return Network(cluster.network, sites(cluster)), sorted(sites(cluster))


# Where workers stand


def test_hosts_fill_racks_and_zones_in_order():
    cluster = ClusterSpec(
        "c", (SimWorkerClass("w", 9),), network=NetworkSpec(hosts_per_rack=2, racks_per_zone=2)
    )
    placed = sites(cluster)
    assert [(s.zone, s.rack) for s in placed.values()] == [
        ("zone-0", "rack-0"),
        ("zone-0", "rack-0"),
        ("zone-0", "rack-1"),
        ("zone-0", "rack-1"),
        ("zone-1", "rack-0"),
        ("zone-1", "rack-0"),
        ("zone-1", "rack-1"),
        ("zone-1", "rack-1"),
        ("zone-2", "rack-0"),
    ]
    assert list(placed) == [f"w-{n}" for n in range(9)]


def test_labels_say_rack_and_zone_of_all_workers_of_a_class():
    cluster = ClusterSpec(
        "c",
        (
            SimWorkerClass("a", 6, labels=(("rack", "left"), ("zone", "north"))),
            SimWorkerClass("b", 6, labels=(("rack", "right"),)),
            SimWorkerClass("c", 2, labels=(("rack", "right"),)),
        ),
        network=NetworkSpec(hosts_per_rack=1, racks_per_zone=1),
    )
    placed = sites(cluster)
    assert {(s.zone, s.rack) for w, s in placed.items() if w[0] == "a"} == {("north", "left")}
    assert {(s.zone, s.rack) for w, s in placed.items() if w[0] in "bc"} == {("zone-0", "right")}


def test_workers_share_a_host_and_edge_hosts_stand_apart():
    cluster = ClusterSpec(
        "c",
        (
            SimWorkerClass("w", 3, workers_per_host=2),
            SimWorkerClass("e", 1, labels=(("tier", "edge"),), nic_bytes_per_s=5.0),
        ),
    )
    placed = sites(cluster)
    assert placed["w-0"].host == placed["w-1"].host != placed["w-2"].host
    assert placed["e-0"] == HostSite("e-host-0", "rack-0", "edge-zone-0", "edge", 5.0)


def test_distance_is_that_of_the_first_tier_that_two_hosts_share():
    here = site("h", "z", "r")
    assert distance(here, here) is Distance.SAME_HOST
    assert distance(here, site("i", "z", "r")) is Distance.SAME_RACK
    assert distance(here, site("i", "z", "s")) is Distance.SAME_ZONE
    assert distance(here, site("i", "y", "r")) is Distance.OTHER_ZONE
    far = site("i", "y", "r", "edge")
    assert distance(here, far) is distance(far, here) is Distance.EDGE
    assert distance(far, replace(far, host="j")) is Distance.SAME_RACK


# Sharing


def test_three_flows_by_hand():
    # a → c and b → c share c's 100 MB/s; a → d has what a's 100 MB/s leaves.
    hosts = {name: site(name) for name in "abcd"}
    network = Network(spec(), hosts)
    network.start(1, "a", "c", 100 * MB, 0.0)
    network.start(2, "b", "c", 50 * MB, 0.0)
    network.start(3, "a", "d", 150 * MB, 0.0)
    network.advance(0.0)
    assert network.rates() == {1: 50 * MB, 2: 50 * MB, 3: 50 * MB}
    # At 1 s flow 2 ends. a's NIC still holds 1 and 3 at 50 MB/s: 1 ends at 2 s, and then 3, with
    # 50 MB left, has a's NIC to itself until 2.5 s.
    assert run(network) == {2: 1.0, 1: 2.0, 3: 2.5}


def test_unequal_bottlenecks_by_hand():
    # x is 30 MB/s. Flows 1, 2 into x get 15 each; flow 3 from a gets a's remaining 85.
    hosts = {"a": site("a"), "b": site("b"), "x": site("x", nic=30 * MB), "y": site("y")}
    network = Network(spec(), hosts)
    for flow_id, source, target in ((1, "a", "x"), (2, "b", "x"), (3, "a", "y")):
        network.start(flow_id, source, target, 85 * MB, 0.0)
    network.advance(0.0)
    assert network.rates() == {1: 15 * MB, 2: 15 * MB, 3: 85 * MB}


def test_rack_uplink_that_its_hosts_can_fill_is_shared_by_hand():
    hosts = {"a": site("a"), "b": site("b"), "c": site("c", rack="s"), "d": site("d", rack="t")}
    network = Network(spec(rack_uplink_bytes_per_s=150 * MB), hosts)
    network.start(1, "a", "c", 75 * MB, 0.0)
    network.start(2, "b", "d", 100 * MB, 0.0)
    network.advance(0.0)
    assert network.rates() == {1: 75 * MB, 2: 75 * MB}
    assert run(network) == {1: 1.0, 2: 1.25}


def test_each_way_of_a_link_is_its_own():
    network = Network(spec(), {name: site(name) for name in "ab"})
    network.start(1, "a", "b", 100 * MB, 0.0)
    network.start(2, "b", "a", 100 * MB, 0.0)
    assert run(network) == {1: 1.0, 2: 1.0}


def test_latency_of_the_distance_comes_before_the_bytes():
    hosts = {
        "a": site("a"),
        "same-host": site("a"),
        "same-rack": site("b"),
        "same-zone": site("c", rack="s"),
        "other-zone": site("d", zone="y"),
        "far": site("e", zone="x", tier="edge"),
    }
    latency_s = (0.1, 0.2, 0.3, 0.4, 0.5)
    for n, target in enumerate(list(hosts)[1:]):
        network = Network(spec(latency_s=latency_s), hosts)
        network.start(7, "a", target, 0.0, 10.0)
        assert run(network) == {7: 10.0 + latency_s[n]}


def test_workers_of_a_host_do_not_use_its_network():
    network = Network(
        spec(process_bytes_per_s=1000 * MB), {"a": site("h"), "b": site("h"), "c": site("i")}
    )
    network.start(1, "a", "b", 1000 * MB, 0.0)
    network.start(2, "a", "c", 100 * MB, 0.0)
    assert run(network) == {1: 1.0, 2: 1.0}
    assert network.route("a", "b") == ("process:h:up",)


def test_edge_zone_is_behind_its_uplink():
    network, _ = mixed_network()
    network.start(1, "far-0", "plain-0", 20 * MB, 0.0)
    network.start(2, "far-2", "fast-0", 20 * MB, 0.0)
    assert run(network) == {1: 2.0, 2: 2.0}
    assert "edge-uplink:e:up" in network.route("far-0", "plain-0")


def test_a_start_later_slows_what_is_under_way():
    network = Network(spec(), {name: site(name) for name in "abc"})
    network.start(1, "a", "c", 100 * MB, 0.0)
    network.start(2, "b", "c", 100 * MB, 0.5)
    assert run(network) == {1: 1.5, 2: 2.0}


def test_cancelled_flow_gives_its_share_back():
    network = Network(spec(), {name: site(name) for name in "abc"})
    network.start(1, "a", "c", 100 * MB, 0.0)
    network.start(2, "b", "c", 100 * MB, 0.0)
    network.cancel(2, 1.0)
    assert run(network) == {1: 1.5}


def test_flow_cancelled_before_it_set_out_never_runs_and_its_id_is_free():
    network = Network(spec(latency_s=(1.0,) * 5), {name: site(name) for name in "ab"})
    network.start(1, "a", "b", 100 * MB, 0.0)
    network.cancel(1, 0.5)
    network.start(1, "a", "b", 100 * MB, 0.5)
    assert run(network) == {1: 2.5}


def test_flow_that_ended_before_its_cancellation_is_not_handed_out():
    network = Network(spec(), {name: site(name) for name in "ab"})
    network.start(1, "a", "b", 100 * MB, 0.0)
    network.cancel(1, 3.0)
    assert network.advance(3.0) == []


def test_flows_that_ended_are_handed_out_by_time_then_id_and_once():
    network = Network(spec(), {name: site(name) for name in "abcdefgh"})
    network.start(9, "a", "b", 100 * MB, 0.0)
    network.start(3, "c", "d", 100 * MB, 0.0)
    network.start(5, "e", "f", 50 * MB, 0.0)
    network.start(8, "g", "h", 50 * MB, 2.0)
    assert network.next_event_s() == 2.0
    assert network.advance(2.0) == [5, 3, 9]
    assert network.advance(2.0) == []
    assert network.next_event_s() == 2.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.start(1, "a", "b", 1.0, 1.0), "under way already"),
        (lambda n: n.start(2, "a", "?", 1.0, 1.0), "no worker is named '\\?'"),
        (lambda n: n.start(2, "a", "b", -1.0, 1.0), "bytes cannot be"),
        (lambda n: n.start(2, "a", "b", math.nan, 1.0), "bytes cannot be"),
        (lambda n: n.start(2, "a", "b", 1.0, 0.5), "time went back"),
        (lambda n: n.advance(0.5), "time went back"),
        (lambda n: n.cancel(2, 1.0), "not under way"),
    ],
)
def test_impossible_calls_are_refused_and_change_nothing(call, message):
    network = Network(spec(), {name: site(name) for name in "ab"})
    network.start(1, "a", "b", 200 * MB, 0.0)
    network.advance(1.0)
    with pytest.raises(ValueError, match=message):
        call(network)
    assert run(network) == {1: 2.0}


# Properties

TOPOLOGIES = ("tiers", "fat-tree", "three-layer")
WORKERS = sorted(sites(mixed_cluster()))
FLOWS = st.lists(
    st.tuples(
        st.sampled_from(WORKERS),
        st.sampled_from(WORKERS),
        st.floats(0.0, 500 * MB),
        st.floats(0.0, 3.0),
    ),
    min_size=1,
    max_size=40,
)


def loads(network, flows):
    """Of each link in use, the rates over it, by flow."""
    found = {}
    for flow_id, rate in network.rates().items():
        for link in network.route(*flows[flow_id][:2]) or ():
            found.setdefault(link, {})[flow_id] = rate
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TOPOLOGIES), FLOWS, st.floats(0.0, 4.0))
def test_rates_are_max_min_fair(topology, flows, look_s):
    network, _ = mixed_network(topology, latency_s=(0.0, 0.01, 0.01, 0.1, 0.2))
    begun = dict(enumerate(flows))
    for flow_id, (source, target, n_bytes, at_s) in sorted(begun.items(), key=lambda f: f[1][3]):
        if at_s <= look_s:
            network.start(flow_id, source, target, n_bytes, at_s)
    network.advance(look_s)
    bandwidth = network.bandwidths()
    rates, load = network.rates(), loads(network, begun)
    for link, used in load.items():
        assert sum(used.values()) <= bandwidth[link.rpartition(":")[0]] * (1 + 1e-9), link
    for flow_id, rate in rates.items():
        assert rate > 0
        crossed = [load[link] for link in load if flow_id in load[link]]
        full = [
            used
            for link, used in load.items()
            if flow_id in used
            and sum(used.values()) >= bandwidth[link.rpartition(":")[0]] * (1 - 1e-9)
        ]
        # Its bottleneck: a full link, over which nothing goes faster.
        assert crossed
        assert any(rate >= max(used.values()) * (1 - 1e-9) for used in full)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TOPOLOGIES),
    FLOWS,
    st.lists(
        st.tuples(
            st.sampled_from(["nic:plain-*", "access:*/rack-0", "edge-uplink:e", "*core*"]),
            st.floats(0.0, 4.0),
            st.floats(0.01, 4.0),
        ),
        max_size=3,
    ),
)
def test_bytes_are_conserved_whatever_fails(topology, flows, outages):
    """The sum over time of each flow's rate is its size, and every flow ends."""
    failures = tuple(
        LinkFailure(link, at_s, at_s + for_s)
        for link, at_s, for_s in outages
        if topology != "tiers" or "core" not in link
    )
    network, _ = mixed_network(topology, failures=failures)
    carried = dict.fromkeys(range(len(flows)), 0.0)
    ends = {}
    waiting = sorted(enumerate(flows), key=lambda flow: (flow[1][3], flow[0]))
    last_s = 0.0
    while True:
        at_s = min(network.next_event_s(), waiting[0][1][3] if waiting else math.inf)
        if at_s == math.inf:
            break
        for flow_id, rate in network.rates().items():
            carried[flow_id] += rate * (at_s - last_s)
        for flow_id in network.advance(at_s):
            assert flow_id not in ends
            ends[flow_id] = at_s
        while waiting and waiting[0][1][3] == at_s:
            flow_id, (source, target, n_bytes, _) = waiting.pop(0)
            network.start(flow_id, source, target, n_bytes, at_s)
        last_s = at_s
    assert set(ends) == set(carried)
    for flow_id, n_bytes in carried.items():
        assert n_bytes == pytest.approx(flows[flow_id][2], rel=1e-9, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TOPOLOGIES), FLOWS, st.lists(st.floats(0.0, 20.0), max_size=10))
def test_looking_more_often_changes_no_end(topology, flows, looks_s):
    def ends(extra):
        network, _ = mixed_network(topology)
        calls = sorted([(f[3], 0, n) for n, f in enumerate(flows)] + [(s, 1, 0) for s in extra])
        found = []
        for at_s, is_look, n in calls:
            if is_look:
                found += network.advance(at_s)
            else:
                network.start(n, *flows[n][:3], at_s)
        while (at_s := network.next_event_s()) < math.inf:
            found += network.advance(at_s)
        return found, at_s

    assert ends([])[0] == ends(looks_s)[0]


# Topologies with several paths


def test_fat_tree_has_k_cubed_quarter_hosts_and_full_bandwidth_between_unlike_pairs():
    cluster = ClusterSpec("c", (SimWorkerClass("w", 16),), network=spec("fat-tree", fat_tree_k=4))
    placed = sites(cluster)
    assert len({s.zone for s in placed.values()}) == 4
    assert len({(s.zone, s.rack) for s in placed.values()}) == 8
    network = Network(cluster.network, placed)
    cores = {link for link in network.bandwidths() if "=core:" in link}
    assert len(cores) == 16
    assert len({link.split("=")[1] for link in cores}) == 4


def test_pairs_of_hosts_spread_over_the_paths_and_each_keeps_its_own():
    cluster = ClusterSpec("c", (SimWorkerClass("w", 16),), network=spec("fat-tree"))
    network = Network(cluster.network, sites(cluster))
    pairs = [(f"w-{a}", f"w-{b}") for a in range(4) for b in range(12, 16)]
    routes = [network.route(*pair) for pair in pairs]
    used = {next(link for link in route if "=core:" in link) for route in routes}
    assert len(used) == 4  # of the four links from the first pod to the core
    assert routes == [network.route(*pair) for pair in pairs]
    assert all(len(route) == 6 for route in routes)


@pytest.mark.parametrize("topology", ["fat-tree", "three-layer"])
def test_flow_goes_another_way_round_a_switch_that_fails(topology):
    cluster = ClusterSpec("c", (SimWorkerClass("w", 16),), network=spec(topology, racks_per_zone=2))
    placed = sites(cluster)
    before = Network(cluster.network, placed).route("w-0", "w-15")
    core = next(link for link in before if "=core:" in link).split("=")[1].split(":up")[0]
    failing = replace(cluster.network, failures=(LinkFailure(core, 0.2, 0.6),))
    network = Network(failing, placed)
    network.start(1, "w-0", "w-15", 125 * MB, 0.0)
    network.advance(0.3)
    detour = network.route("w-0", "w-15")
    assert detour is not None
    assert all(core not in link for link in detour)
    assert run(network)[1] == 1.0
    assert network.route("w-0", "w-15") == before


def test_flow_without_a_path_stalls_and_goes_on_when_the_link_is_back():
    failures = (LinkFailure("nic:b", 0.5, 2.0), LinkFailure("nic:*", 1.5, 3.0))
    network = Network(spec(failures=failures), {name: site(name) for name in "abcd"})
    network.start(1, "a", "b", 100 * MB, 0.0)
    network.start(2, "c", "d", 200 * MB, 0.0)
    network.advance(1.0)
    assert network.rates() == {1: 0.0, 2: 100 * MB}
    assert network.route("a", "b") is None
    network.advance(2.5)  # b's first failure is over, but not the second
    assert network.rates() == {1: 0.0, 2: 0.0}
    assert run(network) == {1: 3.5, 2: 3.5}


def test_link_that_never_returns_stalls_its_flows_for_good():
    failures = (LinkFailure("nic:b", 0.0, math.inf),)
    network = Network(spec(failures=failures), {name: site(name) for name in "ab"})
    network.start(1, "a", "b", MB, 0.0)
    assert run(network) == {}
    assert network.next_event_s() == math.inf


def test_three_layer_is_oversubscribed_where_its_uplinks_are():
    cluster = ClusterSpec(
        "c",
        (SimWorkerClass("w", 8, nic_bytes_per_s=100 * MB),),
        network=spec(
            "three-layer", hosts_per_rack=4, racks_per_zone=2, rack_uplink_bytes_per_s=100 * MB
        ),
    )
    network = Network(cluster.network, sites(cluster))
    for n in range(4):
        network.start(n, f"w-{n}", f"w-{n + 4}", 100 * MB, 0.0)
    network.advance(0.0)
    # 4:1: the rack's two uplinks carry 50 MB/s each, for four hosts of 100 MB/s.
    uplinks = {network.route(f"w-{n}", f"w-{n + 4}")[1] for n in range(4)}
    assert sum(network.rates().values()) == pytest.approx(len(uplinks) * 50 * MB)


def test_edge_zone_hangs_on_every_topology():
    for topology in TOPOLOGIES:
        network, _ = mixed_network(topology, zone_uplink_bytes_per_s=1000 * MB)
        route = network.route("far-0", "plain-3")
        assert "edge-uplink:e:up" in route
        network.start(1, "far-0", "plain-3", 20 * MB, 0.0)
        assert run(network) == {1: 1.0}


# What cannot be


def test_misspelt_topology_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"'fattree' is not a topology.*'fat-tree'"):
        Network(NetworkSpec(topology="fattree"), {"a": site("a")})


def test_misspelt_link_is_refused_with_the_nearest():
    failures = (LinkFailure("nic:alhpa", 0.0, 1.0),)
    with pytest.raises(ConfigurationError, match="'nic:alhpa'; did you mean 'nic:alpha'"):
        Network(NetworkSpec(failures=failures), {"alpha": site("alpha")})


def test_failure_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigurationError, match="later than it fails"):
        Network(NetworkSpec(failures=(LinkFailure("nic:a", 2.0, 1.0),)), {"a": site("a")})


def test_zone_partly_at_the_edge_is_refused():
    with pytest.raises(ConfigurationError, match=r"zone 'z' has hosts of tier 'edge' and others"):
        Network(NetworkSpec(), {"a": site("a"), "b": site("b", tier="edge")})


def test_bandwidth_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match=r"link 'nic:a' has 0\.0 bytes/s"):
        Network(NetworkSpec(), {"a": site("a", nic=0.0)})


def test_fat_tree_too_small_for_its_hosts_is_refused_with_the_size_that_fits():
    hosts = {f"w{n}": site(f"w{n}") for n in range(5)}
    with pytest.raises(ConfigurationError, match="use fat_tree_k=10"):
        Network(NetworkSpec(topology="fat-tree"), hosts)
    Network(NetworkSpec(topology="fat-tree", fat_tree_k=10), hosts)
    with pytest.raises(ConfigurationError, match="even number"):
        Network(NetworkSpec(topology="fat-tree", fat_tree_k=3), hosts)


PROGRAM = """
import random
from tests.sim.test_network import mixed_network, run
network, workers = mixed_network("fat-tree")
chance = random.Random(5)
for n in range(200):
    network.start(n, *chance.sample(workers, 2), chance.uniform(0, 1e8), n * 0.01)
print(sorted((at_s.hex(), n) for n, at_s in run(network).items()))
"""


def test_every_process_gives_the_same_to_the_last_bit():
    answers = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1
    assert len(answers.pop()) > 1000
