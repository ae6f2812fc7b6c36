"""Unlike workers in one flow: two for the CPU steps, one with a GPU in another rack.

    python examples/03_heterogeneous.py

Read, train, summarise: the middle step *can* use a GPU (`gpu="soft"`). It is given one where it is
expected to end sooner for it, and no worker idles while it waits; so the same flow also runs where
there is none. The worker's GPU here is a declaration, as in `dask worker
--resources GPU=1`: nothing is computed on a device, and the example needs none.
"""

import math

from distributed import get_worker
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints

WITH_GPU = [
    WorkerClass("cpu", count=2),
    WorkerClass("gpu", gpu=1, labels={"rack": "b"}),
]
WITHOUT_GPU = [WorkerClass("cpu", count=2)]


@hints(worker_class="cpu")
@task
def read(part: int) -> tuple[list[float], str]:
    """Some numbers, and where they were read."""
    return [float(part * 1000 + i) for i in range(1000)], str(get_worker().name)


@hints(gpu="soft")
@task
def train(numbers: tuple[list[float], str]) -> tuple[float, str]:
    """A mean square root, and where it was computed."""
    values, _ = numbers
    for _ in range(2000):  # long enough to be worth a wait and a way
        sum(map(math.sqrt, values))
    return sum(map(math.sqrt, values)) / len(values), str(get_worker().name)


@hints(worker_class="cpu")
@task
def summarise(parts: list[tuple[float, str]]) -> tuple[float, str]:
    """The mean of the parts, and where it was computed."""
    return sum(value for value, _ in parts) / len(parts), str(get_worker().name)


@flow
def pipeline(n_parts: int) -> None:
    """CPU, then GPU or CPU, then CPU again."""
    parts = read.map(range(n_parts))
    trained = train.map(parts)
    answer, last = summarise.submit(trained).result()
    print(f"  read      on {sorted({name for _, name in parts.result()})}")
    print(f"  train     on {sorted({name for _, name in trained.result()})}")
    print(f"  summarise on {[last]}")
    print(f"  the answer is {answer:.3f}")


if __name__ == "__main__":
    with EmbeddedServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        for title, workers in (("With a GPU:", WITH_GPU), ("Without one:", WITHOUT_GPU)):
            print(title)
            pipeline.with_options(task_runner=DeepflowTaskRunner(local=workers))(6)
