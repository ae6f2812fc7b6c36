"""The driver's half without a cluster: readiness, sending, reports, losses, cancelling, the end."""

from __future__ import annotations

import pickle
from typing import Any
from uuid import uuid4

import pytest

from deepflow.errors import ContextMissingError, ValueLostError
from deepflow.intermediates.loading import HOME
from deepflow.intermediates.parcel import Parcel
from deepflow.observe import metrics
from deepflow.runner.driver.items import Code, Item
from deepflow.runner.driver.lifecycle import RunState
from deepflow.runner.wire import Message, OutcomeReport, pack, unpack
from tests.unit.driven import IN_DASK, Driven

S = RunState


def end_of(item: Item) -> Any:
    """The state that the driver has given the run."""
    assert item.blob is not None
    return Parcel.from_bytes(item.blob).open(HOME)


# -- when a run is sent ----------------------------------------------------------------------------


def test_a_run_without_inputs_is_sent_at_once_and_ends_with_its_workers_report() -> None:
    on = Driven()
    item = on.submit()
    assert item.state is S.SENT
    on.report(item, kind="begun")
    assert item.state is S.BEGUN
    on.report(item)
    assert (item.state, item.is_done, item.state_type) == (S.DONE, True, "COMPLETED")
    assert item.batch is None, "the driver has its result: Dask may forget it"
    assert on.told_server(item) == [], "its worker does"


def test_a_run_goes_with_an_input_that_is_alone_in_a_dask_task_under_way() -> None:
    on = Driven()
    first = on.submit()
    second = on.submit(inputs=[first])
    assert second.state is S.SENT
    key = on.client.sent[-1][0]
    assert on.client.depends[key] == [on.client.sent[0][0]]


def test_a_run_is_held_for_an_input_in_a_group_and_sent_once_that_is_done() -> None:
    on = Driven(batch_target_s=10.0)
    on.report(on.submit())  # now it is known how long such runs take
    items = on.map(8)
    assert {len(run_ids) for _, run_ids in on.client.sent[1:]} == {2}
    after = on.submit(inputs=[items[0]])
    assert after.state is S.HELD_FOR_INPUTS
    on.report(items[0])
    assert after.state is S.SENT
    assert on.client.depends[on.client.sent[-1][0]] == [], "its input travels with it"


def test_a_map_sends_a_pilot_first_and_the_others_when_it_is_known_how_long_they_take() -> None:
    on = Driven()
    items = on.map(40)
    states = on.states(items)
    assert states.count(S.HELD_FOR_PILOT) > 20
    pilots = [one for one in items if one.state is S.SENT]
    assert all(len(run_ids) == 1 for _, run_ids in on.client.sent)
    on.report(*pilots)
    assert any(len(run_ids) > 1 for _, run_ids in on.client.sent)
    while waiting := [one for one in items if not one.is_done]:
        on.report(*(one for one in waiting if one.state in IN_DASK))
    assert all(on.times_sent(one) == 1 for one in items)


def test_a_run_waits_for_its_retry_and_goes_again_with_its_record() -> None:
    on = Driven()
    item = on.submit(retries=1)
    after = on.submit(inputs=[item])
    on.report(item, kind="retry")
    assert (item.state, item.batch) == (S.HELD_FOR_RETRY, None)
    on.report(item, kind="retry")
    assert on.reactor.n_timers == 1, "a second report of it changes nothing"
    on.pass_time()
    assert item.state is S.SENT
    assert on.times_sent(item) == 2
    assert pickle.loads(item.resume or b"")[1] == 1
    assert after.state is S.SENT


def test_runs_handed_back_go_elsewhere_in_smaller_groups() -> None:
    on = Driven(batch_target_s=10.0)
    on.report(on.submit())
    items = on.map(32)
    assert [len(run_ids) for _, run_ids in on.client.sent[1:]] == [8, 8, 8, 8]
    handed_back = items[1:8]
    on.report(*handed_back, kind="returned")
    assert [len(run_ids) for _, run_ids in on.client.sent[5:]] == [2, 2, 2, 1]
    assert all(one.state is S.SENT for one in handed_back)
    on.report(*items)
    assert all(one.is_done for one in items)


def test_a_run_that_found_its_input_gone_waits_until_that_is_done() -> None:
    on = Driven()
    first = on.submit()
    second = on.submit(inputs=[first])
    on.report(second, kind="deferred")
    assert second.state is S.HELD_FOR_INPUTS
    on.report(first)
    assert second.state is S.SENT


# -- what is reported ------------------------------------------------------------------------------


def test_one_odd_report_keeps_no_other_back_and_its_run_gets_its_end() -> None:
    on = Driven()
    items = [on.submit() for _ in range(3)]
    before = metrics.value("deepflow_fallbacks_total", kind="service_fault")
    outcomes = [OutcomeReport(one.run_id, "done", b"", "COMPLETED", 0.1) for one in items]
    odd: Any = outcomes[1]._replace(kind="no such thing")
    unknown = OutcomeReport(uuid4(), "returned", None, "", 0.0)
    message = Message("w", "driver", (outcomes[0], odd, outcomes[2], unknown), (), 0)
    on.dispatcher.on_message((0.0, pack(message)))
    on.settle()
    assert on.states(items) == [S.DONE, S.CRASHED, S.DONE]
    assert on.told_server(items[1]) == ["Crashed"]
    assert metrics.value("deepflow_fallbacks_total", kind="service_fault") == before + 1
    on.dispatcher.drain({"w": 1}, 0.0)  # the message counts as taken in


def test_a_record_that_cannot_be_read_is_the_end_of_its_run() -> None:
    on = Driven()
    item = on.submit(retries=1)
    report = OutcomeReport(item.run_id, "retry", b"no pickle", "", 0.1)
    on.dispatcher.on_message((0.0, pack(Message("w", "driver", (report,), (), 0))))
    on.settle()
    assert (item.state, item.is_done) == (S.CRASHED, True)
    assert on.told_server(item) == ["Crashed"]


def test_a_run_whose_record_is_damaged_while_it_is_cancelled_has_its_end_all_the_same() -> None:
    on = Driven()
    item = on.submit(retries=1)
    on.dispatcher.cancel([item])
    report = OutcomeReport(item.run_id, "retry", b"no pickle", "", 0.1)
    before = metrics.value("deepflow_fallbacks_total", kind="service_fault")
    on.dispatcher.on_message((0.0, pack(Message("w", "driver", (report,), (), 0))))
    on.settle()
    assert (item.state, item.is_done) == (S.CANCELLED, True)
    assert metrics.value("deepflow_fallbacks_total", kind="service_fault") == before + 1


def test_a_message_to_another_session_of_the_worker_is_not_for_this_one() -> None:
    on = Driven()
    item = on.submit()
    report = OutcomeReport(item.run_id, "done", b"", "COMPLETED", 0.1)
    on.dispatcher.on_message((0.0, pack(Message("w", "another", (report,), (), 0))))
    on.settle()
    assert item.state is S.SENT


def test_a_run_that_ends_twice_is_counted_as_computed_again() -> None:
    on = Driven()
    item = on.submit()
    on.report(item)
    blob = item.blob
    before = metrics.value("deepflow_recomputed_total")
    on.report(item, blob=None)
    assert metrics.value("deepflow_recomputed_total") == before + 1
    assert item.blob is blob


def test_where_no_report_came_the_result_itself_says_what_became_of_the_run() -> None:
    on = Driven()
    item = on.submit()
    entry = type("Entry", (), {})()
    entry.kind, entry.content, entry.state_type, entry.run_s = "done", b"state", "COMPLETED", 0.1
    found = type("Found", (), {"find": lambda self, run_id: entry})()
    on.client.outcomes[on.future(item).key] = found
    before = metrics.value("deepflow_fallbacks_total", kind="report_missing")
    on.end(item, "finished")
    assert (item.state, item.blob) == (S.DONE, b"state")
    assert metrics.value("deepflow_fallbacks_total", kind="report_missing") == before + 1


def test_a_value_that_its_worker_keeps_is_still_to_be_had_from_dask() -> None:
    on = Driven()
    item = on.submit()
    batch = item.batch
    on.report(item, blob=None)
    assert item.state is S.DONE
    assert item.batch is batch


# -- what breaks -----------------------------------------------------------------------------------


def test_a_run_goes_again_as_often_as_it_may_be_to_blame_and_then_it_has_crashed() -> None:
    on = Driven(infra_retries=2)
    item = on.submit()
    for n in (1, 2):
        on.report(item, kind="begun")
        on.kill_worker(item)
        assert (item.state, item.life.failures) == (S.SENT, n)
    on.report(item, kind="begun")
    on.kill_worker(item)
    assert item.state is S.CRASHED
    assert on.times_sent(item) == 3
    assert on.told_server(item) == ["Crashed"]
    state = end_of(item)
    assert "3 workers died while running it" in state.message


def test_the_tasks_own_retries_apply_to_what_broke_for_good() -> None:
    on = Driven(infra_retries=0)
    item = on.submit(retries=1)
    on.report(item, kind="begun")
    on.kill_worker(item)
    assert item.state is S.HELD_FOR_RETRY
    assert on.told_server(item) == ["AwaitingRetry"]
    on.pass_time()
    on.report(item, kind="begun")
    on.kill_worker(item)
    assert item.state is S.CRASHED
    assert on.told_server(item) == ["AwaitingRetry", "Crashed"]


def test_runs_near_the_one_that_broke_its_worker_are_spared() -> None:
    on = Driven(infra_retries=0, batch_target_s=10.0)
    on.report(on.submit())
    items = on.map(16)[:4]
    on.report(items[0], kind="begun")
    on.report(items[0])
    on.report(items[1], kind="begun")
    on.kill_worker(items[1])
    assert on.states(items) == [S.DONE, S.CRASHED, S.SENT, S.SENT]
    assert [one.life.n_spared for one in items[2:]] == [1, 1]
    assert all(len(run_ids) == 1 for _, run_ids in on.client.sent[5:]), "each is tried alone"


def test_a_run_whose_input_was_lost_waits_until_that_is_made_again() -> None:
    on = Driven()
    first = on.submit()
    second = on.submit(inputs=[first])
    on.kill_worker(second, of=on.future(first).key)
    assert second.state is S.HELD_FOR_INPUTS
    on.kill_worker(first)
    assert (first.state, second.state) == (S.SENT, S.HELD_FOR_INPUTS)
    on.report(first)
    assert second.state is S.SENT


def test_a_run_whose_input_killed_its_workers_has_crashed_and_says_so() -> None:
    on = Driven()
    first = on.submit()
    key = on.future(first).key
    on.report(first, blob=None)
    second = on.submit(inputs=[first])
    on.kill_worker(second, of=key)
    assert second.state is S.CRASHED
    state = end_of(second)
    assert "input 'step-0' was lost with its worker" in state.message


def test_a_run_that_was_to_begin_with_a_lost_value_is_not_to_blame() -> None:
    on = Driven(infra_retries=0)
    item = on.submit()
    on.end(item, "error", ValueLostError("gone"))
    assert (item.state, item.life.n_spared) == (S.SENT, 1)


def test_code_that_the_scheduler_has_lost_is_put_back_before_the_run_goes_again() -> None:
    on = Driven()
    item = on.submit()
    on.end(item, "error", ContextMissingError("the context is gone"))
    assert on.shipped == [item.code]
    assert item.state is S.SENT
    assert not on.dispatcher._board._lock._is_owned()  # type: ignore[attr-defined]


def test_a_loss_that_cannot_be_taken_in_is_the_end_of_its_runs() -> None:
    on = Driven()
    item = on.submit()

    def ship_again(code: Code) -> None:
        raise OSError("the scheduler does not answer")

    item.template.ship_again = ship_again
    before = metrics.value("deepflow_fallbacks_total", kind="service_fault")
    on.end(item, "error", ContextMissingError("the context is gone"))
    assert item.state is S.CRASHED
    assert "the scheduler does not answer" in end_of(item).message
    assert metrics.value("deepflow_fallbacks_total", kind="service_fault") == before + 1


def test_without_a_scheduler_nothing_is_tried_again() -> None:
    on = Driven()
    item = on.submit(retries=3)
    on.client.status = "closed"
    on.end(item, "cancelled", RuntimeError("cancelled"))
    assert item.state is S.CRASHED


def test_a_graph_that_cannot_be_sent_is_an_error_of_its_runs_alone() -> None:
    on = Driven(infra_retries=0)
    on.client.refuses = TypeError("no such graph")
    item = on.submit()
    assert item.state is S.CRASHED
    on.client.refuses = None
    assert on.submit().state is S.SENT


# -- cancelling and the end ------------------------------------------------------------------------


def test_what_was_not_sent_is_cancelled_at_once_and_what_runs_by_its_worker() -> None:
    on = Driven()
    first = on.submit()
    held = on.submit(inputs=[on.map(8)[7]])
    on.client.at_work = {on.future(first).key}
    on.dispatcher.cancel([first, held])
    on.settle()
    assert (first.state, held.state) == (S.CANCELLING, S.CANCELLED)
    assert on.client.told == [[first.run_id]]
    assert on.client.cancelled == [], "a worker has it: it is told, and nothing is taken from it"
    on.report(first)
    assert first.state is S.DONE
    assert on.told_server(held) == ["Cancelled"]


@pytest.mark.parametrize("kind", ["retry", "returned", "deferred"])
def test_what_comes_back_while_it_is_being_cancelled_does_not_go_again(kind: str) -> None:
    on = Driven()
    item = on.submit(retries=1)
    on.dispatcher.cancel([item])
    on.report(item, kind=kind)
    on.pass_time()
    assert item.state is S.CANCELLED
    assert on.times_sent(item) == 1
    assert on.told_server(item) == ["Cancelled"]


def test_a_run_whose_worker_dies_while_it_is_being_cancelled_is_cancelled() -> None:
    on = Driven()
    item = on.submit(retries=1)
    on.dispatcher.cancel([item])
    on.kill_worker(item)
    assert item.state is S.CANCELLED
    assert on.times_sent(item) == 1


def test_what_does_not_stop_in_time_is_given_up() -> None:
    on = Driven()
    item = on.submit()
    key = on.future(item).key
    on.client.at_work = {key}
    on.dispatcher.cancel([item])
    on.pass_time()
    assert item.state is S.CANCELLED
    assert on.client.cancelled == [key]


def test_a_run_is_cancelled_before_its_retry_is_due_and_stays_so() -> None:
    on = Driven()
    item = on.submit(retries=1)
    on.report(item, kind="retry")
    on.dispatcher.cancel([item])
    on.pass_time()
    assert item.state is S.CANCELLED
    assert on.times_sent(item) == 1


def test_after_a_flow_run_was_cancelled_nothing_more_is_taken() -> None:
    from prefect.exceptions import CancelledRun

    on = Driven()
    item = on.submit()
    on.dispatcher.cancel_for_good()
    with pytest.raises(CancelledRun):
        on.submit()
    assert item.state is S.CANCELLING


def test_at_the_end_every_open_run_gets_one() -> None:
    on = Driven()
    items = [*on.map(40), on.submit(), on.submit()]
    on.report(items[-1], kind="retry")
    on.dispatcher.abandon("The flow run ended before this run could be stopped.")
    assert {one.state for one in items} == {S.CRASHED}
    assert on.dispatcher.open_items() == []
    on.pass_time()
    on.dispatcher.close()
    assert {one.state for one in items} == {S.CRASHED}


def test_a_session_inside_a_task_tells_the_flow_runs_driver_and_not_in_its_turn() -> None:
    on = Driven(is_nested=True)
    item = on.submit()
    with on.dispatcher._board.turn():
        on.dispatcher.abandon("The flow run ended before this run did.")
        assert on.client.said == [], "nothing waits for the network in a turn"
    on.settle()
    ((topic, blob),) = on.client.said
    (event,) = unpack(blob).events
    assert (topic, event.run_id, event.state_name) == ("driver", item.run_id, "Crashed")
