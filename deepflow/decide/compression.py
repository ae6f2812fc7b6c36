"""Which codec a buffer gets: by an objective, from what a sample of the buffer says of each codec.

Pure: sampled ratios and speeds come in, a plan goes out. There are two kinds of objective. Bytes
that rest, in the heap (`HEAP`) or as a persisted result (`STORE`), are to be few (`Resting`). Bytes
that go over a `Link` are to arrive soon. With `n` bytes, link `B`, coding speed `C` and decoding
speed `D` of one core in bytes/s, ratio `R`, `k` cores and chunks of `c` bytes, that takes:

    raw         n / B
    serial      n / C + n / (R B) + n / D
    pipelined   max(n / (k C), n / (R B), n / (k D)) + c / C + c / D

A codec is taken only where it is predicted to save a tenth of raw's time, and for 128 kB and more.
What it then takes corrects the prediction for the same task, type and link: cores that others
use are slower than a sample says. Where it was slower than raw twice in a row, raw is taken until
the next sample, which is one in 64. Each plan is logged with what it then took, so that
the regret of the choice can be computed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cachetools import LRUCache

from deepflow.errors import ConfigurationError, nearest

__all__ = [
    "CHUNK_BYTES",
    "CODEC_NAMES",
    "HEAP",
    "STORE",
    "Chooser",
    "CompressionLog",
    "Link",
    "Outcome",
    "Plan",
    "Resting",
    "Sample",
    "candidates",
    "choose",
    "parse_compression",
    "predict_s",
]

CODEC_NAMES: Final = ("raw", "zstd", "shuffle+zstd", "shuffle+lz4", "bytedelta+zstd", "pco")
"""What a user may name; some also with a level, as ``zstd:3``."""
MAX_LEVELS: Final = {"zstd": 19, "pco": 12}
"""Levels begin with 1."""

RAW_BELOW_BYTES: Final = 128_000
"""Nothing can be won on sending less."""
MARGIN: Final = 0.10
LOSSES_TO_BYPASS: Final = 2
PROBE_EVERY: Final = 64
CHUNK_BYTES: Final = 1 << 20
"""Chunks are cut this long: enough for a codec's ratio, little enough to overlap with sending."""
_CORRECTION_WEIGHT: Final = 0.3
_MAX_CORRECTION: Final = 4.0
_MAX_KEYS: Final = 4_096
_ONE_AT_A_TIME: Final = ("shuffle+lz4", "shuffle+zstd", "bytedelta+zstd")
"""blosc2 holds Python's lock while it works: more threads bring nothing (1.7 GB/s by one, 1.6 by
two), where pco and zstd go twice as fast (`python -m tests.benchmarks.codecs`)."""

Key = tuple[str, str | None, str]
"""Task, element type, link."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a codec did to a part of the buffer, on one core; speeds in logical bytes per second.

    Infinite speeds were not measured.
    """

    codec: str
    ratio: float
    encode_bytes_per_s: float = math.inf
    decode_bytes_per_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Link:
    """An objective: what goes over a link of this speed is to arrive as soon as can be.

    With no idle core, coding and sending take turns. `corrections` by codec: how many times the
    predicted seconds it has taken of late.
    """

    bytes_per_s: float
    """0: unknown."""
    idle_cores: int
    chunk_bytes: int = CHUNK_BYTES
    corrections: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resting:
    """An objective: what rests somewhere is to take few bytes, each codec at its price.

    The codec with the least of stored bytes × price is taken, where it shrinks the buffer enough.
    """

    raw_below_bytes: int
    sampled_from_bytes: int
    """Smaller buffers get the first candidate without a sample."""
    sample_bytes: int
    """Bytes of each place that is sampled."""
    least_ratio: float
    chunk_bytes: int
    for_numbers: Mapping[str, float]
    """Codec and price, for buffers of numbers."""
    for_elements: Mapping[str, float]
    """The same, for buffers of other elements of several bytes."""
    for_bytes: Mapping[str, float]
    """The same, for all other buffers."""

    def prices(self, element_bytes: int, is_number: bool) -> Mapping[str, float]:
        """The candidates for a type of elements, with their prices."""
        if element_bytes <= 1:
            return self.for_bytes
        return self.for_numbers if is_number else self.for_elements


HEAP: Final = Resting(
    raw_below_bytes=4_096,
    sampled_from_bytes=65_536,
    sample_bytes=65_536,
    least_ratio=1.1,
    chunk_bytes=CHUNK_BYTES,
    for_numbers=MappingProxyType({"shuffle+lz4": 1.0}),
    for_elements=MappingProxyType({"shuffle+lz4": 1.0}),
    for_bytes=MappingProxyType({"zstd:1": 1.0}),
)
"""Evicted values: fast codecs, for what leaves the heap is read back at several GB/s."""

STORE: Final = Resting(
    raw_below_bytes=512,
    sampled_from_bytes=0,
    sample_bytes=87_040,
    least_ratio=1 / 0.97,
    chunk_bytes=4 * CHUNK_BYTES,
    for_numbers=MappingProxyType({"shuffle+zstd": 1.0, "pco": 1.25}),
    for_elements=MappingProxyType({"shuffle+zstd": 1.0, "zstd:1": 1.0}),
    for_bytes=MappingProxyType({"zstd:1": 1.0}),
)
"""Persisted results: storage wants ratio, but pcodec packs a few times slower than shuffled zstd,
so it has to be a fifth smaller."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A codec, on how many threads, and the seconds predicted for it and for sending raw; 0 where
    nothing was predicted, for the setting decides."""

    codec: str
    threads: int
    predicted_s: float
    raw_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan and what it took; ``regret_s`` how much longer than raw, as predicted."""

    key: Key
    size_bytes: int
    plan: Plan
    actual_s: float

    @property
    def regret_s(self) -> float:
        """Seconds lost against sending raw, as far as raw's prediction can tell."""
        return max(0.0, self.actual_s - self.plan.raw_s) if self.plan.raw_s else 0.0

    @property
    def error(self) -> float:
        """Actual over predicted seconds; 1 is exact."""
        return self.actual_s / self.plan.predicted_s if self.plan.predicted_s > 0 else math.inf


def parse_compression(setting: str) -> str:
    """The setting, checked: ``adaptive``, ``off``, or a codec's name, perhaps with a level.

    `ConfigurationError` names the choices.
    """
    family, _, level = setting.partition(":")
    if setting in ("adaptive", "off", *CODEC_NAMES):
        return setting
    highest = MAX_LEVELS.get(family, 0)
    if level.isascii() and level.isdigit() and 1 <= int(level) <= highest:
        return setting
    known = ("adaptive", "off", *CODEC_NAMES)
    close = nearest(family, known)
    hint = f" (did you mean {close!r}?)" if close and close != family else ""
    raise ConfigurationError(
        f"compression={setting!r} is not known{hint}: use one of {', '.join(known)}, or with "
        "a level: zstd:1 to zstd:19, pco:1 to pco:12"
    )


def candidates(dtype: str | None, element_bytes: int) -> tuple[str, ...]:
    """The codecs worth sampling for a link, by element type, the likeliest first."""
    if dtype is None or element_bytes <= 1:
        return ("zstd:1",)
    return ("shuffle+lz4", "shuffle+zstd", "bytedelta+zstd", "pco:1", "pco:4", "pco")


def predict_s(
    size_bytes: int,
    sample: Sample,
    link_bytes_per_s: float,
    threads: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> float:
    """Seconds to code, send and decode; `threads` 0: one after the other, else in a pipeline."""
    coding = size_bytes / sample.encode_bytes_per_s
    sending = size_bytes / sample.ratio / link_bytes_per_s
    decoding = size_bytes / sample.decode_bytes_per_s
    if threads == 0:
        return coding + sending + decoding
    ends = min(1.0, chunk_bytes / size_bytes) * (coding + decoding)
    return max(coding / threads, sending, decoding / threads) + ends


def choose(size_bytes: int, samples: Iterable[Sample], objective: Link | Resting) -> Plan:
    """What to do with a buffer, to meet the objective; raw where no codec is worth it."""
    if isinstance(objective, Resting):
        return _fewest_bytes(size_bytes, samples, objective)
    return _soonest(size_bytes, samples, objective)


def _fewest_bytes(size_bytes: int, samples: Iterable[Sample], objective: Resting) -> Plan:
    """The codec with the fewest stored bytes, each at its price."""
    raw = Plan("raw", 0, 0.0, 0.0, "nothing shrinks it enough")
    if size_bytes < objective.raw_below_bytes:
        return Plan("raw", 0, 0.0, 0.0, f"below {objective.raw_below_bytes} bytes")
    prices = {**objective.for_bytes, **objective.for_elements, **objective.for_numbers}
    best = min(samples, key=lambda one: prices[one.codec] / one.ratio, default=None)
    if best is None or best.ratio < objective.least_ratio:
        return raw
    return Plan(best.codec, 0, 0.0, 0.0, f"{best.ratio:.1f} times smaller than raw")


def _soonest(size_bytes: int, samples: Iterable[Sample], link: Link) -> Plan:
    """The least predicted time among raw and each codec on 1 to `idle_cores` threads.

    With no idle core, coding and sending take turns (``threads`` 0). The fewest threads are taken
    that come within 2 % of the least time, since a core that brings nothing is a core taken from a
    task.
    """
    if not link.bytes_per_s > 0 or math.isinf(link.bytes_per_s):
        return Plan("raw", 0, 0.0, 0.0, "the link's speed is not known")
    raw_s = size_bytes / link.bytes_per_s
    raw = Plan("raw", 0, raw_s, raw_s, "nothing saves a tenth")
    if size_bytes < RAW_BELOW_BYTES:
        return Plan("raw", 0, raw_s, raw_s, f"below {RAW_BELOW_BYTES} bytes")
    threads = range(1, link.idle_cores + 1) if link.idle_cores > 0 else (0,)
    usable = [s for s in samples if s.codec != "raw" and _is_sound(s)]
    options = [
        (
            predict_s(size_bytes, sample, link.bytes_per_s, n, link.chunk_bytes)
            * link.corrections.get(sample.codec, 1.0),
            n,
            sample.codec,
        )
        for sample in usable
        for n in threads
        if n < 2 or sample.codec not in _ONE_AT_A_TIME
    ]
    if not options:
        return raw
    least = min(options)[0]
    if least > (1 - MARGIN) * raw_s:
        return raw
    limit = min(1.02 * least, (1 - MARGIN) * raw_s)
    predicted_s, n, codec = min(
        (option for option in options if option[0] <= limit), key=lambda option: (option[1], option)
    )
    return Plan(codec, n, predicted_s, raw_s, f"{raw_s / predicted_s:.1f} times faster than raw")


def _is_sound(sample: Sample) -> bool:
    numbers = (sample.ratio, sample.encode_bytes_per_s, sample.decode_bytes_per_s)
    return all(math.isfinite(number) and number > 0 for number in numbers)


class CompressionLog:
    """The last outcomes, and totals of all; bounded."""

    def __init__(self, keep: int = 1_000) -> None:
        self.outcomes: deque[Outcome] = deque(maxlen=keep)
        self.n = 0
        self.regret_s = 0.0
        self.saved_s = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome: what was lost against raw's prediction, or saved."""
        self.outcomes.append(outcome)
        self.n += 1
        self.regret_s += outcome.regret_s
        self.saved_s += max(0.0, outcome.plan.raw_s - outcome.actual_s)


@dataclass(slots=True)
class _Known:
    samples: tuple[Sample, ...] = ()
    losses: int = 0
    asked: int = 0
    corrections: dict[str, float] = field(default_factory=dict)

    def correct(self, plan: Plan, actual_s: float) -> None:
        before = self.corrections.get(plan.codec, 1.0)
        found = before * actual_s / plan.predicted_s
        after = before + _CORRECTION_WEIGHT * (found - before)
        self.corrections[plan.codec] = min(max(after, 1 / _MAX_CORRECTION), _MAX_CORRECTION)


@dataclass(slots=True)
class Chooser:
    """The choice for links, with its memory for each task, element type and link. Not thread-safe.

    Ask `wants_sample`; if so, sample and give it to `plan`; then tell `record` what it took. A
    `setting` other than ``adaptive`` is obeyed without sampling. Remembers 4,096 keys.
    """

    setting: str = "adaptive"
    log: CompressionLog = field(default_factory=CompressionLog)
    _known: LRUCache[Key, _Known] = field(default_factory=lambda: LRUCache(_MAX_KEYS))

    def __post_init__(self) -> None:
        parse_compression(self.setting)

    def wants_sample(self, key: Key, size_bytes: int) -> bool:
        """Whether `plan` would use a sample now: not for small buffers, and not for known ones.

        Ask once for each buffer: the sample is renewed for one in 64 of a key.
        """
        if self.setting != "adaptive" or size_bytes < RAW_BELOW_BYTES:
            return False
        known = self._remembered(key)
        known.asked += 1
        return not known.samples or known.asked % PROBE_EVERY == 1

    def plan(
        self,
        key: Key,
        size_bytes: int,
        link_bytes_per_s: float,
        idle_cores: int,
        samples: Sequence[Sample] = (),
    ) -> Plan:
        """What to do with a buffer; `samples` are those that `wants_sample` asked for.

        Ask again with the same buffer when the link turns out faster or slower.
        """
        if self.setting != "adaptive":
            return self._fixed(idle_cores)
        if size_bytes < RAW_BELOW_BYTES:
            return choose(size_bytes, (), Link(link_bytes_per_s, idle_cores))
        known = self._remembered(key)
        if samples:
            known.samples, known.losses = tuple(samples), 0
            known.corrections.clear()
        link = Link(link_bytes_per_s, idle_cores, corrections=known.corrections)
        plan = choose(size_bytes, known.samples, link)
        if known.losses >= LOSSES_TO_BYPASS and plan.codec != "raw":
            return Plan("raw", 0, plan.raw_s, plan.raw_s, "by-passed: it lost twice in a row")
        return plan

    def is_left_raw(
        self, key: Key, size_bytes: int, link_bytes_per_s: float, idle_cores: int
    ) -> bool:
        """Whether a buffer would be sent raw by what is known; no when it is time for a sample.

        Asking counts as `wants_sample` does, so that one in 64 is looked at again.
        """
        if self.setting == "off" or size_bytes < RAW_BELOW_BYTES:
            return True
        if self.setting != "adaptive" or not link_bytes_per_s > 0:
            return False
        known = self._remembered(key)
        if not known.samples or (known.asked + 1) % PROBE_EVERY == 1:
            return False
        if self.plan(key, size_bytes, link_bytes_per_s, idle_cores).codec != "raw":
            return False
        known.asked += 1
        return True

    def record(
        self, key: Key, size_bytes: int, plan: Plan, actual_s: float, is_whole: bool = True
    ) -> Outcome:
        """Log what a plan took; one that was slower than raw's prediction counts as a loss.

        Nothing is learned from a buffer that went only in part by this plan (`is_whole` false).
        """
        outcome = Outcome(key, size_bytes, plan, actual_s)
        self.log.add(outcome)
        known = self._known.get(key)
        if known is not None and plan.codec != "raw" and is_whole:
            known.losses = known.losses + 1 if actual_s > plan.raw_s > 0 else 0
            if plan.predicted_s > 0:
                known.correct(plan, actual_s)
        return outcome

    def _fixed(self, idle_cores: int) -> Plan:
        codec = "raw" if self.setting == "off" else self.setting
        threads = 0 if codec == "raw" else max(0, idle_cores)
        return Plan(codec, threads, 0.0, 0.0, "fixed by the setting")

    def _remembered(self, key: Key) -> _Known:
        return self._known.setdefault(key, _Known())
