"""The same seed gives the same events to the last byte, whatever the process hashes texts to."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import sha256

from deepflow.decide.events import Failed, Held, Placed, Transferred, WorkerLeft
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass, WorkerDeath
from deepflow.sim.engine import Outcome, simulate
from deepflow.sim.workload import SimJob, SimTask, Workload


def job(n_run: int, n_tasks: int) -> SimJob:
    chance = random.Random(n_run)
    tasks = []
    for n in range(n_tasks):
        read = (
            {f"t{chance.randrange(max(0, n - 20), n)}" for _ in range(chance.randrange(4))}
            if n > 5
            else set()
        )
        kind = chance.choice("abcdef")
        tasks.append(
            SimTask(
                key=f"t{n}",
                task=f"kind_{kind}",
                run_s=chance.expovariate(1) + 0.05,
                output_bytes=int(chance.expovariate(1 / 3e6)),
                depends_on=tuple(sorted(read)),
                needs=(("GPU", 1.0),) if kind == "a" else (),
                soft_gpu=0.5 if kind == "b" else 0.0,
                memory_bytes=int(3e8),
                priority=int(kind == "c"),
            )
        )
    return SimJob(f"run{n_run}", "flow", tuple(tasks), arrives_s=chance.random() * 5)


def scenario(*, validate: bool = False, seed: int = 0) -> Outcome:
    """Jobs that share a mixed cluster: stealing, replicas, pauses, deaths, late workers."""
    spec = ClusterSpec(
        "mixed",
        (
            SimWorkerClass("fast", 4, threads=2, speed=2.0, memory_bytes=int(1e9)),
            SimWorkerClass(
                "gpu",
                2,
                threads=4,
                resources=(("GPU", 1.0),),
                speeds=(("*+gpu", 5.0),),
                memory_bytes=int(4e9),
            ),
            SimWorkerClass("late", 3, starts_after_s=10, workers_per_host=3),
        ),
        deaths=(
            WorkerDeath("fast-1", 7.3, back_after_s=4),
            WorkerDeath("late-0", 18),
            WorkerDeath("gpu-0", 12, back_after_s=1),
        ),
    )
    workload = Workload("mixed", tuple(job(n, 60) for n in range(3)))
    return simulate(workload, spec, seed=seed, noise_seed=0, validate=validate)


def digest(outcome: Outcome) -> str:
    return sha256(repr(outcome.events).encode()).hexdigest()


def in_a_fresh_process(hash_seed: int) -> str:
    code = (
        "from tests.sim.test_engine_determinism import digest, scenario; print(digest(scenario()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_events_are_the_same_in_every_process() -> None:
    outcome = scenario()
    # What could differ is in it.
    kinds = {type(event) for event in outcome.events}
    assert {Placed, Transferred, Failed, WorkerLeft} <= kinds
    assert Held not in kinds
    assert outcome.n_steals > 5
    assert outcome.unfinished == ()
    assert {digest(outcome), in_a_fresh_process(1), in_a_fresh_process(2)} == {digest(outcome)}


def test_what_is_left_to_chance_depends_on_the_seed() -> None:
    assert digest(scenario(seed=1)) != digest(scenario(seed=0)) == digest(scenario(seed=0))


def test_dask_finds_its_state_sound_at_each_step() -> None:
    assert digest(scenario(validate=True)) == digest(scenario())
