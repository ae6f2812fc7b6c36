"""Compare drawn flows: `python -m tests.differential --flows 1000 --seed 0`.

Prints progress, and each difference with a graph that is as small as was found. Ends with 1 if
there was one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_LEVEL,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)

from deepflow.runner.server import EmbeddedServer
from tests.differential.drawing import difference, reduced, run_graphs
from tests.differential.graphs import draw_graphs
from tests.differential.runners import SETTINGS, THREADS, clusters
from tests.integration.api import Api


def main() -> int:
    """Draw, run, compare, print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--flows", type=int, default=100, help="how many graphs")
    parser.add_argument("--seed", type=int, default=0, help="other graphs for another seed")
    parser.add_argument("--first", type=int, default=0, help="leave out so many before")
    parser.add_argument("--together", type=int, default=20, help="graphs in one flow run")
    parser.add_argument("--tries", type=int, default=60, help="runs to make a difference smaller")
    known = [setting.name for setting in SETTINGS if setting is not THREADS]
    parser.add_argument("--setting", action="append", choices=known, help="default: deepflow")
    asked = parser.parse_args()
    chosen = [s for s in SETTINGS if s.name in (asked.setting or ["deepflow"])]
    graphs = draw_graphs(asked.flows + asked.first, asked.seed)
    n_different, began_s = 0, time.monotonic()
    with _serving() as api, clusters() as running:
        for start in range(asked.first, len(graphs), asked.together):
            some = graphs[start : start + asked.together]
            wanted = run_graphs(some, THREADS, running, api)
            for setting in chosen:
                found = run_graphs(some, setting, running, api)
                for number, graph in enumerate(some):
                    said = difference(graph, found[number], wanted[number])
                    if said:
                        n_different += 1
                        print(f"\n-- graph {start + number} under {setting.name}: {said}")
                        least = reduced(graph, setting, running, api, asked.tries)
                        print(f"   {least}", flush=True)
            done = start + len(some) - asked.first
            print(
                f"{done} of {len(graphs) - asked.first} flows, {n_different} differences, "
                f"{time.monotonic() - began_s:.0f} s",
                flush=True,
            )
    return 1 if n_different else 0


@contextmanager
def _serving() -> Iterator[Api]:
    """A Prefect server of its own; environment and Prefect's settings point to it."""
    with tempfile.TemporaryDirectory(prefix="deepflow-differential-") as folder:
        home = Path(folder)
        with EmbeddedServer(home=home / "server") as server:
            environment = {
                "PREFECT_HOME": str(home / "client"),
                "PREFECT_API_URL": server.api_url,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_LOGGING_LEVEL": "CRITICAL",
                "DEEPFLOW_STATE_DIR": str(home / "state"),
            }
            os.environ.update(environment)
            with temporary_settings(
                {
                    PREFECT_HOME: home / "client",
                    PREFECT_API_URL: server.api_url,
                    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
                    PREFECT_LOGGING_LEVEL: "CRITICAL",
                }
            ):
                api = Api(server.api_url)
                yield api
                api.close()
                APILogWorker.drain_all(timeout=10)
                EventsWorker.drain_all(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
