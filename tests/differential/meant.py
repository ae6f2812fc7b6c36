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
    what: Literal["value", "records", "edges", "all"]
    reason: str

    def matches(self, setting: Setting, case: Case) -> bool:
        """Whether the row is about this case under this setting."""
        pattern = self.cases.replace("[", "[[]")
        return fnmatchcase(setting.name, self.settings) and fnmatchcase(case.name, pattern)


_ONE_OBJECT = "Prefect's threads hand the very object to every run, and never copy it"
_BY_ID = (
    "Prefect takes an object at the address of an earlier result for that result; which addresses "
    "are used again is chance"
)
_LOSES = "under threads the server never hears of states whose text is not UTF-8"
_ROLLBACK = "under prefect-dask a flow's transaction does not reach its submitted tasks"
_SEES_FUTURES = "a naming function under threads sees the future, here its value"
_RESOLVES_LESS = "Prefect itself cannot rebuild a defaultdict, or a field that is not in __init__"
_NEVER_MOVES = "under threads a result never has to move"
_SHOWS = "Prefect's engine breaks of an error whose text cannot be had, and leaves the run Running"
_EXITS = "under threads what is no Exception ends the pool's thread, or the flow"
_TOKENS = "prefect-dask walks arguments to name its Dask tasks: not what is deep or recursive"
_NOT_TOLD = (
    "Dask's own error names neither task nor type, and consumers elsewhere may wait for ever"
)
_CANCELLED = "under prefect-dask a run whose task raises CancelledError stays Pending"
_SENT_LATER = "prefect-dask pickles a call a little after its submit"
_LOOKS_LESS = "prefect-dask puts values and annotations in their places in fewer containers"
_SHARED = "prefect-dask hands one upstream result to all of a worker's runs"
_LATE = "under threads a task reads its globals when it runs, not when it was submitted"

MEANT = (
    Meant("*", "arguments.*", "edges", _BY_ID),
    Meant("*", "results.*", "edges", _BY_ID),
    Meant("*", "storage.*", "edges", _BY_ID),
    Meant("*", "effects.*", "edges", _BY_ID),
    Meant("*", "order.a_future_under_way*", "edges", _BY_ID),
    Meant("*", "order.a_future_elsewhere*", "records", "refused at the submit: there is no run"),
    Meant("*", "order.a_naming_function*", "records", _SEES_FUTURES),
    Meant("*", "order.futures_*in_containers*", "records", _RESOLVES_LESS),
    Meant("*", "arguments.*", "records", "under threads runs fail of what others wrote"),
    Meant("*", "results.*cannot_travel*", "records", _NEVER_MOVES),
    Meant("*", "errors.errors_*", "records", _SHOWS),
    Meant("*", "errors.the_state*", "records", _SHOWS),
    Meant("*", "errors.what_is_no_exception*", "records", _EXITS),
    Meant("*", "text.*", "records", _LOSES),
    Meant("prefect-dask", "effects.a_rollback_of_submitted*", "all", _ROLLBACK),
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
    Meant("threads", "nesting.*write_to*", "value", _ONE_OBJECT),
    Meant("threads", "nesting.nested_runs_are_fresh", "value", _ONE_OBJECT),
    Meant("threads", "order.a_future_elsewhere*", "value", "threads hand it over silently"),
    Meant("threads", "order.a_naming_function*", "value", _SEES_FUTURES),
    Meant("threads", "order.futures_*in_containers*", "value", _RESOLVES_LESS),
    Meant("threads", "errors.errors_*", "value", _SHOWS),
    Meant("threads", "errors.the_state*", "value", _SHOWS),
    Meant("threads", "errors.what_is_no_exception*", "value", _EXITS),
    Meant("threads", "storage.a_persisted_result_is*", "value", _ONE_OBJECT),
    # -- prefect-dask -------------------------------------------------------------------------
    Meant("prefect-dask", "results.odd_values_*", "all", _TOKENS),
    Meant("prefect-dask", "results.*cannot_travel*", "value", _NOT_TOLD),
    Meant("prefect-dask", "errors.errors_*", "all", _NOT_TOLD),
    Meant("prefect-dask", "errors.the_state_of_a_future*", "all", _NOT_TOLD),
    Meant("prefect-dask", "errors.a_consumer_that_allows*", "records", _LOOKS_LESS),
    Meant("prefect-dask", "errors.what_is_no_exception*", "value", _CANCELLED),
    Meant("prefect-dask", "order.a_failure_*", "all", _LOOKS_LESS),
    Meant("prefect-dask", "order.futures_*in_containers*", "value", _LOOKS_LESS),
    Meant("prefect-dask", "order.a_future_elsewhere*", "value", _LOOKS_LESS),
    Meant("prefect-dask", "order.a_naming_function*", "value", _LOOKS_LESS),
    Meant("prefect-dask", "order.what_is_quoted*", "value", _LOOKS_LESS),
    Meant("prefect-dask", "order.states_are_arguments*", "value", _LOOKS_LESS),
    Meant("prefect-dask", "arguments.*after_the_submit*", "value", _SENT_LATER),
    Meant("prefect-dask", "code.what_is_shipped*", "value", _SENT_LATER),
    Meant("prefect-dask", "arguments.*consumer*", "value", _SHARED),
    Meant("prefect-dask", "arguments.*result*", "value", _SHARED),
    Meant("prefect-dask", "arguments.*comes_back*", "value", _SHARED),
    Meant("threads", "dask.*", "value", "there is no Dask under threads"),
    Meant("*", "dask.*", "records", "there is no Dask under threads"),
)
"""The first that matches holds. Nothing here names a setting of deepflow without a reason that the
user can read in the documentation."""


def meant(setting: Setting, case: Case, what: str) -> str | None:
    """Why a difference is meant, or None where it is none."""
    for row in MEANT:
        if row.what in (what, "all") and row.matches(setting, case):
            return row.reason
    return None
