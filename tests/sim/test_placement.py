"""The placement plugin inside simulated schedulers: nothing is lost whatever goes wrong.

Every run checks itself: Dask validates its state at each step, and the plugin asserts after each
pass that its table agrees with Dask's and that nothing waits for no reason.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, ClassVar, Literal

import pytest
from distributed import Scheduler

from deepflow.backend import contract
from deepflow.backend.parts import there
from deepflow.backend.placement.guard import MAX_FAULTS
from deepflow.backend.placement.live import LivePlacement
from deepflow.backend.placement.plugin import Placement
from deepflow.decide.estimate import Estimates
from deepflow.decide.events import Event, Failed, Finished, Held, Placed, Started
from deepflow.decide.place.policies import EarliestFinish, JobOrder, RollingHeft
from deepflow.decide.place.policy import Candidates, Policy
from deepflow.decide.place.registry import STOCK, policy_names
from deepflow.decide.place.task import Task
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.compare import play
from deepflow.sim.engine import Outcome, simulate
from deepflow.sim.generators import fan_out_in, layered, map_reduce, pipelines
from deepflow.sim.workload import SimJob, SimTask, Workload

POLICIES = [name for name in policy_names() if name != STOCK]
GPU = (("GPU", 1.0),)


@dataclass
class Placing:
    """A simulated run and the plugin that placed its tasks."""

    outcome: Outcome
    placement: LivePlacement

    def of(self, kind: type[Any], task: str = "") -> list[Any]:
        """Events of a kind, of the tasks whose key ends in `task`."""
        found = [event for event in self.outcome.events if isinstance(event, kind)]
        return [e for e in found if not task or e.key.endswith(f"-{task}")]


def run(
    workload: Workload,
    cluster: ClusterSpec,
    policy: str | Policy = "heft",
    *,
    seed: int = 0,
    break_it: Callable[[LivePlacement], None] = lambda placement: None,
    **options: Any,
) -> Placing:
    """Play with every check on. `break_it` may spoil the plugin once it has a scheduler."""
    placements: list[LivePlacement] = []

    def install(scheduler: Any, clock: Any) -> Callable[[], list[Event]]:
        plugin = Placement(
            policy,
            seed=seed,
            clock=clock,
            call_later=clock.call_later,
            is_checking=True,
            **options,
        )
        placement = plugin.attach(scheduler)
        scheduler.plugins[plugin.name] = plugin
        break_it(placement)
        placements.append(placement)
        return lambda: [e for e in placement.record.drain() if isinstance(e, (Placed, Held))]

    outcome = simulate(workload, cluster, install=install, seed=seed, stealing=False, validate=True)
    return Placing(outcome, placements[0])


def assert_well(played: Placing) -> None:
    assert played.outcome.unfinished == ()
    assert played.outcome.n_failures == 0
    assert played.placement.guard.faults == []
    assert played.placement.is_placing
    assert len(played.placement.waiting.ready) == 0


def task(key: str, run_s: float = 1.0, *depends_on: str, **fields: Any) -> SimTask:
    return SimTask(
        **{"key": key, "task": key[0], "run_s": run_s, "depends_on": depends_on} | fields
    )


def workload(*tasks: SimTask, run: str = "run1") -> Workload:
    return Workload("test", (SimJob(run, "flow", tasks),))


def cluster(*classes: SimWorkerClass, **fields: Any) -> ClusterSpec:
    return ClusterSpec(**{"name": "c", "classes": classes, "noise": 0} | fields)


def mixed_job(number: int, n_tasks: int = 40) -> SimJob:
    """A random graph with needs of every sort."""
    chance = random.Random(number)
    tasks = []
    for n in range(n_tasks):
        before = range(max(0, n - 12), n)
        kind = chance.choice("abcdef")
        tasks.append(
            SimTask(
                key=f"t{n}",
                task=f"kind_{kind}",
                run_s=chance.expovariate(1) + 0.05,
                output_bytes=int(chance.expovariate(1 / 3e6)),
                depends_on=tuple(
                    f"t{i}" for i in sorted(chance.sample(before, min(n, chance.randrange(3))))
                ),
                needs=GPU if kind == "a" else (("DISK", 0.3),) if kind == "d" else (),
                soft_gpu=0.5 if kind == "b" else 0.0,
                memory_bytes=int(2e8) if kind == "e" else 0,
                priority=int(kind == "c"),
            )
        )
    return SimJob(f"run{number}", f"flow{number % 2}", tuple(tasks), arrives_s=number * 2.0)


MIXED = cluster(
    SimWorkerClass("cpu", 3, threads=2, resources=(("DISK", 1.0),), memory_bytes=int(4e9)),
    SimWorkerClass(
        "gpu", 2, threads=2, resources=GPU, speeds=(("*+gpu", 5.0),), memory_bytes=int(4e9)
    ),
    SimWorkerClass("late", 2, speed=3.0, starts_after_s=8.0, memory_bytes=int(4e9)),
    deaths=(
        WorkerDeath("cpu-1", 5.3, back_after_s=4.0),
        WorkerDeath("gpu-0", 7.1, back_after_s=2.0),
        WorkerDeath("gpu-1", 7.2, back_after_s=3.0),
        WorkerDeath("late-0", 11.0),
    ),
    noise=0.3,
)
"""Everything that comes and goes: deaths in the middle, some for good, and late workers."""

WORKLOADS = {
    "mixed": Workload("mixed", tuple(mixed_job(n) for n in range(3))),
    "layered": Workload("layered", (layered("l", n_tasks=60, n_layers=6, typical_s=1.5, seed=3),)),
    "soft pipelines": Workload(
        "p", (pipelines("p", n_items=12, decode_s=0.5, infer_s=4.0, post_s=0.5, spread=0.2),)
    ),
    "hard pipelines": Workload(
        "p", (pipelines("p", n_items=12, gpu="hard", decode_s=0.5, infer_s=4.0, post_s=0.5),)
    ),
    "fan": Workload("fan", (fan_out_in("f", width=40, work_s=3.0, spread=0.4),)),
    "shuffle": Workload(
        "shuffle",
        (map_reduce("m", n_map=8, n_reduce=4, map_s=2, reduce_s=2, map_output_bytes=16_000_000),),
    ),
}


class TestEverythingCompletes:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_while_workers_come_and_go(self, name: str, policy: str) -> None:
        assert_well(run(WORKLOADS[name], MIXED, policy))

    @pytest.mark.parametrize("seed", range(12))
    def test_by_the_default_policy_for_any_seed(self, seed: int) -> None:
        chance = random.Random(seed)
        deaths = tuple(
            WorkerDeath(
                f"{name}-{n}", chance.uniform(0.1, 20.0), back_after_s=chance.uniform(0.01, 5.0)
            )
            for name, count in (("cpu", 3), ("gpu", 2), ("late", 2))
            for n in range(count)
        )
        jobs = tuple(mixed_job(seed * 10 + n, 30) for n in range(3))
        jobs = tuple(replace(job, arrives_s=2.0 * n) for n, job in enumerate(jobs))
        assert_well(run(Workload("w", jobs), replace(MIXED, deaths=deaths), "srw-heft", seed=seed))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_while_workers_pause_for_memory(self, policy: str) -> None:
        job = layered(
            "l",
            n_tasks=60,
            n_layers=6,
            typical_s=1.0,
            typical_bytes=2e7,
            seed=1,
        )
        job = replace(job, tasks=tuple(replace(t, memory_bytes=int(1e8)) for t in job.tasks))
        spec = cluster(SimWorkerClass("w", 5, threads=3, memory_bytes=int(5e8)), noise=0.3)
        paused: list[str] = []

        def watch(placement: LivePlacement) -> None:
            was = placement.mirror.fleet.set_running

            def set_running(worker_id: str, is_running: bool) -> None:
                if not is_running:
                    paused.append(worker_id)
                was(worker_id, is_running)

            placement.mirror.fleet.set_running = set_running  # type: ignore[method-assign]

        assert_well(run(Workload("w", (job,)), spec, policy, break_it=watch))
        assert paused or policy != "first-free"

    def test_when_one_worker_pauses_as_another_goes_on(self) -> None:
        """The number of running workers stays the same; which ones they are does not."""

        def swap(placement: LivePlacement) -> None:
            def change() -> None:
                scheduler: Any = placement.scheduler
                first, second = sorted(scheduler.workers.values(), key=lambda ws: ws.name)
                scheduler.handle_worker_status_change("paused", first, "test")
                placement.passes.call_later(0.5, lambda: other(first, second))  # type: ignore[misc]

            def other(first: Any, second: Any) -> None:
                scheduler: Any = placement.scheduler
                scheduler.handle_worker_status_change("paused", second, "test")
                scheduler.handle_worker_status_change("running", first, "test")

            placement.passes.call_later(1.2, change)  # type: ignore[misc]

        spec = cluster(SimWorkerClass("w", 2, threads=2))
        played = run(workload(*[task(f"a{n}") for n in range(12)]), spec, break_it=swap)
        assert_well(played)
        late = {e.worker for e in played.of(Started) if e.at_s > 2.0}
        assert late == {"w-0"}


class TestNeeds:
    def test_resources_are_never_taken_twice(self) -> None:
        tasks = [task(f"a{n}", 1.0, needs=(("DISK", 0.6),)) for n in range(8)]
        spec = cluster(SimWorkerClass("w", 2, threads=4, resources=(("DISK", 1.0),)))
        played = run(workload(*tasks), spec)
        assert_well(played)
        assert most_at_once(played, "w-0") == most_at_once(played, "w-1") == 1

    def test_soft_gpu_is_reserved_where_there_is_one(self) -> None:
        tasks = [task(f"a{n}", 4.0, soft_gpu=1.0, kind="train") for n in range(4)]
        spec = cluster(
            SimWorkerClass("gpu", 1, threads=4, resources=GPU, speeds=(("train+gpu", 8.0),))
        )
        played = run(workload(*tasks), spec, "eft")
        assert_well(played)
        on_gpu = [e for e in played.of(Finished) if e.on_gpu]
        assert on_gpu
        assert most_at_once(played, "gpu-0", {e.key for e in on_gpu}) == 1

    @pytest.mark.parametrize("policy", POLICIES)
    def test_soft_gpu_runs_on_a_cpu_where_there_is_none(self, policy: str) -> None:
        tasks = [task(f"a{n}", 1.0, soft_gpu=1.0) for n in range(4)]
        played = run(workload(*tasks), cluster(SimWorkerClass("cpu", 2)), policy)
        assert_well(played)
        assert not any(e.on_gpu for e in played.of(Finished))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_soft_gpu_task_outlives_the_last_gpu(self, policy: str) -> None:
        """What was given a GPU that is lost goes on without one."""
        tasks = [task(f"a{n}", 20.0, soft_gpu=1.0, kind="train") for n in range(3)]
        spec = cluster(
            SimWorkerClass("gpu", 1, threads=2, resources=GPU, speeds=(("train+gpu", 10.0),)),
            SimWorkerClass("cpu", 1, starts_after_s=3.0),
            deaths=(WorkerDeath("gpu-0", 1.0),),
        )
        played = run(workload(*tasks), spec, policy)
        assert_well(played)
        assert {e.worker for e in played.of(Finished)} == {"cpu-0"}

    def test_higher_priority_goes_first(self) -> None:
        tasks = [task(f"a{n}", 1.0, priority=n) for n in range(6)]
        played = run(workload(*tasks), cluster(SimWorkerClass("w", 1)))
        assert_well(played)
        started = [e.key.rpartition("-")[2] for e in played.of(Started)]
        assert started == [f"a{n}" for n in reversed(range(6))]

    def test_unplaceable_task_says_why_of_each_worker_and_runs_when_a_fit_one_joins(self) -> None:
        spec = cluster(
            SimWorkerClass("cpu", 2),
            SimWorkerClass("disk", 1, resources=(("DISK", 1.0),)),
            SimWorkerClass("gpu", 1, resources=GPU, starts_after_s=5.0),
        )
        needs = (("GPU", 1.0),)
        played = run(workload(task("a", 1.0, needs=needs), task("b", 1.0)), spec)
        assert_well(played)
        (held,) = played.of(Held, "a")
        assert held.reason.startswith("unplaceable: ")
        assert all(name in held.reason for name in ("cpu-0", "cpu-1", "disk-0"))
        assert "offers 0 of GPU, the task needs 1" in held.reason
        assert [e.worker for e in played.of(Started, "a")] == ["gpu-0"]
        assert played.of(Started, "a")[0].at_s == pytest.approx(5.0, abs=0.1)

    def test_task_that_was_placed_and_then_has_no_fit_worker_waits_for_one(self) -> None:
        spec = cluster(
            SimWorkerClass("gpu", 1, resources=GPU),
            SimWorkerClass("cpu", 1),
            deaths=(WorkerDeath("gpu-0", 0.5, back_after_s=6.0),),
        )
        played = run(workload(task("a", 1.0, needs=GPU, priority=1), task("b", 1.0)), spec)
        assert_well(played)
        assert [round(e.at_s, 1) for e in played.of(Started, "a")] == [0.0, 6.5]


def most_at_once(played: Placing, worker: str, keys: set[str] | None = None) -> int:
    """How many tasks ran side by side on a worker."""
    spans = [
        (e.started_s, e.stopped_s)
        for e in played.of(Finished)
        if e.worker == worker and (keys is None or e.key in keys)
    ]
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


class TestRecall:
    def test_what_was_sent_behind_a_straggler_is_fetched_back(self) -> None:
        """Runs of a tenth of a second are sent ahead; one of them takes a minute."""
        tasks = [task(f"a{n:02}", 60.0 if n == 12 else 0.1, kind="a") for n in range(60)]
        played = run(workload(*tasks), cluster(SimWorkerClass("w", 2)), "heft")
        assert_well(played)
        ends = {e.key.rpartition("-")[2]: e.stopped_s for e in played.of(Finished)}
        assert ends.pop("a12") > 60.0
        assert max(ends.values()) < 10.0
        assert played.placement.report()["n_recalled"] == 1
        assert played.of(Failed) == [], "to be given back is no failure"
        assert [e.reason for e in played.of(Held) if "could not begin" in e.reason] != []

    def test_nothing_is_asked_for_while_every_other_worker_is_busy(self) -> None:
        tasks = [task(f"a{n:02}", 5.0 if n in (12, 13) else 0.1, kind="a") for n in range(16)]
        played = run(workload(*tasks), cluster(SimWorkerClass("w", 2)), "heft")
        assert_well(played)
        assert played.placement.report()["n_recalled"] == 0


class TestJobs:
    @pytest.mark.parametrize("policy", ["heft", "srw-heft", "best-fit"])
    def test_no_job_starves_behind_a_stream_of_smaller_ones(self, policy: str) -> None:
        big = SimJob("big", "big", tuple(task(f"a{n}", 2.0) for n in range(40)))
        small = [
            SimJob(f"small{n}", "small", tuple(task(f"b{i}", 1.0) for i in range(2)), 0.5 * n)
            for n in range(60)
        ]
        spec = cluster(SimWorkerClass("w", 4))
        played = run(Workload("stream", (big, *small)), spec, policy)
        assert_well(played)
        ends = {job.run: 0.0 for job in (big, *small)}
        for e in played.of(Finished):
            run_of = e.key.split("-")[2]
            ends[run_of] = max(ends[run_of], e.stopped_s)
        # Alone, the large one takes 20 s, a small one 1 s; the work of all is 50 s.
        assert ends["big"] < 60.0
        assert max(ends[job.run] - job.arrives_s for job in small) < 50.0

    @pytest.mark.parametrize("ageing", [0.0, None])
    def test_large_job_moves_on_by_its_age_while_small_ones_keep_coming(
        self, ageing: float | None
    ) -> None:
        """Small jobs alone keep the worker busy: without ageing the large one would be last."""
        big = SimJob("big", "big", tuple(task(f"a{n}", 1.0) for n in range(6)))
        small = [SimJob(f"small{n}", "small", (task("b", 1.0),), 1.0 * n) for n in range(300)]
        policy = JobOrder() if ageing is None else JobOrder(ageing)
        played = run(Workload("s", (big, *small)), cluster(SimWorkerClass("w", 1)), policy)
        assert_well(played)
        end_of_big = max(e.stopped_s for e in played.of(Finished) if "-big-" in e.key)
        if ageing is None:
            assert end_of_big < 240.0
        else:
            assert end_of_big > 299.0


class RaisesFor(EarliestFinish):
    """Fails on some tasks."""

    name = "raises"

    def __init__(self, fails: Callable[[Task], bool]) -> None:
        self.fails = fails
        self.n_raised = 0

    def score(self, task: Task, candidates: Candidates, rng: Any) -> Sequence[float]:
        if self.fails(task):
            self.n_raised += 1
            raise ZeroDivisionError("of the policy")
        return super().score(task, candidates, rng)


class Scores(EarliestFinish):
    """Gives what it was told to, by the number of candidates."""

    name = "scores"
    looks_at: ClassVar[Literal["free", "shortlist"]] = "shortlist"

    def __init__(self, give: Callable[[int], Sequence[float]]) -> None:
        self.give = give

    def score(self, task: Task, candidates: Candidates, rng: Any) -> Sequence[float]:
        return self.give(len(candidates))


class BadEstimates(Estimates):
    """Says the same whatever is asked."""

    def __init__(self, answer_s: float) -> None:
        super().__init__()
        self.answer_s = answer_s

    def run_s(self, flow: str, task: str, worker_class: str | None, input_bytes: float) -> float:
        return self.answer_s


def assert_left_to_dask(played: Placing) -> None:
    """All is done, the faults were counted, and Dask has everything back."""
    assert played.outcome.unfinished == ()
    assert played.outcome.n_failures == 0
    placement = played.placement
    assert not placement.is_placing
    assert len(placement.guard.faults) >= MAX_FAULTS
    assert "_TRANSITIONS_TABLE" not in vars(placement.scheduler)
    assert "transitions" not in vars(placement.scheduler)
    assert "stimulus_queue_slots_maybe_opened" not in vars(placement.scheduler)


class TestFaults:
    def test_of_a_policy_on_some_tasks_cost_nothing_but_their_placement(self) -> None:
        policy = RaisesFor(lambda task: str(task.key).endswith(("-t3", "-t17", "-t30")))
        played = run(Workload("w", (mixed_job(0),)), MIXED, policy)
        assert played.outcome.unfinished == ()
        placement = played.placement
        assert placement.is_placing
        assert len(placement.guard.faults) == policy.n_raised >= 3
        assert placement.record.n_fallbacks >= 3
        assert all("of the policy" in fault for fault in placement.guard.faults)

    @pytest.mark.parametrize("name", WORKLOADS)
    def test_of_a_policy_that_always_fails_leave_everything_to_dask(self, name: str) -> None:
        assert_left_to_dask(run(WORKLOADS[name], MIXED, RaisesFor(lambda task: True)))

    def test_of_the_order_of_jobs(self) -> None:
        class NoOrder(RollingHeft):
            name = "no-order"

            def job_order(self, job: Any, now_s: float) -> float:
                raise KeyError("of the order of jobs")

        assert_left_to_dask(run(WORKLOADS["mixed"], MIXED, NoOrder()))

    def test_of_the_order_of_tasks(self) -> None:
        class NoOrder(RollingHeft):
            name = "no-order"

            def task_order(self, task: Task) -> tuple[object, ...]:
                raise KeyError("of the order of tasks")

        assert_left_to_dask(run(WORKLOADS["layered"], MIXED, NoOrder()))

    @pytest.mark.parametrize(
        "give",
        [
            pytest.param(lambda n: [math.nan] * n, id="nan"),
            pytest.param(lambda n: [0.0] * (n - 1) + [math.nan], id="one nan"),
            pytest.param(lambda n: [], id="none"),
            pytest.param(lambda n: [1.0] * (n + 1) + [0.0], id="too many"),
            pytest.param(lambda n: ["a"] * n, id="text"),
        ],
    )
    def test_of_scores_that_are_none(self, give: Callable[[int], Sequence[float]]) -> None:
        assert_left_to_dask(run(WORKLOADS["layered"], MIXED, Scores(give)))

    def test_infinite_scores_are_scores(self) -> None:
        # The first in the list every time, which must not be one that dies again and again: Dask
        # gives up a task that four workers have died with.
        lasting = replace(MIXED, deaths=())
        assert_well(run(WORKLOADS["layered"], lasting, Scores(lambda n: [math.inf] * n)))

    @pytest.mark.parametrize("answer_s", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("policy", ["heft", "srw-heft", "random"])
    def test_of_estimates_that_are_no_numbers(self, policy: str, answer_s: float) -> None:
        played = run(WORKLOADS["mixed"], MIXED, policy, estimates=BadEstimates(answer_s))
        assert_left_to_dask(played)

    @pytest.mark.parametrize("answer_s", [0.0, -1.0, 1e300])
    def test_absurd_estimates_are_lived_with(self, answer_s: float) -> None:
        played = run(WORKLOADS["mixed"], MIXED, "heft", estimates=BadEstimates(answer_s))
        assert played.outcome.unfinished == ()

    @pytest.mark.parametrize(
        "method",
        [
            "ready_task",
            "submitted",
            "worker_joined",
            "sync_running",
            "read_measurements",
            "finished",
            "forget",
            "renew",
            "learned_enough",
        ],
    )
    @pytest.mark.parametrize("every", [1, 2, 3, 7])
    def test_of_the_mirror(self, method: str, every: int) -> None:
        """The method raises at each call, at every other, at every third, …"""
        calls = 0

        def break_it(placement: LivePlacement) -> None:
            sound = getattr(placement.mirror, method)

            def fails(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls % every == 0:
                    raise RuntimeError(f"of {method}")
                return sound(*args, **kwargs)

            setattr(placement.mirror, method, fails)

        played = run(WORKLOADS["mixed"], MIXED, "srw-heft", break_it=break_it)
        assert played.outcome.unfinished == ()
        assert played.outcome.n_failures == 0
        placement = played.placement
        assert bool(placement.guard.faults) == (calls >= every)
        assert placement.is_placing == (len(placement.guard.faults) < MAX_FAULTS)

    @pytest.mark.parametrize("at_s", [0.0, 2.5, 7.15, 9.0])
    def test_giving_up_in_the_middle_loses_nothing(self, at_s: float) -> None:
        def break_it(placement: LivePlacement) -> None:
            def give_up() -> None:
                placement.fall_back_for_good("the test says so")

            placement.passes.call_later(at_s, give_up)  # type: ignore[misc]

        played = run(WORKLOADS["mixed"], MIXED, "srw-heft", break_it=break_it)
        assert played.outcome.unfinished == ()
        assert not played.placement.is_placing
        assert played.placement.guard.faults == ["the test says so"]


class TestUnknownDask:
    @pytest.fixture(autouse=True)
    def _looked_at_anew(self) -> Iterator[None]:
        contract.forget()
        yield
        contract.forget()

    def test_is_left_alone_and_that_is_said_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        stock = Scheduler._transition_queued_released

        def another(self: Any, key: Any, stimulus_id: str) -> Any:
            return stock(self, key, stimulus_id)

        monkeypatch.setattr(Scheduler, "_transition_queued_released", another)
        played = run(WORKLOADS["mixed"], MIXED, "heft")
        assert played.outcome.unfinished == ()
        placement = played.placement
        assert not placement.is_placing
        assert placement.record.n_decisions == 0
        (fault,) = placement.guard.faults
        assert "_transition_queued_released is another one" in fault
        assert "constraints.txt" in fault
        (said,) = [r for r in caplog.records if r.name == "deepflow.contract"]
        assert "Dask places every task" in said.getMessage()

    def test_that_lacks_a_method_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lacking = there("distributed.scheduler.Scheduler._transition_of_old", "For this test.")
        monkeypatch.setitem(
            contract.CONTRACT, contract.PLACEMENT, (*contract.CONTRACT[contract.PLACEMENT], lacking)
        )
        played = run(WORKLOADS["fan"], MIXED, "heft")
        assert played.outcome.unfinished == ()
        assert "_transition_of_old is missing" in played.placement.guard.faults[0]


def digest() -> str:
    """Of everything that happens in a run under `heft`."""
    played = play(WORKLOADS["mixed"], MIXED, "heft", seed=5, is_checking=True)
    assert played.faults == ()
    return sha256(repr(played.outcome.events).encode()).hexdigest()


def test_events_are_the_same_in_every_process() -> None:
    code = "from tests.sim.test_placement import digest; print(digest())"
    found = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout.splitlines()[-1])
    assert found == {digest()}
