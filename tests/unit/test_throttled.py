"""Emulated speeds: how long a step takes on which class of worker, in virtual time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flows._genome import variants
from tests.benchmarks._throttled import Stretch, Throttle, slowed


class Machine:
    """Virtual clocks: work takes CPU time and, on a busy machine, more wall time."""

    def __init__(self, wall_per_cpu: float = 1.0) -> None:
        self.wall_s = self.cpu_s = 0.0
        self.wall_per_cpu = wall_per_cpu

    def work(self, seconds: float) -> float:
        self.cpu_s += seconds
        self.wall_s += seconds * self.wall_per_cpu
        return seconds

    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds

    def run(self, stretch: float, seconds: float) -> float:
        step = slowed(
            self.work,
            stretch,
            wall_s=lambda: self.wall_s,
            cpu_s=lambda: self.cpu_s,
            sleep=self.sleep,
        )
        assert step(seconds) == seconds
        return self.wall_s


def test_a_step_takes_its_cpu_time_times_the_stretch() -> None:
    assert Machine().run(4.0, 0.5) == pytest.approx(2.0)


def test_waiting_for_a_core_is_part_of_the_duration_not_on_top() -> None:
    assert Machine(wall_per_cpu=3.0).run(4.0, 0.5) == pytest.approx(2.0)


def test_a_machine_that_is_too_busy_is_not_waited_for() -> None:
    assert Machine(wall_per_cpu=6.0).run(4.0, 0.5) == pytest.approx(3.0)


def test_a_step_that_fails_takes_as_long_and_fails() -> None:
    machine = Machine()

    def fail() -> None:
        machine.work(1.0)
        raise ValueError("no")

    step = slowed(
        fail,
        5.0,
        wall_s=lambda: machine.wall_s,
        cpu_s=lambda: machine.cpu_s,
        sleep=machine.sleep,
    )
    with pytest.raises(ValueError, match="no"):
        step()
    assert machine.wall_s == pytest.approx(5.0)


def test_the_first_pattern_that_matches_says_the_stretch() -> None:
    stretch = Stretch(8.0, (("flows._images.network.read", 2.0), ("*network*", 1.0)))
    assert stretch.of("flows._images.network.read") == 2.0
    assert stretch.of("flows._images.network.train") == 1.0
    assert stretch.of("flows._images.sheets.scan") == 8.0


def test_steps_are_replaced_on_the_worker_and_put_back() -> None:
    original = variants.merge
    throttle = Throttle(["flows._genome.variants.merge"], {"slow": Stretch(2.0)})
    throttle.setup(SimpleNamespace(name="slow-0"))
    try:
        assert variants.merge is not original
        with pytest.raises(ValueError, match="one chromosome"):
            variants.merge([])
    finally:
        throttle.teardown(SimpleNamespace(name="slow-0"))
    assert variants.merge is original


def test_a_worker_of_an_unknown_class_is_an_error() -> None:
    throttle = Throttle(["flows._genome.variants.merge"], {"slow": Stretch(2.0)})
    with pytest.raises(KeyError, match="fast"):
        throttle.setup(SimpleNamespace(name="fast-0"))
