"""When two outcomes are the same: values, and what the server has of the task runs."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import Any, NamedTuple
from uuid import UUID

import httpx

from tests.integration.api import Api

__all__ = ["CASE_TAG", "Record", "differs", "read_records", "records_differ", "still_open"]

_NUMBERED = re.compile(r"-(\d+|[0-9a-f]{3}|[0-9a-f]{8}-[0-9a-f-]{27})$")
_SETTLE_S = 20.0
_TRIES = 4
_STILL_S = 1.5
"""Records that have not changed for so long will not."""
_OPEN_S = 6.0
"""As long, where some say that something is still to come."""
CASE_TAG = "case:"


class Record(NamedTuple):
    """A task run as the server has it, without what differs from run to run."""

    task: str
    state_type: str
    state_name: str
    run_count: int
    tags: tuple[str, ...]
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    """By parameter: the tasks that the UI draws an edge from."""


def read_records(
    api: Api, flow_run_id: UUID | str, *, may_stay_open: bool = False
) -> dict[str, tuple[Record, ...]]:
    """A flow run's task runs by the tag of their case, once they stay as they are.

    `may_stay_open`: the runner is one that leaves some open for good, so they are waited for only
    while the server still records something.
    """
    end_s = time.monotonic() + _SETTLE_S
    before: Any = None
    since_s = time.monotonic()
    while True:
        runs = _task_runs(api, flow_run_id)
        state = [(run["id"], run["state_name"]) for run in runs]
        is_over = all(_is_over(run) for run in runs)
        now_s = time.monotonic()
        if state != before:
            before, since_s = state, now_s
        needed_s = _STILL_S if is_over else _OPEN_S if may_stay_open else _SETTLE_S
        if now_s - since_s > needed_s or now_s > end_s:
            break
        time.sleep(0.5)
    names = {run["id"]: _NUMBERED.sub("", run["name"]) for run in runs}
    found: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        (of, *_), others = _split(run["tags"])
        ids = {
            parameter: {one["id"] for one in given if "id" in one}
            for parameter, given in run["task_inputs"].items()
        }
        # Prefect counts an input among the parents as well if it is under way at the submit.
        if "__parents__" in ids:
            ids["__parents__"] -= set().union(*(v for k, v in ids.items() if k != "__parents__"))
        inputs = {k: tuple(sorted(names.get(one, "?") for one in v)) for k, v in ids.items()}
        found[of].append(
            Record(
                names[run["id"]],
                run["state_type"],
                run["state_name"],
                run["run_count"],
                others,
                tuple(sorted((k, v) for k, v in inputs.items() if v)),
            )
        )
    return {of: tuple(sorted(records)) for of, records in found.items()}


def _task_runs(api: Api, flow_run_id: UUID | str) -> list[dict[str, Any]]:
    """All task runs of a flow run; a server that is too busy to answer is asked again."""
    for _ in range(_TRIES):
        try:
            return api.task_runs(flow_run_id)
        except httpx.TimeoutException:
            continue
    return api.task_runs(flow_run_id)


def still_open(records: tuple[Record, ...]) -> list[Record]:
    """The records that say that something is still to come."""
    return [record for record in records if not _is_end(record.state_type, record.state_name)]


def _is_over(run: dict[str, Any]) -> bool:
    return _is_end(run["state_type"], run["state_name"])


def _is_end(state_type: str, state_name: str) -> bool:
    over = state_type in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return over or state_name == "NotReady"


def _split(tags: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The tag of the case, and the others."""
    ours = [tag for tag in tags if tag.startswith(CASE_TAG)]
    return ours or [""], tuple(sorted(set(tags) - set(ours)))


def differs(found: Any, wanted: Any, at: str = "") -> str | None:
    """How a value differs from the one that is right, in words; None if it does not."""
    if callable(wanted):
        said = wanted(found)
        return f"{at}: {said}" if said else None
    if type(found) is not type(wanted):
        return f"{at}: {found!r:.600} for {wanted!r:.300}"
    if isinstance(wanted, dict):
        if list(found) != list(wanted):
            return f"{at}: keys {list(found)!r:.300} for {list(wanted)!r:.300}"
        parts = [differs(found[key], wanted[key], f"{at}[{key!r}]") for key in wanted]
        return "\n".join(filter(None, parts)) or None
    return None if found == wanted else f"{at}: {found!r:.600} for {wanted!r:.300}"


def records_differ(
    found: tuple[Record, ...], wanted: tuple[Record, ...], *, with_edges: bool
) -> str | None:
    """How the server's records differ, in words; None if they do not."""
    if not with_edges:
        found = tuple(sorted(record._replace(inputs=()) for record in found))
        wanted = tuple(sorted(record._replace(inputs=()) for record in wanted))
    if found == wanted:
        return None
    extra, missing = list(found), []
    for record in wanted:
        if record in extra:
            extra.remove(record)
        else:
            missing.append(record)
    return f"only here: {[tuple(e) for e in extra]}; only there: {[tuple(m) for m in missing]}"
