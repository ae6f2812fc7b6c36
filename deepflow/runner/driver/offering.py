"""What the workers of a cluster offer, and which of them are near to where inputs lie."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deepflow.decide.location import nearest_workers
from deepflow.decide.model import WorkerOffer
from deepflow.hints import Near, parse_label_resource
from deepflow.locate.locator import Locator
from deepflow.observe.fallbacks import fell_back

__all__ = ["Offering"]

_OFFERS_EVERY_S = 5.0


class Offering:
    """What the workers offer, as the scheduler last said."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._offers: tuple[WorkerOffer, ...] = ()
        self._offers_due_s = 0.0
        self._locator: Locator | None = None

    def offers(self) -> tuple[WorkerOffer, ...]:
        """What the workers offer; asked for again after a few seconds."""
        now_s = time.monotonic()
        if now_s >= self._offers_due_s:
            info = self._client.sync(self._client.scheduler.identity, n_workers=-1)
            self._offers = tuple(
                WorkerOffer(
                    name=str(worker.get("name", address)),
                    resources=tuple(sorted((worker.get("resources") or {}).items())),
                    threads=int(worker.get("nthreads") or 1),
                    memory_bytes=int(worker.get("memory_limit") or 0),
                )
                for address, worker in info["workers"].items()
            )
            self._offers_due_s = now_s + _OFFERS_EVERY_S
        return self._offers

    def workers_near(self, nears: Sequence[Near], *, strict: bool) -> tuple[str, ...]:
        """Addresses of the workers closest to the first of these that is known to lie somewhere.

        `strict`: only those on its very host, or in its rack or zone where no more is known of it.
        Empty: nothing is known, or nobody is close.
        """
        if self._locator is None:
            self._locator = Locator(count=fell_back)
        info = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        places = [
            self._locator.place(address, _labels(worker.get("resources") or {}))
            for address, worker in info.items()
        ]
        for location in self._locator.locate_all(nears):
            if location:
                within = location.finest if strict else "zone"
                close = nearest_workers(location, places, within=within)
                if close:
                    return tuple(close)
        return ()

    def is_located(self, nears: Sequence[Near]) -> bool:
        """Whether any of these is known to lie somewhere (from what was just looked up)."""
        return self._locator is not None and any(self._locator.locate_all(nears))

    def close(self) -> None:
        """Stop looking for where inputs lie."""
        if self._locator is not None:
            self._locator.close()


def _labels(resources: Mapping[str, float]) -> dict[str, str]:
    """A worker's labels, from the resources by which it offers them."""
    labels = (parse_label_resource(name) for name, amount in resources.items() if amount > 0)
    return dict(label for label in labels if label is not None)
