"""Flows that are drawn: graphs of tasks that write to what they are given, raise, wait and nest."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = [
    "CONSTANTS",
    "ERRORS",
    "HARD_ERRORS",
    "ODD",
    "Graph",
    "Input",
    "Node",
    "draw_graphs",
    "smaller",
]

CONSTANTS = (
    "int",
    "str",
    "list",
    "dict",
    "bytearray",
    "array",
    "large array",
    "frame",
    "large frame",
    "tensor",
    "large tensor",
    "nested",
    "dataclass",
    "aliased",
)
"""Kinds of values that a flow makes and hands to its tasks, some to several of them."""

ERRORS = ("ValueError", "KeyError", "Own", "ExceptionGroup", "FileNotFoundError")
HARD_ERRORS = ("OwnText", "KeywordOnly", "WithLock")
"""Errors that pickle does not take, or does not give back."""

ODD = (
    "lambda",
    "own",
    "deep",
    "recursive",
    "set",
    "error",
    "none",
    "class",
    "nan",
    "sizeof",
    "deque",
)

Wrap = Literal["", "list", "tuple", "dict", "dataclass", "deeper"]
Op = Literal[
    "write",
    "pass",
    "write and pass",
    "read",
    "raise",
    "odd",
    "global",
    "grow",
    "nested",
    "flaky",
    "unable",
]
How = Literal["submit", "map", "call", "state"]


class Input(NamedTuple):
    """One argument: a constant of the flow, or what an earlier node gave."""

    of: Literal["constant", "node"]
    number: int
    wrap: Wrap = ""
    is_failure_allowed: bool = False


class Node(NamedTuple):
    """One call of a task."""

    op: Op
    inputs: tuple[Input, ...] = ()
    waits: tuple[int, ...] = ()
    waits_in: Literal["list", "tuple", "dict", "one", "nested"] = "list"
    how: How = "submit"
    detail: int = 0
    """Which error, which odd value, how often it fails."""
    retries: int = 0
    keeps: Literal["", "pickle", "deepflow", "cached"] = ""
    is_read: bool = False
    """The flow takes the result at once, and writes to it."""
    is_changed_before: bool = False
    """The flow changes its global and its constants before the call."""


class Graph(NamedTuple):
    """A flow: the values it makes, then its calls in order."""

    constants: tuple[str, ...]
    nodes: tuple[Node, ...]


_ops = st.sampled_from(
    (
        *("write", "write", "pass", "write and pass", "write and pass", "read", "raise"),
        *("odd", "global", "grow", "nested", "flaky", "unable"),
    )
)
_wraps = st.sampled_from(("", "", "list", "tuple", "dict", "dataclass", "deeper"))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of up to nine calls."""
    constants = tuple(draw(st.lists(st.sampled_from(CONSTANTS), min_size=1, max_size=3)))
    nodes: list[Node] = []
    usable: list[int] = []
    for number in range(draw(st.integers(1, 9))):
        op = draw(_ops)
        sources = [("constant", i) for i in range(len(constants))]
        sources += [("node", i) for i in usable] * 2
        inputs = tuple(
            Input(*draw(st.sampled_from(sources)), draw(_wraps), draw(st.integers(0, 4)) == 0)
            for _ in range(draw(st.integers(0, 2)))
        )
        waits = tuple(draw(st.lists(st.sampled_from(usable), max_size=2))) if usable else ()
        how = draw(st.sampled_from(("submit", "submit", "submit", "map", "call", "state")))
        # torch pickles the address of a tensor's memory: no two copies have one key in a cache.
        is_plain = all(
            one.of == "constant" and "tensor" not in constants[one.number] for one in inputs
        )
        keeps = draw(st.sampled_from(("", "", "", "pickle", "deepflow", "cached")))
        if op == "unable":
            keeps, how = "", "submit"  # what cannot travel is looked at where nobody uses it
        if keeps == "cached" and (not is_plain or how != "submit" or op in ("odd", "flaky")):
            keeps = ""
        nodes.append(
            Node(
                op,
                inputs,
                waits,
                draw(st.sampled_from(("list", "tuple", "dict", "one", "nested"))),
                how,
                draw(st.integers(0, 20)),
                draw(st.sampled_from((0, 0, 1, 2))) if op in ("flaky", "raise") else 0,
                keeps,
                draw(st.integers(0, 4)) == 0 and op != "unable",
                draw(st.integers(0, 3)) == 0,
            )
        )
        if op != "unable":
            usable.append(number)
    return Graph(constants, tuple(nodes))


def draw_graphs(n: int, from_seed: int) -> list[Graph]:
    """So many graphs, the same for the same seed and version of hypothesis."""
    drawn: list[Graph] = []

    @seed(from_seed)
    @settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs())
    def collect(graph: Graph) -> None:
        drawn.append(graph)

    collect()
    return drawn[:n]


def smaller(graph: Graph) -> list[Graph]:
    """Graphs with one thing less, the greatest cuts first."""
    found = [_without(graph, number) for number in reversed(range(len(graph.nodes)))]
    for number, node in enumerate(graph.nodes):
        plainer: list[dict[str, Any]] = [
            {"inputs": ()},
            *({"inputs": node.inputs[:i] + node.inputs[i + 1 :]} for i in range(len(node.inputs))),
            {"waits": ()},
            {"how": "submit"},
            {"keeps": ""},
            {"is_read": False},
            {"is_changed_before": False},
            {"retries": 0},
        ]
        for change in plainer:
            changed = node._replace(**change)
            if changed != node:
                nodes = (*graph.nodes[:number], changed, *graph.nodes[number + 1 :])
                found.append(graph._replace(nodes=nodes))
    return found


def _without(graph: Graph, gone: int) -> Graph:
    """The graph without a node and without what referred to it."""
    nodes = []
    for number, node in enumerate(graph.nodes):
        if number == gone:
            continue
        inputs = tuple(
            one._replace(number=one.number - (one.number > gone)) if one.of == "node" else one
            for one in node.inputs
            if (one.of, one.number) != ("node", gone)
        )
        waits = tuple(w - (w > gone) for w in node.waits if w != gone)
        nodes.append(node._replace(inputs=inputs, waits=waits))
    return graph._replace(nodes=tuple(nodes))
