"""Who leaves the heap first, and where it goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepflow.decide.evict import Candidate, Room, cost_per_byte, place_for, victims

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.integers(),
        st.integers(0, 10**9),
        st.floats(0, 100),
        st.floats(0, 1e4),
        st.none() | st.integers(0, 1000),
    ),
    max_size=20,
)


def test_what_is_wanted_last_leaves_first():
    soon = Candidate("soon", 100, 1.0, 1.0, 0)
    later = Candidate("later", 100, 1.0, 1.0, 9)
    never = Candidate("never", 100, 1.0, 1.0, None)
    assert victims([soon, later, never], 250) == [never, later, soon]


def test_what_is_dear_to_compute_again_and_small_stays():
    cheap = Candidate("cheap", 100, 1.0, 1.0, 3)
    dear = Candidate("dear", 100, 1.0, 1e4, 3)
    small = Candidate("small", 10, 1.0, 1.0, 3)
    assert [c.key for c in victims([dear, small, cheap], 1000)] == ["cheap", "small", "dear"]


@given(CANDIDATES, st.integers(0, 10**10))
def test_victims_free_enough_or_all_there_is_and_not_one_more(several, wanted):
    chosen = victims(several, wanted)
    freed = sum(c.freed_bytes for c in chosen)
    able = sum(c.freed_bytes for c in several)
    assert freed >= min(wanted, able)
    assert not chosen or freed - chosen[-1].freed_bytes < wanted
    left = [c for c in several if c not in chosen and c.freed_bytes]
    assert all(cost_per_byte(c) <= cost_per_byte(other) for c in chosen for other in left)


def test_memory_only_for_what_shrinks_then_disk_then_the_store():
    room = Room(1000, 1000, 1000)
    assert place_for(300, 100, room) == "memory"
    assert place_for(120, 100, room) == "disk"
    assert place_for(3000, 900, Room(800, 1000, 1000)) == "disk"
    assert place_for(120, 100, Room(1000, 50, 1000)) == "remote"
    assert place_for(120, 100, Room(1000, None, None)) is None
    assert place_for(120, 100, Room(None, 99, None)) is None
