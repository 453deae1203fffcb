"""Drawings hold every node and edge once, and no name can break out of its label."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import torch

from orchestrator.cli.diagram import draw, to_dot, to_mermaid
from orchestrator.cli.report import JobError
from orchestrator.graph import Call, Edge, Graph, NodeKey
from orchestrator.specs import TensorSpec
from orchestrator.stage import make_stage

SPEC = TensorSpec((2, 3))


def add(a, b):
    return a + b


@pytest.fixture
def graph() -> Graph:
    """An input twice into one call, a second call of the same stage on a constant, and a host stage."""
    stage = make_stage("add", add)
    host = make_stage('ho"st', add, device="host", outputs={"sum": SPEC})
    x, one, y = NodeKey("input", "x"), NodeKey("constant", "one"), NodeKey("output", "x")
    first, second, last = (NodeKey("call", name) for name in ("add", "add#2", 'ho"st'))
    edges = [
        Edge(x, "", first, "a"),
        Edge(x, "", first, "b"),
        Edge(first, "output", second, "a"),
        Edge(one, "", second, "b"),
        Edge(second, "output", last, "a"),
        Edge(first, "output", last, "b"),
        Edge(last, "sum", y, ""),
    ]
    calls = [Call("add", stage), Call("add#2", stage), Call('ho"st', host)]
    return Graph("draw<me>", {"x": SPEC}, {"one": torch.ones(())}, calls, ["x"], edges)


def test_mermaid(graph: Graph):
    assert to_mermaid(graph).splitlines() == [
        "flowchart LR",
        '    n0(["x<br/>[2, 3] float32"])',
        '    n1[("one")]',
        '    n2["add"]',
        '    n3["add#35;2<br/>stage add"]',
        '    n4["ho#quot;st"]',
        '    n5(["x"])',
        '    n0 -->|"a"| n2',
        '    n0 -->|"b"| n2',
        '    n1 -->|"b"| n3',
        '    n2 -->|"a"| n3',
        '    n2 -->|"b"| n4',
        '    n3 -->|"a"| n4',
        '    n4 -->|"sum"| n5',
        "    classDef host stroke-dasharray: 4 4",
        "    class n4 host",
    ]


def test_dot(graph: Graph):
    lines = to_dot(graph).splitlines()
    assert lines[0] == 'digraph "draw<me>" {'
    assert lines[-1] == "}"
    assert r'    n0 [label="x\n[2, 3] float32" shape=ellipse]' in lines
    assert r'    n4 [label="ho\"st" shape=box style=dashed]' in lines
    assert len([line for line in lines if " -> n" in line]) == len(graph.edges)


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "<b>", "`x`", "a#quot;b", "|", "]", '"]; end'])
def test_a_name_stays_in_its_label(text: str):
    spec = TensorSpec((1,))
    x, y = NodeKey("input", text), NodeKey("output", text)
    graph = Graph(text, {text: spec}, {}, [], [text], [Edge(x, "", y, "")])
    for line in to_mermaid(graph).splitlines()[1:3]:
        assert re.fullmatch(r' {4}n\d\(\["[^"<>`]*(<br/>)?[^"<>`]*"\]\)', line)
    for line in to_dot(graph).splitlines()[3:5]:
        assert re.fullmatch(r' {4}n\d \[label="([^"\\]|\\.)*" shape=ellipse\]', line)


def test_svg_needs_graphviz(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match=r"'dot' is not installed.*--format mermaid"):
        draw(graph, "svg")


@pytest.mark.parametrize(
    ("script", "result"),
    [("cat > /dev/null; echo '<svg/>'", "<svg/>"), ("echo oh no >&2; exit 3", "exit code 3: oh no")],
)
def test_svg_comes_from_dot(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, result: str
):
    program = tmp_path / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if result.startswith("<"):
        assert draw(graph, "svg") == result
    else:
        with pytest.raises(JobError, match=result):
            draw(graph, "svg")
