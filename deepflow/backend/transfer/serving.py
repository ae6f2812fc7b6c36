"""The sender's side: what is offered for a key, what lies ready for streams, what is shared."""

from __future__ import annotations

import asyncio
import hmac
import socket
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from distributed.comm.addressing import get_address_host
from distributed.core import Status
from distributed.protocol.serialize import to_serialize

from deepflow.backend.keys import task_of
from deepflow.decide.compression import RAW_BELOW_BYTES
from deepflow.errors import ValueLostError
from deepflow.intermediates import stream, values
from deepflow.intermediates.arena import Arena, Sealed
from deepflow.intermediates.choosing import Choices
from deepflow.intermediates.chunks import Part
from deepflow.observe import metrics
from deepflow.observe.fallbacks import Fallback, fell_back

from .ledger import Ledger

if TYPE_CHECKING:
    from distributed import Worker
    from distributed.comm.core import Comm

__all__ = ["SHARE_FROM_BYTES", "Handle", "Sender"]

SHARE_FROM_BYTES: Final = 1 << 20
STREAM_FROM_BYTES: Final = 1 << 22
STREAM_FROM_S: Final = 0.01
"""Smaller values are streamed if they take longer than this: a stream costs a round trip."""
_BUFFERS_SHARE: Final = 0.9
_SHARING_LOCKS: Final = 16


class Handle(NamedTuple):
    """A segment with a value in it, and which of its parts are read-only."""

    sealed: Sealed
    readonly: tuple[bool, ...]


class _Asked(NamedTuple):
    key: Any
    n_bytes: int


@dataclass(slots=True)
class _Ready:
    """What is offered to one peer, as long as it has not taken it."""

    host: str
    is_neighbour: bool
    can_stream: bool
    parts: list[Part] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    """Of the values that the parts belong to, one for each value."""
    kept: list[Handle] = field(default_factory=list)


class Sender:
    """Offers a worker's values to its peers and to drivers."""

    def __init__(
        self, worker: Worker, choices: Choices, arena: Arena | None, threads: Threads
    ) -> None:
        self.worker, self.choices, self.arena, self.threads = worker, choices, arena, threads
        self.ledger = Ledger()
        self.has_neighbours = False
        """Whether a process of this host has asked before, so that sharing is worth a copy."""
        self._handles: dict[Any, Handle] = {}
        self._sharing = [threading.Lock() for _ in range(_SHARING_LOCKS)]
        self._ready: dict[bytes, _Ready] = {}

    # -- what is in shared memory -------------------------------------------------------------

    def is_shared(self, key: Any) -> bool:
        """Whether the value of a key lies in shared memory."""
        return key in self._handles

    def keep(self, key: Any, handle: Handle) -> None:
        """Note where the value of a key lies."""
        self._handles[key] = handle

    def forget(self, key: Any) -> None:
        """The worker does not hold the value of a key in its heap any more."""
        self._handles.pop(key, None)

    def tidy(self) -> None:
        """Forget what the worker does not hold any more. On the event loop, now and then."""
        tasks = self.worker.state.tasks
        for key in [key for key in self._handles if key not in tasks]:
            del self._handles[key]
        if self.arena is not None:
            self.arena.tidy()
            metrics.set_gauge("deepflow_shared_memory_bytes", self.arena.used_bytes)

    def settle(self, key: Any, value: Any, n_bytes: int) -> Any:
        """A task's result as the worker is to keep it: in shared memory if that will be of use.

        Called in the task's thread. What cannot be moved there stays as it is.
        """
        self._handles.pop(key, None)
        if self.arena is None or not self.has_neighbours or n_bytes < SHARE_FROM_BYTES:
            return value
        try:
            parts = values.disassemble(value, task_of(key))
            handle = self._share(key, parts, n_bytes)
            if handle is None:
                return value
            moved = values.assemble(handle.sealed.buffers, handle.readonly)
        except Exception:  # noqa: BLE001 - pickling runs the user's code
            fell_back(Fallback.NOT_SHAREABLE)
            return value
        self.keep(key, handle)
        return moved

    def _share(self, key: Any, parts: Sequence[Part], n_bytes: int) -> Handle | None:
        """The parts copied into a segment; None where there is no room, or it is not worth it."""
        if sum(part.octets.nbytes for part in parts[1:]) < _BUFFERS_SHARE * n_bytes:
            return None  # objects rather than buffers: each reader would build them anew
        assert self.arena is not None
        began_s = time.perf_counter()
        sealed = self.arena.put([part.octets for part in parts])
        if sealed is None:
            fell_back(Fallback.SHARED_MEMORY_FULL)
            return None
        size_bytes = sealed.descriptor.size_bytes
        self.ledger.copied(key, size_bytes, time.perf_counter() - began_s)
        return Handle(sealed, tuple(part.is_readonly for part in parts))

    # -- a peer asks --------------------------------------------------------------------------

    async def offer(
        self,
        comm: Comm,
        keys: Collection[Any],
        who: str,
        proof: bytes = b"",
        can_stream: bool = True,
    ) -> Any:
        """Dask handler ``deepflow_offer``: to peers of ours what `Worker.get_data` is to others.

        Answers with one offer for each key that is here, and waits until the peer has taken them.
        """
        worker = self.worker
        if self._is_busy(comm):
            return {"status": "busy"}
        is_neighbour = self.arena is not None and hmac.compare_digest(proof, self.arena.key)
        self.has_neighbours |= is_neighbour
        asked = [
            _Asked(key, state.nbytes or 0)
            for key in keys
            if key in worker.data and (state := worker.state.tasks.get(key)) is not None
        ]
        if len(asked) < len(keys) and any(key in worker.state.actors for key in keys):
            return {"status": "ask-dask"}
        total_bytes = sum(one.n_bytes for one in asked)
        worker.transfer_outgoing_count += 1
        worker.transfer_outgoing_count_total += 1
        worker.transfer_outgoing_bytes += total_bytes
        worker.transfer_outgoing_bytes_total += total_bytes
        host = get_address_host(comm.peer_address)
        ready = _Ready(host, is_neighbour, can_stream)
        ticket = stream.new_ticket()
        try:
            # What has left the heap is read back in a thread.
            in_heap = getattr(worker.data, "is_in_heap", lambda key: True)
            plain = {one.key for one in asked if self._is_plain(one, ready)}
            if len(plain) == len(asked) and all(in_heap(one.key) for one in asked):
                offers = {one.key: _plain(worker.data[one.key]) for one in asked}
            else:
                offers = await asyncio.get_running_loop().run_in_executor(
                    self.threads.io, self._offers, asked, plain, ready
                )
            self._ready[ticket] = ready
            began_s = time.perf_counter()
            await comm.write({"status": "OK", "ticket": ticket, "offers": offers})
            taken = await comm.read()
            self._account(asked, offers, host, time.perf_counter() - began_s)
            if taken != "OK":
                raise OSError(f"{who} could not take what it was offered: {taken!r}")
        except OSError:
            comm.abort()
            raise
        finally:
            del self._ready[ticket]
            worker.transfer_outgoing_bytes -= total_bytes
            worker.transfer_outgoing_count -= 1
        return Status.dont_reply

    def _is_busy(self, comm: Comm) -> bool:
        """As `Worker.get_data` has it: twice as many for the same host, one while paused."""
        worker = self.worker
        limit = worker.transfer_outgoing_count_limit
        if worker.status == Status.paused:
            limit = 1
        elif get_address_host(comm.peer_address) == get_address_host(worker.address):
            limit = limit * 2
        return limit is not False and worker.transfer_outgoing_count >= limit

    def _offers(
        self, asked: Sequence[_Asked], plain: Collection[Any], ready: _Ready
    ) -> dict[Any, dict[str, Any]]:
        offers = {}
        for one in asked:
            try:
                value = self.worker.data[one.key]
            except (KeyError, ValueLostError):
                continue  # not here any more: the peer says so to the scheduler
            offers[one.key] = _plain(value) if one.key in plain else self._one(one, value, ready)
        return offers

    def _one(self, one: _Asked, value: Any, ready: _Ready) -> dict[str, Any]:
        handle = self._handles.get(one.key) if ready.is_neighbour else None
        if handle is not None:
            return self._by_descriptor(handle, one.key, ready)
        wants_segment = ready.is_neighbour and one.n_bytes >= SHARE_FROM_BYTES
        wants_stream = ready.can_stream and self._is_worth_a_stream(one.n_bytes, ready.host)
        wants_coding = not ready.can_stream and not ready.is_neighbour
        if not (wants_segment or wants_stream or wants_coding):
            return _plain(value)
        try:
            parts = values.disassemble(value, task_of(one.key))
        except Exception:  # noqa: BLE001 - pickling runs the user's code; Dask says what is wrong
            return _plain(value)
        if wants_segment and (handle := self._share_once(one, parts)) is not None:
            return self._by_descriptor(handle, one.key, ready)
        if wants_stream and self.choices.for_peer(ready.host).is_left_raw(parts):
            return _plain(value)  # nothing is faster at that than Dask
        if wants_coding:
            return self._coded(one.key, parts, ready)
        if not wants_stream:
            return _plain(value)
        first = len(ready.parts)
        ready.parts.extend(parts)
        ready.keys.append(one.key)
        return {
            "first": first,
            "sizes": [part.octets.nbytes for part in parts],
            "dtypes": [part.dtype for part in parts],
            "readonly": [part.is_readonly for part in parts],
        }

    def _share_once(self, one: _Asked, parts: Sequence[Part]) -> Handle | None:
        """As `_share`; who asks at the same time gets the same segment."""
        with self._sharing[hash(one.key) % len(self._sharing)]:
            handle = self._handles.get(one.key)
            if handle is None:
                handle = self._share(one.key, parts, one.n_bytes)
                if handle is not None:
                    self.keep(one.key, handle)
            return handle

    def _by_descriptor(self, handle: Handle, key: Any, ready: _Ready) -> dict[str, Any]:
        found = handle.sealed.descriptor
        ready.kept.append(handle)
        self.ledger.shared(key, found.size_bytes)
        return {
            "segment": [found.owner, found.number, found.generation, list(found.spans)],
            "readonly": list(handle.readonly),
        }

    def _is_plain(self, one: _Asked, ready: _Ready) -> bool:
        """Whether a value is left to Dask without a look at it; small ones are."""
        if one.n_bytes < RAW_BELOW_BYTES:
            return True
        if not ready.can_stream or (ready.is_neighbour and one.n_bytes >= SHARE_FROM_BYTES):
            return False
        if not self._is_worth_a_stream(one.n_bytes, ready.host):
            return True
        return self.choices.for_peer(ready.host).is_known_raw(task_of(one.key), one.n_bytes)

    def _is_worth_a_stream(self, n_bytes: int, host: str) -> bool:
        speed = self.choices.links.speed(host)
        if n_bytes >= STREAM_FROM_BYTES or not speed:
            return n_bytes >= SHARE_FROM_BYTES
        return n_bytes / speed > STREAM_FROM_S

    def _coded(self, key: Any, parts: Sequence[Part], ready: _Ready) -> dict[str, Any]:
        """Coded as a whole, in Dask's message: where no other connection can be made."""
        choosing = self.choices.for_peer(ready.host, partial(self.ledger.chosen, key), cores=0)
        buffers = values.dump_parts(parts, choosing.codec)
        return {"coded": [to_serialize(memoryview(buffer)) for buffer in buffers]}

    def _account(
        self,
        asked: Sequence[_Asked],
        offers: dict[Any, dict[str, Any]],
        host: str,
        seconds: float,
    ) -> None:
        """Count what went in Dask's message, and learn from a large one how fast the link is."""
        total = 0
        for one in asked:
            if one.key not in offers:
                continue
            offer, progress = offers[one.key], stream.Progress()
            if "value" in offer:
                progress.add_as("raw", one.n_bytes, one.n_bytes)
            elif "coded" in offer:
                stored = sum(part.data.nbytes for part in offer["coded"])
                progress.add_as("frames", one.n_bytes, stored)
            else:
                return  # the time is that of a stream, or of a hand-over
            total += progress.wire_bytes
            if one.n_bytes >= RAW_BELOW_BYTES:
                self.ledger.sent(one.key, progress, seconds)
        if total >= SHARE_FROM_BYTES:
            # The peer's handling is in it, too.
            self.choices.links.observe(host, total / seconds, is_lower_bound=True)

    # -- a peer takes a stream ----------------------------------------------------------------

    def serve(self, sock: socket.socket, ticket: bytes) -> None:
        """Send what lies ready under a ticket; in one of the listener's threads."""
        ready = self._ready.get(ticket)
        if ready is None or not ready.parts:
            stream.refuse(sock)
            return
        began_s = time.perf_counter()
        # Mostly it is one value, or several of one task.
        key = ready.keys[0]
        choosing = self.choices.for_peer(ready.host, partial(self.ledger.chosen, key))
        progress = stream.send(sock, ready.parts, choosing, self.threads.codecs)
        seconds = time.perf_counter() - began_s
        self.ledger.sent(key, progress, seconds, len(ready.keys))


def _plain(value: Any) -> dict[str, Any]:
    return {"value": to_serialize(value)}


class Threads:
    """The threads of a process's transfers. Apart, since what waits for a peer also waits for
    what is being coded."""

    def __init__(self, cores: int) -> None:
        self.io = ThreadPoolExecutor(8 + cores, "deepflow-transfer")
        self.codecs = ThreadPoolExecutor(cores, "deepflow-codec")

    def close(self) -> None:
        """Without waiting for what runs."""
        self.io.shutdown(wait=False, cancel_futures=True)
        self.codecs.shutdown(wait=False, cancel_futures=True)
