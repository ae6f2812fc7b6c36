"""What a process remembers of the values of a task, so that it need not look at each."""

from __future__ import annotations

import numpy as np
import pytest

from deepflow.decide.compression import Sample
from deepflow.intermediates.choosing import Choices, ForPeer
from deepflow.intermediates.chunks import Part
from deepflow.intermediates.values import disassemble

USELESS = Sample("zstd:1", 1.0, 400e6, 2000e6)
USEFUL = Sample("pco", 8.0, 400e6, 2000e6)
N_BYTES = 8_000_000


def value(n_bytes: int = N_BYTES) -> list[Part]:
    return disassemble(np.zeros(n_bytes // 8), "task")


def told(peer: ForPeer, sample: Sample) -> ForPeer:
    """The peer, once it knows its link (100 MB/s) and a sample of the task's values."""
    peer.link((1e8, False))
    (part,) = (part for part in value() if part.octets.nbytes == N_BYTES)
    assert peer.wants_sample(part)
    peer.plan(part, [sample])
    return peer


@pytest.fixture
def choices() -> Choices:
    return Choices("adaptive", 1)


def test_a_value_like_the_last_that_was_left_raw_is_known_by_its_task(choices: Choices) -> None:
    peer = told(choices.for_peer("h"), USELESS)
    assert not peer.is_known_raw("task", N_BYTES)  # none was left raw yet
    assert peer.is_left_raw(value())
    assert peer.is_known_raw("task", N_BYTES)
    assert peer.is_known_raw("task", N_BYTES // 2 + 1_000)
    assert not peer.is_known_raw("task", N_BYTES // 3)
    assert not peer.is_known_raw("task", 3 * N_BYTES)
    assert not peer.is_known_raw("another", N_BYTES)
    assert not choices.for_peer("elsewhere").is_known_raw("task", N_BYTES)


def test_one_in_64_is_looked_at_again(choices: Choices) -> None:
    peer = told(choices.for_peer("h"), USELESS)
    found = [peer.is_left_raw(value())]
    found += [peer.is_known_raw("task", N_BYTES) for _ in range(63)]
    assert found == [True] * 63 + [False]
    assert not peer.is_left_raw(value())
    (part,) = (part for part in value() if part.octets.nbytes == N_BYTES)
    assert peer.wants_sample(part)
    assert peer.plan(part, [USEFUL]).codec == "pco"
    assert not peer.is_known_raw("task", N_BYTES)


def test_a_slower_link_ends_what_was_known(choices: Choices) -> None:
    peer = told(choices.for_peer("h"), Sample("pco", 1.2, 90e6, 2000e6))
    assert peer.is_left_raw(value())
    assert peer.is_known_raw("task", N_BYTES)
    for _ in range(20):
        peer.link((1e7, False))
    assert not peer.is_known_raw("task", N_BYTES)
    assert not peer.is_left_raw(value())
