"""Planning takes work that grows as the graph does: counted in calls of Python functions, so that no clock decides."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from orchestrator import Pipeline, TensorSpec
from orchestrator.graph import Graph
from orchestrator.planner.schedule import locations, regions
from tests.planner.devices import DEVICE, ranked

pytestmark = pytest.mark.usefixtures("shared_store")

SPEC = TensorSpec((4, 8))


def add_one(x):
    return x + 1


def chain(count: int) -> Pipeline:
    """One stage called again and again, each time on what it gave before."""
    pipeline = ranked()
    x, stage = pipeline.input("x", SPEC), pipeline.add("s", add_one)
    for _ in range(count):
        x = stage(x)
    pipeline.output("y", x)
    return pipeline


def wide(count: int) -> Pipeline:
    """Stages beside each other."""
    pipeline = ranked()
    x = pipeline.input("x", SPEC)
    for number in range(count):
        pipeline.output(f"y{number}", pipeline.add(f"s{number}", add_one)(x))
    return pipeline


def shared(count: int) -> Pipeline:
    """One encoder for many pictures, all of whose results are alive at once."""
    pipeline = ranked()
    x, encode = pipeline.input("x", SPEC), pipeline.add("encode", add_one)
    ports = tuple(f"i{number}" for number in range(count))
    join = pipeline.add("join", lambda *parts: torch.stack(parts).sum(0), inputs=ports)
    pipeline.output("y", join(*[encode(x) for _ in range(count)]))
    return pipeline


def loops(count: int) -> Pipeline:
    """Loops one after another."""
    body = ranked("body")
    body.output("x", body.add("s", add_one)(body.input("x", SPEC)))
    pipeline = ranked()
    x = pipeline.input("x", SPEC)
    for number in range(count):
        x = pipeline.loop(f"l{number}", body, carry={"x": x}, max_steps=2)
    pipeline.output("y", x)
    return pipeline


def nested_loops(count: int) -> Pipeline:
    """Loops in one another."""
    body = ranked("b0")
    body.output("x", body.add("s", add_one)(body.input("x", SPEC)))
    for level in range(1, count):
        outer = ranked(f"b{level}")
        carry = {"x": outer.input("x", SPEC)}
        outer.output("x", outer.loop("l", body, carry=carry, max_steps=1))
        body = outer
    return body


def nested_pipelines(count: int) -> Pipeline:
    """Pipelines in one another."""
    body = ranked("b0")
    body.output("x", body.add("s", add_one)(body.input("x", SPEC)))
    for level in range(1, count):
        outer = ranked(f"b{level}")
        outer.output("x", outer.add("b", body)(x=outer.input("x", SPEC)))
        body = outer
    return body


def nested_stages(count: int) -> Pipeline:
    """Pipelines in one another, each with a stage of its own."""
    body = ranked("b0")
    body.output("x", body.add("s", add_one)(body.input("x", SPEC)))
    for level in range(1, count):
        outer = ranked(f"b{level}")
        x = outer.add("s", add_one)(outer.input("x", SPEC))
        outer.output("x", outer.add("b", body)(x=x))
        body = outer
    return body


def calls_of(function: Callable[[], object]) -> int:
    """How many functions of Python are called."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("make", "few", "device"),
    [
        (chain, 50, "cpu"),
        (wide, 20, "cpu"),
        (loops, 20, "cpu"),
        (nested_pipelines, 20, "cpu"),
        (chain, 20, DEVICE),
        (wide, 20, DEVICE),
        (shared, 20, DEVICE),
        (loops, 20, DEVICE),
    ],
)
def test_four_times_the_graph_takes_four_times_the_calls(make, few, device):
    make(2).plan(device)
    small, large = (make(few * times) for times in (1, 4))
    plans = []
    works = [calls_of(lambda graph=graph: plans.append(graph.plan(device))) for graph in (small, large)]
    texts = [calls_of(lambda plan=plan: str(plan)) for plan in plans]
    assert works[1] < 4 * 1.3 * works[0]
    assert texts[1] < 4 * 1.3 * texts[0]


@pytest.mark.parametrize("make", [chain, wide, loops, nested_pipelines, nested_stages])
def test_building_four_times_the_graph_takes_four_times_the_calls(make):
    """Adding stages, and laying out the graph at the end; a pipeline in another is not copied at each level."""
    make(2).freeze()
    few, many = (calls_of(lambda count=count: make(count).freeze()) for count in (50, 200))
    assert many < 4 * 1.1 * few


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_level_of_nested_loops_takes_as_much_as_the_one_before(device):
    """Each level looks at those within it once more; none runs all of them four times."""
    nested_loops(2).plan(device)
    few, many = (calls_of(lambda depth=depth: nested_loops(depth).plan(device)) for depth in (6, 12))
    assert many < 4 * few


def test_regions_and_locations_are_worked_out_once_a_plan(monkeypatch):
    counts = {"regions": 0, "locations": 0, "graph": 0}

    def counted(name: str, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    pipeline = loops(3)
    monkeypatch.setattr(Graph, "__init__", counted("graph", Graph.__init__))
    monkeypatch.setattr(
        "orchestrator.planner.planner.group_regions", counted("regions", regions.group_regions)
    )
    monkeypatch.setattr(
        "orchestrator.planner.planner.locate_edges", counted("locations", locations.locate_edges)
    )
    pipeline.plan()
    assert counts == {"regions": 1, "locations": 1, "graph": 1}
