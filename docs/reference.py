"""Writes the pages under `docs/reference/` from the code, so that they cannot say what is not true.

    python docs/reference.py             # writes what has changed, and names it
    python docs/reference.py --check     # writes nothing; status 1 where a page is out of date

What is in a page comes from where the program itself has it: settings from `deepflow.settings`,
metrics from the one table, policies from the registry, errors from `deepflow.errors`, commands from
click, the Python API from docstrings.
"""

from __future__ import annotations

import argparse
import builtins
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import griffe

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "docs" / "reference"
_MADE: Final = "<!-- Written by `python docs/reference.py` from the code. Change it there. -->"

# Where each public name of the simulator, of policies and of resolvers lives. What `deepflow`
# itself offers is not listed here: `deepflow.__all__` says it.
_MORE: Final[dict[str, tuple[str, ...]]] = {
    "deepflow.decide.place.policy": ("Policy",),
    "deepflow.decide.place.candidates": ("Candidates",),
    "deepflow.decide.place.fleet": ("Worker",),
    "deepflow.decide.place.task": ("Task", "Job"),
    "deepflow.testing": ("deepflow_test_harness", "Harness"),
    "deepflow.locate.resolvers": ("Resolver",),
    "deepflow.decide.location": ("Location", "Holder"),
    "deepflow.sim.workload": ("Workload", "SimJob", "SimTask"),
    "deepflow.sim.cluster": (
        "ClusterSpec",
        "SimWorkerClass",
        "NetworkSpec",
        "LinkFailure",
        "WorkerDeath",
    ),
    "deepflow.sim.builtin": ("builtin_cluster",),
    "deepflow.sim.clusters": ("read_cluster",),
    "deepflow.sim.wfcommons": ("read_workflow", "read_many", "write_workflow"),
    "deepflow.sim.generators": (
        "fan_out_in",
        "map_reduce",
        "pipelines",
        "layered",
        "survey",
        "stream",
    ),
    "deepflow.sim.compare": ("play", "compare", "experience_of"),
}
_NOT_CALLED: Final = {
    *("DeepflowError", "DeepflowFuture", "Settings", "Candidates", "Worker", "Task", "Job"),
    *("Policy", "Resolver", "Harness"),
}
"""Classes that are caught, subclassed or handed to you, so that how they are made is no affair of
yours."""
_INNER: Final = {"given", "nested", "settings_customise_sources", "add"}
"""Public to the rest of deepflow only."""
_TITLES: Final = {
    "deepflow.testing": "Testing",
    "deepflow.decide.place": "Writing a policy",
    "deepflow.locate": "Writing a resolver",
    "deepflow.decide.location": "Writing a resolver",
    "deepflow.sim": "Simulating",
}


def settings_page() -> str:
    """Every setting: variable, type, default, bounds, meaning."""
    from deepflow.settings import Settings

    parts = [
        "# Settings",
        "Each setting has a name in `deepflow.toml` and an environment variable. The first of "
        "these that names a setting wins: the environment, then the file that "
        "`DEEPFLOW_CONFIG` names "
        "(`deepflow.toml` in the working directory unless it is set), then the default. "
        "`deepflow settings` shows what is in force and where each value comes from. A name that "
        "is no setting is an error, and the message names the nearest one.",
        "Times are in seconds and sizes in bytes.",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        if default in (None, ""):
            shown = "none"
        parts.append(f"## {name}")
        parts.append(_sentence(field.description or ""))
        parts.append(
            "\n".join(
                (
                    f"- Variable: `DEEPFLOW_{name.upper()}`",
                    f"- Value: {_values(field)}",
                    f"- Default: {shown}",
                )
            )
        )
    return _page(parts)


def _values(field: Any) -> str:
    """What a setting may be, in words."""
    annotation = field.annotation
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    kind = kinds[0] if kinds else annotation
    words = {
        bool: "`true` or `false`",
        int: "a whole number",
        float: "a number",
        Path: "a path",
        str: "text",
    }[kind]
    bounds = []
    for bound in field.metadata:
        for attribute, said in (("ge", "from"), ("gt", "above"), ("le", "up to")):
            if (limit := getattr(bound, attribute, None)) is not None:
                bounds.append(f"{said} {limit:,}")
    return " ".join((words, *bounds))


_MOST_IN_LINE = 20


def metrics_page() -> str:
    """The table of metrics, a section each."""
    from deepflow.decide.fallbacks import Fallback
    from deepflow.observe import metrics

    parts = [
        "# Metrics",
        "What deepflow counts, as Prometheus sees it. [Operating](../operating.md#metrics) says "
        "where to scrape each process. `deepflow metrics` prints the same table.",
    ]
    for row in metrics.table():
        parts.append(f"## {row.name}")
        parts.append(_sentence(row.meaning))
        lines = [f"- Type: {row.type}", f"- Unit: {row.unit}"]
        for label in row.labels:
            values = ", ".join(f"`{value}`" for value in label.values) or "open, at most 50 values"
            if len(label.values) > _MOST_IN_LINE:
                values = "one of those in the table below"
            lines.append(f"- Label `{label.name}`: {values}")
        parts.append("\n".join(lines))
        if row.name == "deepflow_fallbacks_total":
            rows = "\n".join(f"| `{kind}` | {kind.meaning} |" for kind in Fallback)
            parts.append(f"| kind | what happened |\n|---|---|\n{rows}")
    return _page(parts)


def policies_page() -> str:
    """Every placement policy that comes with deepflow."""
    from deepflow.decide.place.registry import DEFAULT_POLICY, STOCK, policy_named, policy_names

    looks = {
        "free": "the workers that can begin at once",
        "shortlist": "the first worker of each group of like ones to be free, and the workers that "
        "hold the task's data; a task may wait for a busy one",
    }
    parts = [
        "# Placement policies",
        f'`DEEPFLOW_PLACEMENT=<name>` or `DeepflowTaskRunner(policy="<name>")` chooses one. The '
        f"default is `{DEFAULT_POLICY}`. [Placement and policies](../placement.md) says when to "
        "choose which, and how to write one.",
        f"## {STOCK}",
        "Dask places every task, with its own scheduler and its own work stealing. The history, "
        "the journal and the report are kept all the same.",
    ]
    for name in policy_names():
        if name == STOCK:
            continue
        policy = policy_named(name)
        if policy is None or not type(policy).__module__.startswith("deepflow."):
            continue  # of another package that happens to be installed
        module, _, class_name = f"{type(policy).__module__}.{type(policy).__qualname__}".rpartition(
            "."
        )
        found = _loaded(module)[class_name]
        parts.append(f"## {name}")
        parts.extend(_docstring(found))
        parts.append(f"- Class: `{module}.{class_name}`\n- It looks at {looks[policy.looks_at]}.")
    return _page(parts)


def errors_page() -> str:
    """The tree of errors, and each of them."""
    import deepflow.errors
    from deepflow.observe.metrics import MetricError
    from deepflow.runner.server import ServerStartError
    from deepflow.testing import NoSuchRunError

    classes: list[type[BaseException]] = [
        found
        for name, found in vars(deepflow.errors).items()
        if inspect.isclass(found) and issubclass(found, BaseException) and not name.startswith("_")
    ]
    classes += [MetricError, ServerStartError, NoSuchRunError]
    parts = [
        "# Errors",
        "Everything that deepflow raises on purpose is a `DeepflowError`. Most are also an error "
        "of Python's own, named beside them, so `except ValueError` catches a wrong setting too. "
        "Import them from `deepflow.errors`.",
        "```text\n" + "\n".join(_tree(deepflow.errors.DeepflowError, classes)) + "\n```",
    ]
    for one in classes:
        found = _loaded(one.__module__)[one.__name__]
        parts.append(f"## {one.__name__}")
        parts.extend(_docstring(found))
        if one.__module__ != "deepflow.errors":
            parts.append(f"Import it from `{one.__module__}`.")
    return _page(parts)


def _tree(root: type, classes: Iterable[type], before: str = "") -> Iterator[str]:
    if not before:
        yield root.__name__
    below = [one for one in classes if root in one.__bases__]
    for n, one in enumerate(below):
        is_last = n == len(below) - 1
        own = [base.__name__ for base in one.__bases__ if base.__module__ == builtins.__name__]
        also = f"  ({', '.join(own)})" if own else ""
        yield f"{before}{'└── ' if is_last else '├── '}{one.__name__}{also}"
        yield from _tree(one, classes, before + ("    " if is_last else "│   ") or " ")


def cli_page() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    from deepflow.cli import main

    parts = [
        "# Commands",
        "Every command takes `--help`, and `--json` to print one JSON document instead of tables. "
        "A command that cannot do what it was asked ends with status 2 and a sentence.",
    ]
    context = click.Context(main, info_name="deepflow")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        parts.extend(_command(command, f"deepflow {name}"))
    return _page(parts)


def _command(command: click.Command, called: str) -> Iterator[str]:
    context = click.Context(command, info_name=called)
    yield f"## {called}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{called} {usage}\n```"
    yield from _paragraphs(inspect.cleandoc(command.help or ""))
    options = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            flags, text = (_cell(one) for one in record)
            options.append(f"| `{flags}` | {text} |")
    if options:
        yield "\n".join(("| option | meaning |", "|---|---|", *options))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _command(below, f"{called} {name}")


def _paragraphs(text: str) -> Iterator[str]:
    """Those of a help text; an example, and what is set in, is code."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            yield "```text\n" + inspect.cleandoc(paragraph.removeprefix("\b")) + "\n```"
        elif paragraph.startswith("  "):
            yield "```sh\n" + inspect.cleandoc(paragraph) + "\n```"
        elif paragraph.startswith("Example: "):
            example = " ".join(paragraph.removeprefix("Example: ").split())
            yield f"For example:\n\n```sh\n{example}\n```"
        else:
            yield " ".join(paragraph.split())


def api_page() -> str:
    """What `deepflow` offers to import, and what policies, resolvers, simulations are made of."""
    import deepflow

    parts = [
        "# Python API",
        "Names in the first part are imported from `deepflow`; of the others, the module is named. "
        "Anything that is not on this page may change with any version.",
        "## deepflow",
    ]
    homes: dict[str, str] = {"Hints": "deepflow.hints", "hints": "deepflow.hints"}
    homes |= deepflow._HOMES
    for name in sorted(deepflow.__all__, key=str.lower):
        parts.extend(_member(_loaded(homes[name])[name], f"deepflow.{name}"))
    title = ""
    for module, names in _MORE.items():
        wanted = next(_TITLES[start] for start in _TITLES if module.startswith(start))
        if wanted != title:
            title = wanted
            parts.append(f"## {title}")
        for name in names:
            parts.extend(_member(_loaded(module)[name], f"{module}.{name}"))
    return _page(parts)


def _member(found: Any, called: str) -> Iterator[str]:
    """A class or function: how it is called, what it is for, its fields and methods."""
    name = called.rpartition(".")[2]
    yield f"### {name}"
    if found.is_attribute:
        yield _fenced(_import_line(called))
        yield from _docstring(found)
        return
    signature = "" if name in _NOT_CALLED else f"\n\n{_signature(found)}"
    yield _fenced(_import_line(called) + signature)
    yield from _docstring(found)
    if not found.is_class:
        return
    public = [
        one
        for one in found.members.values()
        if one.docstring and not one.name.startswith("_") and one.name not in _INNER
    ]
    rows = [
        f"| `{one.name}` | {_cell(' '.join(_words(_summary(one)).split()))} |"
        for one in public
        if one.is_attribute
    ]
    if rows:
        yield "\n".join(("| field | meaning |", "|---|---|", *rows))
    for method in public:
        if method.is_function:
            yield f"#### {name}.{method.name}"
            yield _fenced(_signature(method))
            yield from _docstring(method)


def _summary(found: Any) -> str:
    """The text of a docstring without its sections."""
    sections = found.docstring.parse("google", warnings=False)
    return "\n\n".join(one.value for one in sections if one.kind.value == "text")


def _fenced(code: str) -> str:
    """A signature or an import; not a program, which is fenced as `python`."""
    return f"```py\n{code}\n```"


def _import_line(called: str) -> str:
    module, _, name = called.rpartition(".")
    return f"from {module} import {name}"


def _signature(found: Any) -> str:
    """A function's or a constructor's signature, a parameter a line where it is long."""
    function = found
    if found.is_class:
        function = found.members.get("__init__")
        if function is None:
            return f"{found.name}(...)" if not found.has_labels("dataclass") else _fields(found)
    parameters = []
    is_keyword_only = False
    for one in function.parameters:
        if one.name in ("self", "cls"):
            continue
        text = one.name
        if one.kind is griffe.ParameterKind.var_positional:
            text, is_keyword_only = f"*{text}", True
        elif one.kind is griffe.ParameterKind.var_keyword:
            text = f"**{text}"
        elif one.kind is griffe.ParameterKind.keyword_only and not is_keyword_only:
            parameters.append("*")
            is_keyword_only = True
        if one.annotation is not None:
            text += f": {one.annotation}"
        if one.default is not None and not text.startswith("*"):
            text += f" = {one.default}" if one.annotation is not None else f"={one.default}"
        parameters.append(text)
    returns = f" -> {function.returns}" if function.returns and not found.is_class else ""
    return _laid_out(found.name, parameters, returns)


def _fields(found: Any) -> str:
    """The constructor of a dataclass."""
    parameters = []
    for one in found.members.values():
        if not one.is_attribute or one.annotation is None or one.name.startswith("_"):
            continue
        if "property" in one.labels or one.name in _INNER:
            continue
        if str(one.annotation).startswith("ClassVar") or "init=False" in str(one.value or ""):
            continue
        default = str(one.value) if one.value is not None else ""
        parameters.append(f"{one.name}: {one.annotation}" + (f" = {default}" if default else ""))
    return _laid_out(found.name, parameters, "")


def _laid_out(name: str, parameters: list[str], returns: str) -> str:
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){returns}"


def _docstring(found: Any) -> Iterator[str]:
    """A docstring as Markdown."""
    if found.docstring is None:
        return
    for section in found.docstring.parse("google", warnings=False):
        match section.kind.value:
            case "text":
                yield _words(section.value)
            case "parameters" | "attributes":
                rows = [
                    f"| `{one.name}` | {_cell(' '.join(_words(one.description).split()))} |"
                    for one in section.value
                ]
                yield "\n".join(("| argument | meaning |", "|---|---|", *rows))
            case "raises":
                yield "\n".join(
                    f"- Raises `{one.annotation}`: {' '.join(_words(one.description).split())}"
                    for one in section.value
                )
            case "admonition":
                text = section.value.contents.replace(">>> ", "").replace("... ", "")
                yield "```python\n" + inspect.cleandoc(text) + "\n```"
            case other:
                raise ValueError(f"{found.path}: docstring section {other!r} is not known here")


_ROLE: Final = re.compile(r":(?:class|func|meth|mod|attr):`([^`]+)`")


def _words(text: str) -> str:
    """The marks of reStructuredText that docstrings have, as Markdown."""
    text = _ROLE.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    text = re.sub(r"(?<=\w)::(?=\n\n    )", ":", text)
    pieces = re.split(r"\n\n((?:    .*\n|\n(?=    ))+)", text + "\n")
    laid_out = [
        f"```python\n{textwrap.dedent(piece).strip()}\n```" if n % 2 else piece.strip("\n")
        for n, piece in enumerate(pieces)
    ]
    return "\n\n".join(piece for piece in laid_out if piece)


@cache
def _loaded(module: str) -> Any:
    """A module as griffe reads it, from its file alone."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return griffe.visit(module.rpartition(".")[2], path, path.read_text(encoding="utf-8"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


def _page(parts: Iterable[str]) -> str:
    head, *others = parts
    return "\n\n".join((head, _MADE, *others)) + "\n"


PAGES: Final[dict[str, Callable[[], str]]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "policies.md": policies_page,
    "errors.md": errors_page,
    "commands.md": cli_page,
    "api.md": api_page,
}


def outdated() -> dict[Path, str]:
    """Each page whose file is not what the code says, with the text that it should have."""
    found = {}
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found[path] = text
    return found


def main() -> int:
    """Bring the pages up to date, or say which are not."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1: out of date")
    arguments = parser.parse_args()
    pages = outdated()
    for path, text in pages.items():
        print(f"{'out of date' if arguments.check else 'wrote'}: {path.relative_to(ROOT)}")
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if arguments.check and pages else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
