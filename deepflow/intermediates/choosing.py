"""The choice of codecs as a process makes it: the pure choice, with samples, memory and links."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from cachetools import LRUCache

from deepflow.decide.compression import (
    RAW_BELOW_BYTES,
    Chooser,
    Outcome,
    Plan,
    Resting,
    Sample,
    choose,
)
from deepflow.intermediates import sampling
from deepflow.intermediates.chunks import Part
from deepflow.intermediates.codecs import suits, whole_elements
from deepflow.intermediates.links import Links

__all__ = ["Choices", "ForPeer", "codec_at_rest"]

_MAX_SHAPES: Final = 4_096
_ALIKE_FACTOR: Final = 2.0
"""Values of one task count as alike if neither has more than so many times the other's bytes."""

_Key = tuple[str, str | None, str]
"""Task, element type, host."""


def codec_at_rest(part: Part, objective: Resting) -> str:
    """The codec for a part that is kept in the heap or in a store."""
    n_bytes = part.octets.nbytes
    if n_bytes < objective.raw_below_bytes:
        return "raw"
    dtype, width = whole_elements(part.dtype, n_bytes)
    names = objective.prices(width, is_number=suits("pco", dtype, n_bytes))
    if n_bytes < objective.sampled_from_bytes:
        return next(iter(names))
    samples = sampling.ratios(part.octets, dtype, names, objective.sample_bytes)
    return choose(n_bytes, samples, objective).codec


class Choices:
    """What this process knows of its links and of what codecs do to its data. Thread-safe."""

    def __init__(self, setting: str, cores: int) -> None:
        self.chooser = Chooser(setting)
        self.links = Links()
        self.cores = cores
        self.lock = threading.Lock()
        self.left_raw: LRUCache[tuple[str, str], tuple[tuple[_Key, int], ...]] = LRUCache(
            _MAX_SHAPES
        )
        """By task and host: keys and bytes of the parts of the last value that was left raw."""

    def for_peer(
        self, host: str, seen: Callable[[Outcome], None] | None = None, cores: int | None = None
    ) -> ForPeer:
        """How to code what goes to a host, on at most so many cores; 0: one after the other.

        `seen` is told of what became of each large buffer.
        """
        return ForPeer(self, host, self.cores if cores is None else cores, seen)


class ForPeer:
    """`stream.Choosing` for what goes to one host."""

    def __init__(
        self, choices: Choices, host: str, cores: int, seen: Callable[[Outcome], None] | None
    ) -> None:
        self._choices, self._host, self._cores, self._seen = choices, host, cores, seen

    def _key(self, part: Part) -> _Key:
        return part.task, part.dtype, self._host

    def wants_sample(self, part: Part) -> bool:
        """Whether `plan` would use samples of this part."""
        with self._choices.lock:
            return self._choices.chooser.wants_sample(self._key(part), part.octets.nbytes)

    def sample(self, part: Part) -> list[Sample]:
        """Ratios and speeds of the codecs for its type on a few places of it."""
        return sampling.sample(part.octets, part.dtype)

    def plan(self, part: Part, samples: Sequence[Sample]) -> Plan:
        """The codec and how many threads."""
        choices = self._choices
        with choices.lock:
            return choices.chooser.plan(
                self._key(part),
                part.octets.nbytes,
                choices.links.speed(self._host),
                self._cores,
                samples,
            )

    def is_left_raw(self, parts: Sequence[Part]) -> bool:
        """Whether all of this would be sent raw, as far as is known without a new sample."""
        shape = tuple((self._key(part), part.octets.nbytes) for part in parts)
        left_raw = self._choices.left_raw
        of = (parts[0].task, self._host)
        with self._choices.lock:
            is_raw = self._is_left_raw(shape)
            if is_raw:
                left_raw[of] = shape
            else:
                left_raw.pop(of, None)
        return is_raw

    def is_known_raw(self, task: str, n_bytes: int) -> bool:
        """Whether the last value of the task was left raw, and one like it still would be.

        So that a value need not be taken apart to know; of other sizes it says nothing.
        """
        with self._choices.lock:
            shape = self._choices.left_raw.get((task, self._host))
            if shape is None:
                return False
            before = sum(size for _, size in shape)
            if not before / _ALIKE_FACTOR <= n_bytes <= before * _ALIKE_FACTOR:
                return False
            return self._is_left_raw(shape)

    def _is_left_raw(self, shape: Sequence[tuple[_Key, int]]) -> bool:
        chooser, speed = self._choices.chooser, self._choices.links.speed(self._host)
        return all(chooser.is_left_raw(key, size, speed, self._cores) for key, size in shape)

    def codec(self, part: Part) -> str:
        """The codec for a part that is coded as a whole before it is sent."""
        samples = self.sample(part) if self.wants_sample(part) and self.link(None) else ()
        return self.plan(part, samples).codec

    def link(self, sample: tuple[float, bool] | None) -> float:
        """Bytes per second to the host, 0 if unknown; `sample`: a measurement, and whether it is
        only a lower bound."""
        links = self._choices.links
        return links.speed(self._host) if sample is None else links.observe(self._host, *sample)

    def done(self, part: Part, plan: Plan, seconds: float, is_whole: bool) -> None:
        """Log what a part took; small ones say nothing of a codec."""
        if part.octets.nbytes >= RAW_BELOW_BYTES:
            with self._choices.lock:
                outcome = self._choices.chooser.record(
                    self._key(part), part.octets.nbytes, plan, seconds, is_whole
                )
            if self._seen is not None:
                self._seen(outcome)
