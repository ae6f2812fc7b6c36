"""The example at the top of each command's help runs, on places that there are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from distributed import LocalCluster

from deepflow.cli import main
from tests.docs.commands import Command, check_deepflow, commands
from tests.docs.conftest import Reader

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "deepflow": "tests/integration/test_demo.py runs the demo",
    "deepflow demo": "tests/integration/test_demo.py runs it: with --keep it ends by Ctrl-C only",
}
"""Examples that are parsed and not run here, and why."""

EARLIER_RUN = """
from deepflow.decide.events import RunNamed
from deepflow.observe.journal import JournalWriter
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.engine import simulate
from deepflow.sim.workload import SimJob, SimTask, Workload
from pathlib import Path

tasks = [SimTask(f"clean-{n}", "clean", 2.0, 1000) for n in range(6)]
tasks += [SimTask("fit", "fit", 5.0, 10, tuple(task.key for task in tasks))]
workload = Workload("flights", (SimJob("run", "flight-delays", tuple(tasks)),))
cluster = ClusterSpec("two", (SimWorkerClass("cpu", 2), SimWorkerClass("fast", 1, speed=2.0)))
folder = Path("state/journals")
folder.mkdir(parents=True)
with JournalWriter(folder / "run.journal.zst", clock="unix") as journal:
    journal.write_all(simulate(workload, cluster, seed=0).events)
"""
"""Leaves the journal of a flow run that examples speak of."""


def examples() -> Iterator[tuple[str, str]]:
    """Each command's name, and its example."""
    waiting: list[tuple[str, click.Command]] = [("deepflow", main)]
    while waiting:
        called, command = waiting.pop(0)
        text = " ".join((command.help or "").split("\n\n")[0].split())
        match = re.fullmatch(r"Example: (.+)", text)
        assert match is not None, f"the help of {called} does not open with an example"
        yield called, match[1]
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                below = command.get_command(click.Context(command), name)
                assert below is not None
                waiting.append((f"{called} {name}", below))


EXAMPLES = dict(examples())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, reader: Reader) -> Path:
    """A home with what examples speak of."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".prefect" / "storage").mkdir(parents=True)
    (folder / "results").mkdir()
    is_well, _, error = reader.ask(
        what="python", name="earlier", source=EARLIER_RUN, folder=str(folder), environment={}
    )
    assert is_well, error
    return folder


@pytest.mark.parametrize("called", EXAMPLES)
def test_the_example_of_a_help_runs(
    called: str, home: Path, reader: Reader, docs_cluster: LocalCluster
) -> None:
    (command,) = commands(EXAMPLES[called])
    assert command.words[0] == "deepflow"
    check_deepflow(command.words[1:])
    if (why := ELSEWHERE.get(called)) is not None:
        pytest.skip(why)
    # Places that there are not, and what stands for them.
    places = {
        "~": str(home),
        "s3://bucket": str(home),
        "auto://head-node": docs_cluster.scheduler_address.replace("tcp", "auto"),
    }
    is_well, printed, error = run(command, places, home, reader)
    assert is_well, printed + error
    assert printed.strip()


def run(
    command: Command, places: dict[str, str], home: Path, reader: Reader
) -> tuple[bool, str, str]:
    words = command.words[1:]
    for place, instead in places.items():
        words = [re.sub(f"^{place}", instead, word) for word in words]
    return reader.ask(
        what="command",
        arguments=words,
        folder=str(home),
        environment={
            "HOME": str(home),
            "DEEPFLOW_STATE_DIR": str(home / "state"),
            "COLUMNS": "100",
            "PATH": os.environ["PATH"],
        }
        | command.variables,
    )
