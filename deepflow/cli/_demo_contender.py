"""The demo's flow without deepflow's runner: what `deepflow demo` compares itself with.

Run as `python -m deepflow.cli._demo_contender <contender> <size> <flow run's name>` in a fresh
process, so that nothing that the run with deepflow has loaded or cached helps it, and nothing of
ours runs beside it. As there, the clock starts when all processes have loaded their libraries and,
on a cluster, when the workers are there.

- `one-process`: one task at a time, in this process. Numerical libraries keep their own threads, as
  they would in anyone's script.
- `prefect-dask`: `prefect_dask.DaskTaskRunner` on a cluster of the same workers.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

from deepflow.cli._flows import flight_delays, load_libraries

CONTENDERS = ("one-process", "prefect-dask")


def main(contender: str, size: str, name: str) -> None:
    """Run the flow and print `{"wall_s": …}` as the last line."""
    load_libraries()
    if contender == "prefect-dask":
        wall_s = _with_prefect_dask(size, name)
    else:
        from prefect.task_runners import ThreadPoolTaskRunner

        wall_s = _run(ThreadPoolTaskRunner(max_workers=1), size, name)
    sys.stdout.write(json.dumps({"wall_s": wall_s}) + "\n")


def _with_prefect_dask(size: str, name: str) -> float:
    from deepflow.cli._demo_session import demo_cluster

    runner = import_module("prefect_dask").DaskTaskRunner  # an extra, which may be absent
    with demo_cluster() as cluster:
        return _run(runner(address=cluster.scheduler_address), size, name)


def _run(task_runner: Any, size: str, name: str) -> float:
    flow = flight_delays().with_options(task_runner=task_runner, flow_run_name=name)
    started_s = time.perf_counter()
    flow(size=size)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main(*sys.argv[1:])
