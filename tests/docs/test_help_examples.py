"""The example at the head of each command's `--help` is one that works."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

from deepflow.cli import main
from deepflow.decide.events import RunNamed
from deepflow.observe.journal import JournalWriter
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.engine import simulate
from deepflow.sim.workload import SimJob, SimTask, Workload

NEEDS_MORE = {
    "connect": "a scheduler on another machine",
    "demo": "a server, workers and minutes; run by tests/integration/test_demo.py",
    "results convert": "an object store",
}
"""Commands whose example the quick run only reads, and what running it would take."""


def commands(of: click.Command, name: str = "") -> Iterator[str]:
    """Every command by its name, those inside others too."""
    yield name
    if isinstance(of, click.Group):
        context = click.Context(of)
        for inner in of.list_commands(context):
            command = of.get_command(context, inner)
            assert command is not None
            yield from commands(command, f"{name} {inner}".strip())


COMMANDS = list(commands(main))


def example_of(name: str) -> tuple[dict[str, str], list[str]]:
    """Variables and arguments of the example that a command's help opens with."""
    told = CliRunner().invoke(main, [*name.split(), "--help"], env={"COLUMNS": "200"}).output
    (line,) = re.findall(r"^\s*Example: (.*)$", told, re.MULTILINE)
    if inside := re.fullmatch(r'eval "\$\((.*)\)"', line):
        line = inside.group(1)
    words = shlex.split(line)
    at = words.index("deepflow")
    variables = dict(word.split("=", 1) for word in words[:at])
    return variables, [os.path.expanduser(word) for word in words[at + 1 :]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with what the examples name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DEEPFLOW_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".prefect" / "storage").mkdir(parents=True)
    (tmp_path / ".deepflow" / "journals").mkdir(parents=True)
    tasks = (SimTask("load-1", "load", 1.0, 10), SimTask("fit-1", "fit", 2.0, 10, ("load-1",)))
    workload = Workload("flights", (SimJob("run-7", "flight-delays", tasks),))
    cluster = ClusterSpec("two", (SimWorkerClass("plain", 2),))
    path = tmp_path / ".deepflow" / "journals" / "run-7.journal.zst"
    with JournalWriter(path, clock="unix") as writer:
        writer.write(RunNamed(0.0, "run-7", "sapphire-owl", "flight-delays"))
        writer.write_all(simulate(workload, cluster, seed=0).events)
    workflow = {
        "specification": {"tasks": [{"name": "a", "id": "a"}], "files": []},
        "execution": {"tasks": [{"id": "a", "runtimeInSeconds": 2}]},
    }
    blast = {"name": "blast", "schemaVersion": "1.5", "workflow": workflow}
    (tmp_path / "blast.json").write_text(json.dumps(blast))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_works(name: str, home: Path) -> None:
    variables, arguments = example_of(name)
    assert arguments[: len(name.split())] == name.split()
    if any(shlex.join(arguments).startswith(command) for command in NEEDS_MORE):
        arguments.append("--help")  # read as far as it can be without doing it
    done = CliRunner().invoke(main, arguments, env=variables)
    assert done.exit_code == 0, done.output
    assert done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_form_for_programs(name: str) -> None:
    assert "--json" in CliRunner().invoke(main, [*name.split(), "--help"]).output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["connect", "results convert"])
def test_the_example_works_on_what_stands_for_the_place_that_it_names(
    name: str, home: Path, docs_cluster: LocalCluster
) -> None:
    stands_for = {
        "auto://head-node": docs_cluster.scheduler_address.replace("tcp", "auto"),
        "s3://bucket": str(home / "bucket"),
    }
    (home / "bucket" / "results").mkdir(parents=True)
    variables, arguments = example_of(name)
    changed = list(arguments)
    for place, instead in stands_for.items():
        changed = [word.replace(place, instead) for word in changed]
    assert changed != arguments, "the example names none of the places"
    done = CliRunner().invoke(main, changed, env=variables)
    assert done.exit_code == 0, done.output
    assert done.output
