"""The receiver's side: asks a peer for keys, and takes what it is offered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from distributed.comm.addressing import get_address_host
from distributed.core import ConnectionPool, send_recv

from deepflow.errors import FrameError
from deepflow.intermediates import arena as shared
from deepflow.intermediates import stream, values
from deepflow.intermediates.arena import Arena, Descriptor, SegmentGone
from deepflow.observe.fallbacks import Fallback, fell_back

from .agreement import Card, read_card
from .serving import SHARE_FROM_BYTES, Handle, Threads

__all__ = ["Fetched", "Fetcher"]

_ASK_AGAIN_S: Final = 30.0
"""A peer that was foreign, or could not be reached by a stream, may have changed."""
_CONNECT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Fetched:
    """What came, and over what way; ``is_busy``: nothing, ask later."""

    data: dict[Any, Any] = field(default_factory=dict)
    wire_bytes: int = 0
    is_busy: bool = False


class Fetcher:
    """Fetches values from workers, for a worker or for a driver.

    `wrap` puts TLS around a connected socket; None: no streams from here. `keep` is told where in
    shared memory a value was put. Coroutines run on the event loop of `rpc`.
    """

    def __init__(
        self,
        rpc: ConnectionPool,
        who: Callable[[], str],
        folder: Path | None,
        arena: Arena | None,
        threads: Threads,
        wrap: Callable[[socket.socket], socket.socket] | None,
        timeout_s: float,
        keep: Callable[[Any, Handle], None] | None = None,
    ) -> None:
        self._rpc, self._who, self._folder, self._arena = rpc, who, folder, arena
        self._threads, self._wrap, self._timeout_s, self._keep = threads, wrap, timeout_s, keep
        self.admit: Callable[[int], None] = lambda n_bytes: None
        """Holds a thread back until there is memory for a value."""
        self._cards: dict[str, tuple[Card | None, float]] = {}
        self._streamless: dict[str, float] = {}
        self._sockets: dict[str, list[socket.socket]] = {}
        self._lock = threading.Lock()

    async def card(self, address: str) -> Card | None:
        """What the peer says of itself; None for one without deepflow. `OSError` if it is gone."""
        card, asked_s = self._cards.get(address, (None, -_ASK_AGAIN_S))
        if card is None and time.monotonic() - asked_s >= _ASK_AGAIN_S:
            comm = await self._rpc.connect(address)
            try:
                card = read_card(await send_recv(comm, op="identity"))
            finally:
                self._rpc.reuse(address, comm)
            self._cards[address] = (card, time.monotonic())
        return card

    async def fetch(self, address: str, card: Card, keys: Collection[Any]) -> Fetched | None:
        """Those of `keys` that the peer has; None if Dask's own way is to be taken for them.

        `OSError` if the peer is gone. A way that fails is left out from then on, and counted.
        """
        can_stream = bool(card.port) and self._wrap is not None
        if time.monotonic() - self._streamless.get(address, -_ASK_AGAIN_S) < _ASK_AGAIN_S:
            can_stream = False
        proof = b""
        if self._folder is not None and card.key_name:
            proof = shared.read_key(self._folder, card.key_name) or b""
        try:
            return await self._take(address, card, keys, proof, can_stream)
        except SegmentGone as exc:
            self._give_up(Fallback.SHARED_SEGMENT_GONE, address, exc)
        except FrameError as exc:
            self._give_up(Fallback.DAMAGED_TRANSFER, address, exc)
        except _StreamFailed as exc:
            self._streamless[address] = time.monotonic()
            self._give_up(Fallback.STREAM_FAILED, address, exc.__cause__ or exc)
        return None

    def _give_up(self, kind: Fallback, address: str, exc: BaseException) -> None:
        fell_back(kind)
        _log.warning("fetching from %s again, by Dask's own way: %s", address, exc)

    async def _take(
        self, address: str, card: Card, keys: Collection[Any], proof: bytes, can_stream: bool
    ) -> Fetched | None:
        comm = await self._rpc.connect(address)
        comm.name = "deepflow fetch"
        try:
            answer = await send_recv(
                comm,
                op="deepflow_offer",
                keys=list(keys),
                who=self._who(),
                proof=proof,
                can_stream=can_stream,
            )
            if answer["status"] != "OK":
                return Fetched(is_busy=True) if answer["status"] == "busy" else None
            try:
                fetched = await self._accept(address, card, answer)
            except BaseException:
                with contextlib.suppress(OSError):
                    await comm.write("failed")
                # The peer ends this connection: whoever asks next must not be given it.
                comm.abort()
                raise
            await comm.write("OK")
            return fetched
        finally:
            self._rpc.reuse(address, comm)

    async def _accept(self, address: str, card: Card, answer: dict[str, Any]) -> Fetched:
        fetched = Fetched()
        streamed: dict[Any, dict[str, Any]] = {}
        call = asyncio.get_running_loop().run_in_executor
        for key, offer in answer["offers"].items():
            if "value" in offer:
                fetched.data[key] = offer["value"]
                fetched.wire_bytes += 1
            elif "segment" in offer:
                value = await call(self._threads.io, self._attach, offer)
                fetched.data[key] = value
            elif "coded" in offer:
                fetched.wire_bytes += sum(buffer.nbytes for buffer in offer["coded"])
                fetched.data[key] = await call(self._threads.io, values.load, offer["coded"])
            else:
                streamed[key] = offer
        if streamed:
            receive = partial(self._receive, address, card, answer["ticket"], streamed)
            received, wire_bytes = await call(self._threads.io, receive)
            fetched.data.update(received)
            fetched.wire_bytes += wire_bytes
        return fetched

    def _attach(self, offer: dict[str, Any]) -> Any:
        owner, number, generation, spans = offer["segment"]
        assert self._folder is not None
        descriptor = Descriptor(owner, number, generation, tuple(map(tuple, spans)))
        return values.assemble(shared.attach(self._folder, descriptor), offer["readonly"])

    # -- streams, in a thread -----------------------------------------------------------------

    def _receive(
        self, address: str, card: Card, ticket: bytes, offers: dict[Any, dict[str, Any]]
    ) -> tuple[dict[Any, Any], int]:
        self.admit(sum(sum(offer["sizes"]) for offer in offers.values()))
        places = [self._place(offer["sizes"]) for offer in offers.values()]
        views = [view for _, of_value in places for view in of_value]
        dtypes = [dtype for offer in offers.values() for dtype in offer["dtypes"]]
        progress = self._receive_into(address, card, ticket, views, dtypes)
        data = {}
        for (key, offer), (draft, of_value) in zip(offers.items(), places, strict=True):
            if draft is None:
                data[key] = values.assemble(of_value, offer["readonly"])
                continue
            assert self._arena is not None
            of_value.clear()
            sealed = self._arena.seal(draft)
            data[key] = values.assemble(sealed.buffers, offer["readonly"])
            if self._keep is not None:
                self._keep(key, Handle(sealed, tuple(offer["readonly"])))
        return data, progress.wire_bytes

    def _place(self, sizes: Sequence[int]) -> tuple[shared.Draft | None, list[memoryview]]:
        """Where a value's parts go: memory that was used before if there is some."""
        if self._arena is not None and sum(sizes) >= SHARE_FROM_BYTES:
            draft = self._arena.draft(sizes)
            if draft is not None:
                return draft, list(draft.views)
            fell_back(Fallback.SHARED_MEMORY_FULL)
        return None, [np.empty(size, np.uint8).data for size in sizes]

    def _receive_into(
        self,
        address: str,
        card: Card,
        ticket: bytes,
        views: Sequence[memoryview],
        dtypes: Sequence[str | None],
    ) -> stream.Progress:
        with self._lock:
            kept = self._sockets.setdefault(address, [])
            sock = kept.pop() if kept else None
        was_kept = sock is not None
        while True:
            if sock is None:
                sock = self._connect(address, card)
            try:
                sock.settimeout(self._timeout_s)
                progress = stream.receive(sock, ticket, views, dtypes, self._threads.codecs)
            except BaseException as exc:
                sock.close()
                if was_kept and isinstance(exc, (OSError, EOFError)):
                    sock, was_kept = None, False  # it had been closed meanwhile
                    continue
                if isinstance(exc, EOFError):
                    raise ConnectionError(f"{address} ended the stream") from exc
                raise
            with self._lock:
                self._sockets.setdefault(address, []).append(sock)
            return progress

    def _connect(self, address: str, card: Card) -> socket.socket:
        assert self._wrap is not None
        try:
            sock = socket.create_connection((get_address_host(address), card.port), _CONNECT_S)
        except OSError as exc:
            raise _StreamFailed from exc
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._wrap(sock)
        except OSError as exc:
            sock.close()
            raise _StreamFailed from exc

    def close(self) -> None:
        """Close kept connections."""
        with self._lock:
            for sockets in self._sockets.values():
                for sock in sockets:
                    sock.close()
            self._sockets.clear()


class _StreamFailed(Exception):
    """No connection for streams can be made to the peer."""
