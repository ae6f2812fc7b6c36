"""One pass over the ready tasks: who goes where now, who is held, and why."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest

from deepflow.decide.estimate import Estimates
from deepflow.decide.place.binder import Binder
from deepflow.decide.place.decision import Decision, Tuning
from deepflow.decide.place.feasible import Unplaceable, unplaceable
from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.front import Front
from deepflow.decide.place.links import Links
from deepflow.decide.place.policies import EarliestFinish, RollingHeft
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.run_times import RunTimes
from deepflow.decide.place.task import Job, Task
from deepflow.hints import CLASS_LABEL, LABEL_OFFER, label_resource

JOB = Job("run", "flow", 0.0)


def of_class(name: str) -> dict[str, float]:
    return {label_resource(CLASS_LABEL, name): LABEL_OFFER}


class Cluster:
    """Workers, ready tasks and a binder over them."""

    def __init__(self, *workers: Worker, policy: Policy | None = None, **tuning: float) -> None:
        self.fleet = Fleet()
        for one in workers:
            self.fleet.join(one)
        policy = policy or RollingHeft()
        self.ready = Ready(policy)
        self.binder = Binder(
            self.fleet, self.ready, Links(), policy, np.random.default_rng(0), Tuning(**tuning)
        )

    def busy(self, worker_id: str, end_s: float, needs: Any = ()) -> None:
        """The worker does something else until then."""
        worker = self.fleet.workers[worker_id]
        self.fleet.assign(worker, f"other-{worker_id}-{worker.n_busy}", 0.0, end_s, needs)

    def task(self, key: str, run_s: float | dict[str, float] = 1.0, **fields: Any) -> Task:
        seconds = run_s if isinstance(run_s, dict) else {}
        task = Task(
            key,
            "task",
            JOB,
            run_s=lambda c: seconds[c] if seconds else run_s,  # type: ignore[arg-type,return-value]
            dask_order=(key,),
            **fields,
        )
        self.ready.add(task)
        return task

    def decide(self, now_s: float = 0.0) -> list[Decision]:
        """A pass, carried out."""
        made = []
        for decision in self.binder.decide(now_s):
            made.append(decision)
            end_s = now_s + decision.candidates.run_s[decision.chosen]
            needs = decision.task.needs
            if decision.on_gpu:
                needs = (*needs, ("GPU", decision.task.soft_gpu))
            self.fleet.assign(decision.worker, decision.task.key, now_s, end_s, needs)
            self.ready.remove(decision.task.key)
        return made

    def placed(self, now_s: float = 0.0) -> dict[object, str]:
        """Task to worker, in one pass."""
        return {d.task.key: d.worker.id for d in self.decide(now_s)}


def fast_and_slow(**fields: Any) -> Cluster:
    return Cluster(
        Worker("fast", resources=of_class("fast")),
        Worker("slow", resources=of_class("slow")),
        **fields,
    )


SPEEDS = {"fast": 1.0, "slow": 10.0}


def test_each_free_worker_gets_a_task_and_the_rest_wait() -> None:
    cluster = Cluster(Worker("a"), Worker("b"))
    tasks = [cluster.task(key) for key in "xyz"]
    assert sorted(cluster.placed().values()) == ["a", "b"]
    assert len(cluster.ready) == 1
    assert cluster.placed() == {}
    assert tasks[2].key in cluster.ready


def test_task_is_held_for_a_busy_worker_that_ends_it_sooner() -> None:
    cluster = fast_and_slow()
    cluster.busy("fast", 3.0)
    task = cluster.task("x", SPEEDS)
    assert cluster.placed() == {}
    assert task.held_because == "a busy worker of class fast is expected to end it earlier"
    assert cluster.binder.look_again_s == pytest.approx(3.0)


def test_task_takes_the_idle_worker_where_waiting_is_longer() -> None:
    cluster = fast_and_slow()
    cluster.busy("fast", 20.0)
    cluster.task("x", SPEEDS)
    assert cluster.placed() == {"x": "slow"}


def test_those_that_look_forward_to_a_worker_reckon_with_each_other() -> None:
    cluster = fast_and_slow()
    cluster.busy("fast", 3.0)
    for n in range(20):
        cluster.task(f"x{n:02}", SPEEDS)
    # The first seven or so would be done by the fast one before the slow one has ended one.
    (placed,) = cluster.placed().items()
    assert placed[1] == "slow"
    assert 5 <= int(str(placed[0])[1:]) <= 9


def test_gain_that_is_next_to_nothing_is_not_waited_for() -> None:
    cluster = fast_and_slow()
    cluster.busy("fast", 1.0)
    cluster.task("x", {"fast": 1.0, "slow": 2.01})
    (decision,) = cluster.decide()
    assert decision.worker.id == "slow"
    assert "next to nothing" in decision.reason


def test_worker_that_is_free_in_a_moment_is_sent_its_next_task() -> None:
    cluster = Cluster(Worker("a"))
    cluster.busy("a", 0.1)
    cluster.task("x")
    cluster.task("y")
    (decision,) = cluster.decide()
    assert decision.reason.startswith("sent ahead")
    assert len(cluster.ready) == 1


def test_score_of_nan_or_of_the_wrong_number_is_refused() -> None:
    class Wrong(EarliestFinish):
        name = "wrong"
        gives: tuple[float, ...] = ()

        def score(self, *args: Any) -> tuple[float, ...]:
            return self.gives

    policy = Wrong()
    cluster = Cluster(Worker("a"), policy=policy)
    cluster.task("x")
    for policy.gives in ((), (1.0, 2.0), (math.nan,)):
        with pytest.raises(ValueError, match="policy 'wrong' scored 1 candidates"):
            cluster.decide()
    assert cluster.binder.looking_at is not None
    assert cluster.binder.looking_at.key == "x"


class TestFilters:
    def test_resources_free_now(self) -> None:
        cluster = Cluster(
            Worker("a", threads=4, resources={"GPU": 1.0}),
            Worker("b", threads=4, resources={"GPU": 1.0}),
        )
        cluster.busy("a", 50.0, (("GPU", 0.7),))
        cluster.task("x", needs=(("GPU", 0.5),))
        cluster.task("y", needs=(("GPU", 0.6),))
        assert cluster.placed() == {"x": "b"}

    def test_only_these_workers(self) -> None:
        cluster = Cluster(Worker("a"), Worker("b"))
        cluster.task("x", only=frozenset({"b"}))
        cluster.task("y", only=frozenset({"b"}))
        assert cluster.placed() == {"x": "b"}

    def test_paused_workers_get_nothing(self) -> None:
        cluster = Cluster(Worker("a", is_running=False))
        cluster.task("x")
        assert cluster.placed() == {}
        cluster.fleet.set_running("a", True)
        assert cluster.placed() == {"x": "a"}

    def test_task_waits_for_memory_and_is_looked_at_again(self) -> None:
        one = Worker("a", threads=2, memory_limit_bytes=1000)
        cluster = Cluster(one)
        cluster.busy("a", 50.0)
        one.memory_used_bytes = 600
        cluster.task("x", memory_bytes=500)
        assert cluster.placed() == {}
        assert cluster.binder.look_again_s == pytest.approx(1.0)
        one.memory_used_bytes = 400
        assert cluster.placed(1.0) == {"x": "a"}

    def test_worker_with_nothing_to_do_takes_what_it_ever_can(self) -> None:
        one = Worker("a", memory_limit_bytes=1000)
        one.memory_used_bytes = 900
        cluster = Cluster(one)
        cluster.task("x", memory_bytes=500)
        cluster.task("y", memory_bytes=1500)
        assert cluster.placed() == {"x": "a"}


class TestGpu:
    def test_soft_task_takes_a_gpu_that_is_faster(self) -> None:
        cluster = Cluster(Worker("c"), Worker("g", resources={"GPU": 1.0}))
        cluster.task("x", {"default": 10.0, "gpu": 10.0, "gpu+gpu": 1.0}, soft_gpu=1.0)
        (decision,) = cluster.decide()
        assert (decision.worker.id, decision.on_gpu) == ("g", True)

    def test_soft_task_does_without_where_none_is_free(self) -> None:
        cluster = Cluster(Worker("g", threads=2, resources={"GPU": 1.0}))
        cluster.busy("g", 99.0, (("GPU", 1.0),))
        cluster.task("x", {"gpu": 10.0, "gpu+gpu": 1.0}, soft_gpu=1.0)
        (decision,) = cluster.decide()
        assert decision.on_gpu is False


class TestData:
    def test_holder_of_the_data_is_preferred(self) -> None:
        cluster = Cluster(*[Worker(f"w{n}") for n in range(6)])
        cluster.task("x", inputs=[(10**9, ["w4"])])
        (decision,) = cluster.decide()
        assert decision.worker.id == "w4"
        shares = dict(
            zip(
                [w.id for w in decision.candidates.workers],
                decision.candidates.missing_share,
                strict=True,
            )
        )
        assert shares["w4"] == 0.0
        assert shares["w0"] == 1.0


class TestUnplaceable:
    def test_one_reason_for_each_worker(self) -> None:
        cluster = Cluster(
            Worker("a", resources={"GPU": 1.0}),
            Worker("b", memory_limit_bytes=10, resources={"GPU": 2.0}),
            Worker("c", resources={"GPU": 2.0}),
        )
        task = cluster.task("x", needs=(("GPU", 2.0),), memory_bytes=11, only=frozenset({"a", "b"}))
        why = unplaceable(cluster.fleet, task)
        assert why is not None
        assert dict(why.reasons) == {
            "a": "offers 1 of GPU, the task needs 2",
            "b": "may use 10 bytes of memory, the task needs 11",
            "c": "is none of the workers that the task is confined to",
        }

    def test_none_while_some_worker_could_take_it(self) -> None:
        cluster = Cluster(Worker("a"), Worker("g", resources={"GPU": 1.0}, is_running=False))
        assert unplaceable(cluster.fleet, cluster.task("x", needs=(("GPU", 1.0),))) is None

    def test_like_reasons_are_said_together(self) -> None:
        said = str(Unplaceable(tuple((f"w{n}", "is too small") for n in range(5))))
        assert said == "w0, w1, w2 and 2 more: is too small"
        assert str(Unplaceable(())) == "there is no worker"


class TestNearFirst:
    """A free worker goes on with what it holds, where that is not much less urgent."""

    MB = 1_000_000

    def holding(self, near_first: float) -> Cluster:
        cluster = Cluster(
            Worker("a"), Worker("b"), policy=RollingHeft(moving=0.0, near_first=near_first)
        )
        # `y` is a little more urgent and comes from `b`; only `a` is free.
        cluster.busy("b", 50.0)
        cluster.task("x", 5.0, rank_s=8.0, inputs=[(10 * self.MB, ["a"])])
        cluster.task("y", 5.0, rank_s=10.0, inputs=[(10 * self.MB, ["b"])])
        return cluster

    def test_the_holder_takes_what_it_holds_before_what_is_a_little_more_urgent(self) -> None:
        assert self.holding(0.5).placed() == {"x": "a"}

    def test_without_it_urgency_alone_decides(self) -> None:
        assert self.holding(0.0).placed() == {"y": "a"}

    def test_what_is_much_less_urgent_does_not_go_first(self) -> None:
        assert self.holding(0.9).placed() == {"y": "a"}

    def test_a_higher_priority_goes_before_nearness(self) -> None:
        cluster = self.holding(0.5)
        cluster.task("z", 5.0, rank_s=9.0, priority=1, inputs=[(10 * self.MB, ["b"])])
        assert cluster.placed() == {"z": "a"}


class Unasked(RollingHeft):
    """Says that it was asked."""

    def score(self, task: Task, candidates: Any, rng: Any) -> Any:
        raise AssertionError(f"asked about {task.key}")


def known(run_s: float) -> RunTimes:
    """Run times of a task that was seen often."""
    estimates = Estimates()
    for _ in range(8):
        estimates.observe("flow", "t", "default", run_s, 0.0, 0.0)
    return RunTimes(estimates, "flow", "t", 0)


def test_tasks_shorter_than_a_decision_go_to_the_first_free_worker_unranked() -> None:
    cluster = Cluster(Worker("a"), Worker("b"), Worker("c"), policy=Unasked())
    cluster.busy("a", 9.0)
    for key in ("x", "y", "z"):
        cluster.ready.add(Task(key, "t", JOB, run_s=known(1e-5), dask_order=(key,)))
    made = cluster.decide()
    assert {d.task.key: d.worker.id for d in made}.keys() >= {"x", "y"}
    assert all(d.worker.id != "a" for d in made)
    assert {d.reason for d in made} == {"shorter than ranking the workers would take"}


def test_longer_tasks_and_those_with_much_to_read_are_ranked() -> None:
    for run_s, input_bytes in ((1.0, 0), (1e-5, 10**6)):
        cluster = Cluster(Worker("a"), policy=Unasked())
        cluster.ready.add(Task("x", "t", JOB, run_s=known(run_s), input_bytes=input_bytes))
        with pytest.raises(AssertionError, match="asked about x"):
            cluster.decide()


class TestFront:
    """Held tasks at the head of a queue, which a pass does not look at one by one."""

    TIMES: ClassVar = {"fast": 1.0, "slow": 20.0}

    def cluster(self) -> Cluster:
        cluster = Cluster(
            Worker("fast", resources=of_class("fast")), Worker("slow", resources=of_class("slow"))
        )
        cluster.busy("fast", 2.0)
        for key in ("x", "y"):
            cluster.task(key, self.TIMES)
        return cluster

    def front(self, cluster: Cluster) -> Front:
        (queue,) = cluster.ready.queues(0.0)
        (front,) = queue.fronts.values()
        return front

    def test_is_all_that_is_held_for_a_better_worker(self) -> None:
        cluster = self.cluster()
        assert cluster.decide() == []
        assert self.front(cluster).n == 2
        looked_at, cluster.binder.looking_at = cluster.binder.looking_at, None
        assert looked_at is not None
        assert cluster.decide(0.1) == []
        assert cluster.binder.looking_at is None, "nothing has changed: no task is looked at"

    def test_shrinks_as_its_first_is_placed(self) -> None:
        cluster = self.cluster()
        cluster.decide()
        cluster.fleet.unassign("fast", "other-fast-0")
        assert cluster.placed(1.0) == {"x": "fast"}
        assert self.front(cluster).n == 1

    def test_ends_where_the_better_worker_is_late(self) -> None:
        cluster = self.cluster()
        cluster.decide()
        assert cluster.placed(60.0) != {}

    def test_is_left_by_a_task_whose_data_is_on_a_worker_that_gets_free(self) -> None:
        cluster = Cluster(
            Worker("fast", resources=of_class("fast")),
            Worker("slow", resources=of_class("slow")),
            Worker("holder", resources=of_class("holder")),
        )
        cluster.busy("fast", 2.0)
        cluster.busy("holder", 50.0)
        times = {"fast": 1.0, "slow": 30.0, "holder": 1.0}
        cluster.task("x", times)
        cluster.task("y", times, inputs=[(10**10, ["holder"])])
        assert cluster.decide() == []
        assert self.front(cluster).n == 2
        cluster.fleet.unassign("holder", "other-holder-0")
        assert cluster.placed(0.1)["y"] == "holder"
