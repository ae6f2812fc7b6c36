"""The private parts that are leaned on: that they are there, that a change is noticed, and what
then becomes of each feature."""

from __future__ import annotations

import ast
import asyncio
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import dask
import pytest
from dask._expr import LLGExpr
from distributed import Client, SpecCluster, Worker
from distributed.threadpoolexecutor import ThreadPoolExecutor
from prefect import task
from prefect.results import ResultStore
from prefect.transactions import transaction
from pydantic import BaseModel, PrivateAttr

from deepflow.backend import contract, dask_logs, fetch, tiers
from deepflow.backend.clusters import local, warm
from deepflow.backend.contract import CONTRACT, Feature, differences, may_use
from deepflow.backend.parts import digest_of, exactly, held, parameters_of, source, takes, there
from deepflow.backend.scheduler_plugin import ReportDeaths
from deepflow.backend.transfer import install as transfer
from deepflow.errors import IncompatibleVersionError
from deepflow.observe import metrics
from deepflow.runner import outgoing
from deepflow.runner.driver import sending
from deepflow.runner.driver.client import DeepflowClient
from deepflow.runner.driver.session import Session
from deepflow.runner.driver.shipping import Shipping
from deepflow.runner.driver.transactions import open_transaction
from deepflow.runner.results.storage import DeepflowResultStore
from deepflow.runner.slots import slot_left, slot_of_call
from deepflow.runner.worker import plugin
from deepflow.sim.cluster import ClusterSpec, SimWorkerClass
from deepflow.sim.engine import simulate
from deepflow.sim.workload import Workload
from tests.unit.test_import_is_cheap import modules_loaded_by

ROOT = Path(__file__).resolve().parents[2]
GONE = there("distributed.no_such_module.nothing", "For tests.")


@pytest.fixture(autouse=True)
def _looked_at_anew() -> Iterator[None]:
    contract.forget()
    yield
    contract.forget()


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[[Feature], None]:
    """Lets a feature lean on something that is nowhere."""

    def lose(feature: Feature) -> None:
        monkeypatch.setitem(CONTRACT, feature, (*CONTRACT[feature], GONE))
        contract.forget()

    return lose


# -- the table ----------


@pytest.mark.parametrize("feature", CONTRACT, ids=lambda feature: feature.name)
def test_what_is_installed_is_what_each_feature_was_written_for(feature: Feature) -> None:
    assert differences(feature) == ()


def test_the_table_can_be_read_without_dask_and_prefect() -> None:
    loaded = modules_loaded_by("from deepflow.backend.contract import CONTRACT; assert CONTRACT")
    assert not loaded & {"dask", "distributed", "prefect"}


def test_each_row_tells_what_for_in_one_sentence_and_what_without() -> None:
    told = list(contract.rows())
    assert len({(row.feature, row.name) for row in told}) == len(told)
    for row in told:
        assert row.purpose.endswith(".")
        assert "\n" not in row.purpose
        assert row.without


def test_no_feature_is_told_twice() -> None:
    assert len({feature.name for feature in CONTRACT}) == len(CONTRACT)


OF_OTHERS = {
    "the standard library": {"_current_frames", "_getframe", "_replace"},
    "cloudpickle": {
        "_DYNAMIC_CLASS_TRACKER_BY_CLASS",
        "_DYNAMIC_CLASS_TRACKER_BY_ID",
        "_DYNAMIC_CLASS_TRACKER_LOCK",
        "_class_setstate",
        "_make_skeleton_class",
        "_make_skeleton_enum",
    },
    "fsspec": {"_get_kwargs_from_urls", "_strip_protocol"},
    "torch": {
        "_C",
        "_indices",
        "_rebuild_from_type_v2",
        "_rebuild_sparse_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_utils",
    },
}
"""Private names of packages that the table is not about."""


def test_every_private_name_that_the_code_reaches_for_stands_in_the_table() -> None:
    reached, own = set(), set()
    for path in (ROOT / "deepflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    own |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}
                    own |= {one.attr for one in ast.walk(target) if isinstance(one, ast.Attribute)}
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                reached.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and re.match(
                "(dask|dist|pref)", str(node.module)
            ):
                is_private = "._" in str(node.module)
                names = {one.name for one in node.names}
                reached |= {one for one in names if is_private or one.startswith("_")}
    told = {word for parts in CONTRACT.values() for one in parts for word in one.name.split(".")}
    assert reached - own - told - set().union(*OF_OTHERS.values()) == set()


# -- looking at a part ----------


class Thing:
    """Something of another package."""

    annotated: int

    def __init__(self) -> None:
        self.made = 1

    def takes(self, one: int, two: int = 2, *, three: int = 3) -> None:
        """A method."""


class Model(BaseModel):
    """Something with fields."""

    shown: int = 1
    _hidden: int = PrivateAttr(2)


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("of_another")
    package.Thing, package.Model, package.number = Thing, Model, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_another", package)


def test_what_is_there_is_found_and_what_is_not_is_named() -> None:
    assert there("of_another.Thing.takes", "x").difference() == ""
    for name in ("of_another.Thing.gone", "of_another.gone", "no_such_package.at.all"):
        assert there(name, "x").difference() == f"{name} is missing"


@pytest.mark.parametrize("name", ["Thing.annotated", "Thing.made", "Model.shown", "Model._hidden"])
def test_an_attribute_is_held_however_it_is_set(name: str) -> None:
    assert held(f"of_another.{name}", "x").difference() == ""
    assert held(f"of_another.{name}_", "x").difference() == f"of_another.{name}_ is missing"
    assert held(f"gone.{name}", "x").difference() == f"gone.{name} is missing"


@pytest.mark.parametrize(
    ("parameters", "is_taken"),
    [
        ("self, one", True),
        ("self, one, two, *, three", True),
        ("self, one, *, two", True),
        ("self", False),
        ("self, two", False),
        ("self, one, three", False),
        ("self, one, *, four", False),
    ],
)
def test_a_call_is_taken_where_all_else_has_defaults(parameters: str, is_taken: bool) -> None:
    difference = takes("of_another.Thing.takes", "x", parameters).difference()
    assert (difference == "") is is_taken
    if not is_taken:
        assert "takes (self, one, two, *, three), not" in difference


def test_what_is_replaced_has_these_parameters_and_no_others() -> None:
    assert exactly("of_another.Thing.takes", "x", parameters_of(Thing.takes)).difference() == ""
    assert exactly("of_another.Thing.takes", "x", "self, one, two").difference()
    assert exactly("of_another.number", "x", "self").difference().endswith("cannot be called")


def test_each_known_source_will_do_and_no_other() -> None:
    digest = digest_of(Thing.takes)
    known = {"1.0": "another", "2.0": digest}
    assert source("of_another.Thing.takes", "x", known).difference() == ""
    assert source("of_another.Thing.takes", "x", "another").difference().endswith(f"({digest})")
    assert digest_of(len) == ""


def test_a_changed_signature_of_dask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_dep(self: Worker, worker: str, keys: list[str]) -> None:
        """As it could be in another version."""

    monkeypatch.setattr(Worker, "gather_dep", gather_dep)
    (told,) = differences(contract.TRANSFER)
    assert "Worker.gather_dep takes (self, worker, keys), not (self, worker, to_gather" in told


def test_a_changed_signature_of_prefect_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.tasks._infer_parent_task_runs", lambda flow_run: [])
    with pytest.raises(IncompatibleVersionError) as refused:
        may_use(contract.SUBMITTING)
    for part in ("prefect ", "_infer_parent_task_runs takes (flow_run)", "constraints.txt"):
        assert part in str(refused.value)


# -- asking ----------


def test_what_cannot_be_used_is_said_once_and_counted_each_time(
    lose: Callable[[Feature], None], caplog: pytest.LogCaptureFixture
) -> None:
    lose(contract.TIERS)
    before = metrics.value("deepflow_fallbacks_total", kind="unknown_dask")
    with caplog.at_level(logging.WARNING, "deepflow.contract"):
        assert [may_use(contract.TIERS) for _ in range(3)] == [False] * 3
    assert metrics.value("deepflow_fallbacks_total", kind="unknown_dask") == before + 3
    (said,) = [r.getMessage() for r in caplog.records if r.name == "deepflow.contract"]
    for part in ("'tiers' is off: Dask spills results to disk", GONE.name, "--wide"):
        assert part in said


# -- what becomes of each feature ----------

Patch = pytest.MonkeyPatch


def placement(patch: Patch) -> None:
    """`tests/sim/test_placement.py` plays a whole run with it."""
    assert not may_use(contract.PLACEMENT)


def transfer_(patch: Patch) -> None:
    worker: Any = _Weak(address="tcp://127.0.0.1:1")
    assert transfer.install(worker, transfer.Options()) is None


def tiers_(patch: Patch) -> None:
    assert tiers.install_tiers(_Weak(), tiers.TierOptions()) is None  # type: ignore[arg-type]


def fetching(patch: Patch) -> None:
    async def gather(futures: list[Any], asynchronous: bool) -> list[Any]:
        assert asynchronous
        return [f"value of {future}" for future in futures]

    def sync(call: Any, *arguments: Any, callback_timeout: float | None) -> Any:
        return asyncio.run(call(*arguments))

    client: Any = SimpleNamespace(sync=sync, gather=gather)
    futures: Any = ["a", "b"]
    assert fetch.fetch(client, futures) == ["value of a", "value of b"]


def deaths(patch: Patch) -> None:
    spoilt = SimpleNamespace(suspicious=0)
    scheduler: Any = _scheduler(tasks={"key": spoilt})
    reporting = ReportDeaths()
    asyncio.run(reporting.start(scheduler))
    reporting.update_graph(scheduler, annotations={"deepflow": {"key": {}}})
    assert spoilt.suspicious == 0


def last_will(patch: Patch) -> None:
    scheduler: Any = _scheduler()
    reporting = ReportDeaths()
    asyncio.run(reporting.start(scheduler))
    scheduler.stream_handlers["deepflow-session"](client="c", prefix="p")
    reporting.remove_client(scheduler, "c")  # it has no background tasks to wait with
    client: Any = SimpleNamespace(status="running")  # it could not send to the scheduler
    shipping = Shipping(
        client,
        None,
        salt="salt",
        topic="topic",
        events_topic="topic",
        is_nested=False,
        persists_as_deepflow=False,
    )
    session = Session.__new__(Session)
    session.client, session.shipping, session._prefix = client, shipping, "prefix"
    session._take_back_blobs()


def sending_(patch: Patch) -> None:
    sent = []
    template: Any = SimpleNamespace(
        note={}, annotations={}, workers=(), allow_other_workers=False, resources={}, priority=7
    )
    sender = sending.Sender.__new__(sending.Sender)
    sender._run_batch = len
    sender._client = SimpleNamespace(  # type: ignore[assignment]
        submit=lambda *arguments, **named: sent.append((arguments, named))
    )
    sender._put_graph({"b": (b"job", [])}, template, 1)
    ((arguments, named),) = sent
    assert arguments == (len, b"job")
    assert (named["key"], named["priority"], named["pure"]) == ("b", 7, False)


def reconnecting(patch: Patch) -> None:
    connected = []

    async def ensure(self: Client, timeout: Any = None) -> None:
        connected.append(timeout)

    patch.setattr(Client, "_ensure_connected", ensure)
    client = DeepflowClient.__new__(DeepflowClient)
    client.auto, client.choice, client.scheduler = "auto://nowhere", None, object()  # type: ignore[assignment]
    asyncio.run(client._ensure_connected(timeout=3))
    assert connected == [3]
    client.status = "closed"


def slots(patch: Patch) -> None:
    pool = ThreadPoolExecutor(1)

    def waits() -> tuple[bool, bool]:
        with slot_of_call() as slot, slot_left():
            held_meanwhile = threading.current_thread() in pool._threads
        with slot.lent():
            return held_meanwhile, threading.current_thread() in pool._threads

    try:
        assert pool.submit(waits).result(timeout=30) == (True, True)
        assert pool.submit(len, "abc").result(timeout=30) == 3
    finally:
        pool.shutdown(wait=False)


def forked_workers(patch: Patch) -> None:
    assert not warm.is_possible()


def restarts(patch: Patch) -> None:
    seen = []
    setting = "distributed.deploy.lost-worker-timeout"
    patch.setattr(
        SpecCluster,
        "_update_worker_status",
        lambda self, op, msg: seen.append((op, msg, dask.config.get(setting))),
    )
    cluster = local._Patient.__new__(local._Patient)
    cluster._update_worker_status("remove", "worker")
    assert seen == [("remove", "worker", dask.config.get(setting))]


def quiet_logs(patch: Patch) -> None:
    assert dask_logs._is_a_server_of_its_own()


def judge(patch: Patch) -> None:
    workload = Workload("none", ())
    with pytest.raises(IncompatibleVersionError, match="refuse to run"):
        simulate(workload, ClusterSpec("one", (SimWorkerClass("cpu", count=1),)))


def running(patch: Patch) -> None:
    with pytest.raises(IncompatibleVersionError, match="workers refuse"):
        plugin._import_engine()


def driver(patch: Patch) -> None:
    import deepflow.runner.driver

    with pytest.raises(IncompatibleVersionError, match="the task runner refuses to start"):
        importlib.reload(deepflow.runner.driver)


def plain_client(patch: Patch) -> None:
    client = DeepflowClient.__new__(DeepflowClient)
    client.status = "closed"
    with pytest.raises(IncompatibleVersionError, match="refuses to run Prefect's tasks"):
        client.submit(task(dummy), 1)


def server(patch: Patch) -> None:
    from deepflow.runner import _server_process

    patch.setattr(os, "getpgrp", os.getpid)
    patch.setattr(threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    with pytest.raises(IncompatibleVersionError, match="refuses to start"):
        _server_process.main()


def stored_results(patch: Patch) -> None:
    store = ResultStore()
    assert DeepflowResultStore.of(store) is store


def transactions(patch: Patch) -> None:
    with transaction():
        assert open_transaction() is None


def odd_text(patch: Patch) -> None:
    sender = SimpleNamespace(build_request=len)
    outgoing.clean_requests(SimpleNamespace(_client=sender))
    assert sender.build_request is len


def last_lines(patch: Patch) -> None:
    def drain_all(**_: Any) -> None:
        raise AssertionError("it could be another function")

    patch.setattr("prefect.logging.handlers.APILogWorker.drain_all", drain_all)
    plugin.flush_logs("another process")


WITHOUT: dict[Feature, Callable[[Patch], None]] = {
    contract.PLACEMENT: placement,
    contract.TRANSFER: transfer_,
    contract.FETCHING: fetching,
    contract.TIERS: tiers_,
    contract.DEATHS: deaths,
    contract.LAST_WILL: last_will,
    contract.SENDING: sending_,
    contract.RECONNECTING: reconnecting,
    contract.SLOTS: slots,
    contract.FORKED_WORKERS: forked_workers,
    contract.RESTARTS: restarts,
    contract.QUIET_LOGS: quiet_logs,
    contract.JUDGE: judge,
    contract.RUNNING: running,
    contract.CONTEXTS: driver,
    contract.SUBMITTING: driver,
    contract.RECORDING: driver,
    contract.PLAIN_CLIENT: plain_client,
    contract.SERVER: server,
    contract.STORED_RESULTS: stored_results,
    contract.TRANSACTIONS: transactions,
    contract.ODD_TEXT: odd_text,
    contract.LAST_LINES: last_lines,
}


@pytest.mark.parametrize("feature", CONTRACT, ids=lambda feature: feature.name)
def test_without_a_part_each_feature_does_what_its_row_says(
    feature: Feature, lose: Callable[[Feature], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(feature)
    WITHOUT[feature](monkeypatch)


def test_with_all_parts_dask_is_given_what_it_need_not_hash() -> None:
    graph = sending._as_dask_has_it({"b": (b"job", ["a"])}, len)
    assert isinstance(graph, LLGExpr)


def dummy(x: int) -> int:
    """A task."""
    return x


class _Weak:
    """Anything that can be referred to weakly."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def _scheduler(**attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(stream_handlers={}, handlers={}, **attributes)
