"""Where an input lies against where a worker runs."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.decide.location import (
    CLOSENESS,
    Holder,
    Location,
    Match,
    WorkerPlace,
    bare_host,
    match,
    nearest_workers,
)


def worker(address: str = "tcp://10.0.0.1:4000", *aliases: str, **labels: str) -> WorkerPlace:
    return WorkerPlace.of(address, labels, aliases)


def on(host: str, *aliases: str, share: float = 1.0) -> Location:
    return Location(hosts=(Holder(host, share, frozenset(aliases)),))


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("tcp://10.0.0.5:8786", "10.0.0.5"),
        ("10.0.0.5", "10.0.0.5"),
        ("Node7.Example.org.:9866", "node7.example.org"),
        ("tls://[FE80::1%eth0]:8786", "fe80::1"),
        ("fe80::1", "fe80::1"),
        ("[::1]", "::1"),
        ("inproc://10.0.0.5/12/1", "10.0.0.5"),
        ("node7", "node7"),
    ],
)
def test_a_host_is_known_without_scheme_port_and_case(text: str, bare: str) -> None:
    assert bare_host(text) == bare
    assert bare_host(bare) == bare


@pytest.mark.parametrize(
    ("location", "place"),
    [
        (on("10.0.0.1"), worker()),
        (on("node7.example.org"), worker("tcp://node7:1")),
        (on("node7"), worker("tcp://node7.example.org:1")),
        (on("NODE7"), worker(host="node7")),
        (on("dn7", "10.0.0.1"), worker()),
        (on("dn7"), worker("tcp://10.0.0.9:1", "dn7")),
    ],
    ids=str,
)
def test_a_machine_is_the_same_under_each_of_its_names(
    location: Location, place: WorkerPlace
) -> None:
    assert match(location, place) == Match("host", 1.0)


@pytest.mark.parametrize(
    ("location", "place"),
    [
        (on("node7.a.org"), worker("tcp://node7.b.org:1")),
        (on("10"), worker()),
        (on("node7"), worker("tcp://node77.example.org:1")),
        (on("10.0.0.1", share=0.0), worker()),
        (on(""), worker("tcp://node7.example.org:1")),
        (Location(), worker(rack="a", zone="b")),
    ],
    ids=str,
)
def test_another_machine_is_remote(location: Location, place: WorkerPlace) -> None:
    assert match(location, place) == Match("remote", 0.0)


def test_the_closest_way_in_which_a_worker_matches_counts() -> None:
    location = Location(
        hosts=(Holder("h1", 0.6), Holder("h2", 0.4)),
        workers=("tcp://h1:1",),
        racks=(Holder("/eu/r1", 0.7),),
        zones=("eu",),
    )
    everywhere = {"rack": "r1", "zone": "eu"}
    assert match(location, WorkerPlace.of("tcp://h1:1", everywhere)) == Match("process", 1.0)
    assert match(location, WorkerPlace.of("tcp://h1:2", everywhere)) == Match("host", 0.6)
    assert match(location, WorkerPlace.of("tcp://h3:1", everywhere)) == Match("rack", 0.7)
    assert match(location, WorkerPlace.of("tcp://h3:1", {"zone": "EU"})) == Match("zone", 1.0)
    assert match(location, WorkerPlace.of("tcp://h3:1", {"zone": "us"})) == Match("remote", 0.0)


def test_a_host_with_nothing_of_it_may_still_be_in_its_rack() -> None:
    location = Location(hosts=(Holder("h1", 0.0),), racks=(Holder("r1", 0.5),))
    assert match(location, WorkerPlace.of("tcp://h1:1", {"rack": "r1"})) == Match("rack", 0.5)


@pytest.mark.parametrize(
    ("rack", "label", "same"),
    [
        ("/eu/r1", "r1", True),
        ("/eu/r1", "/eu/r1", True),
        ("/eu/r1", "/us/r1", False),
        ("r1", "R1", True),
        ("/eu/r1", "eu", False),
        ("/eu/r11", "r1", False),
    ],
)
def test_racks_match_by_path_or_by_last_part(rack: str, label: str, same: bool) -> None:
    found = match(Location(racks=(Holder(rack),)), worker(rack=label))
    assert found.closeness == ("rack" if same else "remote")


@pytest.mark.parametrize(
    ("zone", "label", "same"),
    [
        ("eu-central-1", "eu-central-1a", True),
        ("europe-west1", "europe-west1-b", True),
        ("eu-central-1", "eu-central-1", True),
        ("eu-central-1", "eu-central-10", False),
        ("eu", "eua", False),
        ("eu-central-1a", "eu-central-1", False),
    ],
)
def test_an_availability_zone_is_in_its_region(zone: str, label: str, same: bool) -> None:
    found = match(Location(zones=(zone,)), worker(zone=label))
    assert found.closeness == ("zone" if same else "remote")


def test_the_nearest_workers_are_equally_close_and_those_with_most_come_first() -> None:
    location = Location(
        hosts=(Holder("h1", 0.3), Holder("h2", 0.7)), racks=(Holder("r1", 1.0),), zones=("eu",)
    )
    places = [
        WorkerPlace.of(f"tcp://h{i}:1", {"rack": "r1" if i < 4 else "r2", "zone": "eu"})
        for i in range(1, 6)
    ]
    assert nearest_workers(location, places) == ("tcp://h2:1", "tcp://h1:1")
    assert nearest_workers(location, places[2:]) == ("tcp://h3:1",)
    assert nearest_workers(location, places[3:]) == ("tcp://h4:1", "tcp://h5:1")
    assert nearest_workers(location, places[3:], within="rack") == ()
    assert nearest_workers(location, places[2:], within="host") == ()
    assert nearest_workers(Location(), places) == ()
    assert nearest_workers(location, [worker(zone="us")], within="remote") == ()


def test_a_demand_asks_for_the_closest_that_is_known_of_a_place() -> None:
    holder = Holder("here")
    assert Location(workers=("tcp://10.0.0.1:4000",)).finest == "host"
    assert Location(hosts=(holder,), racks=(holder,), zones=("eu",)).finest == "host"
    assert Location(racks=(holder,), zones=("eu",)).finest == "rack"
    zone = Location(zones=("eu",))
    inside, outside = worker("tcp://10.0.0.1:1", zone="eu"), worker("tcp://10.0.0.2:1", zone="us")
    assert nearest_workers(zone, [outside, inside], within=zone.finest) == ("tcp://10.0.0.1:1",)
    assert nearest_workers(zone, [outside], within=zone.finest) == ()


def test_an_empty_location_says_nothing_and_all_values_can_travel() -> None:
    assert not Location(n_bytes=5)
    location = on("h1", "10.0.0.1")
    assert location
    assert pickle.loads(pickle.dumps(location)) == location
    assert hash(location) == hash(on("h1", "10.0.0.1"))


names = st.sampled_from(["h1", "h2", "h1.org", "10.0.0.1", "10.0.0.2"])
locations = st.builds(
    Location,
    hosts=st.lists(st.builds(Holder, names, st.floats(0, 1)), max_size=3).map(tuple),
    workers=st.lists(names.map("tcp://{}:1".format), max_size=2).map(tuple),
    racks=st.lists(st.builds(Holder, st.sampled_from(["a", "b"]), st.floats(0, 1))).map(tuple),
    zones=st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
)
places = st.builds(
    lambda host, rack, zone: WorkerPlace.of(f"tcp://{host}:1", {"rack": rack, "zone": zone}),
    names,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["x", "y"]),
)


@given(
    locations,
    st.lists(places, max_size=6, unique_by=lambda place: place.address),
    st.sampled_from(CLOSENESS),
)
def test_no_worker_is_closer_than_the_nearest_and_none_is_farther_than_asked(
    location, workers, within
) -> None:
    ranks = {w.address: CLOSENESS.index(match(location, w).closeness) for w in workers}
    allowed = {
        address: rank
        for address, rank in ranks.items()
        if rank <= CLOSENESS.index(within) and rank < CLOSENESS.index("remote")
    }
    nearest = {a for a, rank in allowed.items() if rank == min(allowed.values())}
    assert set(nearest_workers(location, workers, within=within)) == nearest
