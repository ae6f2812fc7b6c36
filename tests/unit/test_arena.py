"""Segments shared between processes: what readers see, when memory is reused, what is left."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepflow.intermediates import arena as module
from deepflow.intermediates.arena import Arena, SegmentGone, attach, read_key, sweep

MB = 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def arena(folder: Path) -> Iterator[Arena]:
    made = Arena(folder, limit_bytes=64 * MB, pool_bytes=32 * MB)
    yield made
    made.close()


def numbers(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 40, n)


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".key")


def test_a_reader_sees_the_buffers(arena: Arena, folder: Path) -> None:
    first, second = numbers(1000), numbers(77, 1).astype("i1")
    sealed = arena.put([first.data, second.data, b""])
    assert sealed is not None
    views = attach(folder, sealed.descriptor)
    assert [view.nbytes for view in views] == [8000, 77, 0]
    assert np.array_equal(np.frombuffer(views[0], np.int64), first)
    assert np.array_equal(np.frombuffer(views[1], np.int8), second)
    assert sealed.descriptor.size_bytes == 8077


def test_what_one_writes_no_other_sees(arena: Arena, folder: Path) -> None:
    content = numbers(10_000)
    sealed = arena.put([content.data])
    assert sealed is not None
    (one,), (other,) = attach(folder, sealed.descriptor), attach(folder, sealed.descriptor)
    np.frombuffer(one, np.int64)[:] = 0
    np.frombuffer(sealed.buffers[0], np.int64)[:5] = 1
    assert np.array_equal(np.frombuffer(other, np.int64), content)
    assert np.array_equal(np.frombuffer(attach(folder, sealed.descriptor)[0], np.int64), content)


def test_a_descriptor_of_a_freed_segment_is_refused_and_the_memory_used_again(
    arena: Arena, folder: Path
) -> None:
    sealed = arena.put([numbers(10_000).data])
    assert sealed is not None
    old = sealed.descriptor
    del sealed
    gc.collect()
    again = arena.put([numbers(10_000, 2).data])
    assert again is not None
    assert again.descriptor.number == old.number
    with pytest.raises(SegmentGone, match="fetch the value another way"):
        attach(folder, old)


def test_a_segment_that_is_read_is_not_filled_again(arena: Arena, folder: Path) -> None:
    content = numbers(10_000)
    sealed = arena.put([content.data])
    assert sealed is not None
    old = sealed.descriptor
    view = np.frombuffer(attach(folder, old)[0], np.int64)
    del sealed
    gc.collect()
    other = arena.put([numbers(10_000, 3).data])
    assert other is not None
    assert other.descriptor.number != old.number
    assert np.array_equal(view, content)
    # The reader may even be joined by another one, until it is gone.
    assert attach(folder, old)
    del view
    gc.collect()
    third = arena.put([numbers(10_000, 4).data])
    assert third is not None
    assert third.descriptor.number == old.number


def test_a_view_of_the_owner_keeps_the_segment(arena: Arena, folder: Path) -> None:
    content = numbers(10_000)
    sealed = arena.put([content.data])
    assert sealed is not None
    kept, descriptor = np.frombuffer(sealed.buffers[0], np.int64)[100:200], sealed.descriptor
    del sealed
    gc.collect()
    arena.put([numbers(10_000, 1).data])
    assert np.array_equal(kept, content[100:200])
    assert attach(folder, descriptor)


def test_the_limit_holds_and_what_goes_beyond_it_is_refused(arena: Arena) -> None:
    kept = [arena.put([bytes(30 * MB)]) for _ in range(3)]
    assert [sealed is None for sealed in kept] == [False, False, True]
    assert arena.used_bytes <= arena.limit_bytes
    kept.clear()
    gc.collect()
    assert arena.put([bytes(60 * MB)]) is not None
    assert arena.used_bytes <= arena.limit_bytes


def test_the_pool_keeps_no_more_than_it_may(arena: Arena, folder: Path) -> None:
    kept = [arena.put([bytes(14 * MB)]) for _ in range(4)]
    assert len(segments(folder)) == 4
    kept.clear()
    gc.collect()
    arena.tidy()
    assert arena.used_bytes <= arena.pool_bytes
    assert len(segments(folder)) == 2


def test_a_full_file_system_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(folder, 64 * MB, 0)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert arena.put([bytes(MB)]) is None
    assert segments(folder) == []
    arena.close()


def test_a_tenth_of_the_file_system_is_left_to_others(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        f_frsize, f_bavail, f_blocks = 4096, 1_000, 5_000  # 4 MB free of 20

    monkeypatch.setattr(module.os, "statvfs", lambda _: Small)
    assert arena.put([bytes(3 * MB)]) is None
    assert arena.put([bytes(MB)]) is not None


def test_closing_removes_every_file_and_leaves_views_alone(arena: Arena, folder: Path) -> None:
    content = numbers(1000)
    sealed = arena.put([content.data])
    assert sealed is not None
    view = np.frombuffer(attach(folder, sealed.descriptor)[0], np.int64)
    arena.close()
    assert list(folder.iterdir()) == []
    assert np.array_equal(view, content)
    assert np.array_equal(np.frombuffer(sealed.buffers[0], np.int64), content)
    assert arena.put([b"x"]) is None


def test_a_key_proves_the_same_folder(arena: Arena, folder: Path) -> None:
    assert read_key(folder, arena.key_name) == arena.key != b""
    assert read_key(folder, "deepflow-0123456789abcdef.key") is None
    assert read_key(folder, "../etc/passwd") is None
    other = folder / "other"
    other.mkdir()
    assert read_key(other, arena.key_name) is None


@pytest.mark.parametrize(
    "change",
    [{"generation": 7}, {"number": 99}, {"owner": "../../etc"}, {"spans": ((4096, 1 << 40),)}],
)
def test_a_wrong_descriptor_is_refused(
    arena: Arena, folder: Path, change: dict[str, object]
) -> None:
    sealed = arena.put([numbers(100).data])
    assert sealed is not None
    with pytest.raises(SegmentGone):
        attach(folder, replace(sealed.descriptor, **change))  # type: ignore[arg-type]


def test_a_file_of_another_kind_or_cut_off_is_refused(arena: Arena, folder: Path) -> None:
    sealed = arena.put([numbers(100).data])
    assert sealed is not None
    descriptor = replace(sealed.descriptor, number=50)
    path = folder / f"deepflow-{arena.owner}.50"
    for content in (b"", b"x" * 100, b"y" * 8192):
        path.write_bytes(content)
        with pytest.raises(SegmentGone):
            attach(folder, descriptor)


OWNER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from deepflow.intermediates.arena import Arena
    arena = Arena(Path(sys.argv[1]), 10_000_000, 0)
    kept = arena.put([b"a" * 1_000_000])
    print(kept.descriptor, flush=True)
    time.sleep(600)
    """
)


def test_what_a_killed_owner_leaves_is_swept_and_a_living_ones_is_not(
    arena: Arena, folder: Path
) -> None:
    mine = arena.put([numbers(100).data])
    assert mine is not None
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        descriptor = eval(line, {"Descriptor": module.Descriptor})
        view = attach(folder, descriptor)[0]
        assert sweep(folder) == 0
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert sweep(folder) == 2
    assert bytes(view[:3]) == b"aaa"
    with pytest.raises(SegmentGone):
        attach(folder, descriptor)
    assert attach(folder, mine.descriptor)


def test_a_missing_folder_is_an_os_error(folder: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        Arena(folder / "absent", MB, 0)
