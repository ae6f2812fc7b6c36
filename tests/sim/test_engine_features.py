"""What the simulation engine plays, on tiny workloads whose times are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from deepflow.decide.events import Failed, Finished, Placed, Started, Transferred, WorkerLeft
from deepflow.errors import ConfigurationError
from deepflow.sim.cluster import ClusterSpec, LinkFailure, NetworkSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.engine import Outcome, simulate
from deepflow.sim.workload import SimJob, SimTask, Workload

T = TypeVar("T")
NIC = 125e6
RACK_LATENCY_S = 5e-4


def task(key: str, run_s: float = 1.0, *depends_on: str, **fields: Any) -> SimTask:
    return SimTask(
        **{"key": key, "task": key[0], "run_s": run_s, "depends_on": depends_on} | fields
    )


def job(*tasks: SimTask, run: str = "run1", arrives_s: float = 0.0) -> SimJob:
    return SimJob(run, "flow", tasks, arrives_s)


def workload(*tasks: SimTask) -> Workload:
    return Workload("test", (job(*tasks),))


def cluster(*classes: SimWorkerClass, **fields: Any) -> ClusterSpec:
    return ClusterSpec(
        **{"name": "c", "classes": classes, "noise": 0, "control_latency_s": 0} | fields
    )


def one_worker(**fields: Any) -> ClusterSpec:
    return cluster(SimWorkerClass("w", 1, **fields))


def of(outcome: Outcome, kind: type[T], key: str = "") -> list[T]:
    """The events of a kind, of the task `key` if that is given."""
    found = [event for event in outcome.events if isinstance(event, kind)]
    return [e for e in found if not key or getattr(e, "key", "").endswith(f"-{key}")]


def the(outcome: Outcome, kind: type[T], key: str) -> T:
    (event,) = of(outcome, kind, key)
    return event


CHAIN = workload(task("a", 1), task("b", 2, "a"))


class TestTime:
    def test_chain_on_one_worker_takes_its_run_times_and_the_messages_between(self) -> None:
        outcome = simulate(CHAIN, replace(one_worker(), control_latency_s=0.25))
        assert the(outcome, Started, "a").at_s == 0.25
        assert the(outcome, Finished, "a").stopped_s == 1.25
        assert the(outcome, Finished, "a").at_s == 1.5
        assert the(outcome, Started, "b").at_s == 1.75
        assert outcome.makespan_s == 3.75
        assert outcome.unfinished == ()

    def test_threads_run_side_by_side(self) -> None:
        tasks = [task(f"a{n}") for n in range(4)]
        assert simulate(workload(*tasks), one_worker(threads=2)).makespan_s == 2

    def test_speed_is_that_of_the_kind_of_work(self) -> None:
        spec = one_worker(speed=2, speeds=(("blas*", 4.0),))
        assert simulate(workload(task("a", 8)), spec).makespan_s == 4
        assert simulate(workload(task("a", 8, kind="blas.dot")), spec).makespan_s == 2

    def test_makespan_counts_from_the_first_arrival(self) -> None:
        jobs = (job(task("a"), run="x", arrives_s=5), job(task("a"), run="y", arrives_s=7))
        outcome = simulate(Workload("test", jobs), one_worker())
        assert (outcome.makespan_s, outcome.ended_s) == (3, 8)

    def test_noise_of_a_task_is_the_same_whatever_else_happens(self) -> None:
        tasks = [task(f"a{n}") for n in range(20)]
        runs = []
        for seed, spec in ((0, one_worker()), (1, one_worker(threads=3))):
            outcome = simulate(workload(*tasks), replace(spec, noise=0.5), seed=seed, noise_seed=7)
            runs.append({e.key: round(e.stopped_s - e.started_s, 9) for e in of(outcome, Finished)})
        assert runs[0] == runs[1]
        assert len(set(runs[0].values())) == 20
        other = simulate(workload(*tasks), replace(one_worker(), noise=0.5), noise_seed=8)
        assert the(other, Finished, "a1").stopped_s != pytest.approx(runs[0]["a-1-run1-a1"])


class TestData:
    """`a` runs on x-0, `b` on y-0, and `c`, which reads both, on x-0."""

    spec = cluster(
        SimWorkerClass("x", 1, resources=(("X", 1.0),)),
        SimWorkerClass("y", 1, resources=(("Y", 1.0),)),
    )
    tasks = (
        task("a", 1, output_bytes=int(2 * NIC), needs=(("X", 1.0),)),
        task("b", 1, output_bytes=int(NIC), needs=(("Y", 1.0),)),
        task("c", 1, "a", "b", needs=(("X", 1.0),)),
    )

    def test_output_travels_at_the_speed_of_the_link(self) -> None:
        outcome = simulate(workload(*self.tasks), self.spec)
        (transfer,) = of(outcome, Transferred)
        assert (transfer.source, transfer.target, transfer.n_bytes) == ("y-0", "x-0", int(NIC))
        assert transfer.at_s == pytest.approx(2 + RACK_LATENCY_S)
        assert transfer.duration_s == pytest.approx(1 + RACK_LATENCY_S)
        assert outcome.makespan_s == pytest.approx(3 + RACK_LATENCY_S)

    def test_link_failure_stalls_a_transfer(self) -> None:
        failure = LinkFailure("nic:y-host-0", 1.5, 11.5)
        spec = replace(self.spec, network=NetworkSpec(failures=(failure,)))
        assert simulate(workload(*self.tasks), spec).makespan_s == pytest.approx(
            13 + RACK_LATENCY_S
        )

    def test_scheduler_learns_bandwidth_replicas_and_what_is_no_longer_needed(self) -> None:
        seen: dict[str, Any] = {}

        def install(scheduler: Any, clock: Any) -> None:
            seen["scheduler"] = scheduler

        def progress(done: int, n_tasks: int) -> None:
            tasks = seen["scheduler"].tasks
            seen[f"holders of b at {done}"] = len(tasks["b-1-run1-b"].who_has or ())

        last = task("d", 5, "b", needs=(("Y", 1.0),))
        simulate(workload(*self.tasks, last), self.spec, install=install, progress=progress)
        scheduler = seen["scheduler"]
        ((pair, bandwidth),) = scheduler.bandwidth_workers.items()
        assert [scheduler.workers[address].name for address in pair] == ["x-0", "y-0"]
        assert bandwidth == pytest.approx(NIC / (1 + RACK_LATENCY_S))
        assert seen["holders of b at 3"] == 2  # y-0 made it, x-0 fetched it for c
        held = {ts.key for ws in scheduler.workers.values() for ts in ws.has_what}
        assert held == {"c-2-run1-c", "d-3-run1-d"}  # the results that the client wants

    def test_results_of_a_job_are_freed_when_it_is_done(self) -> None:
        seen: list[Any] = []
        jobs = (job(task("a"), run="x"), job(task("a", 5), run="y", arrives_s=3))
        simulate(Workload("test", jobs), one_worker(), install=lambda s, clock: seen.append(s))
        assert set(seen[0].tasks) == {"a-0-y-a"}


class TestPlacing:
    def test_resources_are_not_taken_twice(self) -> None:
        tasks = [task(f"a{n}", 1, needs=(("GPU", 1.0),)) for n in range(3)]
        spec = one_worker(threads=3, resources=(("GPU", 1.0),))
        assert simulate(workload(*tasks), spec).makespan_s == 3

    def test_task_goes_to_the_class_that_it_names(self) -> None:
        from deepflow.hints import LABEL_NEED, label_resource

        need = (label_resource("class", "big"), LABEL_NEED)
        spec = cluster(SimWorkerClass("small", 3), SimWorkerClass("big", 1))
        outcome = simulate(workload(*[task(f"a{n}", needs=(need,)) for n in range(4)]), spec)
        assert {event.worker for event in of(outcome, Started)} == {"big-0"}

    def test_soft_gpu_is_used_while_there_is_one(self) -> None:
        tasks = [task(f"a{n}", 10, soft_gpu=1.0, kind="train") for n in range(2)]
        spec = one_worker(threads=2, resources=(("GPU", 1.0),), speeds=(("train+gpu", 10.0),))
        outcome = simulate(workload(*tasks), spec)
        assert sorted(event.stopped_s for event in of(outcome, Finished)) == [1, 10]

    def test_hard_need_of_a_gpu_leaves_none_for_a_soft_one(self) -> None:
        hard = task("a", 10, needs=(("GPU", 1.0),), priority=1)
        soft = task("b", 10, soft_gpu=0.5, kind="train")
        spec = one_worker(threads=2, resources=(("GPU", 1.0),), speeds=(("train+gpu", 10.0),))
        assert the(simulate(workload(hard, soft), spec), Finished, "b").stopped_s == 10

    def test_reserved_gpu_is_used(self) -> None:
        both = task("b", 10, soft_gpu=0.5, kind="train", needs=(("GPU", 0.5),))
        spec = one_worker(resources=(("GPU", 1.0),), speeds=(("train+gpu", 10.0),))
        assert simulate(workload(both), spec).makespan_s == 1

    @pytest.mark.parametrize(("saturation", "n_at_once"), [(1.1, 2), (3.0, 3), ("inf", 10)])
    def test_root_tasks_wait_on_the_scheduler(self, saturation: Any, n_at_once: int) -> None:
        outcome = simulate(
            workload(*[task(f"a{n}") for n in range(10)]),
            one_worker(),
            dask_config={"distributed.scheduler.worker-saturation": saturation},
        )
        assert sum(event.at_s == 0 for event in of(outcome, Placed)) == n_at_once
        assert outcome.makespan_s == 10

    def test_work_is_stolen_and_is_not_where_that_is_off(self) -> None:
        # Eight dependents on eight thread-slots are not root-ish: all go where `a` is.
        tasks = [task("a"), *[task(f"b{n}", 10, "a") for n in range(8)]]
        spec = cluster(SimWorkerClass("w", 4))
        stolen = simulate(workload(*tasks), spec)
        left = simulate(workload(*tasks), spec, stealing=False)
        assert left.makespan_s == 81
        assert left.n_steals == 0
        assert stolen.makespan_s < 45
        assert stolen.n_steals == sum(event.reason == "stolen" for event in of(stolen, Placed)) > 3

    def test_higher_priority_runs_first_and_the_earlier_graph_before_the_later(self) -> None:
        first = job(task("a0"), task("a1", priority=5), task("a2", priority=-5), run="x")
        second = job(task("b0"), task("b1", priority=1), run="y")
        outcome = simulate(Workload("test", (first, second)), one_worker())
        started = [event.key.rpartition("-")[2] for event in of(outcome, Started)]
        # All but a2 lie on the worker, which goes by priority first, then by graph.
        assert started == ["a1", "b1", "a0", "b0", "a2"]


class TestWorkersThatComeAndGo:
    def test_late_worker_takes_what_waited_for_it(self) -> None:
        spec = cluster(
            SimWorkerClass("w", 1),
            SimWorkerClass("gpu", 1, resources=(("GPU", 1.0),), starts_after_s=5),
        )
        outcome = simulate(workload(task("a", needs=(("GPU", 1.0),))), spec)
        assert the(outcome, Started, "a").at_s == 5
        assert outcome.makespan_s == 6

    def test_what_a_dead_worker_held_is_computed_again(self) -> None:
        spec = cluster(SimWorkerClass("w", 2), control_latency_s=0.25)
        holder = the(simulate(CHAIN, spec), Started, "b").worker
        outcome = simulate(CHAIN, replace(spec, deaths=(WorkerDeath(holder, 2.0),)))
        (other,) = {"w-0", "w-1"} - {holder}
        assert [event.worker for event in of(outcome, Finished, "a")] == [holder, other]
        assert [event.worker for event in of(outcome, Started, "b")] == [holder, other]
        assert of(outcome, Failed) == [Failed(2.0, "b-1-run1-b", holder, "worker died")]
        assert of(outcome, WorkerLeft) == [WorkerLeft(2.0, holder, "died")]
        # The scheduler sees it at 2.25; a: 2.5–3.5; b: 4–6.
        assert outcome.makespan_s == 6

    def test_worker_comes_back_empty(self) -> None:
        spec = replace(one_worker(), deaths=(WorkerDeath("w-0", 2.0, back_after_s=3.0),))
        outcome = simulate(CHAIN, spec)
        assert [event.at_s for event in of(outcome, Started, "a")] == [0, 5]
        assert outcome.makespan_s == 8

    def test_transfer_from_a_worker_that_dies_is_made_good(self) -> None:
        deaths = (WorkerDeath("y-0", 1.5, back_after_s=1.0),)
        outcome = simulate(workload(*TestData.tasks), replace(TestData.spec, deaths=deaths))
        # y-0 is back at 2.5, b: 2.5–3.5, its transfer: 1 s, c: 1 s.
        assert [event.at_s for event in of(outcome, Started, "b")] == [0, 2.5]
        assert outcome.makespan_s == pytest.approx(5.5 + RACK_LATENCY_S)

    def test_end_of_all_workers_ends_the_simulation(self) -> None:
        spec = replace(one_worker(), deaths=(WorkerDeath("w-0", 2.0),))
        outcome = simulate(CHAIN, spec)
        assert outcome.unfinished == ("b-1-run1-b",)
        assert outcome.makespan_s == math.inf

    def test_need_that_no_worker_meets_ends_the_simulation(self) -> None:
        outcome = simulate(workload(task("a"), task("b", needs=(("GPU", 1.0),))), one_worker())
        assert outcome.unfinished == ("b-1-run1-b",)

    def test_task_whose_workers_die_is_given_up(self) -> None:
        outcome = simulate(
            CHAIN,
            replace(one_worker(), deaths=(WorkerDeath("w-0", 0.5, back_after_s=1.0),)),
            dask_config={"distributed.scheduler.allowed-failures": 0},
        )
        assert outcome.n_failures == 1
        assert [e.cause for e in of(outcome, Failed, "a")] == [
            "worker died",
            "given up: its workers died",
        ]
        assert outcome.unfinished == ("a-0-run1-a", "b-1-run1-b")


class TestMemory:
    def test_worker_over_its_limit_pauses_until_there_is_room(self) -> None:
        tasks = (
            task("x", 5, memory_bytes=900, priority=2),
            task("y", 1, priority=1),
            task("z", 1),
        )
        spec = one_worker(threads=2, memory_bytes=1000)
        outcome = simulate(workload(*tasks), spec)
        # The monitor looks each 0.1 s: y is under way by then, z waits until x has ended.
        assert the(outcome, Started, "y").at_s == 0
        assert the(outcome, Started, "z").at_s == pytest.approx(5.1)
        roomy = simulate(workload(*tasks), one_worker(threads=2, memory_bytes=2000))
        assert the(roomy, Started, "z").at_s == 1

    def test_paused_worker_that_is_never_freed_ends_the_simulation(self) -> None:
        tasks = [task(f"a{n}", output_bytes=450) for n in range(4)]
        outcome = simulate(workload(*tasks), one_worker(memory_bytes=1000))
        # Two results are above 0.8 of the limit; the third task began before the monitor looked.
        assert len(outcome.unfinished) == 1

    def test_pause_fraction_is_dask_s(self) -> None:
        tasks = [task(f"a{n}", output_bytes=450) for n in range(4)]
        outcome = simulate(
            workload(*tasks),
            one_worker(memory_bytes=1000),
            dask_config={"distributed.worker.memory.pause": False},
        )
        assert outcome.unfinished == ()

    def test_inputs_larger_than_any_memory_are_given_up(self) -> None:
        tasks = (task("a", output_bytes=2000), task("b", 1, "a"))
        outcome = simulate(workload(*tasks), one_worker(memory_bytes=1000))
        assert (outcome.n_failures, outcome.unfinished) == (1, ("b-1-run1-b",))
        assert the(outcome, Failed, "b").cause == "given up: inputs too large"


class TestRefusals:
    def test_two_jobs_of_one_name(self) -> None:
        with pytest.raises(ConfigurationError, match="two jobs of 'test' are called 'run1'"):
            simulate(Workload("test", (job(task("a")), job(task("a")))), one_worker())

    def test_two_tasks_of_one_key(self) -> None:
        with pytest.raises(ConfigurationError, match="two tasks of job 'run1'"):
            simulate(workload(task("a"), task("a")), one_worker())

    def test_unknown_dependency(self) -> None:
        with pytest.raises(ConfigurationError, match="'a' of job 'run1' depends on 'z'"):
            simulate(workload(task("a", 1, "z")), one_worker())

    def test_death_of_an_unknown_worker(self) -> None:
        spec = replace(one_worker(), deaths=(WorkerDeath("w-1", 1.0),))
        with pytest.raises(ConfigurationError, match=r"'w-1' is to die.*did you mean 'w-0'"):
            simulate(CHAIN, spec)
