"""How long a value takes from worker to worker: deepflow beside Dask with and without compression.

    python -m tests.benchmarks.transfer --quick
    python -m tests.benchmarks.transfer --links 0.1 1 5 --megabytes 64 --json transfer.json
    python -m tests.benchmarks.transfer --same-host --repetitions 5

Links: two network namespaces throttled with tbf (root, iproute2); the scheduler, the client and the
sending worker in one, the receiving worker in the other. A value lies on the one, a task that
needs it is submitted to the other: the time is from the submit to the task's first line, the same
for all peers, theirs in turn, medians. Every payload is compared at the receiver, by digest.
"wire" is the kernel's count of bytes that left the sender, "cpu" user and system seconds of both
workers, "peak" the most resident memory of both. Ray takes part where it is installed
(`pip install ray`), by its own tasks and object store.

Same host: real Prefect tasks, deepflow and prefect-dask in turn. A task on one worker returns an
array, tasks on one or eight others sum it. From the producer's return to the consumer's first line,
less the same for an array of eight bytes ("handing over"), and until the last has summed it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks._ray import RayPeer, is_installed, ray_same_host

DASK = {
    "off": {},
    "lz4": {"DASK_DISTRIBUTED__COMM__COMPRESSION": "lz4"},
    "zstd3": {"DASK_DISTRIBUTED__COMM__COMPRESSION": "zstd"},
    "zstd1": {
        "DASK_DISTRIBUTED__COMM__COMPRESSION": "zstd",
        "DASK_DISTRIBUTED__COMM__ZSTD__LEVEL": "1",
    },
}
PEERS = (*DASK, "ray", "deepflow")
CACHE = "DEEPFLOW_BENCHMARK_PAYLOADS"
"""Variable with a folder in which payloads are kept, so that each is made once for all peers."""
QUICK = ("f64 2 decimals", "i64 sorted", "JSON lines", "random bytes")
LIMITS = {0.1: 0.4, 1.0: 0.45, 5.0: 0.7}
"""Asked of the mix, relative to never compressing."""


# -- payloads, on the workers


def make(name: str, n_bytes: int, seed: int) -> Any:
    """The payload of that name: an array, bytes or a data frame, other numbers for each seed."""
    path = Path(os.environ[CACHE]) / f"{uuid.uuid5(uuid.NAMESPACE_OID, f'{name}/{n_bytes}/{seed}')}"
    if not path.exists():
        path.write_bytes(pickle.dumps(_made(name, n_bytes, seed), protocol=5))
    return pickle.loads(path.read_bytes())


def _made(name: str, n_bytes: int, seed: int) -> Any:
    from tests.benchmarks import codecs

    if name == "DataFrame with strings":
        return codecs._frame(n_bytes, np.random.default_rng(seed))
    octets, dtype = codecs.payloads(n_bytes, seed)[name]()
    return np.frombuffer(octets, dtype) if dtype else bytes(octets)


def digest(value: Any) -> str:
    """Of the contents."""
    if hasattr(value, "to_csv"):
        import pandas as pd

        content = pd.util.hash_pandas_object(value).to_numpy().tobytes()
    else:
        content = memoryview(value).cast("B") if hasattr(value, "dtype") else value
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def begin(value: Any) -> float:
    """The time at which the value is there."""
    return time.time()


# -- clusters


@contextlib.contextmanager
def cluster(
    commands: Sequence[tuple[Sequence[str], dict[str, str]]], folder: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended together."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words, env in commands:
            with open(f"{folder}/log-{len(started)}-{uuid.uuid4().hex[:6]}", "wb") as log:
                started.append(
                    subprocess.Popen(
                        words, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=log
                    )
                )
        yield started
    finally:
        for several in (started[1:], started[:1]):  # a worker takes leave of its scheduler
            for process in several:
                process.send_signal(signal.SIGTERM)
            for process in several:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()


def dask_cluster(
    host: str,
    workers: Sequence[tuple[str, Sequence[str]]],
    env: dict[str, str],
    folder: str,
    memory: str = "4GB",
) -> Any:
    """A scheduler on `host`, and workers (host, words before the command); (manager, address)."""
    import socket

    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    address = f"tcp://{host}:{port}"
    python = [sys.executable, "-m"]
    commands: list[tuple[Sequence[str], dict[str, str]]] = [
        (
            [
                *(*python, "distributed.cli.dask_scheduler"),
                *("--host", host, "--port", str(port), "--no-dashboard"),
            ],
            env,
        )
    ]
    for number, (at, before) in enumerate(workers):
        words = [*before, *python, "distributed.cli.dask_worker", address, "--host", at]
        words += ["--no-nanny", "--nthreads", "1", "--memory-limit", memory, "--no-dashboard"]
        words += ["--local-directory", folder, "--name", f"w{number}"]
        words += ["--resources", f"W{number}=9"]
        commands.append((words, env))
    return cluster(commands, folder), address


# -- links, inside the left namespace


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system seconds so far."""
    import psutil

    spent = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        spent += times.user + times.system
    return spent


def start_peak(pids: Sequence[int]) -> None:
    """Begin to look for the most memory (Linux: proc(5), clear_refs)."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pids: Sequence[int]) -> int:
    """The most resident memory since `start_peak`, added up."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return total


def measure_link(arguments: argparse.Namespace) -> dict[str, Any]:
    """All peers and payloads over the link that this process's namespace has."""
    from distributed import Client

    from deepflow.backend.transfer.install import Options
    from deepflow.runner.options import this_process
    from deepflow.runner.worker.plugin import DeepflowWorkerPlugin
    from tests.benchmarks._links import LEFT, RIGHT, sent_bytes
    from tests.benchmarks._ray import on_links

    rows: dict[str, Any] = {}
    n_bytes = int(arguments.megabytes * 1e6)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ[CACHE] = stack.enter_context(tempfile.TemporaryDirectory())
        # Two machines do not share memory either.
        apart = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        there = ["ip", "netns", "exec", arguments.right, "sh", "-c", apart, "sh"]
        clients: dict[str, Any] = {}
        pids: dict[str, list[int]] = {}
        for peer in arguments.peers:
            if peer == "ray":
                ray = on_links(LEFT, RIGHT, there, folder, max(8 * n_bytes, 200_000_000))
                clients[peer] = stack.enter_context(ray)
                pids[peer] = clients[peer].pids
                continue
            env = DASK.get(peer, {})
            managed, address = dask_cluster(LEFT, [(LEFT, []), (RIGHT, there)], env, folder)
            processes = stack.enter_context(managed)
            client = stack.enter_context(Client(address, timeout=60))
            client.wait_for_workers(2, timeout=120)
            pids[peer] = [process.pid for process in processes[1:]]
            if peer == "deepflow":
                client.register_plugin(
                    DeepflowWorkerPlugin(this_process(), Options(arguments.compression))
                )
            clients[peer] = client
        for payload in arguments.payloads:
            runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in arguments.peers}
            for repetition in range(arguments.repetitions + 1):
                order = list(arguments.peers)
                order = order[repetition % len(order) :] + order[: repetition % len(order)]
                for peer in order:
                    found = one(clients[peer], payload, n_bytes, repetition, pids[peer], sent_bytes)
                    if repetition:  # the first one imports and connects, for everybody
                        runs[peer].append(found)
            rows[payload] = {
                peer: {
                    "median_s": statistics.median(run["s"] for run in several),
                    "p95_s": float(np.percentile([run["s"] for run in several], 95)),
                    "wire_bytes": statistics.median(run["wire"] for run in several),
                    "cpu_s": statistics.median(run["cpu"] for run in several),
                    "peak_bytes": max(run["peak"] for run in several),
                }
                for peer, several in runs.items()
            }
            if "deepflow" in clients:
                rows[payload]["deepflow"]["chosen"] = clients["deepflow"].run(chosen)
            base = rows[payload][arguments.peers[0]]["median_s"]
            print(
                f"{payload:24}"
                + "".join(
                    f"{peer:>10} {row['median_s'] * 1e3:6.0f} ms {row['median_s'] / base:5.2f}"
                    for peer, row in rows[payload].items()
                ),
                flush=True,
            )
    return rows


def chosen(dask_worker: Any) -> list[str]:
    """What a worker chose for the last values that it sent, and why."""
    from deepflow.backend.transfer.install import transfer_of

    transfer = transfer_of(dask_worker)
    assert transfer is not None
    return [
        f"{outcome.plan.codec} x {outcome.plan.threads}: predicted "
        f"{outcome.plan.predicted_s * 1e3:.0f} ms, raw {outcome.plan.raw_s * 1e3:.0f}, "
        f"took {outcome.actual_s * 1e3:.0f} ({outcome.plan.why})"
        for outcome in list(transfer.sender.choices.chooser.log.outcomes)[-3:]
    ]


def one(
    client: Any,
    payload: str,
    n_bytes: int,
    seed: int,
    pids: Sequence[int],
    sent: Callable[[str], int],
) -> dict[str, float]:
    """One value made on one worker and fetched by the other."""
    if isinstance(client, RayPeer):
        return one_by_ray(client, payload, n_bytes, seed, pids, sent)
    from distributed import wait

    name = "".join(filter(str.isalpha, payload)) + payload.count("6") * "x"
    key = f"{name}-{uuid.uuid4().hex}"
    made = client.submit(make, payload, n_bytes, seed, key=key, resources={"W0": 1})
    wait(made)
    wanted = client.submit(digest, made, resources={"W0": 1}, pure=False).result()
    start_peak(pids)
    cpu, wire, began = cpu_seconds(pids), sent("dfx"), time.time()
    there = client.submit(begin, made, resources={"W1": 1}, pure=False).result()
    found = {"s": there - began, "wire": sent("dfx") - wire, "cpu": cpu_seconds(pids) - cpu}
    found["peak"] = peak_bytes(pids)
    got = client.submit(digest, made, resources={"W1": 1}, pure=False).result()
    if got != wanted:
        raise AssertionError(f"{payload} arrived as something else")
    return found


def one_by_ray(
    peer: RayPeer,
    payload: str,
    n_bytes: int,
    seed: int,
    pids: Sequence[int],
    sent: Callable[[str], int],
) -> dict[str, float]:
    """As `one`. Ray's object store works in other processes: its cpu and peak are the actors'."""
    start_peak(pids)
    cpu, wire = cpu_seconds(pids), sent("dfx")
    seconds, are_equal = peer.one(payload, n_bytes, seed)
    found = {"s": seconds, "wire": sent("dfx") - wire, "cpu": cpu_seconds(pids) - cpu}
    found["peak"] = peak_bytes(pids)
    if not are_equal():
        raise AssertionError(f"{payload} arrived as something else")
    return found


def over_link(arguments: argparse.Namespace, gbit: float) -> dict[str, Any]:
    """Make the link, and measure in a process inside it."""
    from tests.benchmarks._links import Link

    with Link(gbit) as link, tempfile.NamedTemporaryFile(suffix=".json") as out:
        words = ["ip", "netns", "exec", link.left, sys.executable, "-m"]
        words += ["tests.benchmarks.transfer", "--inside", out.name, "--right", link.right]
        words += ["--megabytes", str(arguments.megabytes)]
        words += ["--repetitions", str(arguments.repetitions)]
        words += ["--compression", arguments.compression]
        words += ["--payloads", *arguments.payloads, "--peers", *arguments.peers]
        subprocess.run(words, check=True)
        rows: dict[str, Any] = json.loads(Path(out.name).read_text())
    return rows


def show_mix(gbit: float, rows: dict[str, Any], peers: Sequence[str]) -> dict[str, float]:
    """The sum over payloads relative to never compressing, and the worst payload."""
    totals = {peer: sum(row[peer]["median_s"] for row in rows.values()) for peer in peers}
    mix = {peer: total / totals[peers[0]] for peer, total in totals.items()}
    print(f"mix at {gbit:g} Gbit: " + "  ".join(f"{p} {share:.2f}" for p, share in mix.items()))
    if "deepflow" in mix and peers[0] == "off":
        limit = LIMITS.get(gbit)
        worst = max(row["deepflow"]["median_s"] / row["off"]["median_s"] for row in rows.values())
        verdict = "" if limit is None else f" (asked {limit}: {verdict_of(mix['deepflow'], limit)})"
        print(
            f"    deepflow {mix['deepflow']:.2f}{verdict}, worst payload {worst:.2f} "
            f"(asked 1.05: {verdict_of(worst, 1.05)})"
        )
    return mix


def verdict_of(found: float, limit: float) -> str:
    """In words."""
    return "holds" if found <= limit else "SHORT"


# -- same host, through Prefect


def same_host(arguments: argparse.Namespace) -> dict[str, Any]:
    """deepflow and prefect-dask hand an array to one consumer and to eight."""
    import dask
    from prefect import flow, task
    from prefect_dask import DaskTaskRunner

    from deepflow import DeepflowTaskRunner
    from deepflow.runner.server import EmbeddedServer

    @task
    def produce(n: int, seed: int) -> Any:
        array = np.random.default_rng(seed).random(n)
        return array, time.time()

    @task
    def consume(made: Any) -> Any:
        began = time.time()
        array, returned = made
        total = float(array.sum())
        return returned, began, time.time(), total

    def body(n: int, seed: int, n_consumers: int) -> list[Any]:
        with dask.annotate(resources={"W0": 1}):
            made = produce.submit(n, seed)
        made.wait()
        futures = []
        for number in range(1, n_consumers + 1):
            with dask.annotate(resources={f"W{number}": 1}):
                futures.append(consume.submit(made))
        return [future.result() for future in futures]

    n = int(arguments.megabytes * 1e6) // 8
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(EmbeddedServer(home=Path(folder) / "server"))
        env = {"PREFECT_API_URL": server.api_url, "PREFECT_HOME": f"{folder}/client"}
        os.environ.update(env)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        stack.enter_context(temporary_settings({PREFECT_API_URL: server.api_url}))
        flows = {}
        for peer, runner in (("prefect-dask", DaskTaskRunner), ("deepflow", DeepflowTaskRunner)):
            workers = [("127.0.0.1", ())] * 9
            managed, address = dask_cluster("127.0.0.1", workers, env, folder, "2GB")
            stack.enter_context(managed)
            from distributed import Client

            with Client(address, timeout=60) as client:
                client.wait_for_workers(9, timeout=120)
            flows[peer] = flow(name=peer, task_runner=runner(address=address))(body)
        for n_consumers in (1, 8):
            runs: dict[str, list[tuple[float, float]]] = {peer: [] for peer in flows}
            idle: dict[str, list[float]] = {peer: [] for peer in flows}
            for repetition in range(arguments.repetitions + 1):
                for peer, run in flows.items():
                    small = run(1, repetition, n_consumers)
                    large = run(n, repetition, n_consumers)
                    wanted = np.random.default_rng(repetition).random(n).sum()
                    if any(abs(total / wanted - 1) > 1e-9 for *_, total in large):
                        raise AssertionError(f"{peer}: another array arrived")
                    if repetition:
                        idle[peer].append(max(began - made for made, began, *_ in small))
                        runs[peer].append(
                            (
                                max(began - made for made, began, *_ in large),
                                max(summed - made for made, _, summed, _ in large),
                            )
                        )
            found[str(n_consumers)] = {
                peer: {
                    "handing_over_s": statistics.median(begun for begun, _ in several)
                    - statistics.median(idle[peer]),
                    "summed_s": statistics.median(summed for _, summed in several),
                    "idle_s": statistics.median(idle[peer]),
                }
                for peer, several in runs.items()
            }
            if is_installed():
                rows = ray_same_host(n, n_consumers, arguments.repetitions)
                found[str(n_consumers)]["ray, no Prefect"] = {
                    "handing_over_s": statistics.median(row[0] - row[1] for row in rows),
                    "summed_s": statistics.median(row[2] for row in rows),
                    "idle_s": statistics.median(row[1] for row in rows),
                }
            for peer, row in found[str(n_consumers)].items():
                print(
                    f"{n_consumers} consumers, {peer:15} handing over "
                    f"{row['handing_over_s'] * 1e3:6.1f} ms, summed after "
                    f"{row['summed_s'] * 1e3:6.1f} ms, without data {row['idle_s'] * 1e3:6.1f} ms",
                    flush=True,
                )
    return found


def main() -> None:
    from tests.benchmarks import codecs

    every = [*codecs.payloads(1), "DataFrame with strings"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=float, nargs="+", default=[1.0], help="in Gbit/s")
    parser.add_argument("--megabytes", type=float, default=64, help="size of each payload")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--payloads", nargs="+", choices=every, default=every)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--compression", default="adaptive", help="deepflow's setting")
    parser.add_argument("--same-host", action="store_true", help="real Prefect tasks, one host")
    parser.add_argument("--quick", action="store_true", help="four payloads of 16 MB, off and ours")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--right", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.payloads, arguments.megabytes = list(QUICK), 16
        arguments.peers, arguments.repetitions = ["off", "deepflow"], 2
    if not is_installed() and "ray" in arguments.peers:
        arguments.peers = [peer for peer in arguments.peers if peer != "ray"]
        if not arguments.inside:
            print("Ray is not installed here (`pip install ray`): it is left out")
    if arguments.inside:
        arguments.inside.write_text(json.dumps(measure_link(arguments)))
        return
    if arguments.same_host:
        report: dict[str, Any] = same_host(arguments)
    else:
        report = {}
        from tests.benchmarks._links import Unavailable

        for gbit in arguments.links:
            print(f"{gbit:g} Gbit, {arguments.megabytes:g} MB", flush=True)
            try:
                rows = over_link(arguments, gbit)
            except Unavailable as exc:
                sys.exit(f"no throttled link can be made here: {exc}. Use --same-host")
            report[str(gbit)] = {"rows": rows, "mix": show_mix(gbit, rows, arguments.peers)}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
