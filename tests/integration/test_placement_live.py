"""The placement plugin in a real Dask scheduler with real workers: Dask works as ever.

The tests that leave the cluster whole share one; those that break it have one of their own. Every
scheduler checks itself after each pass (`is_checking`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import (
    Client,
    KilledWorker,
    Scheduler,
    as_completed,
    get_client,
    get_worker,
    secede,
    wait,
)
from distributed.core import Status

from deepflow.backend.clusters.local import local_cluster
from deepflow.backend.placement.plugin import Placement
from deepflow.decide.model import WorkerClass
from deepflow.decide.place.decision import Tuning
from tests.integration.notes import await_note, note, times_noted

NAME = "deepflow-placement"
CLASSES = (
    WorkerClass("cpu", count=2, threads=1, memory="400 MiB"),
    WorkerClass("gpu", count=1, threads=2, memory="400 MiB", gpu=1),
)


def where(_: object = None, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return str(get_worker().name)


def add(*numbers: int) -> int:
    return sum(numbers)


def slow_add(a: int, b: int, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return a + b


def held(path: str) -> str:
    """Hold a thread until the test lets go."""
    note(path, "begins")
    await_note(path, "go")
    return str(get_worker().name)


def fail(message: str) -> None:
    raise ValueError(message)


def die() -> None:
    os._exit(1)


def report(client: Client) -> dict[str, Any]:
    """What the plugin says over the network."""
    answer: dict[str, Any] = client.sync(client.scheduler.deepflow_placement)
    return {**answer, "faults": list(answer["faults"])}


def n_placed(said: dict[str, Any]) -> int:
    """Decisions but for those that placed a task anew which a worker had given back."""
    return int(said["n_decisions"] - said["n_recalled"])


def until(claim: Callable[[], bool], what: str, deadline_s: float = 120.0) -> None:
    """Wait until the claim holds; fails at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not claim():
        assert time.monotonic() < end_s, f"not so within {deadline_s} s: {what}"
        time.sleep(0.05)


@contextmanager
def placed(policy: str = "heft", **options: Any) -> Iterator[Client]:
    """A cluster of its own whose tasks are placed by the policy."""
    with (
        local_cluster(CLASSES, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(Placement(policy, is_checking=True, **options))
        yield client
        assert_sound(client)


def assert_sound(client: Client) -> None:
    """No fault was met, nothing is held, and the table of workers is that of Dask."""
    until(lambda: not report(client)["n_held"], "nothing is held")
    said = report(client)
    assert said["faults"] == []
    assert said["n_fallbacks"] == 0


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with placed() as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    yield shared
    assert_sound(shared)


class TestPlainDask:
    def test_results_come_back_and_the_report_counts_the_decisions(self, client: Client) -> None:
        before = report(client)
        assert client.gather(client.map(add, range(50), range(50))) == [2 * n for n in range(50)]
        after = report(client)
        assert after["is_placing"]
        assert after["policy"] == "heft"
        assert n_placed(after) - n_placed(before) == 50

    def test_all_workers_take_part(self, client: Client) -> None:
        futures = client.map(where, range(40), seconds=0.05, pure=False)
        assert set(client.gather(futures)) == {"cpu-0", "cpu-1", "gpu-0"}

    def test_dependencies_and_trees(self, client: Client) -> None:
        layer = client.map(slow_add, range(32), range(32))
        while len(layer) > 1:
            layer = [
                client.submit(slow_add, a, b, 0.01)
                for a, b in zip(layer[::2], layer[1::2], strict=True)
            ]
        assert layer[0].result() == 2 * sum(range(32))

    def test_delayed_graph(self, client: Client) -> None:
        one = dask.delayed(add)(1)
        fan = [dask.delayed(add)(one, n) for n in range(20)]
        assert dask.delayed(add)(*fan).compute(scheduler=client) == 20 + sum(range(20))

    @pytest.mark.parametrize("broadcast", [False, True])
    def test_scattered_data(self, client: Client, broadcast: bool) -> None:
        (block,) = client.scatter([list(range(1000))], broadcast=broadcast, hash=False)
        assert client.gather([client.submit(sum, block, n) for n in range(5)]) == [
            499500 + n for n in range(5)
        ]

    def test_errors_reach_the_user_and_what_depends_on_them(self, client: Client) -> None:
        bad = client.submit(fail, "as it should", pure=False)
        after = client.submit(add, bad)
        with pytest.raises(ValueError, match="as it should"):
            after.result()
        assert client.submit(add, 1, 2, pure=False).result() == 3

    def test_retries(self, client: Client) -> None:
        bad = client.submit(fail, "each time", retries=2, pure=False)
        with pytest.raises(ValueError, match="each time"):
            bad.result()

    def test_cancelled_tasks_make_room(self, client: Client) -> None:
        many = client.map(where, range(200), seconds=0.2, pure=False)
        client.cancel(many)
        until(lambda: not report(client)["n_held"], "the cancelled are no longer held")
        assert client.submit(add, 1, 1, pure=False).result(timeout=20) == 2
        assert all(future.cancelled() for future in many)

    def test_released_tasks_are_forgotten(self, client: Client) -> None:
        many = client.map(where, range(100), seconds=0.1, pure=False)
        del many
        until(lambda: not report(client)["n_held"], "the released are no longer held")
        assert client.submit(add, 2, 1, pure=False).result(timeout=20) == 3

    def test_seceded_task_gives_its_thread_back(self, client: Client, tmp_path: Path) -> None:
        path = str(tmp_path / "notes")

        def waits_elsewhere() -> str:
            secede()
            await_note(path, "go")
            return "done"

        waiting = [client.submit(waits_elsewhere, pure=False) for _ in range(12)]
        until(
            lambda: sum(client.run(n_seceded).values()) == 12,
            "twelve have left their four threads",
        )
        assert client.submit(add, 4, 4, pure=False).result() == 8
        note(path, "go")
        assert client.gather(waiting) == ["done"] * 12

    def test_tasks_that_submit_tasks(self, client: Client) -> None:
        def fibonacci(n: int) -> int:
            if n < 2:
                return n
            own = get_client()
            a, b = own.submit(fibonacci, n - 1), own.submit(fibonacci, n - 2)
            secede()
            left, right = own.gather([a, b])
            return int(left + right)

        assert client.submit(fibonacci, 7).result() == 13

    def test_worker_restrictions_are_kept(self, client: Client) -> None:
        futures = client.map(where, range(10), workers=["cpu-1"], seconds=0.01, pure=False)
        assert set(client.gather(futures)) == {"cpu-1"}

    def test_host_restrictions_are_kept(self, client: Client) -> None:
        futures = client.map(where, range(4), workers=["127.0.0.1"], pure=False)
        assert len(client.gather(futures)) == 4

    def test_allow_other_workers(self, client: Client) -> None:
        futures = client.map(
            where, range(12), workers=["cpu-1"], allow_other_workers=True, seconds=0.05, pure=False
        )
        assert "cpu-1" in set(client.gather(futures))
        elsewhere = client.submit(
            where, workers=["127.0.0.1:1"], allow_other_workers=True, pure=False
        )
        assert elsewhere.result() in {"cpu-0", "cpu-1", "gpu-0"}

    def test_resources_are_kept(self, client: Client) -> None:
        futures = client.map(where, range(6), resources={"GPU": 1}, seconds=0.02, pure=False)
        assert set(client.gather(futures)) == {"gpu-0"}

    def test_need_that_nobody_meets_waits_and_hinders_nobody(self, client: Client) -> None:
        stuck = client.submit(where, resources={"FPGA": 1}, pure=False)
        assert client.gather(client.map(add, range(10), range(10), pure=False))[9] == 18
        assert stuck.status == "pending"
        stuck.cancel()

    def test_priorities(self, client: Client, tmp_path: Path) -> None:
        path = str(tmp_path / "notes")
        blockers = [
            client.submit(held, path, workers=[name], pure=False)
            for name in ("cpu-0", "cpu-1", "gpu-0", "gpu-0")
        ]
        until(lambda: times_noted(path)["begins"] == 4, "every thread is held")
        order: list[int] = []
        low = client.map(slow_add, range(10), range(10), priority=-5, pure=False)
        high = client.map(slow_add, range(10), range(10), priority=5, pure=False)
        ranked = {future.key: n for n, future in enumerate([*high, *low])}
        until(lambda: n_known(client, ranked) == 20, "all twenty are there")
        note(path, "go")
        for future in as_completed([*low, *high]):
            order.append(ranked[future.key])
        client.gather(blockers)
        # Four low ones may have been sent ahead to the four threads before a high one came.
        assert sum(n < 10 for n in order[:10]) >= 6

    def test_actors(self, client: Client) -> None:
        actor = client.submit(Counter, actor=True, pure=False).result()
        for _ in range(5):
            actor.increment().result()
        assert actor.increment().result() == 6

    def test_second_client(self, client: Client) -> None:
        with Client(client.scheduler.address) as other:
            mine = client.map(slow_add, range(20), range(20), pure=False)
            theirs = other.map(slow_add, range(20), range(20), pure=False)
            assert client.gather(mine) == other.gather(theirs)
        assert client.gather(mine) == [2 * n for n in range(20)]

    def test_client_that_goes_takes_its_tasks_along(self, client: Client) -> None:
        with Client(client.scheduler.address) as other:
            other.map(where, range(200), seconds=0.2, pure=False)
        until(lambda: not report(client)["n_held"], "tasks of a client that is gone")
        assert client.submit(add, 5, 6, pure=False).result(timeout=20) == 11

    def test_soft_gpu_by_annotation(self, client: Client) -> None:
        with dask.annotate(deepflow={"task": "t", "flow": "f", "run": "r", "soft_gpu": 1.0}):
            futures = client.map(where, range(12), seconds=0.05, pure=False)
        names = client.gather(futures)
        assert len(names) == 12
        assert "gpu-0" in names


def n_known(client: Client, keys: Iterable[str]) -> int:
    """How many of these keys the scheduler has heard of."""
    wanted = set(keys)
    return int(
        client.run_on_scheduler(lambda dask_scheduler: len(wanted & set(dask_scheduler.tasks)))
    )


def n_seceded(dask_worker: Any) -> int:
    return len(dask_worker.state.long_running)


class Counter:
    n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


class TestWorkersThatComeAndGo:
    def test_killed_worker_costs_no_result(self) -> None:
        with placed() as client:
            first = client.map(slow_add, range(40), range(40), pure=False)
            then = [client.submit(add, future, 1) for future in first]
            wait(first[:5])
            client.run(die, workers=[address_of(client, "cpu-0")], on_error="ignore", wait=False)
            assert client.gather(then) == [2 * n + 1 for n in range(40)]

    def test_task_that_kills_its_workers_is_given_up(self) -> None:
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 1}),
            placed() as client,
        ):
            with pytest.raises(KilledWorker):
                client.submit(die, pure=False).result()
            assert client.submit(add, 1, 2, pure=False).result() == 3

    def test_retired_worker_hands_its_data_on(self) -> None:
        with placed() as client:
            first = client.map(slow_add, range(30), range(30), pure=False)
            wait(first[:10])
            client.retire_workers([address_of(client, "cpu-1")])
            assert client.gather([client.submit(add, f, 1) for f in first]) == [
                2 * n + 1 for n in range(30)
            ]
            until(lambda: len(client.scheduler_info()["workers"]) == 2, "cpu-1 is gone")

    def test_paused_worker_is_given_nothing_until_it_goes_on(self) -> None:
        with placed() as client:
            paused = [address_of(client, name) for name in ("cpu-0", "gpu-0")]
            client.run(set_status, "paused", workers=paused)
            until(lambda: n_running(client) == 1, "two are paused")
            futures = client.map(where, range(6), seconds=0.02, pure=False)
            assert set(client.gather(futures)) == {"cpu-1"}
            client.run(set_status, "running", workers=paused)
            until(lambda: n_running(client) == 3, "all go on")
            futures = client.map(where, range(30), seconds=0.05, pure=False)
            assert set(client.gather(futures)) == {"cpu-0", "cpu-1", "gpu-0"}

    def test_tasks_wait_while_all_workers_are_paused(self) -> None:
        with placed() as client:
            client.run(set_status, "paused")
            until(lambda: n_running(client) == 0, "all are paused")
            futures = client.map(where, range(10), pure=False)
            until(lambda: report(client)["n_held"] == 10, "ten are held")
            client.run(set_status, "running")
            assert len(client.gather(futures)) == 10


def set_status(status: str, dask_worker: Any = None) -> None:
    from distributed.core import Status

    async def change() -> None:
        # Else the worker's memory monitor would let it go on at once.
        dask_worker.memory_manager.memory_pause_fraction = False
        dask_worker.status = Status[status]

    dask_worker.loop.asyncio_loop.call_soon_threadsafe(
        lambda: dask_worker.loop.asyncio_loop.create_task(change())
    )


def n_running(client: Client) -> int:
    return int(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.running)))


def address_of(client: Client, name: str) -> str:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next(address for address, worker in workers.items() if worker["name"] == name)


class TestBeginningAndEnd:
    @contextmanager
    def bare(self) -> Iterator[Client]:
        with local_cluster(CLASSES, silence_logs=50) as cluster, Client(cluster) as client:
            yield client

    def test_plugin_takes_over_what_runs_and_what_is_queued(self) -> None:
        with self.bare() as client:
            first = client.map(slow_add, range(60), range(60), pure=False)
            then = [client.submit(add, future, 1) for future in first]
            needy = client.map(where, range(6), resources={"GPU": 1}, seconds=0.1, pure=False)
            wait(first[:4])
            client.register_plugin(Placement("heft", is_checking=True))
            assert client.gather(then) == [2 * n + 1 for n in range(60)]
            assert set(client.gather(needy)) == {"gpu-0"}
            assert_sound(client)
            before = report(client)["n_decisions"]
            later = client.map(add, range(20), range(20), pure=False)
            assert client.gather(later) == [2 * n for n in range(20)]
            assert report(client)["n_decisions"] >= before + 20

    def test_plugin_that_is_taken_away_in_the_middle_leaves_all_to_dask(self) -> None:
        with self.bare() as client:
            client.register_plugin(Placement("heft", is_checking=True))
            first = client.map(slow_add, range(60), range(60), pure=False)
            then = [client.submit(add, future, 1) for future in first]
            needy = client.map(where, range(6), resources={"GPU": 1}, seconds=0.1, pure=False)
            wait(first[:4])
            client.unregister_scheduler_plugin(NAME)
            assert client.run_on_scheduler(own_methods) == []
            assert client.gather(then) == [2 * n + 1 for n in range(60)]
            assert set(client.gather(needy)) == {"gpu-0"}
            later = client.map(slow_add, range(20), range(20), pure=False)
            assert client.gather(later) == [2 * n for n in range(20)]
            assert client.run_on_scheduler(is_stealing)

    def test_plugin_can_come_back(self) -> None:
        with self.bare() as client:
            for policy in ("heft", "random"):
                client.register_plugin(Placement(policy, is_checking=True))
                futures = client.map(slow_add, range(20), range(20), pure=False)
                assert client.gather(futures) == [2 * n for n in range(20)]
                assert report(client)["policy"] == policy
                assert n_placed(report(client)) == 20
                client.unregister_scheduler_plugin(NAME)

    def test_second_registration_changes_nothing(self) -> None:
        with placed("heft") as client:
            client.register_plugin(Placement("random", is_checking=True))
            assert client.submit(add, 1, 2).result() == 3
            assert report(client)["policy"] == "heft"

    def test_stock_only_watches(self) -> None:
        with placed("stock") as client:
            futures = client.map(slow_add, range(20), range(20), pure=False)
            assert client.gather(futures) == [2 * n for n in range(20)]
            said = report(client)
            assert (said["is_placing"], said["policy"], said["n_decisions"]) == (False, "stock", 0)

    def test_faults_are_reported_and_everything_completes(self) -> None:
        with self.bare() as client:
            client.register_plugin(Placement("heft", is_checking=True))
            client.run_on_scheduler(break_policy)
            futures = client.map(slow_add, range(40), range(40), pure=False)
            assert client.gather(futures) == [2 * n for n in range(40)]
            said = report(client)
            assert not said["is_placing"]
            assert len(said["faults"]) == 10
            assert "on purpose" in said["faults"][0]
            assert client.run_on_scheduler(own_methods) == []


def own_methods(dask_scheduler: Scheduler) -> list[str]:
    """What is bound on the instance in place of the class's."""
    names = ("_TRANSITIONS_TABLE", "transitions", "stimulus_queue_slots_maybe_opened")
    return [name for name in names if name in vars(dask_scheduler)]


def is_stealing(dask_scheduler: Scheduler) -> bool:
    return "stealing" in dask_scheduler.periodic_callbacks


def break_policy(dask_scheduler: Scheduler) -> None:
    def score(*args: object) -> list[float]:
        raise RuntimeError("on purpose")

    dask_scheduler.plugins[NAME].options.policy.score = score  # type: ignore[attr-defined]


class TestPreload:
    def test_scheduler_process_places_from_its_start(self) -> None:
        with scheduler_process("--deepflow-policy", "eft") as address:
            with worker_processes(address), Client(address) as client:
                client.wait_for_workers(2, timeout=60)
                futures = client.map(slow_add, range(20), range(20), pure=False)
                assert client.gather(futures) == [2 * n for n in range(20)]
                said = report(client)
                assert (said["is_placing"], said["policy"]) == (True, "eft")
                assert n_placed(said) == 20
                assert said["faults"] == []

    def test_misspelt_policy_is_refused_with_the_nearest(self) -> None:
        done = subprocess.run(
            scheduler_command("--deepflow-policy", "hefd"),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode != 0
        assert "did you mean 'heft'?" in done.stderr


def scheduler_command(*options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1"),
        *("--port", "0", "--no-dashboard", "--preload", "deepflow.backend.placement.preload"),
        *options,
    ]


@contextmanager
def scheduler_process(*options: str) -> Iterator[str]:
    """A scheduler in a process of its own, as `dask scheduler` starts it."""
    port = free_port()
    command = [word if word != "0" else str(port) for word in scheduler_command(*options)]
    with ended(command):
        yield f"tcp://127.0.0.1:{port}"


@contextmanager
def worker_processes(address: str) -> Iterator[None]:
    with ended(
        [
            *(sys.executable, "-m", "dask", "worker", address, "--nworkers", "2"),
            *("--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"),
        ]
    ):
        yield


@contextmanager
def ended(command: list[str]) -> Iterator[None]:
    """A process that is ended afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestRecall:
    def test_what_was_sent_behind_a_straggler_runs_elsewhere(self, tmp_path: Path) -> None:
        path = str(tmp_path / "notes")
        with placed() as client:
            for _ in range(12):
                client.submit(where, seconds=0.05, pure=False).result()
            # Of a task that takes 0.05 s, as far as anybody knows.
            long = client.submit(held, path, pure=False, key="where-long")
            others = client.map(where, range(60), seconds=0.05, pure=False)
            wait(others, timeout=120)
            assert not long.done()
            note(path, "go")
            assert long.result()

    def test_a_worker_that_pauses_gives_back_what_it_has_not_begun(self, tmp_path: Path) -> None:
        path = str(tmp_path / "notes")
        # However long a worker will be busy, it is given one more.
        with placed(tuning=Tuning(pipeline_s=1000.0)) as client:
            keys = [f"where-long-{n}" for n in range(4)]
            long = [client.submit(held, path, pure=False, key=key) for key in keys]
            short = client.map(where, range(3), seconds=0.1, pure=False)
            until(lambda: _with_one_ahead(client) is not None, "a task was sent ahead")
            address = _with_one_ahead(client)
            name = client.run(_pause, workers=[address])[address]
            until(lambda: report(client)["n_recalled"] >= 1, "the paused worker gave it back")
            note(path, "go")
            assert name not in client.gather(short)
            assert name in client.gather(long)


def _pause(dask_worker: Any) -> str:
    """For good: the worker's own watch over its memory would let it go on."""
    dask_worker.memory_manager.memory_pause_fraction = False
    dask_worker.status = Status.paused
    return str(dask_worker.name)


def _with_one_ahead(client: Client) -> str | None:
    """The address of a worker that has more tasks than threads."""
    having = client.processing().items()
    # Asked after: a worker may join in between.
    threads = {w: info["nthreads"] for w, info in _workers(client).items()}
    return next((address for address, keys in having if len(keys) > threads[address]), None)


def _workers(client: Client) -> dict[str, Any]:
    return dict(client.scheduler_info(n_workers=-1)["workers"])
