"""The differences that are meant, each with its reason: the one place that allows any."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from tests.differential.cases import Case
from tests.differential.runners import Setting

__all__ = ["MEANT", "Meant", "meant"]


class Meant(NamedTuple):
    """Under these settings these cases may differ."""

    settings: str
    """Pattern of settings' names."""
    cases: str
    """Pattern of cases' names."""
    what: Literal["value", "records", "all"]
    reason: str


_ONE_OBJECT = "Prefect's threads hand the very object to every run, and never copy it"
_LATE = "under threads a task reads its globals when it runs, not when it was submitted"

MEANT = (
    # -- Prefect's threads: one process, one set of objects ------------------------------------
    Meant("threads", "code.what_is_shipped_is_what_was_at_the_submit", "value", _LATE),
    Meant("threads", "code.a_set_that_a_run_writes_to*", "value", _ONE_OBJECT),
    Meant("threads", "code.a_counter_is_fresh*", "value", _ONE_OBJECT),
    Meant("threads", "code.a_mutable_default*", "value", _ONE_OBJECT),
    Meant("threads", "code.a_list_in_a_closure_is_fresh", "value", _ONE_OBJECT),
    Meant("threads", "code.an_attribute_of_a_function_is_fresh", "value", _ONE_OBJECT),
    Meant("threads", "code.a_captured_array_is_each_runs_own*", "value", _ONE_OBJECT),
    Meant("threads", "code.a_second_flow_run*", "value", _ONE_OBJECT),
    Meant("threads", "arguments.*", "value", _ONE_OBJECT),
    Meant("threads", "nesting.*writes*", "value", _ONE_OBJECT),
    Meant("threads", "nesting.*write_to*", "value", _ONE_OBJECT),
    Meant("threads", "nesting.nested_runs_are_fresh", "value", _ONE_OBJECT),
    Meant("threads", "dask.*", "all", "there is no Dask under threads"),
)
"""The first that matches holds. Nothing here names a setting of deepflow without a reason that the
user can read in the documentation."""


def meant(setting: Setting, case: Case, what: str) -> str | None:
    """Why a difference is meant, or None where it is none."""
    for row in MEANT:
        if (
            row.what in (what, "all")
            and fnmatchcase(setting.name, row.settings)
            and fnmatchcase(case.name, row.cases.replace("[", "[[]"))
        ):
            return row.reason
    return None
