"""A driver to interrupt: `python -m tests.integration.losses_driver MARKS` runs a long flow."""

from __future__ import annotations

import os
import sys

from prefect import flow, tags, task

from deepflow import DeepflowTaskRunner, hints


@task
def step(number: int, marks: str) -> int:
    """A second of work in small pieces, so that it can be interrupted between two of them."""
    import time

    from tests.integration.notes import note

    note(marks, number)
    for _ in range(100):
        time.sleep(0.01)
    return number


@flow(task_runner=DeepflowTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1}))
def long_flow(marks: str) -> list[int]:
    """A minute and a half of work on two workers, under a tag that is not UTF-8."""
    from prefect.runtime import flow_run

    sys.stdout.write(f"id of the run: {flow_run.id}\n")
    sys.stdout.flush()
    with hints(batch=False), tags(os.fsdecode(b"caf\xe9")):
        return step.map(range(200), marks=marks).result()


if __name__ == "__main__":
    long_flow(sys.argv[1])
