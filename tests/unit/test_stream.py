"""Buffers over a socket: equal at the other end, whatever the codec; damage is never a value."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.decide.compression import Plan, Sample
from deepflow.errors import FrameError
from deepflow.intermediates import chunks, codecs, stream, values
from deepflow.intermediates.choosing import Choices
from deepflow.intermediates.chunks import Part


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


class Always:
    """Chooses one codec for everything."""

    def __init__(self, codec: str, threads: int = 1) -> None:
        self.chosen = Plan(codec, threads, 0.0, 0.0, "test")
        self.finished: list[int] = []

    def wants_sample(self, part: Part) -> bool:
        return False

    def sample(self, part: Part) -> list[Sample]:
        raise AssertionError("nobody asked for one")

    def plan(self, part: Part, samples: Sequence[Sample]) -> Plan:
        return self.chosen

    def link(self, sample: object) -> float:
        return 1e8

    def done(self, part: Part, plan: Plan, seconds: float, is_whole: bool) -> None:
        self.finished.append(part.octets.nbytes)


def parts_of(*arrays: object) -> list[Part]:
    return [
        Part(memoryview(a).cast("B"), getattr(getattr(a, "dtype", None), "str", None), False)
        for a in arrays
    ]


def carry(
    parts: Sequence[Part],
    choosing: object,
    pool: ThreadPoolExecutor,
    instead: bytes | None = None,
) -> tuple[list[bytes], stream.Progress, stream.Progress | BaseException]:
    """Send and receive, or receive what is given `instead`. The sender's error is returned."""
    here, there = socket.socketpair()
    here.settimeout(20)
    there.settimeout(20)
    sent: list[stream.Progress | BaseException] = []

    def serve() -> None:
        try:
            with there:
                assert stream.read_ask(there) == b"t" * 16
                if instead is None:
                    sent.append(stream.send(there, parts, choosing, pool))  # type: ignore[arg-type]
                else:
                    there.sendall(instead)
        except BaseException as exc:  # noqa: BLE001 - looked at by the test
            sent.append(exc)

    server = threading.Thread(target=serve)
    server.start()
    views = [np.empty(part.octets.nbytes, np.uint8).data for part in parts]
    try:
        with here:
            got = stream.receive(here, b"t" * 16, views, [part.dtype for part in parts], pool)
    finally:
        server.join()
    return [bytes(view) for view in views], got, sent[0] if sent else got


class Tap:
    """The receiving end of a socket that keeps what was read; the request stays unsent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.content = bytearray()

    def sendall(self, octets: bytes) -> None:
        if len(octets) == 1:
            self._sock.sendall(octets)

    def recv_into(self, out: memoryview) -> int:
        n_read = self._sock.recv_into(out)
        self.content += out[:n_read]
        return n_read


def recorded(parts: Sequence[Part], choosing: object, pool: ThreadPoolExecutor) -> bytes:
    """The bytes that `send` sends."""
    here, there = socket.socketpair()
    sender = threading.Thread(target=stream.send, args=(there, parts, choosing, pool))
    views = [np.empty(part.octets.nbytes, np.uint8).data for part in parts]
    tap: Any = Tap(here)
    with here, there:
        sender.start()
        stream.receive(tap, b"t" * 16, views, [part.dtype for part in parts], pool)
        sender.join()
    return bytes(tap.content)


SMOOTH = np.cumsum(np.random.default_rng(0).normal(size=600_000)).round(2)


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize(
    "codec", ["raw", "zstd:1", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco", "pco:1"]
)
def test_what_arrives_is_what_was_sent(codec: str, threads: int, pool: ThreadPoolExecutor) -> None:
    text = b"a line of text, again and again\n" * 5_000
    parts = parts_of(SMOOTH, text, b"", np.arange(7, dtype="i2"), b"odd")
    choosing = Always(codec, threads)
    arrived, got, sent = carry(parts, choosing, pool)
    assert arrived == [bytes(part.octets) for part in parts]
    assert got == sent
    assert got.raw_bytes == sum(part.octets.nbytes for part in parts)
    assert (got.wire_bytes < got.raw_bytes) == (codec != "raw")
    assert choosing.finished == [part.octets.nbytes for part in parts if part.octets.nbytes]


def test_what_does_not_shrink_goes_raw(pool: ThreadPoolExecutor) -> None:
    noise = np.random.default_rng(0).bytes(3_000_000)
    arrived, got, _ = carry(parts_of(noise), Always("zstd:1"), pool)
    assert arrived == [noise]
    assert list(got.by_codec) == ["raw"]


def test_a_slow_link_is_coded_once_it_is_known_and_a_fast_one_is_not(
    pool: ThreadPoolExecutor,
) -> None:
    part = Part(memoryview(np.tile(SMOOTH, 4)).cast("B"), "<f8", False, "make")
    slow = Choices("adaptive", 2)
    slow.links.observe("h", 1e6)
    _, got, _ = carry([part], slow.for_peer("h"), pool)
    assert got.wire_bytes < 0.3 * got.raw_bytes
    fast = Choices("adaptive", 2)
    fast.links.observe("h", 1e11)
    _, got, _ = carry([part], fast.for_peer("h"), pool)
    assert got.wire_bytes == got.raw_bytes
    (outcome,) = slow.chooser.log.outcomes
    assert outcome.key == ("make", "<f8", "h")
    assert outcome.plan.codec != "raw"


def test_the_setting_is_obeyed(pool: ThreadPoolExecutor) -> None:
    part = Part(memoryview(SMOOTH).cast("B"), "<f8", False)
    for setting, name in (("off", "raw"), ("zstd:3", "zstd"), ("pco", "pco")):
        _, got, _ = carry([part], Choices(setting, 2).for_peer("h"), pool)
        assert list(got.by_codec) == [name]


def test_an_unknown_ticket_is_refused(pool: ThreadPoolExecutor) -> None:
    here, there = socket.socketpair()
    with here, there:
        stream.refuse(there)
        with pytest.raises(stream.Refused, match="ticket"):
            stream.receive(here, b"t" * 16, [], [], pool)


def test_a_request_of_another_version_is_refused() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"DFst\x63\0\0\0" + b"t" * 16)
        with pytest.raises(stream.Refused, match="version 99"):
            stream.read_ask(there)
        assert here.recv(1) == b"\x02"


def test_a_sender_that_dies_is_an_error(pool: ThreadPoolExecutor) -> None:
    parts = parts_of(SMOOTH)
    content = recorded(parts, Always("pco"), pool)
    with pytest.raises((EOFError, OSError)):
        carry(parts, Always("pco"), pool, content[: len(content) // 2])


PARTS = parts_of(SMOOTH[:20_000], b"some text " * 2_000)


@pytest.fixture(scope="module")
def contents(pool: ThreadPoolExecutor) -> dict[str, bytes]:
    return {codec: recorded(PARTS, Always(codec), pool) for codec in ("raw", "pco", "zstd:1")}


@given(data=st.data())
def test_no_damage_passes_for_a_value(
    data: st.DataObject, contents: dict[str, bytes], pool: ThreadPoolExecutor
) -> None:
    content = contents[data.draw(st.sampled_from(sorted(contents)))]
    at = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    if data.draw(st.booleans()):
        damaged = damaged[:at]
    with pytest.raises((FrameError, EOFError, OSError)):
        carry(PARTS, Always("raw"), pool, bytes(damaged))


def test_a_stream_that_ends_before_its_last_chunk_is_no_value(pool: ThreadPoolExecutor) -> None:
    parts = parts_of(b"one part", b"and another")
    content = recorded(parts, Always("raw"), pool)
    last, end = len(parts[1].octets) + chunks.HEAD_BYTES, content[-chunks.HEAD_BYTES :]
    short = content[: -chunks.HEAD_BYTES - last] + end
    with pytest.raises(FrameError, match="11 bytes of the value are missing"):
        carry(parts, Always("raw"), pool, short)


def test_a_damaged_end_is_told(pool: ThreadPoolExecutor) -> None:
    parts = parts_of(b"one part")
    content = recorded(parts, Always("raw"), pool)
    for at in range(-chunks.HEAD_BYTES, 0):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(FrameError):
            carry(parts, Always("raw"), pool, bytes(damaged))


def test_parts_of_a_value_make_the_value_again(pool: ThreadPoolExecutor) -> None:
    value = {"a": SMOOTH, "b": [b"x" * 100_000, "text"], "c": SMOOTH[::2]}
    parts = values.disassemble(value)
    arrived, _, _ = carry(parts, Always("shuffle+lz4"), pool)
    again = values.assemble(
        [memoryview(bytearray(octets)) for octets in arrived], [p.is_readonly for p in parts]
    )
    assert np.array_equal(again["a"], value["a"])
    assert np.array_equal(again["c"], value["c"])
    assert again["b"] == value["b"]
    again["a"][0] = 1.0
    assert codecs.BY_ID[0].name == "raw"
