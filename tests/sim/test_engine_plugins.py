"""What a scheduler plugin sees and may do in a simulation, and what is put back afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import distributed.scheduler
import distributed.stealing
import distributed.worker_state_machine
import pytest
from dask._task_spec import Task, TaskRef
from dask.order import order
from dask.utils import key_split
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from deepflow.decide.events import Event, Finished, Placed
from deepflow.errors import DeepflowError
from deepflow.sim._clock import StableHash
from deepflow.sim._dask import ordered, task_keys
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.engine import simulate
from deepflow.sim.workload import SimJob, SimTask, Workload

TASKS = (
    SimTask("a", "load", 1.0, needs=(("DISK", 1.0),), input_bytes=7, soft_gpu=0.5, memory_bytes=3),
    SimTask("b", "fit", 2.0, depends_on=("a",), priority=4),
)
WORKLOAD = Workload("test", (SimJob("run1", "flow", TASKS),))
CLUSTER = ClusterSpec(
    "c",
    (
        SimWorkerClass("w", 1, threads=2, resources=(("DISK", 1.0),)),
        SimWorkerClass("spare", 1),
    ),
    deaths=(WorkerDeath("spare-0", 0.5),),
    noise=0,
)


class Observer(SchedulerPlugin):
    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.calls: Counter[str] = Counter()
        self.transitions: list[tuple[float, str, str, str]] = []
        self.graph: dict[str, Any] = {}

    def transition(self, key: Any, start: Any, finish: Any, *args: Any, **kwargs: Any) -> None:
        self.transitions.append((self.clock(), key_split(key), start, finish))

    def update_graph(self, scheduler: Any, **kwargs: Any) -> None:
        self.graph = kwargs
        self.tasks = dict(scheduler.tasks)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        assert worker in scheduler.workers
        self.calls["add_worker"] += 1

    async def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        assert worker not in scheduler.workers
        self.calls["remove_worker"] += 1

    def add_client(self, scheduler: Any, client: str) -> None:
        self.calls["add_client"] += 1


def test_hooks_fire_as_on_a_live_scheduler() -> None:
    plugins: list[Observer] = []

    def install(scheduler: Any, clock: Any) -> None:
        assert not scheduler.workers
        plugins.append(Observer(clock))
        scheduler.add_plugin(plugins[0])

    simulate(WORKLOAD, CLUSTER, install=install)
    (seen,) = plugins
    assert seen.calls == {"add_worker": 2, "remove_worker": 1, "add_client": 1}
    assert [t[1:] for t in seen.transitions if t[1] == "fit"][:3] == [
        ("fit", "released", "waiting"),
        ("fit", "waiting", "processing"),
        ("fit", "processing", "memory"),
    ]
    processing = next(t for t in seen.transitions if t[1:] == ("fit", "waiting", "processing"))
    assert processing[0] == pytest.approx(1.002)
    assert set(seen.graph["keys"]) == {"fit-1-run1-b"}
    assert set(seen.graph["tasks"]) == {"load-0-run1-a", "fit-1-run1-b"}


def test_tasks_carry_what_real_ones_do() -> None:
    plugins: list[Observer] = []

    def install(scheduler: Any, clock: Any) -> None:
        plugins.append(Observer(clock))
        scheduler.add_plugin(plugins[0])

    simulate(WORKLOAD, CLUSTER, install=install)
    load, fit = (plugins[0].tasks[key] for key in ("load-0-run1-a", "fit-1-run1-b"))
    assert load.annotations["deepflow"] == {
        "task": "load",
        "flow": "flow",
        "run": "run1",
        "input_bytes": 7,
        "soft_gpu": 0.5,
        "memory_bytes": 3,
        "n_runs": 1,
    }
    assert load.resource_restrictions == {"DISK": 1.0}
    assert load.prefix.name == "load"
    assert fit.resource_restrictions is None
    assert fit.priority[0] == -4


def test_events_of_the_plugin_take_the_place_of_dask_s() -> None:
    def install(scheduler: Any, clock: Any) -> Any:
        fresh: list[Event] = []

        class Own(SchedulerPlugin):
            def transition(self, key: Any, start: Any, finish: Any, *a: Any, **k: Any) -> None:
                if finish == "processing":
                    worker = scheduler.tasks[key].processing_on.name
                    fresh.append(Placed(clock(), key, worker, "mine"))

        scheduler.add_plugin(Own())

        def drain() -> list[Event]:
            drained = fresh.copy()
            fresh.clear()
            return drained

        return drain

    outcome = simulate(WORKLOAD, CLUSTER, install=install)
    assert {e.policy for e in outcome.events if isinstance(e, Placed)} == {"mine"}
    assert len([e for e in outcome.events if isinstance(e, Placed)]) >= 2
    times = [event.at_s for event in outcome.events]
    assert times == sorted(times)
    stock = simulate(WORKLOAD, CLUSTER)
    assert {e.policy for e in stock.events if isinstance(e, Placed)} == {"stock"}


def test_method_bound_on_the_instance_decides() -> None:
    def install(scheduler: Any, clock: Any) -> None:
        def fastest(ts: Any) -> Any:
            return next(ws for ws in scheduler.workers.values() if ws.name == "fast-0")

        scheduler.decide_worker_non_rootish = fastest

    spec = ClusterSpec("c", (SimWorkerClass("slow", 3), SimWorkerClass("fast", 1)), noise=0)
    tasks = tuple(SimTask(f"a{n}", "a", 1.0) for n in range(4))
    outcome = simulate(
        Workload("t", (SimJob("r", "f", tasks),)), spec, install=install, stealing=False
    )
    assert {e.worker for e in outcome.events if isinstance(e, Finished)} == {"fast-0"}


def test_periodic_callback_of_a_plugin_runs_in_virtual_time() -> None:
    times = []

    def install(scheduler: Any, clock: Any) -> None:
        callback = PeriodicCallback(lambda: times.append(clock()), 500)
        scheduler.periodic_callbacks["mine"] = callback
        callback.start()

    simulate(WORKLOAD, CLUSTER, install=install)
    assert times[:4] == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("hook", ["transition", "add_worker", "update_graph"])
def test_plugin_that_raises_is_not_passed_over(hook: str) -> None:
    def install(scheduler: Any, clock: Any) -> None:
        def fails(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("of the plugin")

        plugin = SchedulerPlugin()
        setattr(plugin, hook, fails)
        scheduler.add_plugin(plugin, name="fails")

    with pytest.raises(DeepflowError, match="of the plugin") as caught:
        simulate(WORKLOAD, CLUSTER, install=install)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def globals_of_dask() -> dict[str, Any]:
    scheduler, machine = distributed.scheduler, distributed.worker_state_machine
    return {
        "times": [m.time for m in (scheduler, machine, distributed.stealing)],
        "monotonic": scheduler.monotonic,
        "BatchedSend": scheduler.BatchedSend,
        "hash": vars(scheduler).get("hash"),
        "task hash": machine.TaskState.__hash__,
        "valid_workers": scheduler.SchedulerState.valid_workers,
    }


def test_dask_is_put_back_also_after_an_exception() -> None:
    before = globals_of_dask()
    during = []

    def progress(done: int, n_tasks: int) -> None:
        during.append(globals_of_dask())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(WORKLOAD, CLUSTER, progress=progress)
    assert globals_of_dask() == before
    assert all(during[0][name] != before[name] for name in before)
    assert simulate(WORKLOAD, CLUSTER).unfinished == ()


def test_second_simulation_at_once_is_refused() -> None:
    def install(scheduler: Any, clock: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(simulate, WORKLOAD, CLUSTER).result()

    with pytest.raises(DeepflowError, match="running in this process already"):
        simulate(WORKLOAD, CLUSTER, install=install)


async def test_call_from_a_coroutine_is_refused_and_from_a_thread_of_its_own_is_not() -> None:
    with pytest.raises(DeepflowError, match="where an event loop runs"):
        simulate(WORKLOAD, CLUSTER)
    assert (await asyncio.to_thread(simulate, WORKLOAD, CLUSTER)).unfinished == ()


def test_order_is_that_of_dask() -> None:
    # Branches of unlike length: Dask leaves nothing to chance.
    tasks = [SimTask("end", "step", 1.0, depends_on=tuple(f"t{n}-{n}" for n in range(1, 7)))]
    for branch in range(1, 7):
        tasks.append(SimTask(f"t{branch}-0", "step", 1.0))
        for n in range(branch):
            tasks.append(SimTask(f"t{branch}-{n + 1}", "step", 1.0, depends_on=(f"t{branch}-{n}",)))
    keys = task_keys(SimJob("run1", "flow", tuple(tasks)))
    graph = {
        keys[t.key]: Task(keys[t.key], print, *(TaskRef(keys[d]) for d in t.depends_on))
        for t in tasks
    }
    assert ordered(tasks, keys, StableHash(0)) == order(graph)


def test_category_is_the_prefix_of_the_key_also_if_the_run_is_a_word() -> None:
    (key,) = task_keys(SimJob("nightly", "flow", (SimTask("x", "read_csv", 1.0),))).values()
    assert key_split(key) == "read_csv"
