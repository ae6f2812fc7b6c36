"""The table of workers, event by event."""

from __future__ import annotations

from deepflow.decide.place.fleet import Fleet, Worker, first_free
from deepflow.hints import CLASS_LABEL, LABEL_OFFER, label_resource

GPU = (("GPU", 1.0),)


def worker(id: str, **fields: object) -> Worker:
    return Worker(id, **fields)  # type: ignore[arg-type]


def fleet_of(*workers: Worker) -> Fleet:
    fleet = Fleet()
    for one in workers:
        fleet.join(one)
    return fleet


def test_labels_and_class_are_read_from_resources() -> None:
    resources = {
        label_resource(CLASS_LABEL, "big"): LABEL_OFFER,
        label_resource("rack", "r1"): LABEL_OFFER,
        "GPU": 2.0,
    }
    one = worker("a", resources=resources, host="h")
    assert (one.worker_class, one.rack, one.host, one.zone) == ("big", "r1", "h", "")
    assert one.has_gpu


def test_class_of_an_unlabelled_worker() -> None:
    assert worker("a").worker_class == "default"
    assert worker("a", resources={"GPU": 1.0}).worker_class == "gpu"


def test_like_workers_are_one_group_whatever_their_labels() -> None:
    fleet = fleet_of(
        worker("a", resources={label_resource("rack", "r1"): LABEL_OFFER}),
        worker("b", resources={label_resource("rack", "r2"): LABEL_OFFER}),
        worker("c", threads=2),
        worker("d", resources={"GPU": 1.0}),
    )
    assert sorted(sorted(g.members) for g in fleet.groups.values()) == [["a", "b"], ["c"], ["d"]]


def test_worker_is_free_while_a_thread_is() -> None:
    one = worker("a", threads=2)
    fleet = fleet_of(one)
    fleet.assign(one, "x", 0, 5)
    assert (one.is_free, fleet.n_free) == (True, 1)
    fleet.assign(one, "y", 0, 9)
    assert (one.is_free, fleet.n_free) == (False, 0)
    assert one.free_in_s(1) == 4
    fleet.unassign("a", "x")
    assert (one.is_free, one.free_in_s(1)) == (True, 0)


def test_task_assigned_twice_counts_once() -> None:
    one = worker("a", threads=2, resources={"GPU": 1.0})
    fleet = fleet_of(one)
    fleet.assign(one, "x", 0, 5, GPU)
    fleet.assign(one, "x", 1, 6, GPU)
    assert (one.n_busy, one.used["GPU"]) == (1, 1.0)


def test_overdue_assignment_takes_a_share_of_its_time_longer() -> None:
    one = worker("a")
    fleet = fleet_of(one)
    fleet.assign(one, "x", 0, 5)
    assert one.free_in_s(4) == 1
    assert one.free_in_s(10) == 3


def test_queue_of_a_worker_is_counted() -> None:
    one = worker("a", threads=2)
    fleet = fleet_of(one)
    for key, end_s in (("x", 4), ("y", 6), ("z", 9)):
        fleet.assign(one, key, 0, end_s)
    assert one.free_in_s(1) == 5  # z takes the thread of x, the next one that of y


def test_resources_are_free_when_their_holder_ends() -> None:
    one = worker("a", threads=4, resources={"GPU": 1.0})
    fleet = fleet_of(one)
    fleet.assign(one, "x", 0, 7, (("GPU", 0.6),))
    assert one.has_free((("GPU", 0.4),))
    assert not one.has_free((("GPU", 0.5),))
    assert one.free_in_s(1, (("GPU", 0.5),)) == 6
    assert one.free_in_s(1, (("GPU", 0.4),)) == 0


def test_parts_that_are_no_powers_of_two_leave_no_rest() -> None:
    one = worker("a", threads=20, resources={"GPU": 1.0})
    fleet = fleet_of(one)
    for n in range(10):
        fleet.assign(one, n, 0, 1, (("GPU", 0.1),))
    assert not one.has_free((("GPU", 0.1),))
    for n in range(10):
        fleet.unassign("a", n)
    assert one.used["GPU"] == 0.0


def test_seceded_task_gives_its_thread_back_and_keeps_its_resources() -> None:
    one = worker("a", resources={"GPU": 1.0})
    fleet = fleet_of(one)
    fleet.assign(one, "x", 0, 5, GPU)
    fleet.secede("a", "x")
    fleet.secede("a", "x")
    assert (one.n_busy, one.is_free, one.has_free(GPU)) == (0, True, False)
    fleet.unassign("a", "x")
    assert (one.n_busy, one.has_free(GPU)) == (0, True)


def test_paused_worker_is_not_free_and_is_again() -> None:
    one, two = worker("a"), worker("b")
    fleet = fleet_of(one, two)
    fleet.set_running("a", False)
    assert [w.id for w in next(iter(fleet.groups.values())).free.values()] == ["b"]
    fleet.set_running("a", True)
    assert fleet.n_free == 2


def test_worker_that_leaves_takes_its_group_along_if_it_was_the_last() -> None:
    fleet = fleet_of(worker("a"), worker("b"), worker("c", threads=2))
    fleet.leave("c")
    fleet.leave("nobody")
    assert (len(fleet), len(fleet.groups), fleet.n_threads, fleet.n_free) == (2, 1, 2, 2)


def test_what_happens_to_a_worker_that_is_gone_is_nothing() -> None:
    fleet = fleet_of(worker("a"))
    fleet.unassign("b", "x")
    fleet.secede("b", "x")
    fleet.set_running("b", False)
    assert fleet.n_free == 1


def test_next_free_is_the_busy_member_that_ends_first() -> None:
    one, two = worker("a"), worker("b")
    fleet = fleet_of(one, two)
    (group,) = fleet.groups.values()
    assert group.next_free() is None
    fleet.assign(one, "x", 0, 9)
    fleet.assign(two, "y", 0, 4)
    assert group.next_free() is two
    fleet.set_running("b", False)
    assert group.next_free() is one


def test_fits_are_those_that_offer_it_and_follow_who_joins() -> None:
    fleet = fleet_of(worker("a"), worker("g", resources={"GPU": 1.0}))
    ids = lambda needs, only=None: [w.id for _, m in fleet.fits(needs, only) for w in m]  # noqa: E731
    assert ids(GPU) == ["g"]
    assert ids((("GPU", 2.0),)) == []
    assert ids((), frozenset({"a"})) == ["a"]
    fleet.join(worker("h", resources={"GPU": 2.0}))
    assert ids((("GPU", 2.0),)) == ["h"]


def test_first_free_is_the_one_idle_longest() -> None:
    one, two = worker("a"), worker("b")
    fleet = fleet_of(one, two)
    (group,) = fleet.groups.values()
    fleet.assign(one, "x", 0, 1)
    fleet.unassign("a", "x")
    assert first_free(group, [one, two], ()) is two
    assert first_free(group, [one], ()) is one
    assert first_free(group, [one, two], GPU) is None
