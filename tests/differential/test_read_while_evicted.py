"""A value that is read while it is being evicted is evicted a little later, from any place."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepflow.intermediates.places import Disk, InMemory, Place
from deepflow.intermediates.tiers import TieredStore
from tests.differential.same import differs
from tests.differential.test_types import quiet_hooks

N = 500_000
DEADLINE_S = 60.0
KINDS = {
    "bytes": lambda: b"x" * (8 * N),
    "array": lambda: np.arange(float(N)),
    "frame": lambda: pd.DataFrame({"x": np.arange(float(N))}),
    "objects": lambda: {"a": [np.arange(float(N)), "x"]},
}


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("n_readers", [1, 3])
def test_a_value_that_is_read_all_the_time_is_evicted_in_the_end(
    place: str, n_readers: int, tmp_path: Path
) -> None:
    to: Place = InMemory(1 << 40) if place == "memory" else Disk(tmp_path / "tiers", None)
    store = TieredStore([to], N, quiet_hooks())
    is_over = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        while not is_over.is_set():
            for name, make in KINDS.items():
                wrong.extend(filter(None, [differs(store[name], make())]))

    readers = [threading.Thread(target=read) for _ in range(n_readers)]
    try:
        for name, make in KINDS.items():
            store[name] = make()
        for reader in readers:
            reader.start()
        time.sleep(0.05)  # some reads fall into the evicting
        is_over.set()
        for reader in readers:
            reader.join(DEADLINE_S)
        end_s = time.monotonic() + DEADLINE_S
        while store.used_bytes()["heap"] and time.monotonic() < end_s:
            store.look()
            time.sleep(0.02)
        assert {name: store.tier_of(name) for name in KINDS} == dict.fromkeys(KINDS, place)
        assert wrong == []
        for name, make in KINDS.items():
            assert differs(store[name], make()) is None
    finally:
        is_over.set()
        store.close()
