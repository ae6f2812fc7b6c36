"""A first run: change one import, and the same flow runs on Dask.

    python examples/01_first_run.py

Nothing needs to be started first: the runner makes a Dask cluster that fits this machine, and
`EmbeddedServer` is a Prefect server for as long as the example runs. With a server of your own,
leave it out.
"""

from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer


@task
def square(number: int) -> int:
    """One item's work."""
    return number * number


@task
def total(numbers: list[int]) -> int:
    """Takes the results of all the others: futures are replaced by their values."""
    return sum(numbers)


@flow(task_runner=DeepflowTaskRunner())
def sum_of_squares(n: int) -> int:
    """The sum of the squares below `n`, each computed on a worker."""
    squares = square.map(range(n))
    return total.submit(squares).result()


if __name__ == "__main__":
    with EmbeddedServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        print(f"The sum of the squares below 100 is {sum_of_squares(100)}.")
