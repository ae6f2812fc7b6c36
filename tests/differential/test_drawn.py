"""Drawn flows give the same under deepflow as under Prefect's threads, and end."""

from __future__ import annotations

import pytest

from deepflow.runner.server import EmbeddedServer
from tests.differential.drawing import difference, run_graphs
from tests.differential.graphs import Graph, Input, Node, draw_graphs, smaller
from tests.differential.runners import SETTINGS, THREADS, Setting, clusters
from tests.integration.api import Api

SEED = 0
TOGETHER = 20
N_QUICK = 40
N_LONG = 1_000
DEEPFLOW = tuple(setting for setting in SETTINGS if setting.family == "deepflow")


def _compare(graphs: list[Graph], settings: tuple[Setting, ...], api: Api) -> None:
    said = []
    with clusters() as running:
        for start in range(0, len(graphs), TOGETHER):
            some = graphs[start : start + TOGETHER]
            wanted = run_graphs(some, THREADS, running, api)
            for setting in settings:
                found = run_graphs(some, setting, running, api)
                for number, graph in enumerate(some):
                    differs = difference(graph, found[number], wanted[number])
                    if differs:
                        said.append(f"{start + number}, {setting.name}: {differs}\n{graph}")
    assert not said, "\n\n".join(said)


def test_some_drawn_flows_are_as_under_threads(server: EmbeddedServer, api: Api) -> None:
    _compare(draw_graphs(N_QUICK, SEED), (DEEPFLOW[0],), api)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_drawn_flows_are_as_under_threads(server: EmbeddedServer, api: Api) -> None:
    _compare(draw_graphs(N_LONG, SEED), (DEEPFLOW[0],), api)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("setting", DEEPFLOW[1:], ids=lambda setting: setting.name)
def test_drawn_flows_are_as_under_threads_with_every_setting(
    setting: Setting, server: EmbeddedServer, api: Api
) -> None:
    _compare(draw_graphs(100, SEED + 1), (setting,), api)


def test_one_seed_draws_the_same_flows_and_another_others() -> None:
    assert draw_graphs(30, 7) == draw_graphs(30, 7)
    assert draw_graphs(30, 7) != draw_graphs(30, 8)


def test_a_smaller_graph_refers_to_nothing_that_is_gone() -> None:
    for graph in draw_graphs(50, 3):
        for candidate in smaller(graph):
            assert candidate != graph
            for number, node in enumerate(candidate.nodes):
                of = [one.number for one in node.inputs if one.of == "node"]
                assert all(one < number for one in (*of, *node.waits))


def test_without_a_node_the_others_keep_what_they_refer_to() -> None:
    first, gone = Node("pass"), Node("write")
    last = Node("read", (Input("node", 1), Input("node", 0)), (0, 1))
    least = smaller(Graph(("int",), (first, gone, last)))[1]
    assert least.nodes == (first, Node("read", (Input("node", 0),), (0,)))
