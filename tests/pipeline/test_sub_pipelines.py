"""Pipelines in pipelines: laid out flat at the end, they give the graph that copying at each level gives."""

from __future__ import annotations

import random
import re

import pytest
import torch

from orchestrator import GraphError, Pipeline
from orchestrator.graph import Graph
from orchestrator.pipeline.graph_builder import GraphBuilder
from tests.kit import host, new, refuses, spec


def one(a):
    return a + 1


def two(a, b):
    return a + b


def split(a):
    return a + 1, a - 1


def random_pipeline(seed: int) -> Pipeline:
    """Pipelines in one another with constants, stages and parts called several times, several outputs, devices."""
    draw = random.Random(seed)
    inner: list[Pipeline] = []
    for level in range(draw.randint(2, 5)):
        pipeline = new(f"p{level}")
        values = [pipeline.input(f"x{at}", spec(2, allow_cast=bool(at))) for at in range(draw.randint(1, 2))]
        handles = [
            pipeline.add("one", one, device=draw.choice([None, "null:3"])),
            pipeline.add("two", two),
            pipeline.add("split", split, outputs=("up", "down")),
        ]
        for handle in handles:
            call(draw, handle, values, {"one": 1, "two": 2, "split": 1}[handle.name])
        host_value = host(pipeline, "home", lambda a: a, out=spec(2))(draw.choice(values))
        values.append(host_value)
        for at, body in enumerate(draw.sample(inner, min(len(inner), 2))):
            device = draw.choice([None, f"null:{level}"])
            handles.append(pipeline.add(f"part{at}", body, device=device))
            call(draw, handles[-1], values, len(body.freeze().inputs))
        for _ in range(draw.randint(0, 4)):
            handle = draw.choice(handles)
            ports = {"one": 1, "two": 2, "split": 1}
            call(draw, handle, values, ports.get(handle.name) or len(handle._body.inputs))
        for at, value in enumerate(draw.sample(values, min(len(values), 3))):
            pipeline.output(f"y{at}", value)
        inner.append(pipeline)
    return inner[-1]


def call(draw: random.Random, handle, values: list, count: int) -> None:
    arguments = [
        torch.full((2,), draw.random()) if draw.random() < 0.2 else draw.choice(values) for _ in range(count)
    ]
    result = handle(*arguments)
    values += result if isinstance(result, tuple) else [result]


def outline(graph: Graph) -> list[object]:
    """All that a graph says, in its order."""
    return [
        [(call.name, call.stage.name, call.loop) for call in graph.calls.values()],
        [(stage.name, stage.device, stage.host, stage.target) for stage in graph.stages.values()],
        list(graph.constants.items()),
        graph.edges,
        graph.nodes,
        graph.outputs,
    ]


@pytest.mark.parametrize("seed", range(30))
def test_laid_out_flat_a_graph_is_that_of_copies(seed, monkeypatch):
    flat = random_pipeline(seed)
    monkeypatch.setattr(GraphBuilder, "_as_body", lambda self: None)
    copied = random_pipeline(seed)
    assert repr(flat) == repr(copied)
    for first, second in zip(outline(flat.freeze()), outline(copied.freeze()), strict=True):
        assert [without_addresses(str(part)) for part in first] == [
            without_addresses(str(part)) for part in second
        ]


def without_addresses(text: str) -> str:
    """Two pipelines have functions of their own where one is made by a helper."""
    return re.sub(r"0x[0-9a-f]+", "0x", text)


def test_a_stage_of_a_part_is_one_object_however_often_it_is_called_and_frozen():
    inner = new("inner")
    inner.output("y", inner.add("s", one)(inner.input("x", spec(2))))
    outer = new()
    part = outer.add("part", inner)
    x = part(part(outer.input("x", spec(2))))
    outer.output("y", x)
    first = outer.freeze()
    assert first.calls["part/s"].stage is first.calls["part/s#2"].stage
    outer.output("z", part(x))
    assert outer.freeze().calls["part/s#3"].stage is first.calls["part/s"].stage


def test_a_part_that_is_never_called_is_named():
    inner = new("inner")
    inner.output("y", inner.add("s", one)(inner.input("x", spec(2))))
    middle = new("middle")
    middle.output("y", middle.add("in", inner)(middle.input("x", spec(2))))
    outer = new()
    outer.add("mid", middle)
    outer.output("y", outer.input("x", spec(2)))
    refuses(GraphError, "'mid/in/s' is never called", outer.freeze)
    refuses(GraphError, "'mid/in/s' is never called", lambda: new().add("sub", outer))


def test_a_part_is_what_its_pipeline_was_when_it_was_added():
    inner = new("inner")
    inner.output("y", inner.add("s", one)(inner.input("x", spec(2))))
    outer = new()
    part = outer.add("part", inner)
    inner.output("more", inner.add("t", one)(inner.input("z", spec(2))))
    outer.output("y", part(outer.input("x", spec(2))))
    assert list(outer.freeze().calls) == ["part/s"]


def test_nested_400_deep_with_a_stage_on_each_level():
    body = new("b0")
    body.output("x", body.add("s", one)(body.input("x", spec(2))))
    for level in range(1, 400):
        outer = new(f"b{level}")
        x = outer.add("s", one)(outer.input("x", spec(2)))
        outer.output("x", outer.add("b", body)(x=x))
        body = outer
    graph = body.freeze()
    assert list(graph.calls) == ["b/" * level + "s" for level in range(400)]
    assert len(graph.edges) == 401
