"""Names in Markdown are names in the code: settings, commands, metrics, errors, files, tests."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import click
import pytest

import deepflow.errors
from deepflow.cli import main
from deepflow.observe.explain import ReasonKind
from deepflow.observe.metrics import table
from deepflow.sim import clusters
from tests.docs.commands import VARIABLES, make_targets
from tests.docs.markdown import ROOT, blocks, code_words, pages, prose

OTHER_VARIABLES = {"DEEPFLOW_PICTURES", "DEEPFLOW_NAME"}
"""One that tests read, and one that stands for any setting."""
ERRORS_ELSEWHERE = {"MetricError", "NoSuchRunError", "ServerStartError"}
FOLDERS = ("deepflow", "docs", "tests", "examples", "flows", "infra", "deployments")
METRIC_PARTS = ("_bucket", "_count", "_sum")
NO_METRICS = {"deepflow_history_", "deepflow_test_harness"}
"""Beginnings of names that look like a metric's and are another thing."""

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> Iterator[str]:
    """All that is set as code, a piece at a time."""
    yield from code_words(page)
    for block in blocks(page):
        yield from block.text.splitlines()


@each_page
def test_variables_are_settings(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\bDEEPFLOW_[A-Z_]*[A-Z]\b", text))
    assert sorted(named - VARIABLES - OTHER_VARIABLES) == []


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for line in code(page):
        for match in re.finditer(r"(?:^|[\s(])deepflow ([a-z]+)((?: +[^|;&`]+)?)", line):
            if "import" in line or line.lstrip().startswith(("#", "from ")):
                continue
            command = main.get_command(click.Context(main), match[1])
            if command is None:
                wrong.append(f"deepflow {match[1]}")
                continue
            words = match[2].split("#")[0].split()
            if isinstance(command, click.Group) and words and words[0].isalpha():
                found = command.get_command(click.Context(command), words[0])
                if found is None:
                    wrong.append(f"deepflow {match[1]} {words[0]}")
                    continue
                command = found
            options = {name for one in command.params for name in one.opts} | {"--help", "-h"}
            wrong += [
                f"deepflow {match[1]} {word}"
                for word in words
                if word.startswith("--") and word.split("=")[0].rstrip(",.)") not in options
            ]
    assert not wrong, wrong


@each_page
def test_metrics_are_in_the_table(page: Path) -> None:
    known = {row.name for row in table()}
    wrong = set()
    for name in re.findall(r"(?<![\w/])deepflow_[a-z_]+", page.read_text()):
        bare = next((name.removesuffix(p) for p in METRIC_PARTS if name.endswith(p)), name)
        if bare not in known and name not in known and not name.startswith(tuple(NO_METRICS)):
            wrong.add(name)
    assert not wrong


@each_page
def test_errors_are_classes(page: Path) -> None:
    text = " ".join((*code_words(page), prose(page)))
    named = set(re.findall(r"\b(?:[A-Z][a-z]+)+Error\b", text))
    unknown = {
        name
        for name in named - ERRORS_ELSEWHERE
        if not inspect.isclass(getattr(deepflow.errors, name, None))
        and not inspect.isclass(getattr(builtins, name, None))
    }
    assert unknown == set()


@each_page
def test_files_exist(page: Path) -> None:
    wrong = []
    for word in code_words(page):
        for part in shlex.split(word.replace("'", " ").replace('"', " ")):
            path, _, name = part.partition("::")
            path = path.removeprefix("$PWD/").rstrip(";,")
            if not path.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
                continue
            if re.search(r"[*<{\[]", path):
                continue
            target = ROOT / path
            if not target.exists() and not (page.parent / path).exists():
                wrong.append(path)
            elif name and f"def {name}(" not in target.read_text():
                wrong.append(part)
    assert not wrong, wrong


@each_page
def test_tests_that_are_named_exist(page: Path) -> None:
    wrong = []
    for word in code_words(page):
        match = re.fullmatch(r"(test_\w+\.py)(?:::(test_\w+))?", word)
        if match is None:
            continue
        file = ROOT / "tests" / "integration" / match[1]
        if not file.is_file() or (match[2] and f"def {match[2]}(" not in file.read_text()):
            wrong.append(word)
    assert not wrong, wrong


@each_page
def test_modules_and_targets_exist(page: Path) -> None:
    wrong = []
    for line in code(page):
        for module in re.findall(r"python -m ((?:tests|flows|deepflow|docs)\.[\w.]+\w)", line):
            path = ROOT.joinpath(*module.split("."))
            if not path.with_suffix(".py").is_file() and not path.is_dir():
                wrong.append(module)
        for target in re.findall(r"(?:^|[\s`])make ([a-z][a-z-]*)\b", line):
            if target not in make_targets() and not line.startswith(("#", "    ")):
                wrong.append(f"make {target}")
    assert not wrong, wrong


@cache
def simulator_page() -> str:
    return (ROOT / "docs" / "simulator.md").read_text()


@pytest.mark.parametrize("table_name", sorted(clusters._TABLES))
def test_the_page_of_the_simulator_has_every_key_of_a_cluster_file(table_name: str) -> None:
    model = clusters._TABLES[table_name]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", simulator_page(), re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert set(model.model_fields) - told == set()


def test_every_policy_has_a_line_in_the_page_of_policies() -> None:
    from deepflow.decide.place.registry import policy_names

    text = (ROOT / "docs" / "placement.md").read_text()
    told = set(re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE))
    assert set(policy_names()) - told == set()


def test_every_reason_to_wait_has_a_line_in_the_page_of_placement() -> None:
    text = (ROOT / "docs" / "placement.md").read_text()
    section = text[text.index("### Why a task waited") : text.index("## A policy of your own")]
    told = set(re.findall(r"^\| `([\w ]+)`", section, re.MULTILINE))
    assert told == set(get_args(ReasonKind))


def test_every_hint_has_a_line_in_the_page_of_hints() -> None:
    from deepflow.hints import HintKeywords

    text = (ROOT / "docs" / "hints.md").read_text()
    told = set(re.findall(r"^\| `(\w+)", text, re.MULTILINE))
    assert set(HintKeywords.__annotations__) - told == set()


def test_every_kind_of_fallback_that_is_told_of_is_one() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    section = text[text.index("### Fallbacks") : text.index("## Logs")]
    kinds = set(re.findall(r"`([a-z_]+)`", re.sub(r"`deepflow_[^`]*`", "", section)))
    source = "\n".join(path.read_text() for path in (ROOT / "deepflow").rglob("*.py"))
    named = {kind for kind in kinds if "_" in kind} - {"state_dir"}
    assert len(named) > 10
    assert {kind for kind in named if f'"{kind}"' not in source} == set()


@cache
def texts_of_the_code() -> str:
    """Every text in the code, parts of one message joined."""
    found = []
    for path in (ROOT / "deepflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "..." for v in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_are_quoted_as_symptoms_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [
        part.strip(" ,:")
        for heading in re.findall(r"^### (.+)$", text, re.MULTILINE)
        for message in re.findall(r"`([^`]+)`", heading)
        if " " in message
        for part in message.split("...")
    ]
    wanted = [part for part in quoted if len(part) > 8 and not part.startswith("deepflow ")]
    assert len(wanted) >= 6
    assert [part for part in wanted if part not in texts_of_the_code()] == []
