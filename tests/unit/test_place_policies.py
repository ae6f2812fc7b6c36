"""What each policy prefers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepflow.decide.place.fleet import Fleet, Worker
from deepflow.decide.place.policies import (
    BestFit,
    EarliestFinish,
    JobOrder,
    Random,
    RollingHeft,
    RoundRobin,
)
from deepflow.decide.place.policy import Candidates, Policy
from deepflow.decide.place.task import Job, Task


def candidates(*workers: Worker, **times: Any) -> Candidates:
    found = Candidates()
    for n, worker in enumerate(workers):
        found.add(worker, *(times.get(k, [0.0] * 9)[n] for k in ("queue_s", "transfer_s", "run_s")))
        found.missing_share[n] = times.get("missing_share", [0.0] * 9)[n]
    return found


def task(**fields: Any) -> Task:
    return Task("x", "t", Job("run", "flow", 0.0), run_s=lambda c: 1.0, **fields)


def best(policy: Policy, task: Task, found: Candidates) -> str:
    scores = list(policy.score(task, found, np.random.default_rng(0)))
    return found.workers[scores.index(min(scores))].id


def workers(n: int) -> list[Worker]:
    return [Worker(f"w{i}") for i in range(n)]


def test_base_takes_the_first() -> None:
    assert best(Policy(), task(), candidates(*workers(3))) == "w0"


def test_round_robin_takes_turns() -> None:
    policy, found = RoundRobin(), candidates(*workers(3))
    assert [best(policy, task(), found) for _ in range(6)] == ["w0", "w1", "w2"] * 2


def test_random_is_by_the_generator_and_reaches_all() -> None:
    policy, found = Random(), candidates(*workers(3))
    rng = np.random.default_rng(1)
    chosen = {int(np.argmin(policy.score(task(), found, rng))) for _ in range(50)}
    assert chosen == {0, 1, 2}
    again = [policy.score(task(), found, np.random.default_rng(7)) for _ in range(2)]
    assert again[0] == again[1]


def test_best_fit_leaves_big_holes_whole() -> None:
    fleet = Fleet()
    empty, half = (Worker(i, threads=4, resources={"GPU": 2.0}) for i in ("empty", "half"))
    fleet.join(empty)
    fleet.join(half)
    fleet.assign(half, "other", 0, 9, (("GPU", 1.0),))
    assert best(BestFit(), task(needs=(("GPU", 1.0),)), candidates(empty, half)) == "half"


def test_earliest_finish_counts_queue_transfer_and_run() -> None:
    found = candidates(
        *workers(3), queue_s=[0.0, 2.0, 0.0], transfer_s=[3.0, 0.0, 0.0], run_s=[2.0, 2.0, 4.5]
    )
    assert EarliestFinish().score(task(), found, np.random.default_rng(0)) == [5.0, 4.0, 4.5]
    assert best(EarliestFinish(), task(), found) == "w1"


def test_price_on_moving_decides_between_near_equals() -> None:
    found = candidates(*workers(2), run_s=[10.0, 10.5], missing_share=[1.0, 0.0])
    with_inputs = task(inputs=[(100, ["w1"])])
    assert best(RollingHeft(moving=0.0), with_inputs, found) == "w0"
    assert best(RollingHeft(moving=0.1), with_inputs, found) == "w1"
    assert best(RollingHeft(moving=0.1), task(), found) == "w0"


def test_heft_goes_by_rank_and_then_as_dask_would() -> None:
    policy = RollingHeft()
    high, low = task(rank_s=9.0, dask_order=(2,)), task(rank_s=1.0, dask_order=(1,))
    assert policy.task_order(high) < policy.task_order(low)
    assert policy.task_order(task(dask_order=(1,))) < policy.task_order(task(dask_order=(2,)))


def test_job_order_prefers_little_work_left_until_age_tells() -> None:
    policy = JobOrder()
    long, short = Job("long", "f", 0.0, 100.0), Job("short", "f", 0.0, 10.0)
    assert policy.job_order(short, 0.0) < policy.job_order(long, 0.0)
    fresh = Job("fresh", "f", 5000.0, 10.0)
    assert policy.job_order(long, 5000.0) < policy.job_order(fresh, 5000.0)
    long.done_work_s = 95.0
    assert policy.job_order(long, 0.0) < policy.job_order(short, 0.0)


@pytest.mark.parametrize("job", [Job("x", "f", 0.0), Job("x", "f", 9.0)])
def test_job_of_which_nothing_is_known_has_an_order(job: Job) -> None:
    assert JobOrder().job_order(job, 3.0) == 0.0
