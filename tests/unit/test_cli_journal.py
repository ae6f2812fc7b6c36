"""`deepflow explain`, `replay` and `simulate` answer, as tables and JSON, or say what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deepflow.cli import main
from deepflow.decide.events import CodecChoice, Failed, Moved, RunNamed, TasksNamed
from deepflow.decide.trail import Trail
from deepflow.observe.journal import JournalWriter
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.engine import simulate
from deepflow.sim.workload import SimJob, SimTask, Workload

TASKS = (
    *(SimTask(f"load-{i}", "load", 2.0, 1_000_000) for i in range(8)),
    SimTask("fit", "fit", 4.0, 10, tuple(f"load-{i}" for i in range(8))),
)
WORKLOAD = Workload("small", (SimJob("run-7", "train", TASKS),))
CLUSTER = ClusterSpec(
    "two", (SimWorkerClass("slow", 2), SimWorkerClass("fast", 1, speed=4.0)), noise=0.0
)
CLUSTER_FILE = """
name = "two"
[[classes]]
name = "slow"
count = 2
[[classes]]
name = "fast"
count = 1
speed = 4.0
"""


def deepflow(*arguments: str | Path, columns: int = 80) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], env={"COLUMNS": str(columns)})


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journals") / "run.journal.zst"
    with JournalWriter(path, clock="virtual") as writer:
        writer.write_all(simulate(WORKLOAD, CLUSTER, seed=0).events)
    return path


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """The same as a WfCommons file."""
    path = tmp_path / "small.json"
    ids = [task.key for task in TASKS]
    children = {key: ["fit"] if key != "fit" else [] for key in ids}
    specification = [
        {
            "name": task.task,
            "id": task.key,
            "parents": list(task.depends_on),
            "children": children[task.key],
            "inputFiles": [],
            "outputFiles": [],
        }
        for task in TASKS
    ]
    execution = [{"id": task.key, "runtimeInSeconds": task.run_s} for task in TASKS]
    path.write_text(
        json.dumps(
            {
                "name": "small",
                "schemaVersion": "1.5",
                "workflow": {
                    "specification": {"tasks": specification, "files": []},
                    "execution": {"makespanInSeconds": 1, "tasks": execution},
                },
            }
        )
    )
    return path


def test_explain_tells_a_run(journal: Path, tmp_path: Path) -> None:
    done = deepflow("explain", "train", "--journal", journal, "--plot", tmp_path / "run.png")
    assert done.exit_code == 0, done.output
    assert "run-7 of flow train: 9 of 9 task runs finished" in done.output
    assert "Longest waits" in done.output
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_explain_tells_what_results_cost_on_their_ways(tmp_path: Path) -> None:
    path = tmp_path / "moved.journal"
    choice = CodecChoice("pco", 2, 0.1, 0.4, 0.15, "4.0 times faster than raw")
    with JournalWriter(path, clock="virtual") as writer:
        writer.write_all(simulate(WORKLOAD, CLUSTER, seed=0).events)
        writer.write(
            Moved(
                *(9.0, "run-7", "load", "fast-0", 8, 8_000_000, 2_000_000, 0, 0, 0.5),
                (("pco", 8_000_000, 2_000_000),),
                (choice,),
            )
        )
    told = deepflow("explain", "run-7", "--journal", path).output
    assert "Results: 8.0 MB went over the network as 2.0 MB." in told
    told = deepflow("explain", "run-7", "--journal", path, "--wide").output
    assert "8.0 MB" in told
    assert "pco 4.0" in told
    assert "4.0 times faster than raw" in told
    document = json.loads(deepflow("explain", "run-7", "--journal", path, "--json").output)
    assert document["results_moved"][0]["choices"] == [asdict(choice)]


def test_explain_takes_the_newest_journal_of_a_directory(journal: Path) -> None:
    document = json.loads(deepflow("explain", "run", "--journal", journal.parent, "--json").output)
    assert [(row["task"], row["n"]) for row in document["tasks"]] == [("load", 8), ("fit", 1)]
    assert document["runs"][0]["run"] == "run-7"


def test_explain_tells_one_task_and_lists_several(journal: Path) -> None:
    one = deepflow("explain", "run-7", "fit", "--journal", journal)
    assert one.exit_code == 0, one.output
    assert "task fit of run run-7, flow train" in one.output
    assert "Ran on " in one.output
    several = deepflow("explain", "run-7", "load", "--journal", journal)
    assert "8 task runs" in several.output
    assert "unplaced: no worker was chosen yet" in several.output
    (story,) = json.loads(
        deepflow("explain", "run-7", "fit", "--journal", journal, "--json").output
    )
    assert story["task"] == "fit"
    assert story["wait_s"] == pytest.approx(story["started_s"] - story["ready_s"])


def of_35_tasks() -> Workload:
    """Maps and single tasks with names of any length, each after the one before it."""
    names = [f"step-{i}" + "-of-a-long-name" * (i % 4) for i in range(35)]
    tasks: list[SimTask] = []
    for i, name in enumerate(names):
        after = (tasks[-1].key,) if tasks else ()
        n = 300 if i == 3 else 20 if i % 5 == 0 else 1
        tasks += [SimTask(f"{name}-{j}", name, 1.0 + i, 10_000_000, after) for j in range(n)]
    return Workload("many", (SimJob("019b-2d67-run-of-35", "wide-flow", tuple(tasks)),))


def test_35_tasks_are_explained_in_less_than_60_lines_of_80_columns(tmp_path: Path) -> None:
    path = tmp_path / "many.journal.zst"
    run = "019b-2d67-run-of-35"
    with JournalWriter(path, clock="unix") as writer:
        writer.write(RunNamed(1.79e9, run, "opalescent-albatross-of-the-morning", "wide-flow"))
        writer.write_all(simulate(of_35_tasks(), CLUSTER, seed=0).events)
        for i in range(35):
            writer.write(Moved(9.0, run, f"step-{i}", "fast-0", 8, 8_000_000, 2_000_000, 5, 5, 0.5))
        writer.write(Failed(1.0, "step-0-0", "tcp://192.168.178.123:43210", "worker-lost"))
    lines = deepflow("explain", "wide-flow", "--journal", path).output.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"step-\d+.* ×", line)]
    assert len(rows) == 35
    assert any(re.match(r"step-3-.* ×300 ", row) for row in rows)
    assert any("1" in row for row in rows if row.startswith("step-0 "))
    whole = deepflow("explain", path, "--wide").output
    assert "Results that moved" in whole
    assert "in the queue of " in whole


def test_tasks_beyond_those_that_fit_are_folded_into_one_line(tmp_path: Path) -> None:
    path = tmp_path / "many.journal"
    tasks = tuple(SimTask(f"t{i}-1", f"t{i}", 1.0, 10) for i in range(50))
    with JournalWriter(path, clock="virtual") as writer:
        workload = Workload("many", (SimJob("run-8", "many", tasks),))
        writer.write_all(simulate(workload, CLUSTER, seed=0).events)
    told = deepflow("explain", path).output
    assert "… and 14 more tasks, which took" in told
    assert len(told.splitlines()) < 60
    assert "more tasks" not in deepflow("explain", path, "--wide").output


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of a machine on which the run was, under the names that Prefect gave."""
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path))
    (tmp_path / "journals").mkdir()
    events = simulate(WORKLOAD, CLUSTER, seed=0).events
    (fit,) = (task.key for task in Trail.of(events).tasks.values() if task.task == "fit")
    with JournalWriter(tmp_path / "journals" / "run-7.journal.zst", clock="unix") as writer:
        writer.write(RunNamed(1.79e9, "run-7", "sapphire-owl", "train"))
        writer.write_all(events)
        writer.write(TasksNamed(1.79e9, fit, (("019b-cccc-4", "fit-13"),)))
    return tmp_path


@pytest.mark.parametrize("run", ["sapphire-owl", "train", "run-7", "sapph", "sapphi…", "tra"])
def test_explain_and_replay_know_runs_and_tasks_by_prefects_names(named: Path, run: str) -> None:
    whole = deepflow("explain", run)
    assert whole.exit_code == 0, whole.output
    assert "sapphire-owl of flow train" in whole.output
    assert "(id run-7)" in whole.output
    for name in ("fit-13", "019b-cccc-4", "019b-cc"):
        one = deepflow("explain", run, name)
        assert "fit-13: task fit of run sapphire-owl, flow train" in one.output
        assert "Task run 019b-cccc-4, Dask key " in one.output
    again = deepflow("replay", run, "--policy", "eft", "--seeds", "1")
    assert again.exit_code == 0, again.output
    assert "as it was" in again.output


def test_a_journal_is_taken_by_its_path_and_the_newest_without_any(named: Path) -> None:
    path = named / "journals" / "run-7.journal.zst"
    for arguments in ((path,), (named / "journals",), ()):
        assert "sapphire-owl of flow train" in deepflow("explain", *arguments).output
        assert "as it was" in deepflow("replay", *arguments, "--seeds", "1").output


def test_the_newest_run_is_taken_where_a_newer_journal_is_damaged(named: Path) -> None:
    (named / "journals" / "zz.journal").write_text("no journal")
    assert "sapphire-owl of flow train" in deepflow("explain").output


def test_a_folder_that_is_called_as_a_flow_is_not_taken_for_a_journal(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert "sapphire-owl of flow train" in deepflow("explain", "train").output


def test_without_any_journal_it_is_said_where_they_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_STATE_DIR", str(tmp_path / "none"))
    for arguments in (("explain", "train"), ("replay", "train", "--policy", "eft")):
        done = deepflow(*arguments)
        assert "no flow run has left a journal in" in done.output
        assert "Traceback" not in done.output


def test_explain_says_what_it_does_not_find(journal: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("explain", "trian", "--journal", journal), "did you mean 'train'"),
        (("explain", "train", "nothing", "--journal", journal), "its tasks are: load, fit"),
        (("explain", "train", "--journal", tmp_path), "there is no journal"),
        (("explain", "train", "--journal", tmp_path / "x.journal"), "cannot be read"),
    ):
        done = deepflow(*arguments)
        assert done.exit_code == 2
        assert said in done.output
        assert "Traceback" not in done.output


def test_replay_tells_what_was_beside_what_would_have_been(journal: Path, tmp_path: Path) -> None:
    arguments = ("replay", journal, "--policy", "stock,eft", "--seeds", "2")
    done = deepflow(*arguments, "--plot", tmp_path / "both.png")
    assert done.exit_code == 0, done.output
    for row in ("as it was", "stock", "eft"):
        assert row in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert (tmp_path / "both.png").stat().st_size > 1000
    document = json.loads(deepflow(*arguments, "--json").output)
    assert document["happened"]["makespan_s"] > 0
    assert {(run["policy"], run["seed"]) for run in document["runs"]} == {
        (policy, seed) for policy in ("stock", "eft") for seed in (0, 1)
    }


def test_simulate_compares_policies(workflow: Path, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(CLUSTER_FILE)
    arguments = ("simulate", "--workflow", workflow, "--cluster", tmp_path / "two.toml")
    arguments += ("--policy", "stock,eft", "--seeds", "2")
    done = deepflow(*arguments, "--output", tmp_path / "out.json", "--plot", tmp_path / "run.svg")
    assert done.exit_code == 0, done.output
    assert "Makespan against stock" in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert "makespan ÷ bound" in deepflow(*arguments, "--wide").output
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["summary"]["n_seeds"] == 2
    assert "<svg" in (tmp_path / "run.svg").read_text()
    again = json.loads(deepflow(*arguments, "--json").output)
    makespans = [run["metrics"]["makespan_s"] for run in again["runs"]]
    assert makespans == [run["metrics"]["makespan_s"] for run in written["runs"]]
    assert all(run["metrics"]["makespan_over_bound"] >= 1 for run in again["runs"])


@pytest.mark.parametrize(
    ("policies", "said"),
    [("", "names no policy"), ("eft,eft", "'eft' twice"), ("stock,eff", "eft")],
)
def test_policies_that_cannot_be_are_refused(workflow: Path, policies: str, said: str) -> None:
    done = deepflow(
        *("simulate", "--workflow", workflow, "--cluster", "three-speeds", "--policy", policies)
    )
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_missing_cluster_is_told_with_the_nearest(workflow: Path) -> None:
    done = deepflow(
        *("simulate", "--workflow", workflow, "--cluster", "three-speed", "--policy", "stock")
    )
    assert done.exit_code == 2
    assert "did you mean 'three-speeds'" in done.output
