"""Shell commands in the docs: whether each names what there is, without running it."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import click

from deepflow.cli import main as deepflow
from deepflow.settings import Settings
from tests.docs.markdown import ROOT

VARIABLES = {f"DEEPFLOW_{name.upper()}" for name in Settings.model_fields} | {"DEEPFLOW_CONFIG"}

LEFT_TO_OTHERS = {
    "cd": "the shell's own",
    "set": "the shell's own",
    ".": "the shell's own",
    "source": "the shell's own",
    "rm": "the system's own",
    "mkdir": "the system's own",
    "git": "fetches a repository",
    "docker": "containers, for which tests/unit/test_infra_files.py has tests",
    "podman": "as docker",
    "prometheus": "tests/unit/test_infra_files.py has a test for its options",
    "uv": "another installer",
    "ruff": "a tool of developers, which `make lint` runs",
    "mypy": "a tool of developers, which `make lint` runs",
}
"""Programs whose commands are not looked at, and why."""


@dataclass(frozen=True)
class Command:
    """One command of a shell line."""

    variables: dict[str, str]
    """Set for it alone, or, where it has no words, exported."""
    words: list[str]


def commands(text: str) -> list[Command]:
    """The commands of a block, lines that go on joined, comments left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and not set(word) <= set(";&|"):
                words.append(word)
                continue
            if words:
                found.append(_command(words))
            words = []
    return found


def _command(words: list[str]) -> Command:
    if words[0] == "export":
        words = words[1:]
    elif words[0] == "eval" and (inner := re.fullmatch(r"\$\((.+)\)", words[1])):
        words = shlex.split(inner[1])
    n = next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words))
    return Command(dict(word.split("=", 1) for word in words[:n]), words[n:])


def check(command: Command, *, is_quick: bool = False) -> None:
    """Raise where a command names a variable, option, file or target that there is not.

    `is_quick`: commands of Prefect, whose help takes seconds, are left out.
    """
    for name in command.variables:
        assert not name.startswith("DEEPFLOW_") or name in VARIABLES, f"{name} is no setting"
    if not command.words:
        return
    program = re.sub(r"^python[0-9.]*$", "python", command.words[0].rpartition("/")[2])
    if program in LEFT_TO_OTHERS or (is_quick and program == "prefect"):
        return
    assert program in _CHECKS, f"{program}: is it a program that readers have?"
    _CHECKS[program](command.words[1:])


def check_deepflow(arguments: list[str]) -> None:
    """Parse a command of ours with click; nothing is run."""
    if arguments[:1] in (["--help"], ["--version"]):
        return
    command: click.Command = deepflow
    context = click.Context(deepflow, info_name="deepflow")
    while isinstance(command, click.Group):
        assert arguments, f"{context.command_path} names no command"
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"{context.command_path} has no command {name!r}"
        command = found
    if "--help" not in arguments:
        command.make_context(command.name, list(arguments))


def _check_python(arguments: list[str]) -> None:
    if arguments[:1] != ["-m"]:
        path = arguments[0]
        known = path == "-c" or (ROOT / path).is_file() or Path(path).is_file()
        assert known, f"there is no {path}"
        return
    module, *rest = arguments[1:]
    if module.startswith("tests.benchmarks."):
        check_benchmark(module, rest)
    elif module.split(".")[0] in ("flows", "deepflow", "docs", "tests"):
        assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
    else:
        assert module in ("venv", "pip", "pytest", "build", "http.server"), module


class _Parsed(Exception):
    """Raised where a program has read its arguments."""


def check_benchmark(module: str, arguments: list[str]) -> None:
    """Let a benchmark read its arguments, and stop it there."""
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        real(self, arguments)
        raise _Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse):
        try:
            importlib.import_module(module).main()
        except _Parsed:
            return
        except SystemExit as error:
            if error.code == 0:
                return  # it was asked for its help
            raise AssertionError(f"{module} does not take {' '.join(arguments)}") from error
    raise AssertionError(f"{module} reads no arguments")


def _check_make(arguments: list[str]) -> None:
    for word in arguments:
        name, equals, _ = word.partition("=")
        assert name in (make_variables() if equals else make_targets()), f"make has no {name}"


@cache
def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


@cache
def make_variables() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([A-Z_]+) *[:?]?=", text, re.MULTILINE))


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] in ("install", "wheel", "uninstall", "download"), arguments
    for word in arguments[1:]:
        match = re.search(r"\[([\w,-]+)\]", word)
        if match and not word.startswith("ray"):
            unknown = set(match[1].split(",")) - extras()
            assert not unknown, f"there is no extra {', '.join(unknown)}"


@cache
def extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def _check_dask(arguments: list[str]) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    program = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[arguments[0]]
    rest = list(arguments[1:])
    ours: list[str] = []
    if "--deepflow-policy" in rest:
        at = rest.index("--deepflow-policy")
        ours, rest = rest[at : at + 2], rest[:at]
    assert isinstance(program, click.Command)
    program.make_context(arguments[0], rest)
    if ours:
        from deepflow.backend.placement.preload import dask_setup

        dask_setup.make_context("preload", ours)


def _check_prefect(arguments: list[str]) -> None:
    leading = [word for word in arguments if word != "--no-prompt"]
    n = next((i for i, word in enumerate(leading) if word.startswith("-")), len(leading))
    names = [word for word in leading[:n] if re.fullmatch("[a-z-]+", word)]
    text = prefect_help(*names[:3])
    for word in arguments:
        if word.startswith("--"):
            assert re.search(rf"{word.split('=')[0]}\b", text), f"prefect does not know {word}"


@cache
def prefect_help(*names: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "prefect", *names, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "300", "PREFECT_CLI_COLORS": "false"},
    )
    return shown.stdout


def _check_pytest(arguments: list[str]) -> None:
    for word in arguments:
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "deepflow": check_deepflow,
    "python": _check_python,
    "pip": _check_pip,
    "make": _check_make,
    "dask": _check_dask,
    "prefect": _check_prefect,
    "pytest": _check_pytest,
}
PROGRAMS = {*_CHECKS, *LEFT_TO_OTHERS, "export"}
