"""How far workers are apart, and how long bytes take."""

from __future__ import annotations

import pytest

from deepflow.decide.place.fleet import Worker
from deepflow.decide.place.links import GUESS_BYTES_PER_S, Links, relation
from deepflow.hints import LABEL_OFFER, label_resource


def worker(id: str, host: str = "", **labels: str) -> Worker:
    resources = {label_resource(key, value): LABEL_OFFER for key, value in labels.items()}
    return Worker(id, host=host, resources=resources)


A = worker("a", "h1", rack="r1", zone="z1")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (A, "process"),
        (worker("b", "h1", rack="r1", zone="z1"), "host"),
        (worker("b", "h2", rack="r1", zone="z1"), "rack"),
        (worker("b", "h2", rack="r2", zone="z1"), "zone"),
        (worker("b", "h2", rack="r1", zone="z2"), "remote"),
        (worker("b", "h2", zone="z2", tier="edge"), "edge"),
    ],
)
def test_relation(other: Worker, expected: str) -> None:
    assert relation(A, other) == expected
    assert relation(other, A) == expected


def test_workers_of_which_nothing_is_said_share_a_rack() -> None:
    assert relation(worker("a", "h1"), worker("b", "h2")) == "rack"


def test_guess_then_relation_then_pair() -> None:
    links = Links()
    small, big = worker("s", "h1", **{"class": "small"}), worker("b", "h2", **{"class": "big"})
    assert links.bytes_per_s(small, big) == GUESS_BYTES_PER_S["rack"]
    links.measured(big, small, 200.0)
    assert links.bytes_per_s(small, big) == 200.0  # of the same relation
    links.measured(small, big, 400.0)
    assert links.bytes_per_s(small, big) == 400.0
    assert links.bytes_per_s(big, small) == 200.0


def test_measurements_are_averaged_and_times_follow() -> None:
    links = Links()
    a, b = worker("a", "h1"), worker("b", "h2")
    links.measured(a, b, 100.0)
    assert links.seconds(a, b, 1000) == pytest.approx(10.0, abs=0.01)
    links.measured(a, b, 200.0)
    assert links.bytes_per_s(a, b) == pytest.approx(120.0)
    assert links.seconds(a, b, 1200) == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("bytes_per_s", [0.0, -1.0, float("nan")])
def test_measurement_that_is_none_is_passed_over(bytes_per_s: float) -> None:
    links = Links()
    a, b = worker("a", "h1"), worker("b", "h2")
    links.measured(a, b, bytes_per_s)
    assert links.bytes_per_s(a, b) == GUESS_BYTES_PER_S["rack"]
