"""Running cases under a setting: what came of each, what the server has of it, and hangs.

All cases of a chapter are one flow run, one after the other, and each marks its task runs with a
tag; so a case costs what its tasks cost. What hangs is left behind, with the stacks of all threads,
and the cases after it go on in a new flow run on a new cluster.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from distributed import Client
from prefect import flow, tags
from prefect.context import FlowRunContext

from tests.differential.cases import Case, Chapter, as_main
from tests.differential.compare import CASE_TAG, Record, read_records
from tests.differential.runners import Clusters, Setting
from tests.integration.api import Api

__all__ = ["HANG_S", "Outcome", "bounded", "in_flow", "run_chapter"]

HANG_S = 90.0
"""No case takes a tenth of it on an idle machine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case under one setting."""

    value: Any
    error: str | None = None
    """The traceback, where the case raised instead of returning."""
    hang: str | None = None
    """The stacks of all threads, where it did not end."""
    records: tuple[Record, ...] = ()
    """The case's task runs as the server has them."""


_bodies: dict[str, Callable[[], Any]] = {}


def perform(token: str) -> Any:
    """Call the body that is registered under the token."""
    return _bodies[token]()


@flow(name="differential", validate_parameters=False)
def _performing(token: str) -> Any:
    # Nothing but a name and a text: the flow travels to every worker.
    return perform(token)


def in_flow(setting: Setting, address: str | None, body: Callable[[], Any]) -> Any:
    """Run the body as a flow under the setting. Its value, or raises what it raised."""
    token = uuid.uuid4().hex
    _bodies[token] = body
    try:
        with setting.in_force():
            return _performing.with_options(task_runner=setting.runner(address))(token)
    finally:
        del _bodies[token]


def run_chapter(
    name: str,
    setting: Setting,
    clusters: Clusters,
    api: Api,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> dict[Case, Outcome]:
    """The outcomes of a chapter's cases under a setting."""
    chapter = Chapter(name)
    left = [case for case in chapter.cases if wanted(case)]
    outcomes: dict[Case, Outcome] = {}
    for case in [case for case in left if case.is_whole]:
        outcomes[case] = _run_whole(chapter, case, setting, clusters)
    left = [case for case in left if not case.is_whole]
    while left:
        _run_some(chapter, left, setting, clusters, api, outcomes)
        left = [case for case in left if case not in outcomes]
    return outcomes


def _run_whole(chapter: Chapter, case: Case, setting: Setting, clusters: Clusters) -> Outcome:
    address = clusters.address(setting.shape)

    def body() -> Any:
        return chapter.call(case, lambda: setting.runner(address))

    with setting.in_force(), as_main(chapter.module):
        outcome = bounded(lambda: _outcome(body), lambda: HANG_S, address)
    if isinstance(outcome, str):
        clusters.close()
        return Outcome(None, hang=outcome)
    return outcome


def _run_some(
    chapter: Chapter,
    cases: Iterable[Case],
    setting: Setting,
    clusters: Clusters,
    api: Api,
    outcomes: dict[Case, Outcome],
) -> None:
    """Run cases in one flow run, up to the first that hangs."""
    address = clusters.address(setting.shape)
    done: dict[Case, Outcome] = {}
    began_s = time.monotonic()
    now: list[Case] = []
    flow_run_ids: list[Any] = []

    def body() -> None:
        nonlocal began_s
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        flow_run_ids.append(context.flow_run.id)
        for case in cases:
            began_s = time.monotonic()
            now.append(case)
            with tags(CASE_TAG + case.name):
                done[case] = _outcome(lambda case=case: chapter.call(case))
        began_s = time.monotonic()

    with as_main(chapter.module):
        ended = bounded(
            lambda: in_flow(setting, address, body),
            lambda: HANG_S - (time.monotonic() - began_s),
            address,
        )
    if isinstance(ended, str):
        clusters.close()
        hung = now[-1] if now else next(iter(cases))
        done[hung] = Outcome(None, hang=ended)
    records = {}
    if flow_run_ids:
        leaves_open = setting.family == "threads"
        records = read_records(api, flow_run_ids[0], may_stay_open=leaves_open)
    for case, outcome in done.items():
        outcomes[case] = Outcome(
            outcome.value, outcome.error, outcome.hang, records.get(CASE_TAG + case.name, ())
        )


def _outcome(call: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(call())
    except BaseException:  # noqa: BLE001 - whatever it is, it is what came of the case
        return Outcome(None, error=traceback.format_exc())


def bounded(call: Callable[[], Any], left_s: Callable[[], float], address: str | None) -> Any:
    """What `call` returns; or, when no time is left, the stacks of all threads as text.

    It runs in a thread that is then left behind. Raises what `call` raises.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as exc:  # noqa: BLE001 - raised again below
            errors.append(exc)

    # Prefect's settings are in the context.
    here = contextvars.copy_context()
    thread = threading.Thread(target=here.run, args=(run,), name="differential", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(min(1.0, max(0.0, left_s())))
        if thread.is_alive() and left_s() <= 0:
            return _stacks(address)
    if errors:
        raise errors[0]
    return results[0]


def _stacks(address: str | None) -> str:
    """The stacks of this process's threads and of the tasks on the workers."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"--- {names.get(ident)}\n" + "".join(traceback.format_stack(frame)[-12:])
        for ident, frame in sys._current_frames().items()
    ]
    if address is not None:
        try:
            with Client(address, timeout=5, set_as_default=False) as client:
                parts.append(f"--- on the workers\n{client.call_stack()}")
        except Exception as exc:  # noqa: BLE001 - a report of a hang must not fail itself
            parts.append(f"--- the workers do not say where they are: {exc!r}")
    return "\n".join(parts)
