"""Hints: what a task needs, where it should run, and how.

    python examples/02_hints.py

Three workers of two classes: two `small` ones in rack a, and a `big` one in rack b that has a
scratch disk. Each line that is printed names a hint and shows what came of it.
"""

import os
import tempfile
import time
from pathlib import Path

from distributed import get_worker
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowError, DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints

WORKERS = [
    WorkerClass("small", count=2, labels={"rack": "a"}),
    WorkerClass("big", labels={"rack": "b"}, resources={"scratch": 1}),
]


@task
def where(_: int = 0) -> str:
    """The name of the worker that runs this."""
    return str(get_worker().name)


@task
def process_id(_: int = 0) -> int:
    """The process that runs this."""
    return os.getpid()


@task
def one_of(_: int) -> str:
    """The Dask task that runs this; several runs of a map may share one."""
    return str(get_worker().get_current_task())


@task
def block() -> bytes:
    """Something large enough to be worth running near to."""
    return bytes(5_000_000)


@task
def where_it_is(data: bytes) -> str:
    """The worker that was given `data`."""
    return str(get_worker().name)


@hints(labels={"rack": "b"})
@task
def write_line(path: str, line: str) -> None:
    """Append to a file."""
    with open(path, "a") as file:
        file.write(f"{line}\n")


@hints(durable=True)
@task
def precious() -> int:
    """Its result is in result storage before anybody hears that it is done."""
    return 42


@flow(task_runner=DeepflowTaskRunner(local=WORKERS))
def show(folder: str) -> None:
    """Every hint, one after the other."""
    with hints(labels={"rack": "a"}):
        print(f"labels={{'rack': 'a'}}:   ran on {sorted(set(where.map(range(6)).result()))}")
    with hints(resources={"scratch": 1}):
        print(f"resources={{'scratch': 1}}: ran on {where.submit().result()}")
    with hints(cpu=1, worker_class="big"):
        print(f"cpu=1, worker_class='big': ran on {where.submit().result()}")

    with hints(worker_class="small"):
        data = block.submit()
        data.wait()
        home = where_it_is.submit(data).result()
    with hints(near=data, strict=True):
        print(
            f"near=data, strict=True: ran on {sorted(set(where.map(range(6)).result()))}", end=" "
        )
    print(f"(data is on {home})")

    # One worker with one thread, kept busy while the two are submitted: then the higher goes first.
    order = Path(folder) / "order"
    busy = hold.submit(str(Path(folder) / "go"))
    low = write_line.submit(str(order), "low")
    with hints(priority=10):
        high = write_line.submit(str(order), "high")
    (Path(folder) / "go").touch()
    for future in (busy, low, high):
        future.wait()
    print(f"priority=10: the order was {order.read_text().split()}, submitted low first")

    with hints(worker_class="big"):
        inside = process_id.submit().result()
        with hints(isolate=True):
            apart = process_id.submit().result()
    print(f"isolate=True: {'in a process of its own' if apart != inside else 'in the worker'}")

    result = precious.submit()
    print(
        f"durable=True: {result.result()}, from result storage if its worker dies (see example 04)"
    )

    one_of.map(range(4)).result()  # now it is known that these are short
    together = len(set(one_of.map(range(100)).result()))
    with hints(batch=False):
        alone = len(set(one_of.map(range(100)).result()))
    print(f"batch=False: 100 short runs in {alone} Dask tasks instead of {together}")

    try:
        with hints(gpu=2):
            where.submit()
    except DeepflowError as error:
        print(f"gpu=2: refused when it is submitted: {error}")


@hints(labels={"rack": "b"})
@task
def hold(go: str) -> None:
    """Keep the one thread of its worker until the file `go` appears."""
    deadline_s = time.monotonic() + 20
    while not Path(go).exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        show(folder)
