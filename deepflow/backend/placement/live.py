"""Placement in one running scheduler: its parts put together, and Dask's news handed to them."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.metrics import time

from deepflow.backend.contract import PLACEMENT, differences, may_use
from deepflow.backend.placement.guard import MAX_FAULTS, Guard
from deepflow.backend.placement.mirror import Mirror
from deepflow.backend.placement.news import News
from deepflow.backend.placement.passes import Passes
from deepflow.backend.placement.recalls import Recalls
from deepflow.backend.placement.record import Record
from deepflow.backend.placement.takeover import Takeover
from deepflow.backend.placement.waiting import Waiting
from deepflow.decide.experience import Experience
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import STOCK

if TYPE_CHECKING:
    from distributed import Scheduler

    from deepflow.backend.placement.passes import CallLater
    from deepflow.decide.estimate import Estimates
    from deepflow.decide.place.decision import Tuning
    from deepflow.decide.rank import FlowShape

__all__ = ["LivePlacement", "Options"]

logger = logging.getLogger("deepflow.placement")


@dataclass(frozen=True, slots=True)
class Options:
    """How tasks are to be placed; see `plugin.Placement` for each."""

    policy: Policy | None
    """None: Dask places, and what it does is only recorded."""
    estimates: Estimates
    shapes: FlowShape
    tuning: Tuning
    seed: int
    clock: Callable[[], float] | None
    call_later: CallLater | None
    is_checking: bool


class LivePlacement:
    """What `plugin` asks for, in one scheduler. Nothing changes there before `begin`."""

    def __init__(self, scheduler: Scheduler, options: Options, plugin_name: str) -> None:
        self.scheduler = scheduler
        self.policy = options.policy
        self.policy_name = STOCK if options.policy is None else options.policy.name
        self._plugin_name = plugin_name
        self._is_virtual = options.call_later is not None
        """Whether somebody else keeps the time and makes the scheduler's periodic calls."""
        now = options.clock or time
        self.guard = Guard(self._give_up)
        self.record = Record(self.policy_name)
        self.mirror = Mirror(options.estimates, options.shapes)
        self.recalls = Recalls(scheduler, self.mirror.fleet)
        self.news = News(scheduler, self.mirror, self.recalls, self.record, now)
        self.waiting = Waiting(
            scheduler,
            self.mirror,
            self.news,
            self.guard,
            self.record,
            options.policy or Policy(),
            tuning=options.tuning,
            seed=options.seed,
            now=now,
        )
        self.passes = Passes(
            scheduler,
            self.mirror,
            self.waiting,
            self.news,
            self.recalls,
            self.guard,
            self.record,
            now=now,
            call_later=options.call_later,
            is_checking=options.is_checking,
        )
        self._takeover: Takeover | None = None

    @property
    def is_placing(self) -> bool:
        """Whether tasks are placed here; False: Dask places them."""
        return self.passes.is_placing

    # -- beginning and end ----------------------------------------------------------------------

    def begin(self) -> None:
        """Take the scheduler over, unless Dask is to place or its methods are unknown."""
        scheduler = self.scheduler
        for dask_worker in scheduler.workers.values():
            self.news.worker_joined(dask_worker)
        scheduler.handlers["deepflow_placement"] = self.report
        scheduler.handlers["deepflow_events"] = self._events_of
        scheduler.handlers["deepflow_teach"] = self._teach
        if self.policy is None:
            return
        if not may_use(PLACEMENT):
            self.guard.faults.append(
                f"this version of Dask is not one that placement was written for "
                f"({'; '.join(differences(PLACEMENT))}); install the versions in constraints.txt"
            )
            return
        self._takeover = Takeover(
            scheduler,
            self.mirror,
            self.waiting,
            self.passes,
            self.news,
            self.recalls,
            self.guard,
            self.record,
            plugin_name=self._plugin_name,
            on_removed=self.leave_to_dask,
        )
        self._takeover.take_over()

    def _give_up(self, why: str) -> None:
        """The guard has seen too many faults."""
        if self.is_placing:
            self.fall_back_for_good(why)

    def fall_back_for_good(self, why: str) -> None:
        """Say why Dask places everything from now on, and let it."""
        logger.error("deepflow leaves placement to Dask from now on: %s", why)
        if not self.guard.faults:
            self.guard.faults.append(why)
        if self.is_placing:
            self.leave_to_dask()

    def leave_to_dask(self) -> None:
        """Put everything back, and hand over what was held."""
        assert self._takeover is not None
        stealing = self.scheduler.extensions.get("stealing")
        if stealing is not None and not self._is_virtual:
            asyncio.ensure_future(stealing.start())  # noqa: RUF006 - it only sets a callback
        self._takeover.undo()

    # -- what Dask tells ------------------------------------------------------------------------

    def submitted(self, keys: list[Any]) -> None:
        """Tasks came to the scheduler."""
        tasks = self.scheduler.tasks
        with self.guard("update_graph"):
            self.news.submitted([s for key in keys if (s := tasks.get(key)) is not None])

    def changed(
        self, key: Any, start: str, finish: str, stimulus_id: str, more: dict[str, Any]
    ) -> None:
        """A task changed its state."""
        with self.guard("transition"):
            if finish == "processing":
                state = self.scheduler.tasks[key]
                if state.processing_on is not None:
                    self.news.is_with(key, state.processing_on.address)
            elif start == "processing":
                ended = self.news.is_back(key, finish, stimulus_id, more)
                if ended is not None and self.is_placing:
                    self.waiting.renew(ended)
            elif start == "queued" and self.is_placing:
                self.waiting.remove(key)
            if finish == "forgotten":
                self.mirror.forget(key)
                self.waiting.chosen.pop(key, None)

    def worker_joined(self, address: str) -> None:
        """A worker has come."""
        with self.guard("add_worker"):
            self.news.worker_joined(self.scheduler.workers[address])

    def worker_left(self, address: str) -> None:
        """A worker has gone."""
        with self.guard("remove_worker"):
            self.news.worker_left(address)
            if self.is_placing:
                self.waiting.look_for_unplaceable()

    # -- what may be asked over the network ------------------------------------------------------

    def _events_of(self, comm: Any = None, *, run: str) -> bytes:
        """A run's events, pickled; they are forgotten here."""
        return pickle.dumps(self.record.of_run(run), protocol=5)

    def _teach(self, comm: Any = None, *, flow: str, experience: bytes) -> None:
        """What another driver knows of its flow, which may be unknown here."""
        known: Experience = pickle.loads(experience)
        self.mirror.teach(flow, known.estimates, known.shapes)

    def report(self, comm: Any = None) -> dict[str, Any]:
        """How it goes (`client.scheduler.deepflow_placement()`)."""
        return {
            "is_placing": self.is_placing,
            "policy": self.policy_name,
            "n_decisions": self.record.n_decisions,
            "n_fallbacks": self.record.n_fallbacks,
            "n_recalled": self.recalls.n_recalled,
            "faults": self.guard.faults[-MAX_FAULTS:],
            "n_held": len(self.waiting.ready),
        }
