"""The table of workers is never out of step, and no decision violates a filter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.decide.place.binder import Binder
from deepflow.decide.place.feasible import unplaceable
from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.links import Links
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.registry import STOCK, policy_named, policy_names
from deepflow.decide.place.task import Job, Task
from deepflow.hints import LABEL_NEED, LABEL_OFFER, label_resource

POLICIES = [name for name in policy_names() if name != STOCK]
RACK = label_resource("rack", "a")
LIMIT_BYTES = 1000
IDS = [f"w{n}" for n in range(5)]
KEYS = [f"k{n}" for n in range(8)]

offers = st.fixed_dictionaries(
    {},
    optional={
        "GPU": st.sampled_from([1.0, 2.0]),
        "DISK": st.just(1.0),
        RACK: st.just(LABEL_OFFER),
    },
)
needs = st.sampled_from(
    [(), (("GPU", 1.0),), (("GPU", 0.3),), (("DISK", 0.1),), ((RACK, LABEL_NEED),)]
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from(IDS), st.integers(1, 3), offers),
        st.tuples(st.just("leave"), st.sampled_from(IDS)),
        st.tuples(st.just("assign"), st.sampled_from(IDS), st.sampled_from(KEYS), needs),
        st.tuples(st.just("unassign"), st.sampled_from(IDS), st.sampled_from(KEYS)),
        st.tuples(st.just("secede"), st.sampled_from(IDS), st.sampled_from(KEYS)),
        st.tuples(st.just("running"), st.sampled_from(IDS), st.booleans()),
    ),
    max_size=60,
)


def play(fleet: Fleet, script: list[tuple[Any, ...]]) -> None:
    """Carry the steps out, each at a time of its own."""
    for now_s, (what, worker_id, *more) in enumerate(script):
        worker = fleet.workers.get(worker_id)
        match what:
            case "join" if worker is None:
                threads, resources = more
                fleet.join(
                    Worker(
                        worker_id,
                        threads=threads,
                        resources=resources,
                        memory_limit_bytes=LIMIT_BYTES,
                    )
                )
            case "leave":
                fleet.leave(worker_id)
            case "assign" if worker is not None:
                key, taken = more
                fleet.assign(worker, key, now_s, now_s + 5.0, taken)
            case "unassign":
                fleet.unassign(worker_id, more[0])
            case "secede":
                fleet.secede(worker_id, more[0])
            case "running":
                fleet.set_running(worker_id, more[0])


@settings(max_examples=300, deadline=None)
@given(steps)
def test_table_is_that_worked_out_from_scratch(script: list[tuple[Any, ...]]) -> None:
    fleet = Fleet()
    for n in range(len(script)):
        play(fleet, script[n : n + 1])
        workers = list(fleet)
        for worker in workers:
            with_thread = [a for a in worker.assigned.values() if not a.is_seceded]
            assert worker.n_busy == len(with_thread)
            for name in worker.resources:
                taken = sum(dict(a.needs).get(name, 0.0) for a in worker.assigned.values())
                assert math.isclose(worker.used.get(name, 0.0), taken, abs_tol=1e-9)
        free = {w.id for w in workers if w.is_running and w.n_busy < w.threads}
        assert fleet.n_free == len(free)
        assert {i for group in fleet.groups.values() for i in group.free} == free
        members = [i for group in fleet.groups.values() for i in group.members]
        assert sorted(members) == sorted(w.id for w in workers)
        assert fleet.n_threads == sum(w.threads for w in workers)
        for group in fleet.groups.values():
            assert group.members
            assert group.n_threads == sum(w.threads for w in group.members.values())
            busy = [w for w in group.members.values() if w.is_running and not w.is_free]
            assert group.next_free() in (busy or [None])
        for worker in workers:
            assert worker.free_in_s(n) >= 0.0
            assert (worker.free_in_s(n) == 0.0) == (worker.n_busy < worker.threads)


tasks = st.lists(
    st.fixed_dictionaries(
        {
            "needs": needs,
            "soft_gpu": st.sampled_from([0.0, 0.0, 0.5, 1.0]),
            "memory_bytes": st.sampled_from([0, 0, 400, 2000]),
            "only": st.sampled_from([None, None, frozenset(IDS[:2]), frozenset(IDS[4:])]),
            "run": st.sampled_from(["x", "y"]),
            "seconds": st.sampled_from([0.01, 1.0, 30.0]),
            "priority": st.integers(-1, 1),
            "holder": st.sampled_from([None, *IDS]),
        }
    ),
    max_size=12,
)


def soft(task: Task, on_gpu: bool) -> tuple[tuple[str, float], ...]:
    return (*task.needs, ("GPU", task.soft_gpu)) if on_gpu else task.needs


@settings(max_examples=400, deadline=None)
@given(steps, tasks, st.sampled_from(POLICIES), st.lists(st.integers(0, LIMIT_BYTES), max_size=5))
def test_decisions_keep_the_filters_and_nothing_waits_for_no_reason(
    script: list[tuple[Any, ...]],
    wanted: list[dict[str, Any]],
    name: str,
    used_bytes: list[int],
) -> None:
    fleet = Fleet()
    play(fleet, script)
    for worker, n_bytes in zip(fleet, used_bytes, strict=False):
        worker.memory_used_bytes = n_bytes
    policy = policy_named(name)
    assert policy is not None
    ready = Ready(policy)
    binder = Binder(fleet, ready, Links(), policy, np.random.default_rng(0))
    now_s = float(len(script))
    jobs = {run: Job(run, "flow", 0.0) for run in ("x", "y")}
    for n, said in enumerate(wanted):
        seconds = said["seconds"]
        holder = said["holder"]
        ready.add(
            Task(
                f"t{n}",
                "task",
                jobs[said["run"]],
                run_s=lambda worker_class, seconds=seconds: seconds,
                dask_order=(n,),
                needs=said["needs"],
                soft_gpu=0.0 if said["needs"] else said["soft_gpu"],
                memory_bytes=said["memory_bytes"],
                only=said["only"],
                priority=said["priority"],
                inputs=[(1000, [holder])] if holder else [],
            )
        )
    for decision in binder.decide(now_s):
        task, worker, i = decision.task, decision.worker, decision.chosen
        takes = soft(task, decision.on_gpu)
        assert worker.is_running
        assert task.only is None or worker.id in task.only
        assert worker.offers(takes)
        idle = not worker.assigned
        room = worker.memory_limit_bytes - (0 if idle else worker.memory_used_bytes)
        assert task.memory_bytes <= room
        queue_s = decision.candidates.queue_s[i]
        if queue_s <= 0.0:
            assert worker.n_busy < worker.threads
            assert worker.has_free(takes)
        else:
            assert queue_s <= binder.tuning.pipeline_s
        fleet.assign(worker, task.key, now_s, now_s + 1.0, takes)
        ready.remove(task.key)
    for task in ready:
        fit = [
            worker
            for worker in fleet
            if worker.is_free
            and worker.has_free(task.needs)
            and worker.offers(task.needs)
            and (task.only is None or worker.id in task.only)
        ]
        if fit and unplaceable(fleet, task) is None:
            assert binder.look_again_s < math.inf, task.held_because
