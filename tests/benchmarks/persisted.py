"""What persisted results weigh and cost, against Prefect's default (a pickle as base64 in JSON).

    python -m tests.benchmarks.persisted --json persisted.json
    python -m tests.benchmarks.persisted --mb 64 --rounds 5

Each payload is written and read back through Prefect's `ResultStore` into a local folder, by
Prefect's default and by deepflow in turn; every value that is read must equal what was written. The
figures are medians over rounds: bytes of all files of a record, and seconds of writing and reading.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import PickleSerializer

from deepflow.runner.results.serializer import DeepflowSerializer
from deepflow.runner.results.storage import DeepflowResultStore

WANTED_BYTES = 0.25
WANTED_SPEED = {"numeric": 4.0, "frame": 2.0, "json": 2.0}


def payloads(n_bytes: int) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Kind and maker of each payload, about `n_bytes` large."""
    n = n_bytes // 8

    def rng() -> np.random.Generator:
        return np.random.default_rng(7)

    def smooth(count: int) -> np.ndarray:
        return np.sin(np.linspace(0, 200, count)) * 100

    def frame() -> pd.DataFrame:
        r, rows = rng(), n_bytes // 40
        return pd.DataFrame(
            {
                "id": np.arange(rows),
                "price": np.round(r.normal(100, 20, rows), 2),
                "count": r.integers(0, 1000, rows),
                "city": r.choice(["Berlin", "Paris", "Rome", "Oslo"], rows),
                "code": [f"item-{i % 977:05d}" for i in range(rows)],
            }
        )

    def records() -> list[dict[str, Any]]:
        r = random.Random(7)
        return [
            {"id": i, "name": f"user-{i}", "score": round(r.random(), 4), "tags": ["a", "b"]}
            for i in range(n_bytes // 80)
        ]

    return {
        "f64, 2 decimals": ("numeric", lambda: np.round(rng().normal(100, 20, n), 2)),
        "f64 smooth": ("numeric", lambda: smooth(n)),
        "f64 smooth + noise": ("numeric", lambda: smooth(n) + rng().normal(0, 0.01, n)),
        "f32 smooth + noise": (
            "numeric",
            lambda: (smooth(2 * n) + rng().normal(0, 0.01, 2 * n)).astype(np.float32),
        ),
        "i64 sorted": ("numeric", lambda: np.sort(rng().integers(0, 100 * n, n))),
        "i64 random < 1e6": ("numeric", lambda: rng().integers(0, 1_000_000, n)),
        "weights f32": ("numeric", lambda: rng().normal(0, 0.02, 2 * n).astype(np.float32)),
        "frame": ("frame", frame),
        "JSON records": ("json", records),
        "JSON lines": ("json", lambda: "\n".join(map(json.dumps, records()))),
    }


def same(left: Any, right: Any) -> bool:
    """Whether two payloads are equal, in type and bits."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    return left.equals(right) if isinstance(left, pd.DataFrame) else left == right


def stores(folder: str) -> dict[str, ResultStore]:
    """Prefect's default store and ours over one folder; neither keeps values in memory."""
    common: dict[str, Any] = {
        "result_storage": LocalFileSystem(basepath=folder),
        "cache_result_in_memory": False,
    }
    ours = ResultStore(serializer=DeepflowSerializer(), **common)
    return {
        "prefect": ResultStore(serializer=PickleSerializer(), **common),
        "deepflow": DeepflowResultStore.of(ours),
    }


def measure(value: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Medians for both, taken in turn; raises if a value does not come back equal."""
    told: dict[str, list[tuple[float, float]]] = {"prefect": [], "deepflow": []}
    n_bytes: dict[str, int] = {}
    for i in range(rounds + 1):
        order = list(told) if i % 2 else list(told)[::-1]
        for name in order:
            with tempfile.TemporaryDirectory() as folder:
                store = stores(folder)[name]
                began = time.perf_counter()
                store.write(value, key="k")
                written = time.perf_counter()
                back = store.read("k").result
                done = time.perf_counter()
                if not same(value, back):
                    raise SystemExit(f"{name} gave back another value")
                del back
                n_bytes[name] = sum(f.stat().st_size for f in Path(folder).iterdir())
            if i:  # the first round warms up
                told[name].append((written - began, done - written))
    return {
        name: {
            "bytes": n_bytes[name],
            "write_s": statistics.median(one[0] for one in times),
            "read_s": statistics.median(one[1] for one in times),
            "both_s": statistics.median(sum(one) for one in times),
        }
        for name, times in told.items()
    }


def main() -> None:
    """Run it and print a line per payload as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=16.0, help="size of each payload (16)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each (5)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    said = parser.parse_args()
    print(f"{'payload':20} {'bytes':>8} {'speed':>7}   of Prefect's default; write, read in ms")
    figures = {}
    for name, (kind, make) in payloads(int(said.mb * 1e6)).items():
        one = measure(make(), said.rounds)
        base, ours = one["prefect"], one["deepflow"]
        size, speed = ours["bytes"] / base["bytes"], base["both_s"] / ours["both_s"]
        is_met = speed >= WANTED_SPEED[kind] and (kind != "numeric" or size <= WANTED_BYTES)
        figures[name] = {"kind": kind, "size": size, "speed": speed, "is_met": is_met, **one}
        times = ", ".join(
            f"{1e3 * ours[t]:.0f} ({1e3 * base[t]:.0f})" for t in ("write_s", "read_s")
        )
        print(f"{name:20} {size:8.3f} {speed:6.1f}x   {times}{'' if is_met else '   MISSED'}")
    if said.json:
        said.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
