"""The frozen graph, also when made by hand: its order is networkx's, its ports are fed once, it has no cycle."""

from __future__ import annotations

import networkx
import pytest

from orchestrator import GraphError
from orchestrator.graph import Call, Edge, Graph, NodeKey
from orchestrator.stage import make_stage
from tests.kit import Double, chain, new, refuses, spec


def join(left, right=None):
    return left


def call(name: str, port: str = "") -> tuple[NodeKey, str]:
    return NodeKey("call", name), port


def edge(source: str, target: str) -> Edge:
    """An edge from text: ``x`` is an input, ``>y`` an output, ``a.b`` a port of a call."""

    def end(text: str, kind: str) -> tuple[NodeKey, str]:
        name, _, port = text.partition(".")
        return NodeKey("call" if port else kind, name), port

    return Edge(*end(source, "input"), *end(target, "output"))


def graph(edges: list[tuple[str, str]], stages: str = "ab", outputs: tuple[str, ...] = ("y",)) -> Graph:
    calls = [Call(name, make_stage(name, join)) for name in stages]
    return Graph("hand", {"x": spec(2)}, {}, calls, outputs, [edge(*ends) for ends in edges])


def test_a_cycle_is_refused_and_shown():
    error = refuses(
        GraphError,
        ("acyclic", "a -> b -> a", "loop"),
        lambda: graph([("b.output", "a.left"), ("a.output", "b.left"), ("a.output", "y")]),
    )
    assert set(error.cycle) == {"a", "b"}


def test_a_call_that_feeds_itself_is_a_cycle():
    error = refuses(
        GraphError, "acyclic", lambda: graph([("a.output", "a.left"), ("a.output", "y")], stages="a")
    )
    assert error.cycle == ("a",)


def test_a_pipeline_cannot_contain_itself():
    pipeline = chain(Double())
    assert (
        refuses(GraphError, ("contain itself", "cycle"), lambda: pipeline.add("me", pipeline)).pipeline == "p"
    )


def test_pipelines_that_contain_each_other_hold_what_was_drawn_when_they_were_added():
    inner, outer = chain(Double()), new("outer")
    outer.output("y", outer.add("in", inner)(outer.input("x", spec(2))))
    inner.output("z", inner.add("out", outer)(inner.input("w", spec(2))))
    assert list(inner.freeze().calls) == ["a", "out/in/a"]
    assert list(outer.freeze().calls) == ["in/a"]


def test_a_port_that_is_fed_twice_names_both_producers():
    error = refuses(
        GraphError,
        ("'b.left'", "'a.output'", "'x'", "fed once"),
        lambda: graph([("x", "a.left"), ("a.output", "b.left"), ("x", "b.left"), ("b.output", "y")]),
    )
    assert error.port == "b.left"


def test_a_port_that_is_never_fed_is_named():
    error = refuses(GraphError, ("'a.left'", "never fed"), lambda: graph([("a.output", "y")], stages="a"))
    assert error.port == "a.left"


def test_an_optional_port_may_stay_unfed():
    assert graph([("x", "a.left"), ("a.output", "y")], stages="a").order == ("a",)


def test_a_port_that_does_not_exist_is_offered_the_nearest():
    refuses(
        GraphError,
        ("'lefft'", "Did you mean 'left'?"),
        lambda: graph([("x", "a.lefft"), ("a.output", "y")], "a"),
    )


@pytest.mark.parametrize("ends", [("x", "c.left"), ("c.output", "y"), ("q", "a.left")])
def test_an_edge_ends_at_nodes_that_exist(ends: tuple[str, str]):
    refuses(GraphError, "does not exist", lambda: graph([("x", "a.left"), ("a.output", "y"), ends], "a"))


def test_an_output_takes_one_value():
    twice = [("x", "a.left"), ("a.output", "y"), ("x", "y")]
    assert refuses(GraphError, "fed 2 times", lambda: graph(twice, "a")).output == "y"
    assert refuses(GraphError, "fed 0 times", lambda: graph([("x", "a.left")], "a")).output == "y"


def test_a_graph_has_an_output():
    refuses(GraphError, ("no output", "pipeline.output"), lambda: graph([("x", "a.left")], "a", ()))


def test_two_calls_of_one_name_cannot_hide_one_another():
    calls = [Call("a", make_stage("a", join)), Call("a", make_stage("other", join))]
    edges = [edge("x", "a.left"), edge("a.output", "y")]
    refuses(GraphError, "'a'", lambda: Graph("hand", {"x": spec(2)}, {}, calls, ("y",), edges))


def test_inputs_and_outputs_may_share_a_name():
    pipeline = new()
    x = pipeline.input("same", spec(2))
    pipeline.output("same", pipeline.add("same", Double())(x))
    nodes = set(pipeline.freeze().nx)
    assert nodes == {("input", "same"), ("call", "same"), ("output", "same")}


def test_underneath_is_a_frozen_multigraph_of_networkx():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    pipeline.output("y", pipeline.add("join", join)(x, x))
    multigraph = pipeline.freeze().nx
    assert type(multigraph) is networkx.MultiDiGraph
    assert multigraph.number_of_edges() == 3
    with pytest.raises(networkx.NetworkXError, match="Frozen"):
        multigraph.add_node("more")


def test_a_frozen_graph_does_not_follow_its_pipeline():
    pipeline = chain(Double())
    before = pipeline.freeze()
    pipeline.add("late", Double())(pipeline.input("z", spec(2)))
    assert list(before.calls) == ["a"]
    with pytest.raises(TypeError):
        before.inputs["new"] = spec(2)


def test_a_branch_is_finished_before_the_next_begins():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    one = [pipeline.add(f"left{index}", Double()) for index in range(3)]
    two = [pipeline.add(f"right{index}", Double()) for index in range(3)]
    left = right = x
    for stage in one:
        left = stage(left)
    for stage in two:
        right = stage(right)
    pipeline.output("y", pipeline.add("join", join)(left, right))
    assert pipeline.freeze().order == ("left0", "left1", "left2", "right0", "right1", "right2", "join")


def test_the_order_is_that_of_creation_where_the_graph_leaves_it_open():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    values = [pipeline.add(name, Double())(x) for name in ("z", "m", "a")]
    for name, value in zip("zma", values, strict=True):
        pipeline.output(name, value)
    assert pipeline.freeze().order == ("z", "m", "a")
    assert list(
        networkx.lexicographical_topological_sort(pipeline.freeze().nx, key=list(pipeline.freeze().nx).index)
    )


def test_units_stand_together():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    a, b, c = (pipeline.add(name, Double()) for name in "abc")
    pipeline.output("y", c(a(x)))
    pipeline.output("z", b(x))
    units = pipeline.freeze().ordered_units({NodeKey("call", "a"): "pair", NodeKey("call", "b"): "pair"})
    assert [tuple(node.name for node in unit) for unit in units] == [("a", "b"), ("c",)]
