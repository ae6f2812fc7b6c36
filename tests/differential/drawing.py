"""Running drawn graphs under a setting, many in one flow run, and comparing what came of them."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import tags
from prefect.context import FlowRunContext

from tests.differential.cases import as_main, script
from tests.differential.compare import CASE_TAG, Record, read_records, records_differ
from tests.differential.graphs import HARD_ERRORS, Graph, smaller
from tests.differential.runners import THREADS, Clusters, Setting
from tests.differential.running import HANG_S, bounded, in_flow
from tests.integration.api import Api
from tests.integration.notes import Note, notes

__all__ = ["Drawn", "difference", "reduced", "run_graphs"]

_SCRIPT = Path(__file__).with_name("drawn.py")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came of one graph."""

    told: list[list[tuple[str, str]]] | None
    """Of each node, of each of its runs: the state's name, and the value or the error as text."""
    problem: str | None = None
    """The stacks where it did not end; what broke where the flow did."""
    noted: tuple[Note, ...] = ()
    records: tuple[Record, ...] = ()


def run_graphs(
    graphs: Sequence[Graph], setting: Setting, clusters: Clusters, api: Api
) -> list[Drawn]:
    """What comes of each graph; one flow run for all, but for those after one that hangs."""
    found: list[Drawn] = []
    while len(found) < len(graphs):
        found += _run_some(graphs[len(found) :], setting, clusters, api)
    return found


def _run_some(
    graphs: Sequence[Graph], setting: Setting, clusters: Clusters, api: Api
) -> list[Drawn]:
    """What comes of the first of the graphs, up to one that hangs."""
    module = script(_SCRIPT)
    address = clusters.address(setting.shape)
    folder = Path(tempfile.mkdtemp(prefix="deepflow-differential-"))
    told: list[Any] = []
    flow_run_ids: list[Any] = []
    began_s = time.monotonic()

    def body() -> None:
        nonlocal began_s
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        flow_run_ids.append(context.flow_run.id)
        for number, graph in enumerate(graphs):
            began_s = time.monotonic()
            with tags(f"{CASE_TAG}{number}"):
                told.append(module.run_graph(graph, str(folder / str(number)), setting is THREADS))
        began_s = time.monotonic()

    problem = None
    with as_main(module):
        try:
            problem = bounded(
                lambda: in_flow(setting, address, body),
                lambda: HANG_S - (time.monotonic() - began_s),
                address,
            )
        except Exception as exc:  # noqa: BLE001 - what breaks a flow is what came of it
            problem = f"the flow broke: {exc!r}"
    records = read_records(api, flow_run_ids[0]) if flow_run_ids else {}
    drawn = [
        Drawn(
            one,
            noted=tuple(notes(folder / str(number))),
            records=records.get(f"{CASE_TAG}{number}", ()),
        )
        for number, one in enumerate(told)
    ]
    if problem is not None:
        clusters.close()
        if len(drawn) == len(graphs):
            drawn[-1] = Drawn(None, problem)
        else:
            drawn.append(Drawn(None, problem))
    return drawn


def difference(graph: Graph, found: Drawn, wanted: Drawn) -> str | None:
    """How a graph's outcome differs from that under threads, in words; None if it does not."""
    if found.problem is not None or wanted.problem is not None:
        return found.problem or f"under threads: {wanted.problem}"
    assert found.told is not None
    assert wanted.told is not None
    lines = []
    is_unable = any(node.op == "unable" for node in graph.nodes)
    for number, node in enumerate(graph.nodes):
        mine, theirs = found.told[number], wanted.told[number]
        if len(mine) != len(theirs):
            lines.append(f"node {number}: {len(mine)} runs for {len(theirs)}")
        for one, other in zip(mine, theirs, strict=False):
            if node.op == "unable" and theirs[0][0] == "Completed":
                said = _not_told(one)
            else:
                said = _run_differs(one, other)
            if said:
                lines.append(f"node {number} ({node.op}): {said}")
    lines += _order(graph, found.noted)
    if not is_unable:
        ran, should = (Counter(n.name for n in one.noted) for one in (found, wanted))
        if ran != should:
            lines.append(f"ran {dict(ran - should)} more and {dict(should - ran)} less often")
        said = records_differ(found.records, wanted.records, with_edges=False)
        if said:
            lines.append(f"the server's records: {said}")
    return "\n".join(lines) or None


def _run_differs(mine: tuple[str, str], theirs: tuple[str, str]) -> str | None:
    if mine == theirs:
        return None
    # In words: the type and the text are there.
    hard = re.match(rf"raised ({'|'.join(HARD_ERRORS)}): (.*)", theirs[1], re.DOTALL)
    is_said = mine[1].startswith("raised") and mine[0] == theirs[0]
    if hard and is_said and all(part in mine[1] for part in hard.groups()):
        return None
    return f"{mine} for {theirs}"


def _not_told(mine: tuple[str, str]) -> str | None:
    """What cannot travel serves where it is, or fails in words that name the task."""
    state, value = mine
    if state == "Completed" and (value.startswith("_thread") or "unable" in value):
        return None
    if state in ("Failed", "Crashed") and "unable" in value:
        return None
    return f"{mine} for a value that cannot travel"


def _order(graph: Graph, noted: Sequence[Note]) -> list[str]:
    """Runs that began before what they were to wait for had ended."""
    begun = {n.name: n.at_s for n in reversed(noted) if n.name.startswith("begin")}
    ended = {n.name: n.at_s for n in noted if n.name.startswith("end")}
    lines = []
    for number, node in enumerate(graph.nodes):
        waits = node.waits[:1] if node.waits_in == "one" else node.waits
        before = {one.number for one in node.inputs if one.of == "node"} | set(waits)
        for other in before:
            began_s, ended_s = begun.get(f"begin {number}"), ended.get(f"end {other}")
            if began_s is not None and ended_s is not None and began_s < ended_s:
                lines.append(f"node {number} began {ended_s - began_s:.3f} s before {other} ended")
    return lines


def reduced(graph: Graph, setting: Setting, clusters: Clusters, api: Api, tries: int) -> Graph:
    """A smaller graph that differs still, as far as so many tries find one."""
    while True:
        for candidate in smaller(graph):
            if tries <= 0:
                return graph
            tries -= 1
            (wanted,) = run_graphs([candidate], THREADS, clusters, api)
            (found,) = run_graphs([candidate], setting, clusters, api)
            if difference(candidate, found, wanted):
                graph = candidate
                break
        else:
            return graph
