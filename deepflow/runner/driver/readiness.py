"""When an item may be sent: not before its inputs allow, nor before its map's pilot runs.

An item is sent when each of its inputs is done, or is alone in a Dask task that is under way (Dask
then knows the dependency). Inputs inside a group, or waiting for a retry, hold it on the driver.
Mapped items also wait until it is known how to group them (`decide/batching.py`).
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from deepflow.decide.batching import next_wave
from deepflow.observe import metrics
from deepflow.runner.driver.board import Board
from deepflow.runner.driver.items import Item, MapPlan
from deepflow.runner.driver.lifecycle import Event, RunState
from deepflow.runner.driver.reactor import Reactor
from deepflow.runner.driver.sending import Sender

if TYPE_CHECKING:
    from distributed import Client

    from deepflow.settings import Settings

_PATIENCE_S = 0.5
_SLOTS_EVERY_S = 5.0


class Gate:
    """Holds items until they may be sent. Use in a turn, except as said."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        board: Board,
        reactor: Reactor,
        sender: Sender,
        *,
        is_adaptive: bool,
    ) -> None:
        self._client = client
        self._settings = settings
        self._board = board
        self._reactor = reactor
        self._sender = sender
        self._is_adaptive = is_adaptive
        self._n_slots = 1
        self._slots_due_s = 0.0
        self._to_release: deque[Item] = deque()
        self._is_releasing = False

    # -- one item ------------------------------------------------------------------------------

    def send_when_ready(self, item: Item) -> None:
        """Send `item`, or wait for the first of its inputs that is in the way."""
        blocker = _blocker(item)
        if blocker is not None:
            # With one input at a time: an item that waited with each of them would be asked, and
            # would wait again with all the others, each time one of them is done.
            blocker.dependents.append(item)
        elif item.state is RunState.HELD_FOR_INPUTS:
            self.send([[item]])

    def send_once_done(self, item: Item) -> None:
        """Send `item`, whose Dask task came to nothing, when each input is done and not before."""
        item.needs_done = True
        self.send_when_ready(item)

    def release_dependents(self, item: Item) -> None:
        """Something changed for `item`: dependents that waited for it may go now.

        What they set free in turn is worked off here as well, not by recursion: chains are long.
        """
        self._to_release.extend(item.dependents)
        item.dependents = []
        if self._is_releasing:
            return
        self._is_releasing = True
        try:
            while self._to_release:
                dependent = self._to_release.popleft()
                if dependent.state is RunState.HELD_FOR_INPUTS:
                    self.send_when_ready(dependent)
        finally:
            self._is_releasing = False

    # -- many items ----------------------------------------------------------------------------

    def send(self, groups: list[list[Item]]) -> None:
        """Send each group as one Dask task, whether its items are ready or not."""
        for items in groups:
            for item in items:
                item.life.handle(Event.SEND)
            self._sender.put(items)
            if len(items) > 1:
                metrics.inc("deepflow_batches_total")
                metrics.observe("deepflow_batch_items", len(items))
        for items in groups:
            for item in items:
                self.release_dependents(item)

    def send_map(self, items: list[Item]) -> None:
        """Send the items of one `map`, grouped once it is known how; hold those not ready."""
        template = items[0].template
        ready = [item for item in items if _blocker(item) is None]
        if not template.may_batch:
            self.send([[item] for item in ready])
            for item in items:
                if item.state is RunState.HELD_FOR_INPUTS:
                    self.send_when_ready(item)
            return
        for item in items:
            if _blocker(item) is not None:
                self.send_when_ready(item)
        for item in ready:
            item.life.handle(Event.HOLD_FOR_PILOT)
        plan = MapPlan(template.learned_as, deque(ready))
        self._advance_plan(plan)
        if plan.waiting:
            self._reactor.at(time.time() + _PATIENCE_S, partial(self._lose_patience, plan))

    def leave_plan(self, item: Item) -> None:
        """`item` is no longer with a worker for the first time: its map may go on."""
        plan, item.plan = item.plan, None
        if plan is not None:
            plan.n_outstanding -= 1
            self._advance_plan(plan)

    def refresh_slots(self) -> None:
        """Ask how many threads the cluster has, now and then (not in a turn)."""
        now_s = time.monotonic()
        if now_s < self._slots_due_s:
            return
        self._slots_due_s = now_s + _SLOTS_EVERY_S
        self._n_slots = max(1, sum(self._client.nthreads().values()))

    def _advance_plan(self, plan: MapPlan) -> None:
        """Send what is due of a map's waiting items."""
        if not plan.waiting:
            return
        wave = next_wave(
            len(plan.waiting),
            plan.n_outstanding,
            self._n_slots,
            self._board.run_time(plan.learned_as),
            target_s=self._settings.batch_target_s,
            max_items=self._settings.batch_max_items,
        )
        items = plan.take(wave.n_items)
        size = wave.group_size
        self.send([items[i : i + size] for i in range(0, len(items), size)])

    def _lose_patience(self, plan: MapPlan) -> None:
        """Nothing is known of a map's runs yet: they are long, or the workers are cold.

        Where the cluster scales with its load, it has to see all of it now.
        """
        with self._board.turn():
            if not self._is_adaptive or self._board.run_time(plan.learned_as).is_known:
                return
            self.send([[item] for item in plan.take(len(plan.waiting))])


def _blocker(item: Item) -> Item | None:
    """The first input that `item` has to wait for; None if it can be sent.

    Inputs that were found done are not looked at again, so that an item with thousands of
    them, asked each time one of them is done, costs thousands of looks and not millions.
    """
    upstreams = item.upstreams
    n_done = item.n_done_upstreams
    while n_done < len(upstreams) and upstreams[n_done].is_done:
        n_done += 1
    item.n_done_upstreams = n_done
    for upstream in islice(upstreams, n_done, None):
        if upstream.is_done:
            continue
        batch = upstream.batch
        if item.needs_done or batch is None or len(batch.items) != 1:
            return upstream
    return None
