"""A dispatcher on a fake cluster, driven through orders of events that no live test can make.

Runs are submitted, alone, in maps and with inputs; workers report what they like, late and twice;
workers die, the scheduler forgets, the server's cancellation comes at any moment, and time passes.
Whatever the order: every run gets one end, nothing that is done is sent, and what was sent holds
together.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from deepflow.errors import ContextMissingError, ValueLostError
from deepflow.runner.driver.items import Item
from deepflow.runner.driver.lifecycle import RunState
from tests.unit.driven import IN_DASK, Driven

INFRA_RETRIES = 2
KINDS = st.sampled_from(["begun", "done", "done", "retry", "returned", "deferred"])


class Orders(RuleBasedStateMachine):
    """What can happen to the runs of a flow, in any order."""

    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.on = Driven(infra_retries=INFRA_RETRIES, batch_target_s=10.0)
        self.all: list[Item] = []
        self.ended: dict[Any, int] = {}
        self.unwanted: dict[Any, int] = {}
        """Runs that somebody has cancelled, and how often each had been sent by then."""
        self.is_over = False

    def take(self, item: Item) -> Item:
        """Look at a run from now on."""
        self.all.append(item)
        self.ended[item.run_id] = 0

        def end() -> None:
            self.ended[item.run_id] += 1

        assert self.on.dispatcher.when_done(item, end)
        return item

    # -- the flow ------------------------------------------------------------------------------

    @rule(target=items, inputs=st.lists(items, max_size=3), retries=st.integers(0, 1))
    def submit(self, inputs: list[Item], retries: int) -> Item:
        """One run, with any others as its inputs."""
        item = self.on.item(inputs=inputs, retries=retries)
        self.take(item)
        self.on.dispatcher.submit_item(item)
        return item

    @rule(target=items, waits=st.lists(items, max_size=2))
    def submit_after(self, waits: list[Item]) -> Item:
        """One run that only waits for others."""
        item = self.on.item(waits=waits)
        self.take(item)
        self.on.dispatcher.submit_item(item)
        return item

    @rule(n=st.integers(1, 24), inputs=st.lists(items, max_size=1))
    def submit_map(self, n: int, inputs: list[Item]) -> None:
        """The runs of a map. They are met as members of Dask tasks."""
        template = self.on.template(may_batch=True)
        made = [self.take(self.on.item(template, inputs=inputs)) for _ in range(n)]
        self.on.dispatcher.submit_map(made)

    @rule(item=items)
    def cancel(self, item: Item) -> None:
        """Somebody cancels a run."""
        self._cancel([item])

    @rule(data=st.data())
    def cancel_some(self, data: Any) -> None:
        """Somebody cancels several at once, of maps as well."""
        if self.all:
            self._cancel(data.draw(st.lists(st.sampled_from(self.all), max_size=6, unique=True)))

    def _cancel(self, items: list[Item]) -> None:
        self.on.dispatcher.cancel(items)
        for item in items:
            self.unwanted.setdefault(item.run_id, self.on.times_sent(item))

    @rule()
    def go_on(self) -> None:
        """The dispatcher does what it has put off."""
        self.on.settle()

    @rule()
    def pass_time(self) -> None:
        """What waits for a time is due: retries, and runs that did not stop."""
        self.on.pass_time()

    # -- the cluster ---------------------------------------------------------------------------

    def _some(self, data: Any, *, of: list[Item]) -> Item | None:
        return data.draw(st.sampled_from(of)) if of else None

    @rule(data=st.data(), kind=KINDS, is_kept=st.booleans())
    def report(self, data: Any, kind: str, is_kept: bool) -> None:
        """A worker reports of a run that was sent once, perhaps late or again."""
        item = self._some(data, of=[one for one in self.all if self.on.times_sent(one)])
        if item is not None:
            self.on.report(item, kind=kind, blob=None if is_kept else b"state")

    @rule(data=st.data())
    def hand_back(self, data: Any) -> None:
        """A worker hands back what waits behind a long run of a Dask task."""
        item = self._some(data, of=[one for one in self.all if one.state in IN_DASK])
        if item is not None and item.batch is not None:
            self.on.report(*item.batch.open_items()[1:], kind="returned")

    @rule(
        data=st.data(),
        how=st.sampled_from(["killed", "killed by an input", "cancelled", "context", "value"]),
    )
    def break_a_task(self, data: Any, how: str) -> None:
        """The infrastructure breaks a Dask task."""
        item = self._some(data, of=[one for one in self.all if one.state in IN_DASK])
        if item is None:
            return
        if how == "killed":
            self.on.kill_worker(item)
        elif how == "killed by an input":
            keys = self.on.client.depends[self.on.future(item).key]
            self.on.kill_worker(item, of=keys[0] if keys else "another")
        elif how == "cancelled":
            self.on.end(item, "cancelled", RuntimeError("FutureCancelledError"))
        elif how == "context":
            self.on.end(item, "error", ContextMissingError("gone"))
        else:
            self.on.end(item, "error", ValueLostError("gone"))

    @rule(refuses=st.booleans())
    def refuse(self, refuses: bool) -> None:
        """Dask's client takes no graphs for a while."""
        self.on.client.refuses = RuntimeError("no connection") if refuses else None

    # -- what holds ----------------------------------------------------------------------------

    @invariant()
    def an_end_is_an_end(self) -> None:
        """A run is done in every way or in none, and who waits for it is called once."""
        assert self.on.dispatcher._board.calling.wait_idle(30)
        still_open = {one.run_id for one in self.on.dispatcher.open_items()}
        for item in self.all:
            assert item.is_done is item.state.is_done is (item.run_id not in still_open)
            assert self.ended[item.run_id] == int(item.is_done)

    @invariant()
    def what_is_in_dask_is_in_a_dask_task(self) -> None:
        """And what is held is in none."""
        for item in self.all:
            if item.state in IN_DASK or item.state is RunState.QUEUED:
                assert item.batch is not None
                assert item in item.batch.items
            elif not item.is_done:
                assert item.batch is None

    @invariant()
    def what_was_cancelled_is_not_sent_again(self) -> None:
        """Also where its worker died, or handed it back."""
        for item in self.all:
            if (n_sent := self.unwanted.get(item.run_id)) is not None:
                assert self.on.times_sent(item) <= n_sent
                assert item.is_done or item.state is RunState.CANCELLING

    @invariant()
    def nothing_goes_again_for_ever(self) -> None:
        """What may be to blame goes again a bounded number of times."""
        for item in self.all:
            assert item.life.failures <= INFRA_RETRIES
            assert item.plan is None or item.plan.n_outstanding >= 0

    @invariant()
    def nothing_is_held_for_nothing(self) -> None:
        """Once all that was put off is done, what is held waits for a run that is not done."""
        if self.on.reactor._inbox:
            return
        for item in self.all:
            assert item.state is not RunState.RETURNED
            if item.state is RunState.HELD_FOR_INPUTS:
                assert any(not upstream.is_done for upstream in item.upstreams)

    def teardown(self) -> None:
        """The flow is over: every run gets its end, and it stays."""
        self.on.client.refuses = None
        self.on.dispatcher.cancel_all()
        self.on.settle()
        self.on.pass_time()
        self.on.dispatcher.abandon("The flow run ended before this run could be stopped.")
        states = self.on.states(self.all)
        assert all(state.is_done for state in states)
        for item in self.all:
            if item.state in (RunState.CANCELLED, RunState.CRASHED):
                assert self.on.told_server(item).count(item.state.name.title()) == 1
        for _ in range(3):
            self.on.pass_time()
            self.on.settle()
        assert self.on.states(self.all) == states
        self.an_end_is_an_end()
        self.on.dispatcher.close()


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
