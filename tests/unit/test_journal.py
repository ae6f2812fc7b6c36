"""A journal gives back what was written, whatever happened to its end, and refuses damage."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest

from deepflow.decide.events import (
    Candidate,
    CodecChoice,
    Event,
    Failed,
    Finished,
    Held,
    Moved,
    Placed,
    RunNamed,
    Started,
    Submitted,
    TasksNamed,
    Transferred,
    WorkerJoined,
    WorkerLeft,
)
from deepflow.errors import JournalError
from deepflow.observe.journal import (
    JournalWriter,
    find_journal,
    iter_journal,
    newest_journal,
    read_header,
    read_journal,
)

EVENTS: tuple[Event, ...] = (
    RunNamed(0.0, "run", "sapphire-owl", "flow"),
    WorkerJoined(0.0, "w-0", "big", 2, 2**34, "h", "r", "z", "cloud", (("GPU", 1.0),)),
    Submitted(0.5, "a-1", "a", "flow", "run", (), 10, (("GPU", 0.5),), 0.0, 3, 7),
    Submitted(0.5, "b-1", "b", "flow", "run", ("a-1",), soft_gpu=1.0),
    Held(0.6, "a-1", "no GPU is free"),
    Placed(0.7, "a-1", "w-0", "eft", (Candidate("w-0", 0.0, 1.0, 2.0, 3.0),), "prefetch"),
    Started(1.0, "a-1", "w-0"),
    Transferred(1.5, "a-1", "w-0", "w-1", 1000, 0.25),
    Finished(2.0, "a-1", "w-0", 1.0, 1.9, 1000, on_gpu=True),
    Failed(3.0, "b-1", "w-0", "worker-lost"),
    Moved(
        *(3.0, "run", "a", "w-0", 2, 1000, 400, 0, 0, 0.5),
        (("pco", 1000, 400),),
        (CodecChoice("pco", 2, 0.1, 0.4, 0.2, "4.0 times faster than raw"),),
    ),
    WorkerLeft(3.0, "w-0", "killed"),
    TasksNamed(4.0, "a-1", (("id-1", "a-0"), ("id-2", "a-1"))),
)
NAMES = ["run.journal", "run.journal.zst"]


def written(path: Path, events: tuple[Event, ...] = EVENTS) -> Path:
    with JournalWriter(path, clock="virtual") as journal:
        journal.write_all(events)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_event_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    assert read_journal(path) == EVENTS
    assert read_header(path).clock == "virtual"


def test_a_name_that_is_not_utf8_is_shown_as_escapes(tmp_path: Path) -> None:
    odd = "caf\udce9"
    path = written(tmp_path / "run.journal", (RunNamed(0.0, "run", odd, odd),))
    assert read_journal(path) == (RunNamed(0.0, "run", "caf\\udce9", "caf\\udce9"),)


@pytest.mark.parametrize("version", [1, 2])
def test_journals_of_older_versions_are_read(tmp_path: Path, version: int) -> None:
    lines = written(tmp_path / "new.journal", EVENTS[1:-1]).read_bytes().split(b"\n", 1)
    old = tmp_path / "old.journal"
    old.write_bytes(lines[0].replace(b'"version":3', b'"version":%d' % version) + b"\n" + lines[1])
    assert read_header(old).version == version
    assert read_journal(old) == EVENTS[1:-1]


def journal_of(folder: Path, run: str, name: str, flow: str, at_s: float) -> Path:
    """A journal as a flow run leaves it; without a name, as older versions did."""
    named = [RunNamed(at_s, run, name, flow)] if name else []
    path = folder / f"{run}.journal.zst"
    written(path, (*named, Submitted(at_s, f"{run}-a-1", "a", flow, run)))
    os.utime(path, (at_s, at_s))
    return path


def test_the_journal_of_a_run_is_found_by_what_people_call_the_run(tmp_path: Path) -> None:
    old = journal_of(tmp_path, "0190-old", "", "ancient", 5.0)
    first = journal_of(tmp_path, "0195-aa", "sapphire-owl", "etl", 10.0)
    second = journal_of(tmp_path, "0195-ab", "crimson-fox", "etl", 20.0)
    third = journal_of(tmp_path, "0196-ac", "sapphire-cat", "train", 30.0)
    (tmp_path / "damaged.journal").write_bytes(b"not a journal\n")
    for wanted, found in {
        "sapphire-owl": first,
        "0195-aa": first,
        "etl": second,
        "crimson": second,
        "0196": third,
        "train": third,
        "ancient": old,
        "0190-o": old,
    }.items():
        assert find_journal(tmp_path, wanted) == found, wanted
    assert find_journal(first, "whatever") == first


def test_what_names_no_run_or_several_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no journal in"):
        find_journal(tmp_path, "etl")
    journal_of(tmp_path, "0195-aa", "sapphire-owl", "etl", 10.0)
    journal_of(tmp_path, "0196-ac", "sapphire-cat", "train", 30.0)
    with pytest.raises(JournalError, match=r"2 runs .*sapphire-owl, sapphire-cat.*say more"):
        find_journal(tmp_path, "sapphire")
    with pytest.raises(JournalError, match="did you mean 'sapphire-owl'"):
        find_journal(tmp_path, "saphire-owl")
    with pytest.raises(JournalError, match="there are: sapphire-cat, sapphire-owl"):
        find_journal(tmp_path, "zzzz")


@pytest.mark.parametrize("name", NAMES)
def test_a_journal_without_events_is_one(tmp_path: Path, name: str) -> None:
    assert read_journal(written(tmp_path / name, ())) == ()


def test_the_score_of_a_worker_that_was_ruled_out_stays_infinite(tmp_path: Path) -> None:
    placed = Placed(0.0, "a", "w", "p", (Candidate("v", 0.0, 0.0, math.inf, math.inf),))
    assert read_journal(written(tmp_path / "run.journal", (placed,))) == (placed,)


@pytest.mark.parametrize("text", ['":null,', 'x":null}', '\\":null,', 'a":null,"b":null}'])
def test_text_that_looks_like_a_missing_number_stays_as_it_is(tmp_path: Path, text: str) -> None:
    left = WorkerLeft(0.0, text, text)
    assert read_journal(written(tmp_path / "run.journal", (left,))) == (left,)


def test_integers_where_seconds_are_told_come_back_as_seconds(tmp_path: Path) -> None:
    (back,) = read_journal(written(tmp_path / "run.journal", (Started(1, "a", "w"),)))
    assert isinstance(back, Started)
    assert type(back.at_s) is float


@pytest.mark.parametrize("name", NAMES)
def test_what_was_flushed_is_read_while_the_writer_is_still_at_it(
    tmp_path: Path, name: str
) -> None:
    with JournalWriter(tmp_path / name, clock="unix") as journal:
        journal.write_all(EVENTS[:4])
        journal.flush()
        assert read_journal(tmp_path / name) == EVENTS[:4]
        journal.write_all(EVENTS[4:])
    assert read_journal(tmp_path / name) == EVENTS


def test_the_writer_keeps_few_events_to_itself(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "run.journal", clock="unix") as journal:
        for i in range(5000):
            journal.write(Started(float(i), f"a-{i}", "w"))
        assert 5000 - len(read_journal(tmp_path / "run.journal")) < 600


@pytest.mark.parametrize("name", NAMES)
def test_a_torn_end_is_skipped_and_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    journal = JournalWriter(path, clock="unix")
    journal.write_all(EVENTS[:-1])
    journal.flush()
    size = path.stat().st_size
    journal.close()
    path.write_bytes(path.read_bytes()[: size - 5])
    with caplog.at_level(logging.WARNING, logger="deepflow.observe.journal"):
        back = read_journal(path)
    assert back == EVENTS[: len(back)]
    assert name.endswith(".zst") or len(back) == len(EVENTS) - 2
    assert name.endswith(".zst") or "torn" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_at_any_cut_a_prefix_comes_back_once_the_header_is_there(tmp_path: Path, name: str) -> None:
    whole = written(tmp_path / name).read_bytes()
    first_flush = written(tmp_path / f"empty-{name}", ()).stat().st_size
    cut_at = tmp_path / f"cut-{name}"
    for cut in range(len(whole)):
        cut_at.write_bytes(whole[:cut])
        if cut >= first_flush:
            back = read_journal(cut_at)
            assert back == EVENTS[: len(back)]
        elif cut < 20:
            with pytest.raises(JournalError):
                read_journal(cut_at)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not the header"),
        (b"time,worker\n1,2\n", "not the header"),
        (b'{"a": 1}\n', "not the header"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not the header"),
        (b'{"format":"deepflow-journal","version":0,"clock":"unix"}\n', "version=0"),
        (b'{"format":"deepflow-journal","version":1,"clock":"sun"}\n', "clock='sun'"),
        (b'{"format":"deepflow-journal","version":9,"clock":"unix"}\n', "upgrade"),
    ],
)
def test_a_foreign_file_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=said) as refused:
        read_journal(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        b"{torn",
        b"[]",
        b'{"Unheard":{"at_s":1.0}}',
        b'{"Started":{"at_s":1.0,"key":"a"}}',
        b'{"Started":{"at_s":"noon","key":"a","worker":"w"}}',
        b'{"Started":{"at_s":1.0,"key":"a","worker":"w","more":1}}',
        b'{"Started":{"at_s":true,"key":"a","worker":"w"}}',
        b'{"Started":[1.0,"a","w"]}',
        b'{"Started":{},"Finished":{}}',
        b"{}",
        b'{"Started":{"at_s":1.0,"key":null,"worker":"w"}}',
        b'{"WorkerLeft":{"at_s":1.0,"worker":"w","cause":7}}',
        b'{"WorkerJoined":{"at_s":1.0,"worker":"w","worker_class":"c","threads":2.0}}',
        b'{"WorkerJoined":{"at_s":1.0,"worker":"w","worker_class":"c","threads":true}}',
    ],
)
def test_damage_in_the_middle_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "run.journal")
    lines = path.read_bytes().split(b"\n")
    lines[3] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match=r"line 4 is .*restore"):
        read_journal(path)


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.journal.zst")
    content = bytearray(path.read_bytes())
    content[0] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(JournalError, match="zstd"):
        read_journal(path)


def test_a_changed_byte_is_told_by_the_checksum(tmp_path: Path) -> None:
    events = tuple(Started(float(i), f"a-{i * 7919 % 1000}", "w") for i in range(2000))
    path = written(tmp_path / "run.journal.zst", events)
    whole = path.read_bytes()
    for at in range(len(whole) // 4, len(whole), len(whole) // 20):
        content = bytearray(whole)
        content[at] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(JournalError):
            read_journal(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be read"):
        read_journal(tmp_path / "none.journal")


def test_a_journal_is_never_written_over(tmp_path: Path) -> None:
    path = written(tmp_path / "run.journal")
    with pytest.raises(JournalError, match="never written over"):
        JournalWriter(path, clock="unix")
    assert read_journal(path) == EVENTS
    with pytest.raises(JournalError, match="cannot be written"):
        JournalWriter(tmp_path / "no" / "run.journal", clock="unix")


def test_reading_one_by_one_stops_where_the_reader_does(tmp_path: Path) -> None:
    events = iter_journal(written(tmp_path / "run.journal.zst"))
    assert next(events) == EVENTS[0]


def test_the_newest_journal_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no journal in"):
        newest_journal(tmp_path)
    old, new = written(tmp_path / "b.journal"), written(tmp_path / "a.journal.zst")
    (tmp_path / "notes.txt").write_text("newer, but no journal")
    os.utime(old, (1, 1))
    assert newest_journal(tmp_path) == new
    assert newest_journal(old) == old
