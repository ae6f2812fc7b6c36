"""Values between real workers and the driver: by descriptor, by stream, coded, and as Dask does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster, wait

from deepflow.backend.fetch import fetch
from deepflow.backend.transfer.install import Options, transfer_of
from deepflow.runner.options import this_process
from deepflow.runner.worker.plugin import DeepflowWorkerPlugin

N = 400_000
Cluster = Callable[..., tuple[Client, list[str]]]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Starts a cluster of worker processes with the plugin; gives client and worker addresses."""
    opened: list[Any] = []

    def start(options: Options | None, n: int = 2, **kwargs: Any) -> tuple[Client, list[str]]:
        kwargs = {"processes": True, "threads_per_worker": 1, "dashboard_address": None} | kwargs
        made = LocalCluster(n_workers=n, **kwargs)
        opened.append(made)
        client = Client(made)
        opened.append(client)
        client.register_plugin(DeepflowWorkerPlugin(this_process(), options))
        return client, sorted(client.scheduler_info(n_workers=-1)["workers"])

    yield start
    for thing in reversed(opened):
        thing.close()


def make(n: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=n)).round(2)


def look(array: np.ndarray) -> tuple[float, int]:
    array[0] += 1.0  # Dask hands out arrays that can be written
    return float(array.sum()), os.getpid()


def accounts(client: Client, address: str) -> Any:
    def ask(dask_worker: Any) -> Any:
        transfer = transfer_of(dask_worker)
        assert transfer is not None
        return transfer.sender.ledger.take("")

    return client.run(ask, workers=[address])[address]


def shared_bytes(client: Client) -> dict[str, int]:
    def ask(dask_worker: Any) -> int:
        transfer = transfer_of(dask_worker)
        assert transfer is not None
        assert transfer.arena is not None
        transfer.sender.tidy()
        return transfer.arena.used_bytes

    return client.run(ask)


def handed_over(client: Client, workers: list[str], key: str = "made") -> Any:
    made = client.submit(make, N, workers=workers[0], key=key)
    wait(made)
    seen = [client.submit(look, made, workers=w, key=f"{key}-{w}") for w in workers[1:]]
    wanted = make(N)
    wanted[0] += 1.0
    for total, _ in client.gather(seen):
        assert total == pytest.approx(wanted.sum(), rel=1e-12)
    # Nobody's writing has reached the value where it was made.
    there = client.submit(np.copy, made, workers=workers[0], key=f"{key}-copy").result()
    assert np.array_equal(there, make(N))
    return accounts(client, workers[0])["made"]


def test_neighbours_are_handed_descriptors(cluster: Cluster, tmp_path: Path) -> None:
    client, workers = cluster(Options(shared_memory=str(tmp_path)), n=3)
    account = handed_over(client, workers)
    assert account.shared_bytes >= 2 * 8 * N
    assert account.copied_bytes < 1.01 * 8 * N + 10_000  # one copy for all
    assert account.wire_bytes == 0
    client.close()


def test_nothing_is_left_in_the_folder(cluster: Cluster, tmp_path: Path) -> None:
    client, workers = cluster(Options(shared_memory=str(tmp_path)))
    handed_over(client, workers)
    assert any(tmp_path.iterdir())
    client.cluster.close()
    assert list(tmp_path.iterdir()) == []


def test_a_driver_on_the_same_host_copies_nothing(cluster: Cluster, tmp_path: Path) -> None:
    options = Options(shared_memory=str(tmp_path))
    client, workers = cluster(options, n=1)
    made = client.submit(make, N, key="made")
    (value,) = fetch(client, [made], transfer=options)
    assert np.array_equal(value, make(N))
    account = accounts(client, workers[0])["made"]
    assert account.shared_bytes >= 8 * N
    assert account.wire_bytes == 0


def test_without_shared_memory_values_are_streamed(cluster: Cluster) -> None:
    client, workers = cluster(Options(shared_memory="", compression="pco"))
    account = handed_over(client, workers)
    assert account.shared_bytes == 0
    assert account.raw_bytes >= 8 * N
    assert account.wire_bytes < 0.4 * account.raw_bytes
    assert set(account.codecs) <= {"pco", "zstd", "raw"}


def test_a_full_or_absent_folder_falls_back(cluster: Cluster, tmp_path: Path) -> None:
    client, workers = cluster(Options(shared_memory=str(tmp_path), shared_memory_bytes=100_000))
    account = handed_over(client, workers)
    assert account.shared_bytes == 0
    assert account.raw_bytes >= 8 * N
    client.close()
    client, workers = cluster(Options(shared_memory=str(tmp_path / "absent")))
    assert handed_over(client, workers).raw_bytes >= 8 * N


def test_a_worker_without_deepflow_is_asked_and_answered_as_dask_does(cluster: Cluster) -> None:
    client, workers = cluster(None)

    def install_on(dask_worker: Any) -> None:
        from deepflow.backend.transfer.install import install

        install(dask_worker, Options())

    client.run(install_on, workers=workers[:1])
    for source, target in (workers, workers[::-1]):
        made = client.submit(make, N, workers=source, key=f"made-{source}")
        total, _ = client.submit(look, made, workers=target, key=f"look-{source}").result()
        assert total == pytest.approx(make(N).sum() + 1.0, rel=1e-12)


def test_where_only_websockets_pass_values_are_coded_in_dasks_messages(cluster: Cluster) -> None:
    client, workers = cluster(
        Options(shared_memory="", compression="shuffle+zstd"), protocol="ws://"
    )
    account = handed_over(client, workers)
    assert set(account.codecs) == {"frames"}
    assert account.wire_bytes < 0.8 * account.raw_bytes


def test_streams_are_encrypted_where_the_cluster_is(cluster: Cluster, tmp_path: Path) -> None:
    from distributed.security import Security

    security = Security.temporary()
    client, workers = cluster(
        Options(shared_memory="", compression="pco"), protocol="tls://", security=security
    )
    account = handed_over(client, workers)
    assert account.wire_bytes < 0.4 * account.raw_bytes

    def plain(dask_worker: Any) -> bytes:
        import socket

        transfer = transfer_of(dask_worker)
        assert transfer is not None
        host = dask_worker.address.removeprefix("tls://").rpartition(":")[0]
        with socket.create_connection((host, transfer.card.port), 5) as sock:
            sock.sendall(b"DFst\1\0\0\0" + b"t" * 16)
            sock.settimeout(5)
            try:
                return sock.recv(1)
            except ConnectionResetError:
                return b""

    answer = client.run(plain, workers=workers[:1])[workers[0]]
    # A TLS alert, or nothing: never the answer of the protocol.
    assert answer in (b"", b"\x15")


def test_a_sender_killed_in_the_middle_of_a_stream_is_made_up_for(cluster: Cluster) -> None:
    client, workers = cluster(Options(shared_memory=""), n=2)

    def throttle(dask_worker: Any) -> int:
        """The sender goes after its first chunks."""
        from deepflow.intermediates import stream

        sent = stream._send_all

        def dying(sock: Any, head: bytes, body: Any) -> None:
            sent(sock, head, body)
            os.kill(os.getpid(), signal.SIGKILL)

        stream._send_all = dying
        return os.getpid()

    client.run(throttle, workers=workers[:1])
    made = client.submit(make, 2_000_000, workers=workers[0], allow_other_workers=True, key="made")
    wait(made)
    looked = client.submit(look, made, workers=workers[1], key="look")
    total, _ = looked.result(timeout=120)
    assert total == pytest.approx(make(2_000_000).sum() + 1.0, rel=1e-12)


def test_a_segment_that_is_gone_is_fetched_as_dask_does(cluster: Cluster, tmp_path: Path) -> None:
    client, workers = cluster(Options(shared_memory=str(tmp_path)))
    handed_over(client, workers)  # from now on results are laid there
    made = client.submit(make, N, workers=workers[0], key="other")
    total, _ = client.submit(look, made, workers=workers[1], key="look-other").result()
    remove_segments(tmp_path)
    again = client.submit(look, made, workers=workers[1], key="look-again")
    assert again.result()[0] > 0
    fresh = client.submit(make, N, workers=workers[0], key="fresh")
    wait(fresh)
    client.run(lose_segments, workers=workers[1:])
    looked = client.submit(look, fresh, workers=workers[1], key="look-fresh")
    assert looked.result(timeout=120)[0] == pytest.approx(total)
    # The sender ends the connection over which it heard so: nobody is given that one.
    were_closed = client.run(lambda dask_worker: dask_worker.were_closed, workers=workers[1:])
    assert were_closed[workers[1]] == [True], "it was lost once and then came by Dask's own way"


def remove_segments(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".key":
            path.unlink()


def lose_segments(dask_worker: Any) -> None:
    """Segments that are offered to this worker are gone when it looks for them.

    Of each connection over which it has asked it notes whether it was closed when given back.
    """
    transfer = transfer_of(dask_worker)
    assert transfer is not None
    fetcher, folder = transfer.fetcher, transfer.fetcher._folder
    attach, reuse, dask_worker.were_closed = fetcher._attach, dask_worker.rpc.reuse, []
    assert folder is not None

    def attach_nothing(offer: dict[str, Any]) -> Any:
        remove_segments(folder)
        return attach(offer)

    def noting(address: str, comm: Any) -> None:
        if comm.name == "deepflow fetch":
            dask_worker.were_closed.append(comm.closed())
        reuse(address, comm)

    fetcher._attach, dask_worker.rpc.reuse = attach_nothing, noting  # type: ignore[method-assign]


def test_released_values_give_their_memory_back(cluster: Cluster, tmp_path: Path) -> None:
    limit = 40 * 8 * N
    client, workers = cluster(Options(shared_memory=str(tmp_path), shared_memory_bytes=limit))
    for i in range(20):
        made = client.submit(make, N, workers=workers[0], key=f"made-{i}")
        client.submit(look, made, workers=workers[1], key=f"look-{i}").result()
        made.release()
    deadline_s = time.monotonic() + 120
    while max(shared_bytes(client).values()) > limit / 4 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert max(shared_bytes(client).values()) <= limit / 4
