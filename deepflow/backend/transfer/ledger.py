"""What the values of each task cost on their ways: what a flow run's report says was saved."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deepflow.backend.keys import run_of, task_of
from deepflow.decide.compression import Outcome
from deepflow.decide.events import CodecChoice
from deepflow.intermediates.stream import Progress
from deepflow.observe import metrics

__all__ = ["Account", "Ledger"]

_MAX_RUNS: Final = 256
"""Of drivers that died without asking, the oldest are forgotten."""


@dataclass(slots=True)
class Account:
    """One task's values; bytes and seconds. ``codecs``: logical and stored bytes by codec."""

    n_values: int = 0
    raw_bytes: int = 0
    """Of values that went over a network, as they are in memory."""
    wire_bytes: int = 0
    """What went over the network for them."""
    shared_bytes: int = 0
    """Handed over in shared memory instead, without a copy."""
    copied_bytes: int = 0
    """Copied into shared memory."""
    seconds: float = 0.0
    codecs: dict[str, tuple[int, int]] = field(default_factory=dict)
    choices: dict[str, CodecChoice] = field(default_factory=dict)


class Ledger:
    """Counts what leaves this process, by flow run and task and in the metrics. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, dict[str, Account]] = OrderedDict()

    def _account(self, key: Any) -> Account:
        run = run_of(key)
        accounts = self._runs.setdefault(run, {})
        self._runs.move_to_end(run)
        if len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)
        return accounts.setdefault(task_of(key), Account())

    def sent(self, key: Any, progress: Progress, seconds: float, n_values: int = 1) -> None:
        """A stream, or a message of coded or raw buffers."""
        with self._lock:
            account = self._account(key)
            account.n_values += n_values
            account.raw_bytes += progress.raw_bytes
            account.wire_bytes += progress.wire_bytes
            account.seconds += seconds
            for name, (raw, stored) in progress.by_codec.items():
                before = account.codecs.get(name, (0, 0))
                account.codecs[name] = (before[0] + raw, before[1] + stored)
        metrics.inc("deepflow_transfer_bytes_total", progress.raw_bytes, kind="raw")
        metrics.inc("deepflow_transfer_bytes_total", progress.wire_bytes, kind="sent")
        metrics.inc("deepflow_transfer_seconds_total", seconds)
        for name, (raw, stored) in progress.by_codec.items():
            metrics.inc("deepflow_codec_bytes_total", raw, codec=name, kind="raw")
            metrics.inc("deepflow_codec_bytes_total", stored, codec=name, kind="stored")

    def chosen(self, key: Any, outcome: Outcome) -> None:
        """How a large buffer of a value was coded."""
        plan = outcome.plan
        with self._lock:
            choices = self._account(key).choices
            one = CodecChoice(
                plan.codec, 1, plan.predicted_s, plan.raw_s, outcome.actual_s, plan.why
            )
            before = choices.get(plan.codec)
            choices[plan.codec] = one if before is None else before.plus(one)

    def shared(self, key: Any, n_bytes: int) -> None:
        """A value handed over in shared memory."""
        with self._lock:
            account = self._account(key)
            account.n_values += 1
            account.shared_bytes += n_bytes
        metrics.inc("deepflow_transfer_bytes_total", n_bytes, kind="shared")

    def copied(self, key: Any, n_bytes: int, seconds: float) -> None:
        """A value copied into shared memory."""
        with self._lock:
            account = self._account(key)
            account.copied_bytes += n_bytes
            account.seconds += seconds
        metrics.inc("deepflow_transfer_bytes_total", n_bytes, kind="copied")

    def take(self, run: str) -> Mapping[str, Account]:
        """What a flow run's values cost, by task; it is forgotten here."""
        with self._lock:
            return self._runs.pop(run, {})
