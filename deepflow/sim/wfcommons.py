"""Reads executions of real workflows in the WfCommons format, version 1.5, as jobs to simulate.

Three small ones ship with deepflow and are known by name, see `BUILTIN_WORKFLOWS`. Jobs can also be
written in the format (`write_workflow`).

Format: https://wfcommons.org/format (Coleman et al. 2022, "WfCommons"). What is taken from it, and
what is not:

- A task's run time is the one recorded. Differences between the machines it was recorded on, and
  the number of cores it used there, are ignored.
- Its category is its name without the suffix `_ID<digits>` that WfCommons appends; where there is
  no such suffix, the program of its command; else its name without digits at the end.
- Its output is the files that it writes and some child reads, each counted once. A child reads the
  whole output, also where it was recorded to read one file of it: a Dask result is one value.
- Its other input is the files that it reads and no task writes.
- The flow is the family of workflows. Instances are named
  `<family>-<where>-<what…>-<number>.json`; the family of a file named in another way is all of its
  name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from deepflow.errors import ConfigurationError, nearest
from deepflow.sim.workload import SimJob, SimTask

__all__ = ["BUILTIN_WORKFLOWS", "SCHEMA_VERSION", "read_many", "read_workflow", "write_workflow"]

SCHEMA_VERSION = "1.5"
BUILTIN_WORKFLOWS = ("survey-example-1", "survey-example-2", "survey-example-3")
"""Workflows that ship with deepflow: three unlike instances of one family, so that one can be the
history of another. `deepflow.sim.generators.survey` made them, with the number as the seed."""
_BUILTIN_FOLDER = Path(__file__).parent / "workflows"
_ID_SUFFIX = re.compile(r"_ID\d+$")
_DIGITS_SUFFIX = re.compile(r"[-_.]?\d+$")
_INSTANCE_NAME = re.compile(r"(?P<family>[^-]+)-.+-\d+")


def read_workflow(path: str | Path, *, run: str = "", flow: str = "") -> SimJob:
    """The job that a WfCommons 1.5 file (`.json` or `.json.zst`) describes.

    `run`: the job's name; without it, the file's name without endings. `flow`: its flow; without
    it, the family, see above. Tasks are in the order of the file. Raises
    :class:`ConfigurationError`, with the file, the place in it and the remedy, for anything that
    cannot be run as it stands.
    """
    path = Path(path)
    try:
        return _job(json.loads(_read(path)), path, run, flow)
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"{path} is not JSON ({e}); correct it, or give a WfCommons {SCHEMA_VERSION} file"
        ) from e
    except _WorkflowError as e:
        raise ConfigurationError(f"{path}: {e}") from e


def read_many(paths: Iterable[str | Path]) -> tuple[SimJob, ...]:
    """The jobs of several files, and of all `.json` and `.json.zst` in the folders among them.

    A name among `BUILTIN_WORKFLOWS` stands for that workflow, unless a file is called so. In the
    order given, the files of a folder by name. Raises :class:`ConfigurationError` as
    :func:`read_workflow` does, for a folder without such files, and where two files would give
    jobs of one name.
    """
    jobs: dict[str, SimJob] = {}
    origin: dict[str, Path] = {}
    for path in chain.from_iterable(map(_files, map(Path, paths))):
        job = read_workflow(path)
        if job.run in jobs:
            raise ConfigurationError(
                f"{origin[job.run]} and {path} would both be the job {job.run!r}; rename one, "
                "or read it with read_workflow(path, run=…)"
            )
        jobs[job.run], origin[job.run] = job, path
    return tuple(jobs.values())


class _WorkflowError(Exception):
    """What is wrong with a workflow; the file's name is put before it."""


def write_workflow(job: SimJob, path: str | Path) -> None:
    """Writes a job as a WfCommons 1.5 file, a line for each task; undone by `read_workflow`.

    The format has no words for kinds of work, Dask resources, GPUs and priorities, and a file that
    no task reads is no output there. Raises :class:`ConfigurationError` for a task that has one of
    the first four, and for a path that cannot be written.
    """
    for task in job.tasks:
        if task.kind or task.needs or task.soft_gpu or task.priority:
            raise ConfigurationError(
                f"task {task.key!r} has a kind, needs, soft_gpu or priority, which a WfCommons "
                "file cannot hold; leave them out"
            )
    children: dict[str, list[str]] = {task.key: [] for task in job.tasks}
    for task in job.tasks:
        for parent in task.depends_on:
            children[parent].append(task.key)
    specified = [
        {
            "name": f"{task.task}_ID{number:07d}",
            "id": task.key,
            "parents": list(task.depends_on),
            "children": children[task.key],
            "inputFiles": [f"{parent}.out" for parent in task.depends_on]
            + [f"{task.key}.in"] * bool(task.input_bytes),
            "outputFiles": [f"{task.key}.out"],
        }
        for number, task in enumerate(job.tasks, start=1)
    ]
    files = [
        {"id": f"{task.key}{ending}", "sizeInBytes": n_bytes}
        for task in job.tasks
        for ending, n_bytes in ((".in", task.input_bytes), (".out", task.output_bytes))
        if n_bytes or ending == ".out"
    ]
    executed = [
        {"id": task.key, "runtimeInSeconds": task.run_s}
        | ({"memoryInBytes": task.memory_bytes} if task.memory_bytes else {})
        for task in job.tasks
    ]
    text = (
        f'{{"name": {json.dumps(job.run)}, "schemaVersion": "{SCHEMA_VERSION}", "workflow": {{\n'
        f'"specification": {{\n"tasks": {_lines(specified)},\n"files": {_lines(files)}}},\n'
        f'"execution": {{\n"tasks": {_lines(executed)}}}}}}}\n'
    )
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigurationError(f"cannot write the workflow {path}: {e.strerror or e}") from e


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    """A JSON list with a row on each line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def _files(path: Path) -> Sequence[Path]:
    if not path.is_dir():
        is_builtin = str(path) in BUILTIN_WORKFLOWS and not path.exists()
        return [_BUILTIN_FOLDER / f"{path}.json" if is_builtin else path]
    found = sorted(p for p in path.iterdir() if p.name.endswith((".json", ".json.zst")))
    if not found:
        raise ConfigurationError(
            f"the folder {path} has no .json or .json.zst file; "
            f"give one with WfCommons {SCHEMA_VERSION} files"
        )
    return found


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as e:
        advice = f"give the path of a WfCommons {SCHEMA_VERSION} file, or of a folder of them"
        if not path.suffix and (close := nearest(str(path), BUILTIN_WORKFLOWS)):
            advice = f"did you mean {close!r}?"
        raise ConfigurationError(
            f"cannot read the workflow {path}: {e.strerror or e}; {advice}"
        ) from e
    if path.suffix != ".zst":
        return raw
    import zstandard  # only where a file is compressed

    try:
        with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
            return reader.read()
    except zstandard.ZstdError as e:
        raise ConfigurationError(f"{path} is damaged or not zstd-compressed: {e}") from e


def _job(document: object, path: Path, run: str, flow: str) -> SimJob:
    root = _mapping(document, "the file")
    version = root.get("schemaVersion")
    if version != SCHEMA_VERSION:
        raise _WorkflowError(
            f"schemaVersion is {version!r}, but this reads {SCHEMA_VERSION!r}; convert it with "
            "WfCommons' own tools"
        )
    workflow = _part(root, "workflow", "the file")
    specification = _part(workflow, "specification", "workflow")
    execution = _part(workflow, "execution", "workflow")
    specified = _by_id(_list(specification, "tasks", "workflow.specification"), "task")
    executed = _by_id(_list(execution, "tasks", "workflow.execution"), "executed task")
    if not specified:
        raise _WorkflowError("workflow.specification.tasks is empty; there is nothing to run")
    unspecified = [key for key in executed if key not in specified]
    if unspecified:
        raise _WorkflowError(f"task {unspecified[0]!r} was executed but is not specified")
    sizes = _file_sizes(specification, specified)
    parents = _parents(specified)
    _refuse_cycle(parents)

    outputs = {key: set(_names(task, "outputFiles", key)) for key, task in specified.items()}
    inputs = {key: set(_names(task, "inputFiles", key)) for key, task in specified.items()}
    read_by_child: dict[str, set[str]] = {key: set() for key in specified}
    for key, above in parents.items():
        for parent in above:
            read_by_child[parent] |= inputs[key]
    written = set().union(*outputs.values())
    tasks = tuple(
        SimTask(
            key=key,
            task=_category(task, executed.get(key, {})),
            run_s=_run_s(executed, key),
            output_bytes=sum(sizes[name] for name in outputs[key] & read_by_child[key]),
            depends_on=tuple(parents[key]),
            input_bytes=sum(sizes[name] for name in inputs[key] - written),
            memory_bytes=int(executed[key].get("memoryInBytes") or 0),
        )
        for key, task in specified.items()
    )
    stem = path.name.removesuffix(".zst").removesuffix(".json")
    return SimJob(run=run or stem, flow=flow or _family(stem), tasks=tasks)


def _family(stem: str) -> str:
    match = _INSTANCE_NAME.fullmatch(stem)
    return match["family"] if match else stem


def _category(task: Mapping[str, Any], execution: Mapping[str, Any]) -> str:
    name = str(task.get("name") or task["id"])
    if _ID_SUFFIX.search(name):
        return _ID_SUFFIX.sub("", name)
    command = execution.get("command")
    program = command.get("program") if isinstance(command, dict) else None
    if program:
        return Path(str(program)).name
    return _DIGITS_SUFFIX.sub("", name) or name


def _run_s(executed: Mapping[str, Mapping[str, Any]], key: str) -> float:
    run_s = executed.get(key, {}).get("runtimeInSeconds")
    if run_s is None:
        raise _WorkflowError(
            f"task {key!r} has no runtimeInSeconds in workflow.execution.tasks; a workflow that "
            "was only specified, or failed, cannot be played: take one that was executed"
        )
    if isinstance(run_s, bool) or not isinstance(run_s, (int, float)) or not 0 <= run_s < math.inf:
        raise _WorkflowError(
            f"task {key!r} has runtimeInSeconds={run_s!r}; a run time is a finite number from 0"
        )
    return float(run_s)


def _file_sizes(
    specification: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    """Bytes of each file; refuses tasks that name files of unknown size."""
    sizes: dict[str, int] = {}
    if "files" in specification:
        files = _by_id(_list(specification, "files", "workflow.specification"), "file")
        for name, file in files.items():
            size = file.get("sizeInBytes")
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise _WorkflowError(
                    f"file {name!r} has sizeInBytes={size!r}; a size is a whole number from 0"
                )
            sizes[name] = size
    for key, task in tasks.items():
        for name in (*_names(task, "inputFiles", key), *_names(task, "outputFiles", key)):
            if name not in sizes:
                where = "has no such file" if "files" in specification else "is missing"
                raise _WorkflowError(
                    f"task {key!r} names the file {name!r}, but workflow.specification.files "
                    f"{where}; give its sizeInBytes there"
                )
    return sizes


def _parents(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Of each task, its parents in the order of the file; an edge said at one end only counts."""
    found = {key: dict.fromkeys(_names(task, "parents", key)) for key, task in tasks.items()}
    for key, above in found.items():
        for parent in above:
            if parent not in tasks:
                raise _WorkflowError(f"task {key!r} has the parent {parent!r}, which is no task")
    for key, task in tasks.items():
        for child in _names(task, "children", key):
            if child not in tasks:
                raise _WorkflowError(f"task {key!r} has the child {child!r}, which is no task")
            found[child][key] = None
    return {key: list(above) for key, above in found.items()}


def _refuse_cycle(parents: Mapping[str, Sequence[str]]) -> None:
    n_open = {key: len(above) for key, above in parents.items()}
    children: dict[str, list[str]] = {key: [] for key in parents}
    for key, above in parents.items():
        for parent in above:
            children[parent].append(key)
    ready = [key for key, n in n_open.items() if n == 0]
    while ready:
        key = ready.pop()
        del n_open[key]
        for child in children[key]:
            n_open[child] -= 1
            if n_open[child] == 0:
                ready.append(child)
    if not n_open:
        return
    # Each task left has a parent left: walking up must come round to where it was before.
    walk = [next(iter(n_open))]
    while walk[-1] not in walk[:-1]:
        walk.append(next(parent for parent in parents[walk[-1]] if parent in n_open))
    cycle = walk[walk.index(walk[-1]) :]
    shown = " ← ".join(cycle if len(cycle) <= 6 else [*cycle[:3], "…", *cycle[-2:]])
    raise _WorkflowError(f"tasks wait for each other in a circle: {shown}; remove one of these")


def _by_id(items: list[Any], what: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for n, item in enumerate(items):
        entry = _mapping(item, f"{what} number {n}")
        key = entry.get("id")
        if not isinstance(key, str) or not key:
            raise _WorkflowError(f"{what} number {n} has the id {key!r}; an id is a text")
        if key in found:
            raise _WorkflowError(f"the {what} id {key!r} occurs twice; ids are unique")
        found[key] = entry
    return found


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _WorkflowError(f"{where} is {type(value).__name__}, not an object; not WfCommons")
    return value


def _part(parent: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if name not in parent:
        raise _WorkflowError(f"{where} has no {name!r} section; it is required in WfCommons 1.5")
    return _mapping(parent[name], name)


def _list(parent: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = parent.get(name)
    if not isinstance(value, list):
        raise _WorkflowError(f"{where} has no list {name!r}; it is required in WfCommons 1.5")
    return value


def _names(task: Mapping[str, Any], field: str, key: str) -> list[str]:
    names = task.get(field, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _WorkflowError(f"task {key!r} has {field}={names!r}; it is a list of names")
    return names
