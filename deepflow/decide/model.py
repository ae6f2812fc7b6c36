"""The values that decisions are made of: so far, classes of workers and what a worker offers.

Frozen; times in seconds, sizes in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from deepflow.errors import ConfigurationError, HintError
from deepflow.hints import (
    CLASS_LABEL,
    GPU_RESOURCE,
    LABEL_OFFER,
    label_resource,
    parse_bytes,
    parse_label_resource,
)

__all__ = ["WorkerClass", "WorkerOffer"]


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """Workers of one kind: how many there are, how big each is and what it has.

    Mappings may be given for ``resources`` and ``labels``; they are kept as sorted pairs, so that
    the value is hashable. Raises :class:`ConfigurationError` for what cannot be.
    """

    name: str
    """The label ``class`` of its workers, and the beginning of their names."""
    count: int = 1
    """How many workers; 0 declares the class without starting any."""
    threads: int = 1
    """Tasks that one worker runs at once."""
    memory: int | Literal["auto"] = "auto"
    """Bytes one worker may use (``"4 GiB"`` is understood); ``auto``: its share of the machine."""
    resources: tuple[tuple[str, float], ...] = ()
    """Amounts of named Dask resources that one worker offers."""
    labels: tuple[tuple[str, str], ...] = ()
    """Labels, such as host, rack, zone, tier."""
    gpu: float = 0
    """GPUs one worker offers, as the Dask resource ``GPU``."""

    def __post_init__(self) -> None:
        put = object.__setattr__  # the dataclass is frozen; this is its constructor
        try:
            label_resource(CLASS_LABEL, self.name)
            pairs = _pairs(f"labels of worker class {self.name!r}", self.labels)
            for key, value in pairs:
                label_resource(key, value)
            put(self, "labels", tuple(sorted(pairs)))
            if self.memory != "auto":
                put(self, "memory", parse_bytes(self.memory))
        except HintError as error:
            raise ConfigurationError(f"worker class {self.name!r}: {error}") from error
        if dict(self.labels).get(CLASS_LABEL, self.name) != self.name:
            raise ConfigurationError(
                f"worker class {self.name!r} has the label class={dict(self.labels)['class']!r}; "
                "that label is the class's own name, leave it out"
            )
        put(self, "count", _whole(self, "count", least=0))
        put(self, "threads", _whole(self, "threads", least=1))
        resources = _pairs(f"resources of worker class {self.name!r}", self.resources)
        for resource, amount in (*resources, ("gpu", self.gpu)):
            self._check_amount(resource, amount)
        if GPU_RESOURCE in dict(resources) and self.gpu:
            raise ConfigurationError(
                f"worker class {self.name!r} says gpu={self.gpu} and resources['GPU']="
                f"{dict(resources)['GPU']}; say one of them"
            )
        put(self, "resources", tuple(sorted((r, float(amount)) for r, amount in resources)))

    def _check_amount(self, resource: object, amount: object) -> None:
        if not isinstance(resource, str) or not resource or set(resource) & set(" ,="):
            raise ConfigurationError(
                f"worker class {self.name!r} has a resource named {resource!r}; "
                "use text without spaces, ',' and '='"
            )
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not number or not math.isfinite(cast(float, amount)) or cast(float, amount) < 0:
            raise ConfigurationError(
                f"worker class {self.name!r} has {resource}={amount!r}; "
                "give a finite number from 0 on"
            )

    def dask_resources(self) -> dict[str, float]:
        """What one worker offers to Dask: resources, GPUs, and each label with its class."""
        offered = dict(self.resources)
        if self.gpu:
            offered[GPU_RESOURCE] = float(self.gpu)
        for key, value in (*self.labels, (CLASS_LABEL, self.name)):
            offered[label_resource(key, value)] = LABEL_OFFER
        return offered

    def worker_names(self) -> tuple[str, ...]:
        """The names of its workers: ``<class>-0`` and so on."""
        return tuple(f"{self.name}-{i}" for i in range(self.count))


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """What one worker has in all, whether or not it is in use now."""

    name: str
    resources: tuple[tuple[str, float], ...] = ()
    """Dask resources, labels among them, as pairs; a mapping may be given."""
    threads: int = 1
    memory_bytes: int | None = None
    """None: no limit is known."""

    def __post_init__(self) -> None:
        pairs = _pairs(f"resources of worker {self.name!r}", self.resources)
        object.__setattr__(self, "resources", tuple(sorted(pairs)))

    @property
    def labels(self) -> dict[str, frozenset[str]]:
        """The values of each label; a worker may carry several of one key."""
        values: dict[str, set[str]] = {}
        for resource, amount in self.resources:
            label = parse_label_resource(resource)
            if label is not None and amount > 0:
                values.setdefault(label[0], set()).add(label[1])
        return {key: frozenset(of_key) for key, of_key in values.items()}


def _pairs(what: str, value: object) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in value):
        return list(value)
    raise ConfigurationError(f"the {what} are {value!r}; give a mapping, such as {{'name': ...}}")


def _whole(of: WorkerClass, name: str, *, least: int) -> int:
    number = getattr(of, name)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ConfigurationError(
            f"worker class {of.name!r} has {name}={number!r}; give a whole number from {least} on"
        )
    return number
