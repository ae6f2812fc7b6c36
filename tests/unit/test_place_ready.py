"""Ready tasks: by job, by priority, by the policy's order."""

from __future__ import annotations

import math
from itertools import chain

import pytest

from deepflow.decide.place.policies import JobOrder, RollingHeft
from deepflow.decide.place.policy import Policy
from deepflow.decide.place.ready import Ready
from deepflow.decide.place.task import Job, Task


def task(key: str, job: Job, **fields: object) -> Task:
    return Task(key, "t", job, run_s=lambda c: 1.0, **fields)  # type: ignore[arg-type]


def job(run: str, arrived_s: float = 0.0, work_s: float = 0.0) -> Job:
    return Job(run, "flow", arrived_s, work_s)


def order(ready: Ready) -> list[list[object]]:
    """Keys by job, in the order they would go."""
    return [
        [t.key for t in sorted(chain(*queue.shapes.values()), key=lambda t: t.sort_key)]
        for queue in ready.queues(0.0)
    ]


def test_priority_then_rank_then_dask_s_order_then_first_come() -> None:
    ready, one = Ready(RollingHeft()), job("x")
    ready.add(task("d", one, rank_s=1.0, dask_order=(2,)))
    ready.add(task("c", one, rank_s=1.0, dask_order=(1,)))
    ready.add(task("e", one, rank_s=1.0, dask_order=(2,)))
    ready.add(task("b", one, rank_s=9.0))
    ready.add(task("a", one, priority=1))
    assert order(ready) == [["a", "b", "c", "d", "e"]]


def test_job_with_the_highest_priority_goes_first_then_the_policy_s_order() -> None:
    ready = Ready(JobOrder())
    for run, work_s, priority in (("long", 9.0, 0), ("short", 1.0, 0), ("urgent", 99.0, 1)):
        ready.add(task(run, job(run, 0.0, work_s), priority=priority))
    assert order(ready) == [["urgent"], ["short"], ["long"]]


def test_removed_task_is_gone_and_its_job_with_the_last() -> None:
    ready, one = Ready(Policy()), job("x")
    ready.add(task("a", one))
    ready.add(task("b", one))
    assert ready.remove("a") is not None
    assert ready.remove("a") is None
    assert ("a" in ready, "b" in ready, len(ready)) == (False, True, 1)
    ready.remove("b")
    assert ready.queues(0.0) == []


def test_task_added_twice_is_there_once() -> None:
    ready, one = Ready(Policy()), job("x")
    ready.add(task("a", one))
    ready.add(task("a", one))
    assert order(ready) == [["a"]]


def test_order_that_raises_changes_nothing() -> None:
    class Raises(Policy):
        def task_order(self, task: Task) -> tuple[object, ...]:
            raise KeyError(task.key)

    ready = Ready(Raises())
    with pytest.raises(KeyError):
        ready.add(task("a", job("x")))
    assert (len(ready), ready.queues(0.0)) == (0, [])


def test_order_by_nan_loses_no_other_task() -> None:
    class NoOrder(Policy):
        def task_order(self, task: Task) -> tuple[object, ...]:
            return (math.nan if str(task.key) in "bd" else float(ord(str(task.key))),)

    ready, one = Ready(NoOrder()), job("x")
    for key in "dbacfe":
        ready.add(task(key, one))
    for key in "abcdef":
        removed = ready.remove(key)
        assert removed is not None
        assert removed.key == key
    assert ready.queues(0.0) == []


def test_tasks_whose_ranks_have_changed_go_to_their_new_places() -> None:
    ready, one = Ready(RollingHeft()), job("x")
    for key, rank_s in (("a", 5.0), ("b", 3.0), ("c", 1.0)):
        ready.add(task(key, one, rank_s=rank_s, inputs=[(8, ["w"])]))
    ready.rerank({"c": 9.0, "a": 2.0, "nobody": 7.0})
    assert order(ready) == [["c", "b", "a"]]
    (queue,) = ready.queues(0.0)
    assert [t.key for t in queue.by_holder["w"]] == ["c", "b", "a"]
    assert ready.remove("c") is not None
    assert order(ready) == [["b", "a"]]
