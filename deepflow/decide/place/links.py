"""Seconds that bytes take from one worker to another.

Workers are related by how far they are apart: in one process, on one host, in one rack, in one
zone, between zones, or one of them at the edge. Bandwidths are measured, in bytes per second, as
running averages per pair of worker classes and relation; where a pair was never measured, its
relation's average stands in, and before that a cautious guess.
"""

from __future__ import annotations

from typing import Final, Literal

from deepflow.decide.place.fleet import Worker

__all__ = ["Links", "Relation", "relation"]

Relation = Literal["process", "host", "rack", "zone", "remote", "edge"]

GUESS_BYTES_PER_S: Final[dict[Relation, float]] = {
    "process": 1e12,
    "host": 5e8,
    "rack": 1e8,
    "zone": 1e8,
    "remote": 5e7,
    "edge": 1e7,
}
_LATENCY_S: Final[dict[Relation, float]] = {
    "process": 0.0,
    "host": 1e-3,
    "rack": 1e-3,
    "zone": 2e-3,
    "remote": 5e-3,
    "edge": 2e-2,
}
_NEW_SHARE: Final = 0.2
_NEWS: Final = 0.05
"""Cached lines are kept until a bandwidth has changed by this share."""
_MOST_KNOWN: Final = 100_000
_EDGE: Final = "edge"


def relation(source: Worker, target: Worker) -> Relation:
    """How far two workers are apart. Where nothing is said of racks and zones: one rack."""
    if source is target:
        return "process"
    if source.host == target.host:
        return "host"
    if source.zone != target.zone:
        return "edge" if _EDGE in (source.tier, target.tier) else "remote"
    return "rack" if source.rack == target.rack else "zone"


class Links:
    """Measured bandwidths; see the top of this file."""

    def __init__(self) -> None:
        self._by_pair: dict[tuple[str, str, Relation], float] = {}
        self._by_relation: dict[Relation, float] = {}
        self._served: dict[tuple[str, str, Relation] | Relation, float] = {}
        """Measured bandwidths that lines were worked out from."""
        self._to: dict[str, dict[str, tuple[float, float]]] = {}
        self._n_known = 0

    def measured(self, source: Worker, target: Worker, bytes_per_s: float) -> None:
        """Take in one measurement of the bandwidth from `source` to `target`."""
        if not bytes_per_s > 0:
            return
        kind = relation(source, target)
        pair = (source.worker_class, target.worker_class, kind)
        old = self._by_pair.get(pair, bytes_per_s)
        self._by_pair[pair] = old + _NEW_SHARE * (bytes_per_s - old)
        base = self._by_relation.get(kind, bytes_per_s)
        self._by_relation[kind] = base + _NEW_SHARE * (bytes_per_s - base)
        if self._differs(pair, self._by_pair[pair]) or self._differs(kind, self._by_relation[kind]):
            self._to.clear()
            self._n_known = 0

    def _differs(self, key: tuple[str, str, Relation] | Relation, bytes_per_s: float) -> bool:
        served = self._served.get(key)
        if served is not None and abs(bytes_per_s - served) <= _NEWS * served:
            return False
        self._served[key] = bytes_per_s
        return True

    def bytes_per_s(self, source: Worker, target: Worker) -> float:
        """The bandwidth to expect from `source` to `target`."""
        kind = relation(source, target)
        known = self._by_pair.get((source.worker_class, target.worker_class, kind))
        if known is None:
            known = self._by_relation.get(kind)
        return known if known is not None else GUESS_BYTES_PER_S[kind]

    def seconds(self, source: Worker, target: Worker, n_bytes: float) -> float:
        """Seconds until `n_bytes` of `source` are at `target`."""
        latency_s, seconds_per_byte = self.line(source, target)
        return latency_s + n_bytes * seconds_per_byte

    def lines_to(self, target: Worker) -> dict[str, tuple[float, float]]:
        """Those that `line` has in its cache, by the id of the source."""
        by_source = self._to.get(target.id)
        if by_source is None:
            by_source = self._to[target.id] = {}
        return by_source

    def line(self, source: Worker, target: Worker) -> tuple[float, float]:
        """Seconds that the way takes in any case, and seconds for each byte; from a cache."""
        by_source = self.lines_to(target)
        known = by_source.get(source.id)
        if known is None:
            known = (_LATENCY_S[relation(source, target)], 1.0 / self.bytes_per_s(source, target))
            if self._n_known >= _MOST_KNOWN:
                self._to.clear()
                self._n_known = 0
            else:
                by_source[source.id] = known
                self._n_known += 1
        return known
