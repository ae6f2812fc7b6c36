"""Tell deepflow where the inputs of a storage of your own lie.

    python examples/08_own_resolver.py

Recordings lie on the disks of two halls, and an address such as `camera://hall-2/cam-7` says in
which. A resolver turns such an address into a place; `hints(near=…)` then prefers workers in that
place. With `strict=True`, as here, no other worker will do. A package offers its resolver to others
through an entry point of the group `deepflow.resolvers`.

At the end, look at the table: each recording was read in its hall.
"""

from urllib.parse import urlsplit

from distributed import get_worker
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass, hints, register_resolver
from deepflow.decide.location import Location
from deepflow.hints import Near
from deepflow.locate.resolvers import Resolver


class Halls(Resolver):
    """`camera://hall/name` lies in the zone that is called as the hall."""

    schemes = ("camera",)

    def resolve(self, near: Near) -> Location:
        """A real one may ask a catalogue here; it is called in a thread, and its answer is kept."""
        return Location(zones=(urlsplit(near.value).netloc,))


CLASSES = [
    WorkerClass("one", count=1, labels={"zone": "hall-1"}),
    WorkerClass("two", count=1, labels={"zone": "hall-2"}),
]
RECORDINGS = [f"camera://hall-{1 + number % 2}/cam-{number}" for number in range(6)]


@task
def read(recording: str) -> str:
    """The worker that read it."""
    return str(get_worker().name)


@flow(task_runner=DeepflowTaskRunner(local=CLASSES))
def survey() -> dict[str, str]:
    """Which worker read which recording."""
    futures = {}
    for recording in RECORDINGS:
        with hints(near=recording, strict=True):
            futures[recording] = read.submit(recording)
    return {recording: future.result() for recording, future in futures.items()}


if __name__ == "__main__":
    register_resolver(Halls())
    with EmbeddedServer() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        readers = survey()
    print(f"{'recording':24} read by")
    for recording, worker in readers.items():
        print(f"{recording:24} {worker}")
    halls = {"one": "hall-1", "two": "hall-2"}
    at_home = sum(halls[worker.split("-")[0]] in recording for recording, worker in readers.items())
    print(f"{at_home} of {len(readers)} recordings were read in their hall.")
