"""Real flows on unlike workers: deepflow beside prefect-dask, with what ran where.

    python -m tests.benchmarks.real_flows --json real_flows.json --plot-dir pictures
    python -m tests.benchmarks.real_flows --only genome --size small --rounds 5

Eight worker processes on this machine are slowed to four classes (`_throttled.py`): fast, mid and
slow ones, and one with a GPU that trains and infers much faster. Each contender has such a cluster
of its own, since what one leaves on a scheduler must not help or hinder the other; only one of them
is at work at a time. Both run the same flow, unchanged, against one Prefect server: first one run
each that is not counted, then in turn, and the one that begins changes from round to round.

Counted: seconds from the call of the flow until it returns, and Dask's makespan, from the start of
the first task to the end of the last. The results of both must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENDERS = ("deepflow", "prefect-dask")

GENOME_STEPS = (
    "flows._genome.variants.sequence",
    "flows._genome.variants.individuals",
    "flows._genome.variants.merge",
    "flows._genome.variants.sift",
    "flows._genome.statistics.overlap",
    "flows._genome.statistics.frequency",
    "flows._genome.statistics.differentiate",
)
IMAGE_STEPS = (
    "flows._images.sheets.scan",
    "flows._images.sheets.decode",
    "flows._images.network.train",
    "flows._images.network.read",
    "flows._images.reading.check",
)
# What steps and task runners import when they are first called.
WARM = (
    "torch",
    "PIL.Image",
    "PIL.ImageFilter",
    "matplotlib.figure",
    "prefect.main",
    "prefect.task_engine",
    "flows.genome",
    "flows.image_pipeline",
)


@dataclass(frozen=True, slots=True)
class Timed:
    """One counted run."""

    flow_s: float
    makespan_s: float
    events: list[Any]
    summary: dict[str, Any]


@dataclass(slots=True)
class Contender:
    """A task runner with the cluster that it alone uses."""

    name: str
    runner: Any
    watch: Any


def worker_classes() -> list[Any]:
    """The workers of each contender's cluster."""
    from deepflow.decide.model import WorkerClass

    return [
        WorkerClass("fast", count=2),
        WorkerClass("mid", count=2),
        WorkerClass("slow", count=3),
        WorkerClass("gpu", count=1, gpu=1),
    ]


def stretches(fastest: float) -> dict[str, Any]:
    """Speeds 1, 1/2, 1/4; the GPU's host is a mid one, and its GPU four times the fastest CPU."""
    from tests.benchmarks._throttled import Stretch

    return {
        "fast": Stretch(fastest),
        "mid": Stretch(2 * fastest),
        "slow": Stretch(4 * fastest),
        "gpu": Stretch(2 * fastest, (("flows._images.network.*", fastest / 4),)),
    }


def flow_of(name: str) -> Any:
    """The flow to measure."""
    from flows.genome import genome
    from flows.image_pipeline import image_pipeline

    return {"genome": genome, "images": image_pipeline}[name]


def runner_of(contender: str, address: str) -> Any:
    """The task runner of a contender."""
    if contender == "deepflow":
        from deepflow import DeepflowTaskRunner

        return DeepflowTaskRunner(address=address)
    from prefect_dask import DaskTaskRunner

    return DaskTaskRunner(address=address)


def prepare(contender: str, cluster: Any, fastest: float) -> Contender:
    """Slow the workers of a cluster and watch its scheduler."""
    from distributed import Client

    from tests.benchmarks._throttled import Throttle
    from tests.benchmarks._watch import Watch

    watch = Watch(contender)
    with Client(cluster) as client:
        client.register_plugin(Throttle(GENOME_STEPS + IMAGE_STEPS, stretches(fastest), WARM))

    async def begin() -> None:
        await watch.start(cluster.scheduler)
        cluster.scheduler.add_plugin(watch)

    cluster.sync(begin)
    return Contender(contender, runner_of(contender, cluster.scheduler_address), watch)


def run_once(contender: Contender, flow_name: str, size: str) -> Timed:
    """Run a flow and time it."""
    from tests.benchmarks._watch import makespan_s

    flow = flow_of(flow_name).with_options(task_runner=contender.runner)
    contender.watch.take("between runs")
    started_s = time.perf_counter()
    summary = flow(size=size)
    flow_s = time.perf_counter() - started_s
    events = contender.watch.take(f"{contender.name} {flow_name}")
    return Timed(flow_s, makespan_s(events), events, summary.as_dict())


def warm_up(contender: Contender, flow_name: str, size: str) -> None:
    """One run that is not counted: imports, connections, and deepflow's history of the flow.

    deepflow records what the tasks of a flow took and starts the counted runs with that, as it does
    in production from the second run of a flow on; prefect-dask keeps nothing between runs.
    """
    run_once(contender, flow_name, size)


def check_same(flow_name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise where the two contenders' figures differ.

    Sums in float32 may differ in the last digits by how tasks were spread, accuracy thus by a digit
    or two; counts of tasks and digits, and all figures of the genome, may not.
    """
    if flow_name == "images":
        assert abs(ours["accuracy"] - theirs["accuracy"]) < 0.01, (ours, theirs)
        ours, theirs = (
            {key: one[key] for key in ("tasks", "digits_learned_from", "digits_judged")}
            for one in (ours, theirs)
        )
    assert ours == theirs, f"{flow_name}: {ours} beside {theirs}"


def compare(
    contenders: list[Contender],
    flow_name: str,
    size: str,
    rounds: int,
    settle_s: float,
    say: Callable[[str], None],
) -> dict[str, list[Timed]]:
    """All counted runs of one flow, by contender."""
    timed: dict[str, list[Timed]] = {one.name: [] for one in contenders}
    for one in contenders:
        say(f"{flow_name} {size}: {one.name} warms up")
        warm_up(one, flow_name, size)
    for number in range(rounds):
        in_turn = contenders if number % 2 == 0 else contenders[::-1]
        for one in in_turn:
            # What the run before still has to tell the server is not to be this one's burden.
            time.sleep(settle_s)
            done = run_once(one, flow_name, size)
            timed[one.name].append(done)
            say(
                f"{flow_name} {size}, round {number + 1} of {rounds}: {one.name} "
                f"{done.flow_s:.1f} s, makespan {done.makespan_s:.1f} s"
            )
        check_same(flow_name, *(timed[one.name][-1].summary for one in contenders))
    return timed


def figures(timed: dict[str, list[Timed]]) -> dict[str, Any]:
    """Medians, and the ratios of neighbours."""
    out: dict[str, Any] = {}
    for measure in ("flow_s", "makespan_s"):
        values = {name: [getattr(t, measure) for t in of] for name, of in timed.items()}
        ratios = [a / b for a, b in zip(values["deepflow"], values["prefect-dask"], strict=True)]
        out[measure] = {
            "values": values,
            "medians": {name: statistics.median(v) for name, v in values.items()},
            "ratios": ratios,
            "median_ratio": statistics.median(ratios),
        }
    return out


def save_trails(flow_name: str, timed: dict[str, list[Timed]], folder: Path) -> None:
    """The journal of each contender's median run, and Gantt pictures of both, one time axis."""
    from deepflow.decide.trail import Trail
    from deepflow.observe.gantt import draw_side_by_side
    from deepflow.observe.journal import JournalWriter

    folder.mkdir(parents=True, exist_ok=True)
    trails = {}
    for name, runs in timed.items():
        median = sorted(runs, key=lambda one: one.flow_s)[(len(runs) - 1) // 2]
        path = folder / f"{flow_name}-{name}.jsonl"
        path.unlink(missing_ok=True)
        with JournalWriter(path, clock="unix") as journal:
            journal.write_all(median.events)
        trails[name] = Trail.of(median.events)
    draw_side_by_side(trails, folder / f"{flow_name}.png")


def main() -> int:
    """Measure and print; 1 where deepflow was not the faster one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("genome", "images"), help="one flow; both without")
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--stretch",
        type=float,
        default=8.0,
        help="wall seconds per CPU second of the fastest class; raise it on a machine of few cores",
    )
    parser.add_argument("--settle", type=float, default=3.0, help="seconds between runs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot-dir", type=Path, help="folder for journals and Gantt pictures")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    flows = [arguments.only] if arguments.only else ["genome", "images"]
    timed: dict[str, dict[str, list[Timed]]] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {
            "PREFECT_HOME": home,
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        from deepflow import EmbeddedServer
        from deepflow.backend.clusters.local import local_cluster

        with EmbeddedServer() as server:
            os.environ["PREFECT_API_URL"] = server.api_url
            say("two clusters of eight workers start")
            with (
                local_cluster(worker_classes(), silence_logs=50) as first,
                local_cluster(worker_classes(), silence_logs=50) as second,
            ):
                contenders = [
                    prepare(name, cluster, arguments.stretch)
                    for name, cluster in zip(CONTENDERS, (first, second), strict=True)
                ]
                for flow_name in flows:
                    timed[flow_name] = compare(
                        contenders,
                        flow_name,
                        arguments.size,
                        arguments.rounds,
                        arguments.settle,
                        say,
                    )

    result = {flow_name: figures(runs) for flow_name, runs in timed.items()}
    for flow_name, found in result.items():
        for measure, of in found.items():
            medians = of["medians"]
            print(
                f"{flow_name} {arguments.size}, {measure}, median of {arguments.rounds}: "
                f"deepflow {medians['deepflow']:.1f}, prefect-dask {medians['prefect-dask']:.1f}; "
                f"median ratio {of['median_ratio']:.2f} "
                f"(from {min(of['ratios']):.2f} to {max(of['ratios']):.2f})"
            )
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "machine": platform.platform(),
                    "cores": os.cpu_count(),
                    "size": arguments.size,
                    "rounds": arguments.rounds,
                    "stretch": arguments.stretch,
                    "flows": result,
                },
                indent=1,
            )
        )
    if arguments.plot_dir:
        for flow_name, runs in timed.items():
            save_trails(flow_name, runs, arguments.plot_dir)
    return 0 if all(of["flow_s"]["median_ratio"] < 1 for of in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
