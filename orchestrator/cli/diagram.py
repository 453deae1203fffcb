"""Draw a graph as Mermaid, DOT or SVG.

Inputs and outputs are rounded, calls are boxes (dashed on the host), constants are cylinders. An arrow says
which port it leaves and which it enters; the port ``output`` is the usual one and is not named.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.cli.report import JobError
from orchestrator.specs import show_spec

if TYPE_CHECKING:
    from orchestrator.graph import Graph, NodeKey

__all__ = ["draw", "to_dot", "to_mermaid"]

_MERMAID_SHAPES = {
    "input": ("([", "])"),
    "output": ("([", "])"),
    "constant": ("[(", ")]"),
    "call": ("[", "]"),
}
_DOT_SHAPES = {"input": "ellipse", "output": "ellipse", "constant": "cylinder", "call": "box"}

#: Characters that mean something inside a quoted Mermaid label; it has entity codes of its own.
_MERMAID_CODES = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "&": "#amp;"}
)
_DOT_CODES = str.maketrans({"\\": "\\\\", '"': '\\"'})
_SECONDS = 60


@dataclass(frozen=True)
class _Node:
    identity: str
    kind: str
    lines: tuple[str, ...]
    host: bool


@dataclass(frozen=True)
class _Arrow:
    source: str
    target: str
    label: str


def draw(graph: Graph, kind: str) -> str:
    """Returns the drawing.

    Args:
        graph: The graph.
        kind: ``mermaid``, ``dot`` or ``svg``.

    Raises:
        JobError: Graphviz is not installed, or fails.
    """
    if kind == "mermaid":
        return to_mermaid(graph)
    text = to_dot(graph)
    return text if kind == "dot" else _to_svg(text)


def to_mermaid(graph: Graph) -> str:
    """Returns the graph as a Mermaid flowchart."""
    nodes, arrows = _parts(graph)
    lines = ["flowchart LR"]
    for node in nodes:
        label = "<br/>".join(line.translate(_MERMAID_CODES) for line in node.lines)
        opening, closing = _MERMAID_SHAPES[node.kind]
        lines.append(f'    {node.identity}{opening}"{label}"{closing}')
    for arrow in arrows:
        label = f'|"{arrow.label.translate(_MERMAID_CODES)}"|' if arrow.label else ""
        lines.append(f"    {arrow.source} -->{label} {arrow.target}")
    host = [node.identity for node in nodes if node.host]
    if host:
        lines += ["    classDef host stroke-dasharray: 4 4", f"    class {','.join(host)} host"]
    return "\n".join(lines)


def to_dot(graph: Graph) -> str:
    """Returns the graph in DOT, the language of Graphviz."""
    nodes, arrows = _parts(graph)
    lines = [f"digraph {_quoted(graph.name)} {{", "    rankdir=LR", '    node [fontname="sans-serif"]']
    for node in nodes:
        label = "\\n".join(line.translate(_DOT_CODES) for line in node.lines)
        style = " style=dashed" if node.host else ""
        lines.append(f'    {node.identity} [label="{label}" shape={_DOT_SHAPES[node.kind]}{style}]')
    for arrow in arrows:
        label = f" [label={_quoted(arrow.label)}]" if arrow.label else ""
        lines.append(f"    {arrow.source} -> {arrow.target}{label}")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return f'"{text.translate(_DOT_CODES)}"'


def _parts(graph: Graph) -> tuple[list[_Node], list[_Arrow]]:
    identities: dict[NodeKey, str] = {key: f"n{position}" for position, key in enumerate(graph.nx.nodes)}
    nodes = [_node(graph, key, identity) for key, identity in identities.items()]
    arrows = [
        _Arrow(identities[source], identities[target], _ports(*ports))
        for source, target, ports in graph.nx.edges(keys=True)
    ]
    return nodes, arrows


def _node(graph: Graph, key: NodeKey, identity: str) -> _Node:
    host = key.kind == "call" and graph.calls[key.name].stage.host
    return _Node(identity, key.kind, tuple(_lines(graph, key)), host)


def _lines(graph: Graph, key: NodeKey) -> Iterator[str]:
    yield key.name
    if key.kind == "input":
        yield show_spec(graph.inputs[key.name])
    elif key.kind == "call":
        stage = graph.calls[key.name].stage
        if stage.name != key.name:
            yield f"stage {stage.name}"


def _ports(source: str, target: str) -> str:
    named = [port for port in (source if source != "output" else "", target) if port]
    return " -> ".join(named)


def _to_svg(text: str) -> str:
    program = shutil.which("dot")
    if program is None:
        raise JobError(
            "An SVG is drawn by Graphviz, whose program 'dot' is not installed. Install Graphviz, or take "
            "--format mermaid or --format dot, which need nothing."
        )
    try:
        done = subprocess.run(
            [program, "-Tsvg"],
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise JobError(
            f"Graphviz failed with exit code {error.returncode}: {error.stderr.strip()}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"Graphviz could not be run: {error}.") from error
    return done.stdout.rstrip("\n")
