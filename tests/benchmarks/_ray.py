"""Ray as a peer of `transfer`: one node on each side of a link, or one node for a host.

Ray is no part of the set-up: `pip install ray`. Its tasks run as Ray runs them, without Prefect.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RayPeer", "is_installed", "on_links", "ray_same_host"]


def is_installed() -> bool:
    """Whether this environment has Ray."""
    return shutil.which("ray", path=str(Path(sys.executable).parent)) is not None


def _ray(*words: str) -> list[str]:
    return [str(Path(sys.executable).parent / "ray"), *words]


class RayPeer:
    """One actor on each node; the left one makes values, the right one takes them."""

    def __init__(self, address: str) -> None:
        import ray

        self.ray = ray
        environment = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(address=address, log_to_driver=False, runtime_env=environment)

        class Side:
            def pid(self) -> int:
                return os.getpid()

            def make(self, payload: str, n_bytes: int, seed: int) -> list[Any]:
                from tests.benchmarks.transfer import make

                return [ray.put(make(payload, n_bytes, seed))]

            def begin(self, value: Any) -> float:
                return time.time()

            def digest(self, value: Any) -> str:
                from tests.benchmarks.transfer import digest

                return digest(value)

        actor = ray.remote(Side)
        self.left = actor.options(resources={"W0": 1}).remote()
        self.right = actor.options(resources={"W1": 1}).remote()
        self.pids = [ray.get(side.pid.remote()) for side in (self.left, self.right)]

    def one(self, payload: str, n_bytes: int, seed: int) -> tuple[float, Callable[[], bool]]:
        """Seconds from the call to its first line, and what says whether both ends agree."""
        (value,) = self.ray.get(self.left.make.remote(payload, n_bytes, seed))
        wanted = self.ray.get(self.left.digest.remote(value))
        began = time.time()
        there = self.ray.get(self.right.begin.remote(value))
        return there - began, lambda: self.ray.get(self.right.digest.remote(value)) == wanted


@contextlib.contextmanager
def on_links(
    left: str, right: str, there: Sequence[str], folder: str, store_bytes: int
) -> Iterator[RayPeer]:
    """A head in this namespace, a node behind `there`; ended with everything they started."""
    with socket.socket() as free:
        free.bind((left, 0))
        port = free.getsockname()[1]
    common = ["--num-cpus", "1", "--object-store-memory", str(store_bytes), "--block"]
    common += ["--disable-usage-stats"]
    # Both ends: nobody else is in these namespaces.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    env = {**os.environ, "RAY_TMPDIR": folder, "PYTHONPATH": os.getcwd()}
    head = _ray("start", "--head", "--node-ip-address", left, "--port", str(port))
    head += ["--include-dashboard=false", "--resources", '{"W0": 1}', *common]
    node = [*there, *_ray("start", "--address", f"{left}:{port}", "--node-ip-address", right)]
    node += ["--resources", '{"W1": 1}', *common]
    started = []
    try:
        for words in (head, node):
            started.append(
                subprocess.Popen(
                    words,
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            time.sleep(8)
        peer = RayPeer(f"{left}:{port}")
        try:
            yield peer
        finally:
            peer.ray.shutdown()
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def ray_same_host(n: int, n_consumers: int, repetitions: int) -> list[tuple[float, float, float]]:
    """For each repetition: seconds from the producer's return to the last consumer's first line,
    that for an array of eight bytes, and until the last has summed."""
    import numpy as np
    import ray

    ray.init(
        num_cpus=n_consumers + 1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=max(8 * n * 4, 200_000_000),
    )

    class Side:
        def produce(self, n: int, seed: int) -> tuple[list[Any], float]:
            array = np.random.default_rng(seed).random(n)
            made = time.time()
            return [ray.put(array)], made

        def consume(self, array: Any) -> tuple[float, float, float]:
            began = time.time()
            total = float(array.sum())
            return began, time.time(), total

    try:
        actor = ray.remote(Side)
        producer = actor.remote()
        consumers = [actor.remote() for _ in range(n_consumers)]
        rows = []
        for repetition in range(repetitions + 1):
            spans = []
            for size in (1, n):
                (value,), made = ray.get(producer.produce.remote(size, repetition))
                got = ray.get([consumer.consume.remote(value) for consumer in consumers])
                wanted = np.random.default_rng(repetition).random(size).sum()
                if any(abs(total / wanted - 1) > 1e-9 for *_, total in got):
                    raise AssertionError("ray: another array arrived")
                spans.append((max(g[0] for g in got) - made, max(g[1] for g in got) - made))
            if repetition:
                rows.append((spans[1][0], spans[0][0], spans[1][1]))
        return rows
    finally:
        ray.shutdown()
