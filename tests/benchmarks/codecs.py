"""What each codec makes of typical payloads, and what the choice picks for each link.

    python -m tests.benchmarks.codecs --megabytes 8 --json codecs.json

Speeds are MB/s of logical bytes on one core, coding and decoding, through whole values with their
check sums. The times at a link are predictions of the rule (`deepflow.decide.compression`), as a
share of sending raw; nothing is sent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepflow.decide.compression import Link, choose
from deepflow.intermediates import codecs, values
from deepflow.intermediates.chunks import Part
from deepflow.intermediates.sampling import sample

CODECS = ("zstd:1", "zstd:3", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco")
LINKS_GBIT = (0.1, 1.0, 5.0, 10.0)

Payload = tuple[memoryview, str | None]


def _octets(array: Any, dtype: str | None = None) -> Payload:
    return memoryview(array).cast("B"), dtype or array.dtype.str


def _frame(n_bytes: int, rng: np.random.Generator) -> Any:
    import pandas as pd

    n = n_bytes // 40
    return pd.DataFrame(
        {
            "id": np.arange(n),
            "price": rng.normal(100, 20, n).round(2),
            "city": rng.choice(["Bern", "Basel", "Geneva", "Lugano", "Zurich"], n),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="s"),
        }
    )


def _json_lines(n_bytes: int, rng: np.random.Generator) -> Payload:
    lines, size = [], 0
    while size < n_bytes:
        user, item = rng.integers(0, 100_000, 2)
        lines.append(
            json.dumps({"user": int(user), "item": int(item), "score": round(rng.random(), 3)})
        )
        size += len(lines[-1]) + 1
    return memoryview("\n".join(lines).encode()), None


def _python_text(n_bytes: int) -> Payload:
    text = b"".join(
        path.read_bytes() for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))
    )
    return memoryview(text[:n_bytes]), None


def payloads(n_bytes: int, seed: int = 0) -> dict[str, Callable[[], Payload]]:
    """The table's payloads of about `n_bytes`, made when called; the same ones for each seed."""
    rng = np.random.default_rng(seed)
    n = n_bytes // 8
    x = np.linspace(0, 60, n)
    return {
        "f64 2 decimals": lambda: _octets(rng.normal(100, 20, n).round(2)),
        "f64 smooth": lambda: _octets(np.sin(x)),
        "f64 smooth+noise": lambda: _octets(np.sin(x) + rng.normal(0, 1e-3, n)),
        "f32 smooth+noise": lambda: _octets((np.sin(x) + rng.normal(0, 1e-3, n)).astype("f4")),
        "i64 sorted": lambda: _octets(np.sort(rng.integers(0, 100 * n, n))),
        "i64 random<1e6": lambda: _octets(rng.integers(0, 1_000_000, n)),
        "JSON lines": lambda: _json_lines(n_bytes, rng),
        "Python text": lambda: _python_text(n_bytes),
        "weights f32": lambda: _octets(rng.normal(0, 0.02, 2 * n).astype("f4")),
        "weights bf16": lambda: _octets(
            torch.from_numpy(rng.normal(0, 0.02, 4 * n)).bfloat16().view(torch.int16).numpy()
        ),
        "random bytes": lambda: (memoryview(rng.bytes(n_bytes)), None),
    }


def _measure(data: memoryview, dtype: str | None, codec: str) -> dict[str, float]:
    began = time.perf_counter()
    buffers = values.dump_parts([Part(data, dtype, False)], lambda part: codec)
    between = time.perf_counter()
    (out,), _ = values.read_parts(buffers)
    ended = time.perf_counter()
    if out != data:
        raise AssertionError(f"{codec} did not give the payload back")
    return {
        "ratio": data.nbytes / sum(map(len, buffers)),
        "encode_mb_per_s": data.nbytes / 1e6 / (between - began),
        "decode_mb_per_s": data.nbytes / 1e6 / (ended - between),
    }


def _row(data: memoryview, dtype: str | None, cores: int) -> dict[str, Any]:
    began = time.perf_counter()
    sampled = sample(data, dtype)
    sample_s = time.perf_counter() - began
    picks = {}
    for gbit in LINKS_GBIT:
        plan = choose(data.nbytes, sampled, Link(gbit * 125e6, cores))
        picks[str(gbit)] = {
            "codec": plan.codec,
            "threads": plan.threads,
            "of_raw": plan.predicted_s / plan.raw_s,
        }
    usable = [codec for codec in CODECS if codecs.suits(codec, dtype, data.nbytes)]
    if codecs.element_bytes(dtype) == 1:
        usable = ["zstd:1", "zstd:3"]
    measured = {codec: _measure(data, dtype, codec) for codec in usable}
    return {"bytes": data.nbytes, "sample_s": sample_s, "codecs": measured, "picks": picks}


def _data_frame(n_bytes: int) -> dict[str, Any]:
    table = _frame(n_bytes, np.random.default_rng(0))
    size = int(table.memory_usage(deep=True).sum())
    measured = {}
    for name in CODECS:
        began = time.perf_counter()
        stored = values.dump_parts(values.disassemble(table), lambda part, name=name: name)
        between = time.perf_counter()
        back = values.load(stored)
        ended = time.perf_counter()
        if not back.equals(table):
            raise AssertionError(f"{name} did not give the data frame back")
        measured[name] = {
            "ratio": size / sum(map(len, stored)),
            "encode_mb_per_s": size / 1e6 / (between - began),
            "decode_mb_per_s": size / 1e6 / (ended - between),
        }
    return {"bytes": size, "codecs": measured}


def _show(name: str, row: dict[str, Any]) -> None:
    print(f"{name} ({row['bytes'] / 1e6:.1f} MB)", flush=True)
    for codec, m in row["codecs"].items():
        print(
            f"    {codec:15} ratio {m['ratio']:6.2f}   {m['encode_mb_per_s']:6.0f} /"
            f" {m['decode_mb_per_s']:6.0f} MB/s"
        )
    for gbit, pick in row.get("picks", {}).items():
        chosen = f"{pick['codec']} x {pick['threads']}"
        print(f"    at {gbit:>4} Gbit    {chosen}, {pick['of_raw']:.2f} of raw")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=8, help="size of each payload")
    parser.add_argument("--cores", type=int, default=2, help="idle cores that the rule may use")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    n_bytes = int(arguments.megabytes * 1e6)
    table = {}
    for codec in CODECS:  # import the libraries before anything is timed
        codecs.encode(np.arange(1000.0).data, codec, "<f8")
    for name, make in payloads(n_bytes).items():
        data, dtype = make()
        table[name] = _row(data, dtype, arguments.cores)
        _show(name, table[name])
    table["DataFrame with strings"] = _data_frame(n_bytes)
    _show("DataFrame with strings", table["DataFrame with strings"])
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
