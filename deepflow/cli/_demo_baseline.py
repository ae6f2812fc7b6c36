"""The demo's flow in one process, one task at a time: what `deepflow demo` compares itself with.

Run as `python -m deepflow.cli._demo_baseline <size>` in a fresh process, so that nothing the
cluster run has loaded or cached helps it, and nothing of ours runs beside it. The clock starts
after the imports, in the baseline's favour: the cluster's workers import inside their measured
time. Numerical libraries keep their own threads, as they would in anyone's script.
"""

from __future__ import annotations

import json
import sys
import time


def main(size: str) -> None:
    """Run the flow and print `{"wall_s": …}` as the last line."""
    from prefect.task_runners import ThreadPoolTaskRunner

    from deepflow.cli._flows import flight_delays

    one_at_a_time = flight_delays().with_options(
        task_runner=ThreadPoolTaskRunner(max_workers=1), flow_run_name="one-process-baseline"
    )
    started_s = time.perf_counter()
    one_at_a_time(size=size)
    wall_s = time.perf_counter() - started_s
    sys.stdout.write(json.dumps({"wall_s": wall_s}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
