"""Every command answers, says how to use it, and has a form for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deepflow.backend.contract import CONTRACT, TRANSFER
from deepflow.cli import main
from deepflow.cli._demo_session import worker_classes_for
from deepflow.cli.version import TESTED
from deepflow.observe import metrics
from deepflow.settings import Settings

COMMANDS = (
    "certificates",
    "completion",
    "connect",
    "demo",
    "explain",
    "metrics",
    "replay",
    "results",
    "runs",
    "settings",
    "simulate",
    "version",
)
ROOT = Path(__file__).resolve().parents[2]


def deepflow(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "160", **environment})


def test_the_commands_are_those_tested_here() -> None:
    assert tuple(sorted(main.list_commands(None))) == COMMANDS  # type: ignore[arg-type]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_an_example_of_that_command(command: str) -> None:
    done = deepflow(command, "--help")
    assert done.exit_code == 0
    first = [line.strip() for line in done.output.splitlines() if line.strip()][1]
    assert re.match(rf"Example: .*\bdeepflow {command}\b", first)
    assert "--json" in done.output


@pytest.mark.parametrize("command", ["metrics", "settings", "version"])
def test_a_table_has_a_line_for_each_row_and_fits_80_columns(command: str) -> None:
    document = json.loads(deepflow(command, "--json").output)
    if command == "version":
        document = document["packages"]
    lines = deepflow(command, COLUMNS="80").output.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines.index("") == 2 + len(document)  # the names of the columns and a rule come first
    for entry, line in zip(document, lines[2:], strict=False):
        assert line.startswith(entry.get("name", entry.get("package")))


@pytest.mark.parametrize("command", ["metrics", "settings"])
def test_wide_tells_every_meaning_in_full(command: str) -> None:
    document = json.loads(deepflow(command, "--json").output)
    told = deepflow(command, "--wide", COLUMNS="80").output
    for entry in document:
        assert entry["meaning"] in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("settings", "DEEPFLOW_TLS"), "Encryption inside the cluster."),
        (("settings", "infra-retries"), "DEEPFLOW_INFRA_RETRIES"),
        (("metrics", "fallbacks_total"), "deepflow_fallbacks_total (counter, fallbacks)"),
    ],
)
def test_one_setting_or_metric_is_told_in_full(arguments: tuple[str, str], said: str) -> None:
    told = deepflow(*arguments, COLUMNS="80").output
    assert said in told
    assert "…" not in told
    assert len(json.loads(deepflow(*arguments, "--json").output)) == 1


def test_the_version_is_told_by_an_option_and_a_command() -> None:
    told = deepflow("--version").output
    (own,) = [
        row["installed"]
        for row in json.loads(deepflow("version", "--json").output)["packages"]
        if row["package"] == "prefect-deepflow"
    ]
    assert told == f"deepflow {own}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    script = deepflow("completion", shell).output
    assert f"_DEEPFLOW_COMPLETE={shell}_complete" in script
    assert json.loads(deepflow("completion", shell, "--json").output)["script"] in script


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("deepflow exp", "explain"),
        ("deepflow explain --w", "--wide"),
        ("deepflow settings infra", "infra_retries"),
        ("deepflow metrics deepflow_fall", "deepflow_fallbacks_total"),
        ("deepflow completion f", "fish"),
    ],
)
def test_what_is_typed_is_completed(typed: str, completed: str) -> None:
    environment = {
        "_DEEPFLOW_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = CliRunner().invoke(main, [], env=environment, prog_name="deepflow")
    assert [line.partition(",")[2] for line in done.output.splitlines()] == [completed]


@pytest.mark.parametrize("command", ["metrics", "settings", "version"])
def test_the_table_and_the_document_tell_the_same_names(command: str) -> None:
    document = json.loads(deepflow(command, "--json").output)
    if command == "version":
        document = document["packages"]
    table = deepflow(command)
    assert table.exit_code == 0
    for entry in document:
        assert entry.get("name", entry.get("package")) in table.output


def test_metrics_tells_every_metric() -> None:
    names = [row["name"] for row in json.loads(deepflow("metrics", "--json").output)]
    assert names == [row.name for row in metrics.table()]


def test_settings_tells_every_setting_and_who_said_it() -> None:
    done = deepflow("settings", "--json", DEEPFLOW_INFRA_RETRIES="5")
    told = {row["name"]: row for row in json.loads(done.output)}
    assert set(told) == set(Settings.model_fields)
    assert (told["infra_retries"]["value"], told["infra_retries"]["source"]) == (5, "environment")
    assert told["batch_max_items"]["source"] == "default"


def test_a_misspelt_setting_ends_with_a_sentence_and_not_a_traceback() -> None:
    done = deepflow("settings", DEEPFLOW_INFRA_RETRY="5")
    assert done.exit_code == 2
    assert "DEEPFLOW_INFRA_RETRY;" in done.output
    assert "did you mean" in done.output
    assert "Traceback" not in done.output


def test_a_terminal_that_is_not_utf_8_gets_question_marks() -> None:
    done = CliRunner(charset="ascii").invoke(main, ["settings"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.exception
    assert "infra_retries" in done.output
    assert "?" in done.output


def test_a_misspelt_command_is_told_with_the_nearest() -> None:
    done = deepflow("expalin", "x")
    assert done.exit_code == 2
    assert "Did you mean 'explain'?" in done.output


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    )
    for package, tested in TESTED.items():
        assert pinned[package] in tested


def test_version_says_what_is_not_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepflow.cli.version.TESTED", {**TESTED, "dask": ("1.0.0",)})
    packages = json.loads(deepflow("version", "--json").output)["packages"]
    told = {row["package"]: row for row in packages}
    assert told["dask"]["is_tested"] is False
    assert "not a tested one" in deepflow("version").output


def test_version_counts_the_private_parts_and_names_those_that_are_not_as_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_parts = len(json.loads(deepflow("version", "--json").output)["private_parts"])
    counted = f"{n_parts} private parts of Dask and Prefect"
    told = deepflow("version", COLUMNS="200").output
    assert f"deepflow leans on {counted}" in told
    assert "All are as expected here." in told
    monkeypatch.setattr("distributed.worker.Worker._get_cause", len)
    told = deepflow("version", COLUMNS="200").output
    assert "1 is not as expected here" in told
    assert "distributed.worker.Worker._get_cause" in told
    assert TRANSFER.without in told


def test_version_tells_every_private_part_when_asked_for_all() -> None:
    told = deepflow("version", "--wide").output
    for parts in CONTRACT.values():
        for part in parts:
            assert part.name in told
            assert part.purpose in told


def test_constraints_name_no_host_and_no_path() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


@pytest.mark.parametrize("n_cores", [1, 2, 8, 64])
def test_the_demo_has_two_classes_and_no_more_threads_than_it_should(n_cores: int) -> None:
    classes = worker_classes_for(n_cores, has_gpu=False)
    assert len({one.name for one in classes}) == 2
    assert all(one.count >= 1 for one in classes)
    assert sum(one.count * one.threads for one in classes) <= max(2, n_cores)


def test_the_demo_offers_a_gpu_only_where_there_is_one() -> None:
    assert [one.gpu for one in worker_classes_for(8, has_gpu=True)] == [0, 1]
    assert [one.gpu for one in worker_classes_for(8, has_gpu=False)] == [0, 0]
