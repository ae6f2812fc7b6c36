"""What a task has beside its value: name, tags, logs, retries, time-outs, hooks, Dask itself."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path

from prefect import get_run_logger, tags, task
from prefect.context import TaskRunContext
from prefect.futures import as_completed, wait
from prefect.runtime import flow_run, task_run
from prefect.transactions import transaction

from tests.differential.cases import case
from tests.differential.told import ended, tell
from tests.integration.notes import names, note, times_noted


def _notes():
    return tempfile.mkdtemp(prefix="deepflow-differential-") + "/notes"


@task
def give(x):
    return x


@task
def pause(s):
    time.sleep(s)
    return s


@case(["item 3", "by function", ["deep", "red"], "with options", True])
def names_and_tags():
    @task(task_run_name="item {x}")
    def named(x):
        return task_run.name

    @task(task_run_name=lambda: "by function")
    def by_function():
        return task_run.name

    @task(tags=["red"])
    def tagged():
        return sorted(t for t in task_run.tags if not t.startswith("case:"))

    with tags("deep"):
        seen = tagged.submit().result()
    return [
        named.submit(3).result(),
        by_function.submit().result(),
        seen,
        named.with_options(task_run_name="with options").submit(1).result(),
        flow_run.id == task(lambda: flow_run.id).submit().result(),
    ]


@case([3, 3, "Failed", 1, ["Completed", "Failed"]])
def retries():
    @task(retries=2)
    def third():
        if TaskRunContext.get().task_run.run_count < 3:
            raise ValueError("again")
        return TaskRunContext.get().task_run.run_count

    path = _notes()

    @task(retries=2)
    def never():
        note(path, "tried")
        raise ValueError("never")

    @task(retries=3, retry_condition_fn=lambda task, run, state: False)
    def not_worth():
        note(path, "once")
        raise ValueError("no")

    @task(retries=1)
    def odd(x):
        if x % 2 or TaskRunContext.get().task_run.run_count == 1:
            raise ValueError(x)
        return x

    state = ended(never.submit())
    ended(not_worth.submit())
    counted = times_noted(path)
    return [
        third.submit().result(),
        counted["tried"],
        state,
        counted["once"],
        [ended(f) for f in odd.map([0, 1])],
    ]


@case(["TimedOut", "TimedOut", "Completed"])
def time_outs():
    @task(timeout_seconds=0.3)
    def sleeps(s):
        for _ in range(200):
            time.sleep(s / 200)

    @task(timeout_seconds=0.3)
    async def sleeps_async(s):
        await asyncio.sleep(s)

    long = sleeps.submit(20), sleeps_async.submit(20)
    return [ended(long[0]), ended(long[1]), ended(sleeps.submit(0))]


@case([["completion", "running"], ["failure", "running"]])
def hooks():
    out = []
    for fails in (False, True):
        path = _notes()

        def hook(event, path=path):
            return lambda task, run, state: note(path, event)

        @task(
            on_running=[hook("running")],
            on_completion=[hook("completion")],
            on_failure=[hook("failure")],
        )
        def step(fails):
            if fails:
                raise ValueError("on purpose")

        ended(step.submit(fails))
        out.append(sorted(names(path)))
    return out


@case(["Completed", "Completed", "Failed"])
def a_hook_that_raises_changes_nothing():
    def raises(task, run, state):
        raise RuntimeError("of a hook")

    @task(on_completion=[raises], on_running=[raises], on_failure=[raises])
    def step(fails):
        if fails:
            raise ValueError("on purpose")

    return [ended(step.submit(False)), *(ended(f) for f in step.map([False, True]))]


@case([2, [0, 1, 2], True, 3])
def waiting_for_many():
    futures = give.map(range(3))
    done, not_done = wait(futures, timeout=30)
    order = sorted(future.result() for future in as_completed(futures))
    slow = pause.submit(0.5)
    _, still = wait([slow], timeout=0.01)
    return [len(done) - len(not_done) - 1, order, len(still) == 1, len(futures)]


@case([True, "again 1.5"])
def a_callback_that_waits_blocks_nobody():
    slow, quick, done = pause.submit(1.5), pause.submit(0.1), threading.Event()
    heard = []

    def hear(future):
        heard.append(f"again {slow.result(timeout=20)}")
        done.set()

    quick.add_done_callback(hear)
    return [done.wait(25), heard[0] if heard else None]


@case([[True] * 12, 12])
def callbacks_that_wait_for_each_other_end():
    events = [threading.Event() for _ in range(12)]
    last, heard = pause.submit(0.6), []
    futures = [pause.submit(0.05) for _ in events]

    def hear(i):
        def heard_one(_):
            last.result(timeout=20)
            if i + 1 < len(events):
                events[i + 1].wait(20)
            heard.append(i)
            events[i].set()

        return heard_one

    for i, future in enumerate(futures):
        future.add_done_callback(hear(i))
    return [[event.wait(25) for event in events], len(heard)]


@case([3, 1])
def a_callback_that_submits():
    got, done = [], threading.Event()

    def more(future):
        got.append(future.result())
        done.set()

    first = give.submit(1)
    first.add_done_callback(lambda f: got.append(2))
    second = give.submit(3)
    second.add_done_callback(more)
    assert done.wait(25)
    return [max(got), first.result()]


@case([True, 2])
def a_callback_that_raises_ends_nothing():
    def raises(_):
        raise RuntimeError("of a callback")

    done = threading.Event()
    first = give.submit(1)
    first.add_done_callback(raises)
    second = give.submit(2)
    second.add_done_callback(raises)
    second.add_done_callback(lambda _: done.set())
    return [done.wait(25), second.result()]


@case("TimeoutError")
def a_result_that_is_not_there_in_time():
    late = pause.submit(1.0)
    try:
        late.result(timeout=0.05)
    except TimeoutError as exc:
        return type(exc).__name__ if late.result() == 1.0 else "lost"
    return "in time"


@case([["written", "undone"], ["undone", "written"]])
def a_rollback_inside_of_a_task():
    path = _notes()

    @task
    def write():
        note(path, "written")

    @write.on_rollback
    def undo(_):
        note(path, "undone")

    @task
    def outer():
        with transaction():
            write()
            raise ValueError("after the write")

    ended(outer.submit())
    return [names(path), sorted(names(path))]


@case(["committed", "undone"])
def a_rollback_of_submitted_tasks():
    path = _notes()

    @task
    def write():
        return 1

    @write.on_rollback
    def undo(_):
        note(path, "undone")

    @write.on_commit
    def commit(_):
        note(path, "committed")

    with transaction():
        write.submit().wait()
    tell(lambda: _fails_after(write))
    return names(path)


def _fails_after(write):
    with transaction():
        write.submit().wait()
        raise ValueError("after the write")


@case([True, True, True])
def the_environment_of_a_run():
    @task
    def look():
        get_run_logger().info("hello")
        return [os.getcwd(), bool(task_run.id), task_run.run_count]

    folder, has_id, count = look.submit().result()
    return [Path(folder).is_dir(), has_id, count == 1]


@case([6, 6])
def asyncio_in_tasks():
    @task
    async def total(n):
        return sum(await asyncio.gather(*(asyncio.sleep(0, i) for i in range(n))))

    @task
    def runs(n):
        return asyncio.run(_count(n))

    return [total.submit(4).result(), runs.submit(4).result()]


async def _count(n):
    await asyncio.sleep(0)
    return sum(range(n))


@case([[1, 2], [4, 5]])
def threads_in_tasks():
    from concurrent.futures import ThreadPoolExecutor

    @task
    def spread(values):
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda x: x + 1, values))

    return [spread.submit([0, 1]).result(), *spread.map([[3, 4]]).result()]
