"""Puts the transfers into a Dask worker or a driver's client, in place of Dask's own.

`Worker.gather_dep` is bound anew on the instance. Where it, or another of the private parts that
`backend/contract.py` lists for transfer, is not as this was written for, Dask's own transfers stay.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from distributed import Worker, worker_state_machine
from distributed.comm.addressing import get_address_host
from distributed.core import Status
from distributed.metrics import context_meter, time
from tornado.ioloop import PeriodicCallback

from deepflow.backend.contract import TRANSFER, may_use
from deepflow.intermediates.arena import DEFAULT_FOLDER, Arena
from deepflow.intermediates.choosing import Choices
from deepflow.observe.fallbacks import Fallback, fell_back

from .agreement import FIELD, VERSION, Card
from .fetching import Fetcher
from .listener import Listener
from .serving import Sender, Threads

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

__all__ = ["Options", "Transfer", "fetcher_of", "install", "transfer_of"]

_TIMEOUT_S: Final = 60.0
_TIDY_EVERY_S: Final = 1.0
_POOL_SHARE: Final = 0.25
_MEMORY_SHARE: Final = 0.25
_STREAM_SCHEMES: Final = ("tcp", "tls")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How values are to travel; as the settings of the same names."""

    compression: str = "adaptive"
    shared_memory: str = str(DEFAULT_FOLDER)
    """Folder for segments; empty: none are made."""
    shared_memory_bytes: int | None = None
    """None: a quarter of the worker's memory."""


class Transfer:
    """The transfers of one worker."""

    def __init__(self, worker: Worker, options: Options) -> None:
        cores = _cores()
        self.worker = worker
        self.threads = Threads(cores)
        self.arena = _make_arena(worker, options)
        self.sender = Sender(worker, Choices(options.compression, cores), self.arena, self.threads)
        scheme = worker.address.partition("://")[0]
        can_stream = scheme in _STREAM_SCHEMES
        host = get_address_host(worker.address)
        wrap_here = _wrapper(worker.security, "listen", "worker") if can_stream else None
        wrap_there = _wrapper(worker.security, "connection", "worker") if can_stream else None
        self.listener = (
            Listener(host, self.sender.serve, wrap_here, _TIMEOUT_S) if wrap_here else None
        )
        self.card = Card(
            VERSION,
            self.listener.port if self.listener else 0,
            self.arena.key_name if self.arena else "",
        )
        self.fetcher = Fetcher(
            worker.rpc,
            lambda: worker.address,
            self.arena.folder if self.arena else None,
            self.arena,
            self.threads,
            wrap_there,
            _TIMEOUT_S,
            self.sender.keep,
        )
        self._tidying = PeriodicCallback(self.sender.tidy, _TIDY_EVERY_S * 1000)

    def start(self) -> None:
        """Take the worker's transfers over."""
        worker = self.worker
        stock_identity = worker.handlers["identity"]
        worker.handlers["identity"] = lambda: {
            **stock_identity(),
            FIELD: self.card.to_message(),
        }
        worker.handlers["deepflow_offer"] = self.sender.offer
        worker.gather_dep = partial(_gather_dep, worker, self.fetcher, worker.gather_dep)  # type: ignore[method-assign]
        self._tidying.start()

    def close(self) -> None:
        """Give everything back; no file or port is left."""
        self._tidying.stop()
        if self.listener is not None:
            self.listener.close()
        self.fetcher.close()
        self.threads.close()
        if self.arena is not None:
            self.arena.close()


_transfers: WeakKeyDictionary[Worker, Transfer] = WeakKeyDictionary()


def install(worker: Worker, options: Options) -> Transfer | None:
    """Let a worker send and receive as this room does; None where Dask's own way has to stay."""
    if worker in _transfers:
        return _transfers[worker]
    if worker.address.startswith("inproc://"):
        return None  # values are handed over as they are
    if not may_use(TRANSFER):
        return None
    transfer = _transfers[worker] = Transfer(worker, options)
    transfer.start()
    return transfer


def transfer_of(worker: Worker) -> Transfer | None:
    """What `install` put into a worker."""
    return _transfers.get(worker)


_fetchers: WeakKeyDictionary[Any, Fetcher] = WeakKeyDictionary()


def fetcher_of(client: Client, options: Options) -> Fetcher:
    """A driver's fetcher: it reads segments of workers that it shares memory with, owns none."""
    found = _fetchers.get(client)
    if found is None:
        folder = Path(options.shared_memory) if options.shared_memory else None
        found = _fetchers[client] = Fetcher(
            client.rpc,
            lambda: client.id,
            folder,
            None,
            Threads(_cores()),
            _wrapper(client.security, "connection", "client"),
            _TIMEOUT_S,
        )
    return found


async def _gather_dep(
    worker: Worker,
    fetcher: Fetcher,
    stock: Callable[..., Any],
    address: str,
    to_gather: Collection[Any],
    total_nbytes: int,
    *,
    stimulus_id: str,
) -> Any:
    """`Worker.gather_dep`, for peers with deepflow; all others, and what fails, as Dask has it."""
    by_dask = partial(stock, address, to_gather, total_nbytes, stimulus_id=stimulus_id)
    if worker.status not in (Status.running, Status.paused, Status.closing_gracefully):
        return await by_dask()
    done: dict[str, Any] = {"worker": address, "total_nbytes": total_nbytes}
    try:
        card = await fetcher.card(address)
        if card is None:
            return await by_dask()
        worker.state.log.append(("request-dep", address, to_gather, stimulus_id, time()))
        with context_meter.meter("network", func=time) as meter:
            fetched = await fetcher.fetch(address, card, to_gather)
    except OSError as exc:
        _log.warning("lost %s while fetching from it: %s", address, exc)
        worker.state.log.append(("gather-dep-failed", address, to_gather, stimulus_id, time()))
        return worker_state_machine.GatherDepNetworkFailureEvent(
            stimulus_id=f"gather-dep-network-failure-{time()}", **done
        )
    except Exception:  # noqa: BLE001 - a value's own class raised: Dask says it in its way
        _log.exception("fetching from %s failed; again by Dask's own way", address)
        fell_back(Fallback.FETCH_FAILED)
        return await by_dask()
    if fetched is None:
        return await by_dask()
    if fetched.is_busy:
        worker.state.log.append(("gather-dep-busy", address, to_gather, stimulus_id, time()))
        return worker_state_machine.GatherDepBusyEvent(
            stimulus_id=f"gather-dep-busy-{time()}", **done
        )
    if fetched.wire_bytes:  # else it says nothing about the network
        worker._update_metrics_received_data(
            start=meter.start,
            stop=meter.stop,
            data=fetched.data,
            cause=worker._get_cause(to_gather),
            worker=address,
        )
    worker.state.log.append(("receive-dep", address, set(fetched.data), stimulus_id, time()))
    return worker_state_machine.GatherDepSuccessEvent(
        stimulus_id=f"gather-dep-success-{time()}", data=fetched.data, **done
    )


def _make_arena(worker: Worker, options: Options) -> Arena | None:
    if not options.shared_memory:
        return None
    limit = options.shared_memory_bytes
    if limit is None:
        memory = worker.memory_manager.memory_limit or _physical_memory_bytes()
        limit = int(_MEMORY_SHARE * memory)
    try:
        return Arena(Path(options.shared_memory), limit, int(_POOL_SHARE * limit))
    except OSError as exc:
        fell_back(Fallback.NO_SHARED_MEMORY)
        _log.warning("no shared memory in %s, values are copied: %s", options.shared_memory, exc)
        return None


def _wrapper(
    security: Security | None, which: str, role: str
) -> Callable[[socket.socket], socket.socket]:
    """What puts TLS around a socket where the cluster has it."""
    context: ssl.SSLContext | None = None
    if security is not None:
        arguments = (
            security.get_listen_args(role)
            if which == "listen"
            else security.get_connection_args(role)
        )
        context = arguments.get("ssl_context")
    if context is None:
        return lambda sock: sock
    return partial(context.wrap_socket, server_side=which == "listen")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
