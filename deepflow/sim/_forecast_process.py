"""The process that a `Forecasting` starts: replays one flow run twice, and says how long it took.

Run as `python -m deepflow.sim._forecast_process`, with what is asked on standard input.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys


def main() -> None:
    """Print `{"own": seconds, "other": seconds}`: under the run's own policy, and under Dask's."""
    os.nice(10)
    events, policy, experience, most_s = pickle.load(sys.stdin.buffer)
    signal.alarm(math.ceil(most_s) + 1)  # ends this process should its parent be gone

    from deepflow.decide.place.registry import STOCK
    from deepflow.sim.compare import play
    from deepflow.sim.replay import cluster_of, workload_of

    workload, cluster = workload_of(events), cluster_of(events)
    own_s = play(workload, cluster, policy, experience=experience).outcome.makespan_s
    other_s = play(workload, cluster, STOCK).outcome.makespan_s
    sys.stdout.write(json.dumps({"own": own_s, "other": other_s}) + "\n")


if __name__ == "__main__":
    main()
