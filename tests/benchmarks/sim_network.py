"""How long the simulated network takes for a flow, by topology and flows at once.

    python -m tests.benchmarks.sim_network --json sim_network.json
    python -m tests.benchmarks.sim_network --n 2000 --at-once 10

Random pairs of 16 hosts of three bandwidths exchange 0.1 to 100 MB; whenever a flow ends another
begins, so that a given number is under way until the last.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

from deepflow.sim.builtin import builtin_cluster
from deepflow.sim.network import TOPOLOGIES, Network, sites


def measure(topology: str, n_flows: int, at_once: int) -> dict[str, object]:
    """Wall-clock seconds to play the flows, and events on the way."""
    cluster = builtin_cluster("three-speeds")
    cluster = replace(cluster, network=replace(cluster.network, topology=topology))
    hosts = sites(cluster)
    workers = list(hosts)
    network = Network(cluster.network, hosts)
    chance = random.Random(1)
    now_s, begun, ended, n_events = 0.0, 0, 0, 0
    began_s = time.perf_counter()
    while ended < n_flows:
        while begun < n_flows and begun - ended < at_once:
            source, target = chance.sample(workers, 2)
            network.start(begun, source, target, chance.uniform(1e5, 1e8), now_s)
            begun += 1
        now_s = network.next_event_s()
        ended += len(network.advance(now_s))
        n_events += 1
    wall_s = time.perf_counter() - began_s
    return {
        "topology": topology,
        "flows": n_flows,
        "at_once": at_once,
        "events": n_events,
        "wall_s": wall_s,
        "us_per_flow": wall_s / n_flows * 1e6,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="flows in all")
    parser.add_argument("--at-once", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    print("topology     at once   flows  wall s  µs/flow")
    figures = []
    for topology in TOPOLOGIES:
        for at_once in arguments.at_once:
            figure = measure(topology, arguments.n, at_once)
            figures.append(figure)
            print(
                f"{topology:<12} {at_once:>7} {arguments.n:>7} {figure['wall_s']:7.2f} "
                f"{figure['us_per_flow']:8.0f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
