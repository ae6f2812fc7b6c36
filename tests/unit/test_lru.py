"""The workers' caches: bounded by bytes, and what is in use stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepflow.runner.lru import LruCache


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    cache: LruCache[str] = LruCache(limit_bytes=30)
    for name in "abc":
        cache.put(name, name.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("d", "D", 10)
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]


def test_an_entry_heavier_than_the_limit_is_kept_alone() -> None:
    cache: LruCache[str] = LruCache(limit_bytes=30)
    cache.put("light", "light", 10)
    cache.put("heavy", "heavy", 100)
    assert cache.get("heavy") == "heavy"
    assert len(cache) == 1


def test_a_name_put_again_weighs_once() -> None:
    cache: LruCache[int] = LruCache(limit_bytes=30)
    for number in range(10):
        cache.put("same", number, 10)
    cache.put("other", 1, 20)
    assert cache.get("same") == 9


def test_dropped_values_make_room() -> None:
    cache: LruCache[int] = LruCache(limit_bytes=30)
    for number in range(3):
        cache.put(str(number), number, 10)
    cache.drop_where(lambda value: value < 2)
    cache.put("3", 3, 10)
    cache.put("4", 4, 10)
    assert [cache.get(str(number)) for number in range(5)] == [None, None, 2, 3, 4]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=60))
def test_the_limit_holds_and_the_newest_entry_is_there(puts: list[tuple[str, int]]) -> None:
    cache: LruCache[int] = LruCache(limit_bytes=50)
    for name, n_bytes in puts:
        cache.put(name, n_bytes, n_bytes)
        assert cache.get(name) == n_bytes
        held = [value for other in "abcdef" if (value := cache.get(other)) is not None]
        assert sum(held) <= 50
