"""The scheduler plugin that places tasks: late binding and ranking in a live Dask scheduler.

A ready task waits in Dask's own `queued` state. After every event that could set something free, a
pass of `decide.place.binder` says which tasks go where now, and each goes through Dask's ordinary
`queued → processing`. Work stealing is off meanwhile: it knows no speeds, and undoes what was
placed well.

Nothing here may cost a run its result. Whatever goes wrong in deciding on one task, that task is
placed by Dask itself, and the fault is counted and logged once; after `MAX_FAULTS` of them, or
where Dask's methods are not the ones this was written for, Dask places everything, for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from deepflow.backend.placement.live import LivePlacement, Options
from deepflow.backend.placement.passes import CallLater
from deepflow.decide.estimate import Estimates
from deepflow.decide.place.decision import DEFAULT_TUNING, Tuning
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.registry import DEFAULT_POLICY, policy_named
from deepflow.decide.rank import FlowShape

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["Placement"]


class Placement(SchedulerPlugin):
    """Places every task of one scheduler; see the top of this file.

    Args:
        policy: a name (`decide.place.registry`) or a policy object. `stock`: only watch.
        estimates: what is known of run times, from the history; learns further.
        shapes: what is known of flows.
        seed: for policies that draw lots.
        clock: seconds; virtual in a simulation.
        call_later: `(seconds, function)`; the scheduler's event loop unless given.
        is_checking: after every pass, assert that nothing waits that could run (tests, debugging).
    """

    name = "deepflow-placement"
    idempotent = True

    def __init__(
        self,
        policy: str | Policy = DEFAULT_POLICY,
        *,
        estimates: Estimates | None = None,
        shapes: FlowShape | None = None,
        tuning: Tuning | None = None,
        seed: int = 0,
        clock: Callable[[], float] | None = None,
        call_later: CallLater | None = None,
        is_checking: bool = False,
    ) -> None:
        self.options = Options(
            policy=policy_named(policy),
            estimates=estimates or Estimates(),
            shapes=shapes or FlowShape(),
            tuning=tuning or DEFAULT_TUNING,
            seed=seed,
            clock=clock,
            call_later=call_later,
            is_checking=is_checking,
        )
        self.live: LivePlacement | None = None
        """What does the placing, once there is a scheduler."""

    # -- beginning and end ----------------------------------------------------------------------

    async def start(self, scheduler: Scheduler) -> None:
        """Dask calls this when the plugin is registered."""
        live = self.attach(scheduler)
        stealing = scheduler.extensions.get("stealing")
        if live.is_placing and stealing is not None and "stealing" in scheduler.periodic_callbacks:
            await stealing.stop()

    def attach(self, scheduler: Scheduler) -> LivePlacement:
        """Place the tasks of a scheduler, unless it is one that this was not written for."""
        self.live = LivePlacement(scheduler, self.options, self.name)
        self.live.begin()
        return self.live

    async def close(self) -> None:
        """The scheduler closes, or the plugin is taken away."""
        if self.live is not None and self.live.is_placing:
            self.live.leave_to_dask()

    # -- what Dask tells ------------------------------------------------------------------------

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        """Tasks came to the scheduler."""
        if self.live is not None:
            self.live.submitted(tasks)

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, stimulus_id: str, **more: Any
    ) -> None:
        """A task changed its state."""
        if self.live is not None:
            self.live.changed(key, start, finish, stimulus_id, more)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A worker has come."""
        if self.live is not None:
            self.live.worker_joined(worker)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """A worker has gone."""
        if self.live is not None:
            self.live.worker_left(worker)
