"""The locator: side by side, within the deadline, remembered, one log line a cause."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections import Counter
from importlib.metadata import EntryPoint

import pytest

from deepflow.decide.location import Location
from deepflow.errors import ConfigurationError
from deepflow.hints import Near
from deepflow.locate import resolvers
from deepflow.locate.locator import Locator
from deepflow.locate.resolvers import Resolver, register_resolver

SOON_S = 0.05
"""A deadline that a resolver that waits for the test to let it go never meets."""


class Tape(Resolver):
    """Zones by library; remembers what it was asked, and does what the test says."""

    schemes = ("tape",)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.raises: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()

    def resolve(self, near: Near) -> Location:
        self.asked.append(near.value)
        assert self.goes_on.wait(30)
        if self.raises is not None:
            raise self.raises
        return Location(zones=(near.value.split("/")[2],))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def tape():
    tape = Tape()
    yield tape
    tape.goes_on.set()


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def locator(tape, counted, clock):
    with Locator(
        resolvers=[tape], timeout_s=20, count=lambda kind: counted.update([kind]), clock=clock
    ) as one:
        yield one


@pytest.fixture
def hasty(tape, counted, clock):
    with Locator(
        resolvers=[tape], timeout_s=SOON_S, count=lambda kind: counted.update([kind]), clock=clock
    ) as one:
        yield one


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def near(url: str = "tape://lib1/a") -> Near:
    return Near.of(url)


def test_an_answer_holds_for_its_time_and_is_then_asked_again(locator, tape, clock) -> None:
    assert locator.locate(near()) == Location(zones=("lib1",))
    clock.now_s = 299.0
    assert locator.locate(near()) == Location(zones=("lib1",))
    assert len(tape.asked) == 1
    clock.now_s = 301.0
    assert locator.locate(near()) == Location(zones=("lib1",))
    assert len(tape.asked) == 2


def test_many_are_asked_side_by_side_and_the_same_one_once(locator, tape) -> None:
    together = threading.Barrier(4)

    class Meeting(Tape):
        def resolve(self, near: Near) -> Location:
            together.wait(20)  # passes only if four are under way at once
            return super().resolve(near)

    meeting = Meeting()
    with Locator(resolvers=[meeting], timeout_s=20) as one:
        urls = [f"tape://lib{i}/a" for i in (1, 2, 3, 4, 1, 2)]
        found = one.locate_all([near(url) for url in urls])
    assert [location.zones[0] for location in found] == [u.split("/")[2] for u in urls]
    assert sorted(meeting.asked) == sorted(set(urls))


def test_a_failure_is_none_one_log_line_a_cause_and_counted(locator, tape, counted, caplog) -> None:
    tape.raises = PermissionError("not yours")
    assert locator.locate_all([near(f"tape://lib1/{i}") for i in range(50)]) == (None,) * 50
    assert counted == {"near_failed": 50}
    (line,) = lines(caplog)
    assert "tape://lib1/" in line
    assert "PermissionError: not yours" in line
    tape.raises = KeyError("x")
    assert locator.locate(near("tape://lib1/other")) is None
    assert len(lines(caplog)) == 2


def test_a_failure_is_remembered_for_a_shorter_time(locator, tape, clock) -> None:
    tape.raises = FileNotFoundError("gone")
    assert locator.locate(near()) is None
    tape.raises = None
    clock.now_s = 29.0
    assert locator.locate(near()) is None
    assert locator.locate(near("tape://lib1/b")) is not None  # one file says nothing of another
    clock.now_s = 31.0
    assert locator.locate(near()) is not None


def test_a_server_that_is_down_is_left_alone_and_others_are_asked(locator, tape, clock) -> None:
    tape.raises = ConnectionRefusedError("no")
    assert locator.locate(near("tape://lib1/a")) is None
    tape.raises = None
    assert locator.locate(near("tape://lib1/b")) is None
    assert locator.locate(near("tape://lib2/a")) is not None
    assert tape.asked == ["tape://lib1/a", "tape://lib2/a"]
    clock.now_s = 31.0
    assert locator.locate(near("tape://lib1/b")) is not None


def test_a_slow_resolver_costs_one_deadline_and_one_log_line(hasty, tape, counted, caplog) -> None:
    tape.goes_on.clear()
    urls = [near(f"tape://lib1/{i}") for i in range(100)]
    assert hasty.locate(urls[0]) is None
    assert hasty.locate_all(urls) == (None,) * 100  # at once: the server is known to be slow
    assert counted == {"near_timeout": 1}
    assert tape.asked == ["tape://lib1/0"]
    (line,) = lines(caplog)
    assert "within 0.05 s" in line


def test_a_late_answer_is_there_the_next_time(hasty, tape) -> None:
    tape.goes_on.clear()
    assert hasty.locate(near()) is None
    waiting = hasty._open[("tape", near().value)]
    tape.goes_on.set()
    assert waiting.result(20) == Location(zones=("lib1",))
    assert hasty.locate(near()) == Location(zones=("lib1",))
    assert tape.asked == [near().value]


def test_the_fast_ones_are_known_although_one_is_slow(tape) -> None:
    class OneIsSlow(Tape):
        def resolve(self, near: Near) -> Location:
            if near.value.endswith("/slow"):
                tape.goes_on.wait(30)
            return super().resolve(near)

    tape.goes_on.clear()
    with Locator(resolvers=[OneIsSlow()], timeout_s=2) as one:
        found = one.locate_all([near("tape://lib1/slow"), near("tape://lib1/fast")])
        assert found == (None, Location(zones=("lib1",)))
        # Something there answered, so the server is not taken for dead.
        assert one.locate(near("tape://lib1/third")) == Location(zones=("lib1",))
        tape.goes_on.set()


def test_an_unknown_scheme_is_said_once_and_a_future_is_not_its_business(
    locator, counted, caplog
) -> None:
    assert locator.locate_all([near("floppy://a/1"), near("floppy://a/2")]) == (None, None)
    assert locator.locate(Near("future", "0" * 32)) is None
    assert counted == {"near_unknown": 2}
    (line,) = lines(caplog)
    assert "no resolver for floppy://" in line
    assert "register_resolver" in line


def test_what_is_said_shows_no_password(locator, tape, caplog) -> None:
    tape.raises = ValueError("http://joe:secret@host/x?op=OPEN&delegation=secret failed")
    locator.locate(near("tape://joe:secret@lib1/a?token=secret"))
    (line,) = lines(caplog)
    assert "secret" not in line
    assert "tape://lib1/a" in line
    assert "http://host/x failed" in line


def test_only_so_much_is_remembered(tape) -> None:
    with Locator(resolvers=[tape], timeout_s=20, max_known=3) as one:
        for i in (1, 2, 3, 1, 4, 1, 2):
            one.locate(near(f"tape://lib/{i}"))
    assert [url[-1] for url in tape.asked] == ["1", "2", "3", "4", "2"]


def test_an_answer_that_is_no_location_is_a_failure(locator, counted, caplog) -> None:
    class Wrong(Tape):
        schemes = ("wrong",)

        def resolve(self, near: Near) -> Location:
            return "here"  # type: ignore[return-value]

    with Locator(resolvers=[Wrong()], timeout_s=20) as one:
        assert one.locate(near("wrong://a")) is None
    assert "is no Location" in lines(caplog)[0]


def test_registered_resolvers_win_over_entry_points_and_given_ones_over_both(
    monkeypatch, caplog
) -> None:
    class Robot(Tape):
        pass

    def found(*, group: str) -> list[EntryPoint]:
        here = __name__ if __name__ != "__main__" else "tests.unit.test_locate_locator"
        assert group == "deepflow.resolvers"
        return [
            EntryPoint("tape", f"{here}:Tape", group),
            EntryPoint("broken", "no.such.module:x", group),
        ]

    monkeypatch.setattr(resolvers, "entry_points", found)
    monkeypatch.setattr(EntryPoint, "load", lambda self: _load(self))
    monkeypatch.setattr(resolvers, "_registered", {})
    assert type(resolvers.added_resolvers()["tape"]) is Tape
    assert "'broken'" in lines(caplog)[0]
    register_resolver(Robot())
    assert type(resolvers.added_resolvers()["tape"]) is Robot
    given = Tape()
    with Locator(resolvers=[given], timeout_s=20) as one:
        one.locate(near())
    assert given.asked


def _load(point: EntryPoint) -> object:
    if point.name == "broken":
        raise ModuleNotFoundError("no.such.module")
    return Tape


@pytest.mark.parametrize("thing", [object(), Tape, type("T", (), {"schemes": "s3"})()])
def test_what_is_no_resolver_is_refused(thing) -> None:
    with pytest.raises(ConfigurationError, match="is no resolver"):
        register_resolver(thing)


def test_the_room_loads_no_dask_no_prefect_and_no_client_of_a_storage() -> None:
    code = (
        "import importlib, pkgutil, sys, deepflow.locate as room\n"
        "for found in pkgutil.walk_packages(room.__path__, 'deepflow.locate.'):\n"
        "    importlib.import_module(found.name)\n"
        "heavy = {'dask', 'distributed', 'prefect', 'torch', 's3fs', 'requests', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deadline_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="timeout_s=0 must be above 0"):
        Locator(timeout_s=0)


def test_it_starts_a_few_threads_and_they_end_with_it(tape) -> None:
    before = set(threading.enumerate())
    with Locator(resolvers=[tape], timeout_s=20, n_threads=3) as one:
        one.locate_all([near(f"tape://lib/{i}") for i in range(30)])
        started = set(threading.enumerate()) - before
        assert 1 <= len([t for t in started if t.name == "deepflow-locate"]) <= 3
    for thread in started:
        thread.join(20)
    assert not any(thread.is_alive() for thread in started)
