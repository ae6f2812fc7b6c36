"""Buffers over a socket in a pipeline: while one chunk is on the wire, the next ones are coded, and
the one before is decoded into its place.

Little-endian. The receiver asks, the sender answers with chunks, the receiver thanks:

    ask    magic "DFst" | version u8 | 0 0 0 | ticket, 16 bytes
    answer u8: 0, or what is wrong: 1 unknown ticket, 2 another version
    chunks as in `chunks`, in order
    end    a chunk of part 0xFFFFFFFF without data
    thanks one byte

The first chunks of a large buffer go raw while a sample of the rest is coded beside; as soon as the
sample and the link's speed are known, each further chunk is coded as `Choosing` says. Blocking
sockets: call it from a thread.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from deepflow.decide.compression import CHUNK_BYTES, Plan, Sample
from deepflow.errors import FrameError
from deepflow.intermediates import chunks, codecs
from deepflow.intermediates.chunks import Coded, Filling, Head, Part
from deepflow.intermediates.links import Meter

__all__ = [
    "Choosing",
    "Progress",
    "Refused",
    "new_ticket",
    "read_ask",
    "receive",
    "refuse",
    "send",
]

VERSION: Final = 1
TICKET_BYTES: Final = 16
_FIRST_CHUNK_BYTES: Final = 1 << 17
"""While it is not known yet how to code, so that little is sent the wrong way."""
_BACKLOG_BYTES: Final = 1 << 18
"""Unsent bytes in the kernel beyond which sending waits: what is queued is not coded any more."""
_WAIT_FOR_SAMPLE_S: Final = 0.2
_MEASURE_BYTES: Final = 1 << 20
_REPLAN_FACTOR: Final = 1.25
_SENDING_SHARE: Final = 0.8
"""Of the time, spent in sending: then it is the link that coded chunks wait for."""

_ASK: Final = struct.Struct(f"<4sBxxx{TICKET_BYTES}s")
_MAGIC: Final = b"DFst"
_END: Final = 0xFFFFFFFF
_NOTHING: Final = Coded(codecs.RAW, 0, b"")
_OK, _UNKNOWN, _OTHER_VERSION = range(3)
_THANKS: Final = b"\x06"


class Refused(FrameError):
    """The sender does not know the ticket, or speaks another version."""


class Choosing(Protocol):
    """How to code what goes to one peer; called from the sending thread."""

    def wants_sample(self, part: Part) -> bool:
        """Whether `plan` would use samples of this part."""

    def plan(self, part: Part, samples: Sequence[Sample]) -> Plan:
        """What to do with (the rest of) a part; samples are given once, when they are there."""

    def sample(self, part: Part) -> list[Sample]:
        """Code a sample; called from another thread."""

    def link(self, sample: tuple[float, bool] | None) -> float:
        """The link's speed in bytes per second, 0 if unknown, after a measurement of it."""

    def done(self, part: Part, plan: Plan, seconds: float, is_whole: bool) -> None:
        """A part took so long; `is_whole`: all of it under this plan."""


@dataclass(slots=True)
class Progress:
    """What one stream moved: logical bytes, stored bytes, and both by the codec's name."""

    raw_bytes: int = 0
    wire_bytes: int = 0
    by_codec: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, codec: int, n_bytes: int, n_stored: int) -> None:
        """Count one chunk."""
        self.add_as(codecs.BY_ID[codec].name, n_bytes, n_stored)

    def add_as(self, name: str, n_bytes: int, n_stored: int) -> None:
        """Count bytes under a codec's name, or what else they travelled as."""
        raw, stored = self.by_codec.get(name, (0, 0))
        self.by_codec[name] = (raw + n_bytes, stored + n_stored)
        self.raw_bytes += n_bytes
        self.wire_bytes += n_stored


def new_ticket() -> bytes:
    """What a receiver shows to get what was laid ready for it; not to be guessed."""
    return secrets.token_bytes(TICKET_BYTES)


# sending


def read_ask(sock: socket.socket) -> bytes | None:
    """The next ticket that is asked for, None where the peer has gone; `Refused` for what is no
    request of this version (the peer is told)."""
    try:
        asked = _read(sock, _ASK.size)
    except (ConnectionError, EOFError):
        return None
    magic, version, ticket = _ASK.unpack(asked)
    if magic != _MAGIC or version != VERSION:
        refuse(sock, _OTHER_VERSION)
        raise Refused(f"the peer asks in version {version} with {magic!r}, not {VERSION}")
    return bytes(ticket)


def refuse(sock: socket.socket, reason: int = _UNKNOWN) -> None:
    """Say that there is nothing under the ticket."""
    sock.sendall(bytes([reason]))


def send(
    sock: socket.socket, parts: Sequence[Part], choosing: Choosing, pool: ThreadPoolExecutor
) -> Progress:
    """Send the parts after `read_ask`, and wait for the receiver's thanks. `OSError` if it is gone.

    Up to the plan's number of threads of `pool` code ahead.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _BACKLOG_BYTES)
    progress = Progress()
    meter = Meter(sock)
    head = bytes([_OK])
    for number, part in enumerate(parts):
        if not part.octets.nbytes:
            continue
        head = _PartSender(sock, number, part, choosing, pool, progress, meter).run(head)
    sock.sendall(head + chunks.pack_head(_END, 0, _NOTHING))
    if _read(sock, 1) != _THANKS:
        raise ConnectionError("the receiver did not confirm what it was sent")
    return progress


class _PartSender:
    """One part on its way."""

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        part: Part,
        choosing: Choosing,
        pool: ThreadPoolExecutor,
        progress: Progress,
        meter: Meter,
    ) -> None:
        self.sock, self.number, self.part, self.meter = sock, number, part, meter
        self.choosing, self.pool, self.progress = choosing, pool, progress
        self.octets = part.octets
        self.ahead: deque[tuple[int, Future[Coded]]] = deque()
        self.next = 0
        self.plan = Plan("raw", 0, 0.0, 0.0, "")
        self.planned_for = 0.0
        self.sampling: Future[list[Sample]] | None = None
        self.sample_from = -1
        """Sampling starts when so many bytes are sent; -1: it has, or is not wanted."""
        self.n_plans, self.is_planned_first = 0, False
        self.sent_s = 0.0
        self.measured_at_s = time.perf_counter()

    def run(self, before: bytes) -> bytes:
        """Send it; `before` goes out with the first chunk. Returns what is still to be sent."""
        began_s = time.perf_counter()
        speed = self.choosing.link(None)
        if self.choosing.wants_sample(self.part):
            # On a link that is not known yet, what is sent first measures it, undisturbed.
            self.sample_from = 0 if speed else _MEASURE_BYTES
            self._sample()
            if self.sampling is not None and self.octets.nbytes / speed > _WAIT_FOR_SAMPLE_S:
                self.sampling.exception()  # a few ms; each chunk sent raw meanwhile costs more
        else:
            self.is_planned_first = True
            self._replan(speed, ())
        while self.next < self.octets.nbytes or self.ahead:
            self._consider()
            depth = self.plan.threads + 1 if self.plan.codec != "raw" else 0
            while self.next < self.octets.nbytes and len(self.ahead) < max(1, depth):
                self._code_next()
            start, ready = self.ahead.popleft()
            coded = ready.result()
            head = before + chunks.pack_head(self.number, start, coded)
            before = b""
            sending_s = time.perf_counter()
            _send_all(self.sock, head, coded.stored)
            self.sent_s += time.perf_counter() - sending_s
            self.progress.add(coded.codec, coded.n_bytes, len(coded.stored))
        if self.sampling is not None:
            self.sampling.cancel()
        seconds = time.perf_counter() - began_s
        self.choosing.done(
            self.part, self.plan, seconds, self.n_plans == 1 and self.is_planned_first
        )
        return before

    def _sample(self) -> None:
        if self.sample_from >= 0 and self.next >= self.sample_from:
            self.sample_from = -1
            self.sampling = self.pool.submit(self.choosing.sample, self.part)

    def _consider(self) -> None:
        """Plan anew when the sample is there, or when the link turns out another than planned."""
        speed = self.choosing.link(self._measured())
        self._sample()
        if self.sampling is not None:
            if self.sampling.done() and speed:
                samples, self.sampling = self.sampling.result(), None
                self._replan(speed, samples)
        elif self.sample_from >= 0:
            return
        elif speed and not 1 / _REPLAN_FACTOR < self.planned_for / speed < _REPLAN_FACTOR:
            self._replan(speed, ())

    def _measured(self) -> tuple[float, bool] | None:
        """The link's speed of late; only "at least" where coding or the receiver was slower."""
        rate = self.meter.read()
        if rate is None:
            return None
        now_s = time.perf_counter()
        share = self.sent_s / (now_s - self.measured_at_s)
        self.sent_s, self.measured_at_s = 0.0, now_s
        is_raw = self.plan.codec == "raw" and not self.ahead
        return rate[0], not is_raw and (rate[1] or share < _SENDING_SHARE)

    def _replan(self, speed: float, samples: Sequence[Sample]) -> None:
        before, self.planned_for = self.plan, speed
        self.plan = self.choosing.plan(self.part, samples)
        if not self.next or (self.plan.codec, self.plan.threads) != (before.codec, before.threads):
            self.n_plans += 1

    def _code_next(self) -> None:
        is_open = self.sampling is not None or self.sample_from >= 0
        wanted = _FIRST_CHUNK_BYTES if is_open else CHUNK_BYTES
        step, dtype = chunks.step_of(self.octets, self.part.dtype, wanted)
        start = self.next
        piece = self.octets[start : start + step]
        self.next = start + piece.nbytes
        if self.plan.codec == "raw":
            ready: Future[Coded] = Future()
            ready.set_result(Coded(codecs.RAW, piece.nbytes, piece))
        else:
            ready = self.pool.submit(chunks.code, piece, self.plan.codec, dtype)
        self.ahead.append((start, ready))


def _send_all(sock: socket.socket, head: bytes, body: codecs.Buffer) -> None:
    view = memoryview(body)
    if not hasattr(sock, "sendmsg") or _is_tls(sock):
        sock.sendall(head)
        sock.sendall(view)
        return
    sent = sock.sendmsg([head, view])
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    sock.sendall(view[sent - len(head) :])


def _is_tls(sock: socket.socket) -> bool:
    return hasattr(sock, "context")  # an SSLSocket, whose sendmsg raises


# receiving


def receive(
    sock: socket.socket,
    ticket: bytes,
    views: Sequence[memoryview],
    dtypes: Sequence[str | None],
    pool: ThreadPoolExecutor,
    threads: int = 2,
) -> Progress:
    """Ask for a ticket and fill `views`, writable views of bytes, with what it stands for.

    `Refused` if the sender does not know it, `FrameError` for damage, `OSError` if the sender is
    gone or silent beyond the socket's timeout. After an error the connection is of no use.
    """
    sock.sendall(_ASK.pack(_MAGIC, VERSION, ticket))
    answer = _read(sock, 1)[0]
    if answer != _OK:
        why = "does not know the ticket" if answer == _UNKNOWN else "speaks another version"
        raise Refused(f"the sender {why}")
    progress = Progress()
    filling = Filling(views, dtypes)
    decoding: deque[Future[None]] = deque()
    scratch = _Scratch()
    try:
        while True:
            head = chunks.read_head(_read(sock, chunks.HEAD_BYTES))
            if head.part == _END:
                chunks.check(head, b"")
                break
            place = filling.place(head)
            progress.add(head.codec, head.n_bytes, head.n_stored)
            if head.codec == codecs.RAW:
                _read_into(sock, place)
                chunks.check(head, place)
                continue
            while len(decoding) >= max(1, threads):
                decoding.popleft().result()
            stored = scratch.take(head.n_stored)
            _read_into(sock, stored)
            dtype = filling.dtype_of(head)
            decoding.append(pool.submit(_decode, head, stored, dtype, place, scratch))
        while decoding:
            decoding.popleft().result()
    finally:
        for future in decoding:
            future.cancel()
        for future in decoding:
            if not future.cancelled():
                future.exception()  # nothing may write into the views once this has returned
    filling.expect_full()
    sock.sendall(_THANKS)
    return progress


class _Scratch:
    """Buffers for stored chunks, used again and again: new memory is slow to touch."""

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque()

    def take(self, n_bytes: int) -> memoryview:
        buffer = self._free.pop() if self._free else memoryview(b"")
        if buffer.nbytes < n_bytes:
            buffer = np.empty(max(n_bytes, CHUNK_BYTES), np.uint8).data
        return buffer[:n_bytes]

    def give_back(self, buffer: memoryview) -> None:
        self._free.append(memoryview(buffer.obj))


def _decode(
    head: Head, stored: memoryview, dtype: str | None, place: memoryview, scratch: _Scratch
) -> None:
    chunks.decode(head, stored, dtype, place)
    scratch.give_back(stored)


def _read(sock: socket.socket, n_bytes: int) -> bytes:
    out = bytearray(n_bytes)
    _read_into(sock, memoryview(out))
    return bytes(out)


def _read_into(sock: socket.socket, out: memoryview) -> None:
    done = 0
    while done < out.nbytes:
        n_read = sock.recv_into(out[done:])
        if not n_read:
            raise EOFError("the connection ended")
        done += n_read
