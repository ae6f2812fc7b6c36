"""A file cut into shards, each worked on near the bytes that it holds.

    python examples/05_near_the_data.py

A CSV file of measurements is made, cut at ends of rows, and mapped: each shard says what to be near
(`shard.near`), reads its own rows where it runs, and begins with the header so that any CSV reader
takes it. Here the file is on this machine's disk, so every shard is near this machine. For
`hdfs://namenode/path` the same code cuts along the file's blocks, and each shard is near the hosts
that hold its block; for `s3://bucket/key` it is near the bucket's zone.
"""

import csv
import io
import random
import tempfile
from collections import defaultdict
from pathlib import Path

from distributed import get_worker
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, Shard, WorkerClass, hints, shards

N_ROWS = 50_000


@task
def totals(shard: Shard) -> tuple[dict[str, float], int, str]:
    """Sums by station of one shard, how many rows it had, and the worker that read it."""
    sums: dict[str, float] = defaultdict(float)
    n_rows = 0
    with io.TextIOWrapper(shard.open(), newline="") as file:
        for row in csv.DictReader(file):
            sums[row["station"]] += float(row["celsius"])
            n_rows += 1
    return dict(sums), n_rows, str(get_worker().name)


@flow(task_runner=DeepflowTaskRunner(local=[WorkerClass("cpu", count=2)]))
def measure(path: str) -> int:
    """The rows of all shards, counted where they lie."""
    futures = []
    for shard in shards(path, header=True, block_bytes="128 KiB"):
        near = ", ".join(near.value for near in shard.near) or "nothing in particular"
        print(f"shard {shard.index}: bytes {shard.start} to {shard.stop}, near {near}")
        with hints(near=shard.near):
            futures.append(totals.submit(shard))
    parts = [future.result() for future in futures]
    sums: dict[str, float] = defaultdict(float)
    for part, _, _ in parts:
        for station, celsius in part.items():
            sums[station] += celsius
    print(f"Read on {sorted({worker for _, _, worker in parts})}.")
    print(f"Stations: {', '.join(f'{name} {total:.0f}' for name, total in sorted(sums.items()))}")
    return sum(n_rows for _, n_rows, _ in parts)


def write_measurements(path: Path) -> None:
    """`N_ROWS` rows of a station and a temperature."""
    random.seed(5)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["station", "celsius"])
        for _ in range(N_ROWS):
            rows.writerow([random.choice(["Oslo", "Quito", "Perth"]), f"{random.gauss(12, 8):.2f}"])


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        path = Path(folder) / "measurements.csv"
        write_measurements(path)
        n_rows = measure(str(path))
        right = "each in one shard" if n_rows == N_ROWS else "WRONG"
        print(f"{n_rows} rows of {N_ROWS} were read, {right}.")
