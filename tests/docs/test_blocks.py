"""Every code block of README, ARCHITECTURE and `docs/` runs; those that cannot have a reason."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from distributed import LocalCluster

from deepflow.settings import load_settings
from deepflow.sim.clusters import read_cluster
from deepflow.sim.wfcommons import read_workflow
from tests.docs.commands import PROGRAMS, Command, check, commands
from tests.docs.conftest import Reader
from tests.docs.markdown import ROOT, RUN, Block, blocks, pages

GENERATED = ROOT / "docs" / "reference"
PAGES = [
    page
    for page in pages()
    if page.parent == ROOT / "docs" or page in (ROOT / "README.md", ROOT / "ARCHITECTURE.md")
]
SHELL = ("sh", "bash", "shell", "console")
LANGUAGES = {"python", "toml", "yaml", "json", "text", *SHELL}
ENTRY_POINTS = {"deepflow.policies", "deepflow.resolvers"}


class Page:
    """Runs the blocks of one page in order, in a folder of its own.

    In the quick run a whole program (one with a guard for its main module) goes to the shared
    cluster, in the full run it is a process of its own and makes its own cluster.
    """

    def __init__(
        self, path: Path, folder: Path, reader: Reader, address: str, *, is_quick: bool
    ) -> None:
        self.is_quick = is_quick
        self.folder = folder / path.relative_to(ROOT).with_suffix("")
        self.folder.mkdir(parents=True)
        self.reader = reader
        self.environment = {
            "DEEPFLOW_STATE_DIR": str(self.folder / "state"),
            "HOME": str(self.folder),
            "COLUMNS": "100",
        }
        self.address = address
        self.above = ""
        self.printed = ""

    def run(self, block: Block) -> None:
        """Raises where the block does not do what the page says."""
        if block.file:
            (self.folder / block.file).write_text(block.text)
        if block.is_printed:
            self._compare(block)
        elif block.language == "python":
            self._run_python(block)
        elif block.language == "toml":
            self._read_toml(block)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "json":
            self._read_json(block)
        elif is_shell(block):
            self._run_shell(block)

    def _compare(self, block: Block) -> None:
        wanted = r"\n.*".join(re.escape(line) for line in block.text.strip().splitlines())
        wanted = wanted.replace(r"\.\.\.", ".*").replace("…", ".*")
        assert re.search(wanted, self.printed), f"printed was:\n{self.printed}"

    def _run_python(self, block: Block) -> None:
        if block.not_run:
            compile(block.text, block.where, "exec")
            return
        if block.file and any(f"python {block.file}" in one.text for one in blocks(block.page)):
            return  # a command below runs it
        source = block.text
        if "with the blocks above" in block.run:
            source = self.above + source
        self.above = source
        if is_program(block):
            path = self.folder / (block.file or f"line_{block.line}.py")
            path.write_text(source)
            self._run_program(path)
            return
        self._run_here(block.where, source)

    def _run_here(self, name: str, source: str) -> None:
        """On the shared cluster."""
        self._ask(
            what="python",
            name=name,
            source=source,
            environment=self.environment | {"DEEPFLOW_ADDRESS": self.address},
        )

    def _run_program(self, path: Path, *arguments: str) -> None:
        if self.is_quick:
            self._run_here(str(path), path.read_text())
            return
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            cwd=self.folder,
            env=os.environ | self.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed = done.stdout

    def _ask(self, **request: object) -> None:
        is_well, self.printed, error = self.reader.ask(folder=str(self.folder), **request)
        assert is_well, f"{self.printed}\n{error}"

    def _read_toml(self, block: Block) -> None:
        document = tomllib.loads(block.text)
        path = self.folder / (block.file or f"line_{block.line}.toml")
        path.write_text(block.text)
        if "classes" in document:
            read_cluster(path)
        elif "project" in document:
            assert set(document["project"]["entry-points"]) <= ENTRY_POINTS
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DEEPFLOW_CONFIG", str(path))
                patch.delenv("DEEPFLOW_STATE_DIR")
                load_settings()

    def _read_json(self, block: Block) -> None:
        document = json.loads(block.text)
        if "schemaVersion" in document:
            path = self.folder / (block.file or f"line_{block.line}.json")
            path.write_text(block.text)
            read_workflow(path)

    def _run_shell(self, block: Block) -> None:
        for command in commands(block.text):
            with contextlib.chdir(self.folder):
                check(command, is_quick=self.is_quick)
            if block.not_run or is_pattern(command):
                continue
            if not command.words:
                self.environment |= command.variables
                continue
            program, *arguments = command.words
            if program == "deepflow":
                self._ask(
                    what="command",
                    arguments=[re.sub("^~", str(self.folder), word) for word in arguments],
                    environment=self.environment | command.variables,
                )
            elif program == "python" and (self.folder / arguments[0]).is_file():
                self._run_program(self.folder / arguments[0], *arguments[1:])


def is_pattern(command: Command) -> bool:
    """Whether words stand for others, as in `deepflow explain RUN [TASK]`: it is only parsed."""
    return any(re.fullmatch(r"\[?[A-Z]{2,}\]?", word) for word in command.words)


def is_program(block: Block) -> bool:
    """Whether it is a whole program."""
    return block.language == "python" and '__name__ == "__main__"' in block.text


def takes_longer(block: Block) -> bool:
    """Whether the full run does more with it than the quick one."""
    asks_prefect = is_shell(block) and re.search(r"^prefect ", block.text, re.MULTILINE)
    return block.is_slow or is_program(block) or bool(asks_prefect)


def is_shell(block: Block) -> bool:
    """Whether it is made of commands; a block without a language is, if each line begins so."""
    if block.language:
        return block.language in SHELL
    firsts = [command.words[:1] for command in commands(block.text.replace("'", " "))]
    return bool(firsts) and all(first and first[0] in PROGRAMS for first in firsts)


def faults_of(page: Page, wanted: list[Block]) -> list[str]:
    """What is wrong with the blocks, in words."""
    found = []
    for block in wanted:
        try:
            page.run(block)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - all faults of a page are told
            found.append(f"{block.where}: {type(error).__name__}: {error}")
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_quick_blocks_of_a_page_do_what_it_says(
    path: Path, page_folders: Path, reader: Reader, docs_cluster: LocalCluster
) -> None:
    address = docs_cluster.scheduler_address
    page = Page(path, page_folders / "quick", reader, address, is_quick=True)
    quick, is_quick = [], True
    for block in blocks(path):
        is_quick = is_quick if block.is_printed else not block.is_slow
        if is_quick:
            quick.append(block)
    assert not (faults := faults_of(page, quick)), "\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "path",
    [page for page in PAGES if any(takes_longer(block) for block in blocks(page))],
    ids=name_of,
)
def test_all_blocks_of_a_page_do_what_it_says_with_clusters_of_their_own(
    path: Path, page_folders: Path, reader: Reader, docs_cluster: LocalCluster
) -> None:
    address = docs_cluster.scheduler_address
    page = Page(path, page_folders / "all", reader, address, is_quick=False)
    assert not (faults := faults_of(page, blocks(path))), "\n".join(faults)


def test_every_block_says_its_language_and_marks_that_are_known() -> None:
    wrong = []
    for path in PAGES:
        for block in blocks(path):
            is_fenced = bool(block.language)
            if is_fenced and block.language not in LANGUAGES:
                wrong.append(f"{block.where}: {block.language!r} is no language known here")
            if block.run and block.run not in RUN:
                wrong.append(f"{block.where}: run: {block.run}")
            if path.parent == ROOT / "docs" and not is_fenced:
                wrong.append(f"{block.where}: a block without a language")
    assert not wrong, "\n".join(wrong)


PRELUDE = """
import os
from urllib.parse import urlsplit

from prefect import flow, task

from deepflow import DeepflowTaskRunner, EmbeddedServer, register_resolver
from deepflow.decide.location import Location
from deepflow.locate.resolvers import Resolver

"""
"""Names that the examples in docstrings take for granted."""

EXAMPLES = [b for page in sorted(GENERATED.glob("*.md")) for b in blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for b in EXAMPLES if b.language == "python"], ids=lambda block: block.where
)
def test_an_example_of_a_docstring_runs(block: Block, tmp_path: Path, reader: Reader) -> None:
    is_well, printed, error = reader.ask(
        what="python",
        name=block.where,
        source=PRELUDE + block.text,
        folder=str(tmp_path),
        environment={"DEEPFLOW_STATE_DIR": str(tmp_path)},
    )
    assert is_well, printed + error


NOT_RUN = [block for path in PAGES for block in blocks(path) if block.not_run]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_a_block_that_is_not_run_has_a_reason(block: Block) -> None:
    assert len(block.not_run.split()) >= 5, f"{block.not_run!r} is no reason"
    pytest.skip(block.not_run)  # so that the summary of a run lists them all


def test_most_blocks_are_run() -> None:
    n_blocks = sum(not block.is_printed for path in PAGES for block in blocks(path))
    assert len(NOT_RUN) < n_blocks / 3


@pytest.mark.slow  # it asks Prefect for its help
def test_commands_of_other_pages_name_what_there_is() -> None:
    wrong = []
    for path in pages():
        if path in PAGES or path.parent == GENERATED:
            continue
        for block in blocks(path):
            if not is_shell(block):
                continue
            for command in commands(block.text):
                try:
                    check(command)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
                    wrong.append(f"{block.where}: {' '.join(command.words)}: {error}")
    assert not wrong, "\n".join(wrong)
