"""What `auto://` tries, and which of what answered it takes."""

from __future__ import annotations

import pytest

from deepflow.decide.transport import Trial, candidates, choose
from deepflow.errors import ConfigurationError


def test_the_ways_that_are_tried() -> None:
    assert candidates("auto://head", False) == (
        "tcp://head:8786",
        "ws://head:8786",
        "ws://head:8787",
        "ws://head:80",
    )
    assert candidates("auto://head:9000/", True) == (
        "tls://head:9000",
        "wss://head:9000",
        "wss://head:9001",
    )
    assert candidates("auto://[::1]", False)[0] == "tcp://[::1]:8786"
    assert candidates("auto://[::1]:9", False)[0] == "tcp://[::1]:9"


@pytest.mark.parametrize("address", ["auto://", "auto://:1", "auto://h:x", "auto://h:0", "tcp://h"])
def test_what_is_no_address_to_try(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"auto://host|port"):
        candidates(address, False)


def test_the_fastest_is_taken_and_the_first_of_like_ones() -> None:
    tcp = Trial("tcp://h:1", "", 0.01, 0.001, 1e9)
    like = Trial("ws://h:1", "", 0.01, 0.001, 1.05e9)
    faster = Trial("ws://h:2", "", 0.01, 0.0001, 3e9)
    refused = Trial("tcp://h:1", "ConnectionRefusedError")
    assert choose([tcp, like]) is tcp
    assert choose([tcp, like, faster]) is faster
    assert choose([refused, like]) is like
    assert choose([refused]) is None
    slow_start = Trial("ws://h:3", "", 0.0, 0.2, 3e9)
    assert choose([slow_start, tcp]) is tcp
