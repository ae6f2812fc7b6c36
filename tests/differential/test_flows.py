"""Each case gives its right value under each runner, and leaves the records that threads leave.

The cases are in `flows/`, the runners in `runners.py`, differences that are meant in `meant.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deepflow.runner.server import EmbeddedServer
from tests.differential.cases import Case, Chapter, listed
from tests.differential.compare import differs, records_differ, still_open
from tests.differential.meant import MEANT, meant
from tests.differential.runners import SETTINGS, THREADS, Clusters, Setting, clusters
from tests.differential.running import Outcome, run_chapter
from tests.integration.api import Api

CASES = listed()

pytestmark = pytest.mark.timeout(900)
"""A chapter runs within its first test, and `run_chapter` itself ends a case that hangs."""


class Outcomes:
    """The outcomes of chapters under settings, each run when first asked for."""

    def __init__(self, of_clusters: Clusters, api: Api) -> None:
        self._clusters, self._api = of_clusters, api
        self._known: dict[tuple[str, str], dict[Case, Outcome]] = {}

    def of(self, setting: Setting, case: Case) -> Outcome:
        """What came of a case under a setting."""
        key = setting.name, case.chapter
        if key not in self._known:
            self._known[key] = run_chapter(case.chapter, setting, self._clusters, self._api)
        return self._known[key][case]


@pytest.fixture(scope="module")
def outcomes(server: EmbeddedServer, api: Api) -> Iterator[Outcomes]:
    with clusters() as running:
        yield Outcomes(running, api)


@pytest.mark.parametrize(
    ("setting", "case"),
    [
        pytest.param(
            setting,
            case,
            id=f"{setting.name}-{case.name}",
            marks=[pytest.mark.slow] * setting.is_slow(case.chapter),
        )
        for setting in SETTINGS
        for case in CASES
    ],
)
def test_the_value_is_right_and_the_records_are_those_of_threads(
    outcomes: Outcomes, setting: Setting, case: Case
) -> None:
    outcome = outcomes.of(setting, case)
    assert outcome.hang is None, f"does not end; the stacks:\n{outcome.hang}"
    if not meant(setting, case, "value"):
        assert outcome.error is None, outcome.error
        difference = differs(outcome.value, Chapter(case.chapter).expected(case))
        assert difference is None, difference
    if setting.family == "deepflow":
        assert still_open(outcome.records) == []
    if setting is not THREADS and not case.is_whole and not meant(setting, case, "records"):
        difference = records_differ(
            outcome.records,
            outcomes.of(THREADS, case).records,
            with_edges=not meant(setting, case, "edges"),
        )
        assert difference is None, difference


def test_every_meant_difference_names_a_setting_and_a_case() -> None:
    """So that no row outlives what it excuses."""
    for row in MEANT:
        assert any(row.matches(setting, case) for setting in SETTINGS for case in CASES), row
