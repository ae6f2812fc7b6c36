"""The watch for a cancellation through the API: what it asks, and when it acts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from deepflow.observe import metrics
from deepflow.runner.driver import watching
from deepflow.runner.driver.watching import CancellationWatch

LOGGER = logging.getLogger("deepflow.tests")
PATIENCE_S = 30.0


@pytest.mark.parametrize(
    "states", [["CANCELLING"], ["CANCELLED"], ["RUNNING", "CANCELLING"]], ids=lambda s: "+".join(s)
)
def test_it_acts_once_when_the_run_or_its_caller_is_cancelled(states: list[str]) -> None:
    answers = iter([["RUNNING"], ["RUNNING"], states])
    acted = threading.Event()
    n_acted: list[int] = []

    def act() -> None:
        n_acted.append(1)
        acted.set()

    watch = CancellationWatch(lambda: next(answers), act, LOGGER, every_s=0.001)
    assert acted.wait(PATIENCE_S)
    watch._thread.join(PATIENCE_S)
    assert n_acted == [1]
    assert watch.is_cancelled
    assert next(answers, "asked no more") == "asked no more"


def test_a_server_that_does_not_answer_is_counted_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "_AFTER_A_FAULT_S", 0.001)
    acted = threading.Event()

    def answers() -> Iterator[list[str] | Exception]:
        yield ConnectionError("away")
        yield ConnectionError("still away")
        yield ["CANCELLING"]

    given = answers()

    def read() -> list[str]:
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return answer

    before = metrics.value("deepflow_fallbacks_total", kind="cancellation_unknown")
    with caplog.at_level(logging.WARNING, logger=LOGGER.name):
        CancellationWatch(read, acted.set, LOGGER, every_s=0.001)
        assert acted.wait(PATIENCE_S)
    assert metrics.value("deepflow_fallbacks_total", kind="cancellation_unknown") == before + 2
    assert len(caplog.records) == 1


def test_a_closed_watch_asks_and_does_nothing() -> None:
    asked = threading.Event()
    watch = CancellationWatch(
        lambda: (asked.set(), ["CANCELLED"])[1],  # type: ignore[func-returns-value]
        lambda: pytest.fail("it acted"),
        LOGGER,
        every_s=PATIENCE_S,
    )
    watch.close()
    watch._thread.join(PATIENCE_S)
    assert not watch._thread.is_alive()
    assert not asked.is_set()
