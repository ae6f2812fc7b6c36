"""The journal: the event log of `deepflow.decide.events` in a file.

A file is a header line and then one event per line, each line JSON; compressed with zstd if the
name ends in `.zst`. It is written as things happen and never held whole, so a crash loses at most
what was not flushed yet, and may leave a torn last line. A reader skips a torn last line and says
so; anything else that is not as it was written is refused.

    {"format":"deepflow-journal","version":3,"clock":"unix","deepflow":"0.1.0"}
    {"Submitted":{"at_s":1.0,"key":"a-1","task":"a","flow":"f","run":"r", ...}}
    {"Finished":{"at_s":2.0, ...}}
"""

from __future__ import annotations

import io
import logging
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson
import zstandard
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from deepflow.decide.events import Event, RunNamed, Submitted
from deepflow.decide.trail import count_task_runs
from deepflow.errors import JournalError, nearest
from deepflow.observe.text import to_json

__all__ = ["Header", "JournalWriter", "find_journal", "match_runs"]
__all__ += ["RunRecord", "iter_journal", "newest_journal", "read_header", "read_journal"]
__all__ += ["recent_runs"]

FORMAT: Final = "deepflow-journal"
VERSION: Final = 3
"""1 and 2 have fewer kinds of events and are read as they are."""
SUFFIXES: Final = (".journal", ".journal.zst")
"""How the names of journals end, where a directory of them is searched."""

Clock = Literal["unix", "virtual"]

_FLUSH_EVERY: Final = 512
_MAX_LINE_BYTES: Final = 16 * 1024**2
_log = logging.getLogger("deepflow.observe.journal")


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a journal."""

    clock: Clock
    """What its times are: seconds of Unix time, or virtual seconds of a simulation."""
    deepflow: str
    """The version that wrote it."""
    version: int


class JournalWriter:
    """Writes events to a new file as they happen; a context manager.

    `write` keeps at most a few hundred events before they go to the file; `flush` sends them now.
    Raises :class:`JournalError` if the file is there already or cannot be made: a journal is never
    written over. Not for use by several threads at once.
    """

    def __init__(self, path: Path, *, clock: Clock) -> None:
        from deepflow import __version__

        self.path = Path(path)
        self.n_events = 0
        self._n_waiting = 0
        try:
            self._raw = self.path.open("xb")
        except FileExistsError as error:
            raise JournalError(
                f"{self.path} is there already, and a journal is never written over; "
                "give another name or remove the file"
            ) from error
        except OSError as error:
            raise JournalError(
                f"the journal {self.path} cannot be written ({error.strerror}); "
                "give a path in a directory that exists and can be written to"
            ) from error
        self._out: Any = self._raw
        if _is_compressed(self.path):
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            self._out = compressor.stream_writer(self._raw)
        head = {"format": FORMAT, "version": VERSION, "clock": clock, "deepflow": __version__}
        self._out.write(orjson.dumps(head) + b"\n")
        self.flush()

    def write(self, event: Event) -> None:
        """Add one event."""
        name = type(event).__name__.encode()
        try:
            said = orjson.dumps(event)
        except TypeError:
            said = to_json(asdict(event), "journal")
        self._out.write(b'{"%b":%b}\n' % (name, said))
        self.n_events += 1
        self._n_waiting += 1
        if self._n_waiting >= _FLUSH_EVERY:
            self.flush()

    def write_all(self, events: Iterable[Event]) -> None:
        """Add events, in order."""
        for event in events:
            self.write(event)

    def flush(self) -> None:
        """Hand what was written to the operating system; a reader sees it from then on."""
        self._n_waiting = 0
        self._out.flush()
        if self._out is not self._raw:
            self._raw.flush()

    def close(self) -> None:
        """Flush and end the file; again does nothing."""
        if not self._raw.closed:
            self._out.flush()
            self._out.close()  # of a compressor: ends the frame, and closes the file
            self._raw.close()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_journal(path: Path) -> tuple[Event, ...]:
    """All events of the journal at `path`.

    A torn last line is skipped, and said in a warning of the log. Raises :class:`JournalError` for
    a file that cannot be read, is no journal, is of a newer version, or is damaged.
    """
    return tuple(iter_journal(path))


def iter_journal(path: Path) -> Iterator[Event]:
    """The events of the journal at `path`, one by one and in bounded memory; as `read_journal`."""
    lines = _lines(path)
    _header_of(path, next(lines, b""))
    for number, line in enumerate(lines, start=2):
        yield _event_of(path, number, line)


def read_header(path: Path) -> Header:
    """The header of the journal at `path`; raises as `read_journal`."""
    return _header_of(path, next(_lines(path), b""))


def newest_journal(path: Path) -> Path:
    """`path` itself if it is a file, else the youngest journal in the directory.

    Raises :class:`JournalError` where there is none.
    """
    if not path.is_dir():
        return path
    found = [one for one in path.iterdir() if one.name.endswith(SUFFIXES) and one.is_file()]
    if not found:
        raise JournalError(
            f"there is no journal in {path} (no file named *{' or *'.join(SUFFIXES)}); "
            "name a journal with --journal"
        )
    return max(found, key=lambda one: (one.stat().st_mtime, one.name))


def find_journal(path: Path, wanted: str) -> Path:
    """The journal of the run that people call `wanted`: `path` itself if it is a file, else the one
    in the directory that has it.

    `wanted` is as for `match_runs`. A damaged journal is passed over, and said in the log. Raises
    :class:`JournalError` where there is no such run, or where several are meant.
    """
    if not path.is_dir():
        return path
    newest_journal(path)  # says so where there is none at all
    found = sorted(
        (one for one in path.iterdir() if one.name.endswith(SUFFIXES) and one.is_file()),
        key=lambda one: (_modified_s(one), one.name),
    )
    told = [(run, one) for one in found for run in _named_runs(one)]
    try:
        runs = match_runs([run for run, _ in told], wanted)
    except JournalError:
        # Journals of older versions do not begin with a name: they have to be read.
        named = {one for _, one in told}
        told += [(run, one) for one in found if one not in named for run in _mentioned_runs(one)]
        runs = match_runs([run for run, _ in told], wanted)
    (_, journal) = next(pair for pair in reversed(told) if pair[0] == runs[-1])
    return journal


def match_runs(runs: Sequence[RunNamed], wanted: str) -> tuple[RunNamed, ...]:
    """Which of `runs`, the oldest first, is called `wanted`.

    By id, else by name, else the newest of the flow of that name, else by the beginning of an id or
    a name, else the newest of the flow whose name begins so. Runs of one name come all. Raises
    :class:`JournalError` for none, or where a beginning fits several.
    """
    wanted = wanted.removesuffix("…")  # as a table cuts it
    for found in (
        [run for run in runs if run.run == wanted],
        [run for run in runs if run.name and run.name == wanted],
        [run for run in runs if run.flow == wanted][-1:],
    ):
        if found:
            return tuple(found)
    begin = {run.run: run for run in runs if run.run.startswith(wanted)}
    begin |= {run.run: run for run in runs if run.name and run.name.startswith(wanted)}
    if len(begin) == 1:
        return tuple(begin.values())
    if begin:
        raise JournalError(
            f"{wanted!r} begins the names of {len(begin)} runs ({_some(begin.values())}); "
            "say more of it"
        )
    flows = list(dict.fromkeys(run.flow for run in runs if wanted and run.flow.startswith(wanted)))
    if len(flows) == 1:
        return tuple([run for run in runs if run.flow == flows[0]][-1:])
    known = [word for run in reversed(runs) for word in (run.name, run.flow, run.run) if word]
    close = nearest(wanted, known)
    advice = f"did you mean {close!r}?" if close else f"there are: {_some(reversed(runs))}"
    raise JournalError(f"no run is called {wanted!r}; {advice} (`deepflow runs` lists them)")


_SHOWN_RUNS: Final = 8


def _some(runs: Iterable[RunNamed]) -> str:
    called = list(dict.fromkeys(run.name or run.run for run in runs))
    more = len(called) - _SHOWN_RUNS
    return ", ".join(called[:_SHOWN_RUNS]) + (f" and {more} more" if more > 0 else "")


def _named_runs(path: Path) -> tuple[RunNamed, ...]:
    """The runs that a journal names at its beginning; none where it is of an older version."""
    named = []
    try:
        for event in iter_journal(path):
            if not isinstance(event, RunNamed):
                break
            named.append(event)
    except JournalError as error:
        _log.warning("a journal is passed over: %s", error)
    return tuple(named)


def _mentioned_runs(path: Path) -> tuple[RunNamed, ...]:
    """The runs of which a journal without names has tasks."""
    runs: dict[str, RunNamed] = {}
    try:
        for event in iter_journal(path):
            if isinstance(event, Submitted):
                runs.setdefault(event.run, RunNamed(event.at_s, event.run, "", event.flow))
    except JournalError as error:
        _log.warning("a journal is passed over: %s", error)
    return tuple(runs.values())


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a journal says of one flow run, in short."""

    run: str
    """Its id."""
    name: str
    """Empty where the journal does not tell."""
    flow: str
    journal: Path
    began_s: float | None
    """When its first task was submitted, in Unix time; None: no task was, or the time is that of a
    simulation."""
    took_s: float | None
    """Seconds from the first submit to the last finish; None: some task did not finish."""
    n_runs: int
    """Task runs that were submitted to Dask."""
    n_finished: int
    """Task runs among them that ended with a result."""


@dataclass(slots=True)
class _Told:
    """A flow run while its journal is read."""

    name: str = ""
    flow: str = ""
    submitted_s: dict[str, float] = field(default_factory=dict)
    n_runs: dict[str, int] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    """Of the task runs in each Dask task, where they are told."""
    finished_s: dict[str, float] = field(default_factory=dict)


def recent_runs(folder: Path, most: int | None = None) -> Iterator[RunRecord]:
    """The flow runs that have left a journal in `folder`, the newest first, each once.

    Journals are read one by one, as far as they are asked for. A damaged journal is passed over,
    and said in the log.
    """
    found = [one for one in folder.iterdir() if one.name.endswith(SUFFIXES) and one.is_file()]
    found.sort(key=lambda one: (_modified_s(one), one.name), reverse=True)
    seen: set[str] = set()
    for path in found:
        try:
            records = _records(path)
        except JournalError as error:
            _log.warning("a journal is passed over: %s", error)
            continue
        for record in reversed(records):
            if record.run not in seen:
                seen.add(record.run)
                yield record
            if len(seen) == most:
                return


def _records(path: Path) -> list[RunRecord]:
    """One for each flow run of a journal, in its order. Only what is needed is decoded, and into no
    events: that takes a fifth of the time, and journals of large runs have a million lines."""
    lines = _lines(path)
    is_real = _header_of(path, next(lines, b"")).clock == "unix"
    runs: dict[str, _Told] = {}
    run_of: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        if not line.startswith(_NEEDED):
            continue
        try:
            ((kind, said),) = orjson.loads(line).items()
            if kind == "RunNamed":
                told = runs.setdefault(said["run"], _Told())
                told.name, told.flow = said["name"], said["flow"]
            elif kind == "Submitted":
                told = runs.setdefault(said["run"], _Told())
                told.flow = told.flow or said["flow"]
                told.submitted_s.setdefault(said["key"], float(said["at_s"]))
                told.n_runs.setdefault(said["key"], int(said.get("n_runs", 1)))
                run_of[said["key"]] = said["run"]
            elif said["key"] not in run_of:
                continue
            elif kind == "TasksNamed":
                runs[run_of[said["key"]]].ids[said["key"]] = [str(one) for one, _ in said["runs"]]
            else:
                of_run = runs[run_of[said["key"]]].finished_s
                of_run.setdefault(said["key"], float(said["stopped_s"]))
        except _NO_EVENT as error:
            raise _no_event(path, number, line, error) from error
    return [_record(path, run, told, is_real) for run, told in runs.items()]


_NEEDED: Final = (b'{"RunNamed"', b'{"Submitted"', b'{"Finished"', b'{"TasksNamed"')


def _n_task_runs(told: _Told, keys: Iterable[str]) -> int:
    return count_task_runs((told.ids.get(key, ()), told.n_runs[key]) for key in keys)


def _record(path: Path, run: str, told: _Told, is_real: bool) -> RunRecord:
    began_s = min(told.submitted_s.values(), default=None)
    ended_s = max(told.finished_s.values(), default=None)
    is_whole = len(told.finished_s) == len(told.submitted_s)
    is_over = began_s is not None and ended_s is not None and is_whole
    return RunRecord(
        run=run,
        name=told.name,
        flow=told.flow,
        journal=path,
        began_s=began_s if is_real else None,
        took_s=ended_s - began_s if is_over else None,  # type: ignore[operator]
        n_runs=_n_task_runs(told, told.submitted_s),
        n_finished=_n_task_runs(told, told.finished_s),
    )


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # removed in between, as the oldest are
        return 0.0


def _is_compressed(path: Path) -> bool:
    return path.name.endswith(".zst")


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines without their ends. A last line without an end is skipped, and said."""
    try:
        with path.open("rb") as raw:
            source: Any = raw
            if _is_compressed(path):
                source = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            with io.BufferedReader(source, buffer_size=1 << 18) as lines:
                while line := lines.readline(_MAX_LINE_BYTES):
                    if line.endswith(b"\n"):
                        yield line[:-1]
                    elif len(line) == _MAX_LINE_BYTES:
                        raise _foreign(path, f"it has a line above {_MAX_LINE_BYTES} bytes")
                    else:
                        _log.warning(
                            "the last line of the journal %s is torn and was skipped (%d bytes): "
                            "whoever wrote it was stopped in the middle of it",
                            path,
                            len(line),
                        )
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be read ({error.strerror or error}); "
            "check the path and your right to read it"
        ) from error
    except zstandard.ZstdError as error:
        raise _foreign(path, f"its compressed bytes do not read as zstd ({error})") from error


def _header_of(path: Path, line: bytes) -> Header:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise _foreign(path, f"its first line is {_shown(line)}, not the header of a journal")
    version = said.get("version")
    if not isinstance(version, int) or version < 1:
        raise _foreign(path, f"its header says version={version!r}")
    if version > VERSION:
        raise JournalError(
            f"the journal {path} is of version {version}, written by deepflow "
            f"{said.get('deepflow')!r}; this deepflow reads up to version {VERSION}: upgrade it"
        )
    if said.get("clock") not in typing.get_args(Clock):
        raise _foreign(path, f"its header says clock={said.get('clock')!r}")
    return Header(said["clock"], str(said.get("deepflow")), version)


def _event_of(path: Path, number: int, line: bytes) -> Event:
    try:
        if b"null" in line:
            line = _NO_NUMBER.sub(b'":Infinity', line)
        ((_, event),) = _events().validate_json(line, strict=True, extra="forbid").items()
        return event
    except _NO_EVENT as error:
        raise _no_event(path, number, line, error) from error


_NO_EVENT: Final = (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError)


_NO_NUMBER: Final = re.compile(rb'":null(?=[,}])(?<=[a-z_]":null)')
"""JSON has no infinity, which is what a policy's score is for a worker it ruled out. The writer
puts null there. Within a string, a quote has a backslash before it and is no match."""


@cache
def _events() -> TypeAdapter[dict[str, Event]]:
    """What reads a line: an object with one event under the name of its kind."""
    kinds = {kind.__name__: kind for kind in typing.get_args(Event)}
    line = TypedDict("line", kinds, total=False)  # type: ignore[misc]
    return TypeAdapter(cast("type[dict[str, Event]]", line))


def _no_event(path: Path, number: int, line: bytes, error: Exception) -> JournalError:
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        cause = ": ".join([*map(str, first["loc"]), first["msg"]])
    return _foreign(path, f"line {number} is {_shown(line)}, no event ({cause})")


def _foreign(path: Path, what: str) -> JournalError:
    return JournalError(
        f"{path} is no journal or is damaged: {what}; "
        "name a journal that deepflow wrote, or restore this one from a copy"
    )


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace")) + ("…" if len(line) > 80 else "")
