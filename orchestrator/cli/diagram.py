"""Draw a graph as Mermaid, DOT or SVG.

Inputs and outputs are rounded, calls are boxes (dashed on the host), constants are cylinders. An arrow says
which port it leaves and which it enters; the port ``output`` is the usual one and is not named. A loop, map or branch
is a frame around its body, with a hexagon where values enter it and one where they leave; a dotted arrow from this to
that is a value that one iteration hands to the next.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.cli.report import JobError
from orchestrator.graph import BranchLoop, Loop, MapLoop
from orchestrator.specs import show_spec

if TYPE_CHECKING:
    from orchestrator.graph import Graph, NodeKey

__all__ = ["draw", "to_dot", "to_mermaid"]

_MERMAID_SHAPES = {
    "input": ("([", "])"),
    "output": ("([", "])"),
    "constant": ("[(", ")]"),
    "call": ("[", "]"),
    "enter": ("{{", "}}"),
    "exit": ("{{", "}}"),
}
_DOT_SHAPES = {
    "input": "ellipse",
    "output": "ellipse",
    "constant": "cylinder",
    "call": "box",
    "enter": "hexagon",
    "exit": "hexagon",
}

#: Characters that mean something inside a quoted Mermaid label; it has entity codes of its own.
_MERMAID_CODES = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "&": "#amp;"}
)
_DOT_CODES = str.maketrans({"\\": "\\\\", '"': '\\"'})
_SECONDS = 60
#: What a frame of the drawing says of its loop.
_WORDS: dict[type[Loop], str] = {Loop: "loop", MapLoop: "map", BranchLoop: "branch"}


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
    back: bool = False


@dataclass(frozen=True)
class _LoopFrame:
    """The nodes and inner frames of a loop, or (without a title) of the whole graph."""

    identity: str
    title: str
    nodes: list[_Node] = field(default_factory=list)
    frames: list[_LoopFrame] = field(default_factory=list)


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
    frame, arrows = _layout(graph)
    lines = ["flowchart LR", *_indent_frame(frame, _mermaid_node, _mermaid_frame, "end")]
    for arrow in arrows:
        label = f'|"{arrow.label.translate(_MERMAID_CODES)}"|' if arrow.label else ""
        lines.append(f"    {arrow.source} {'-.->' if arrow.back else '-->'}{label} {arrow.target}")
    host = [node.identity for node in _nodes(frame) if node.host]
    if host:
        lines += ["    classDef host stroke-dasharray: 4 4", f"    class {','.join(host)} host"]
    return "\n".join(lines)


def _mermaid_node(node: _Node) -> str:
    label = "<br/>".join(line.translate(_MERMAID_CODES) for line in node.lines)
    opening, closing = _MERMAID_SHAPES[node.kind]
    return f'{node.identity}{opening}"{label}"{closing}'


def _mermaid_frame(frame: _LoopFrame) -> list[str]:
    return [f'subgraph {frame.identity}["{frame.title.translate(_MERMAID_CODES)}"]']


def to_dot(graph: Graph) -> str:
    """Returns the graph in DOT, the language of Graphviz."""
    frame, arrows = _layout(graph)
    lines = [f"digraph {_dot_string(graph.name)} {{", "    rankdir=LR", '    node [fontname="sans-serif"]']
    lines += _indent_frame(frame, _dot_node, _dot_frame, "}")
    for arrow in arrows:
        facts = [f"label={_dot_string(arrow.label)}"] if arrow.label else []
        facts += ["style=dotted", "constraint=false"] if arrow.back else []
        suffix = f" [{' '.join(facts)}]" if facts else ""
        lines.append(f"    {arrow.source} -> {arrow.target}{suffix}")
    return "\n".join([*lines, "}"])


def _dot_node(node: _Node) -> str:
    label = "\\n".join(line.translate(_DOT_CODES) for line in node.lines)
    style = " style=dashed" if node.host else ""
    return f'{node.identity} [label="{label}" shape={_DOT_SHAPES[node.kind]}{style}]'


def _dot_frame(frame: _LoopFrame) -> list[str]:
    return [
        f"subgraph cluster_{frame.identity} {{",
        f"    label={_dot_string(frame.title)}",
        "    style=rounded",
    ]


def _indent_frame(
    frame: _LoopFrame, node: Callable[[_Node], str], begin: Callable[[_LoopFrame], list[str]], end: str
) -> Iterator[str]:
    """Yields the lines of a frame's content, indented."""
    yield from (f"    {node(each)}" for each in frame.nodes)
    for inner in frame.frames:
        yield from (f"    {line}" for line in begin(inner))
        yield from (f"    {line}" for line in _indent_frame(inner, node, begin, end))
        yield f"    {end}"


def _nodes(frame: _LoopFrame) -> Iterator[_Node]:
    yield from frame.nodes
    for inner in frame.frames:
        yield from _nodes(inner)


def _dot_string(text: str) -> str:
    return f'"{text.translate(_DOT_CODES)}"'


def _layout(graph: Graph) -> tuple[_LoopFrame, list[_Arrow]]:
    # Identities are positions, so that names need no escaping and the drawing is the same each time.
    network = graph.nx
    identities: dict[NodeKey, str] = {key: f"n{position}" for position, key in enumerate(network.nodes)}
    arrows = [
        _Arrow(identities[source], identities[target], _ports(*ports))
        for source, target, ports in network.edges(keys=True)
    ]
    # The graph has no cycle: what a loop hands to its next iteration is an arrow of the drawing alone.
    ends = {key: identity for key, identity in identities.items() if key.kind in ("enter", "exit")}
    for name, loop in graph.loops.items():
        match loop:
            case BranchLoop():
                continue  # what it gives otherwise goes back to nothing
            case Loop() if loop.carry:
                enter, exit_ = (identity for key, identity in ends.items() if key.name == name)
                arrows.append(_Arrow(exit_, enter, ", ".join(loop.carry), back=True))
    # A frame is made before those within it: loops are listed from the outside in.
    frames = {"": _LoopFrame("", "")}
    for position, (name, loop) in enumerate(graph.loops.items()):
        frames[name] = _LoopFrame(f"g{position}", f"{_WORDS[type(loop)]} {name}: {_terms(graph, loop)}")
        frames[loop.within].frames.append(frames[name])
    for key, identity in identities.items():
        scope = key.name if key in ends else graph.scope(key)
        frames[scope].nodes.append(_node(graph, key, identity))
    return frames[""], arrows


def _terms(graph: Graph, loop: Loop) -> str:
    """Returns in words how often a body runs."""
    # Maps and branches have terms of their own; what follows them is of loops.
    match loop:
        case MapLoop():
            return f"in batches over {', '.join(name for name, _ in loop.over)}"
        case BranchLoop():
            return f"if {' and '.join(_conditions(graph, loop))}"
    terms = ["if its condition holds"] if loop.condition else []
    terms += [f"for each {', '.join(loop.each)}"] if loop.each else []
    terms += [f"until {loop.until}"] if loop.until else []
    if loop.max_steps is not None:
        terms.append(f"{'at most ' if terms else ''}{loop.max_steps} times")
    return ", ".join(terms)


def _conditions(graph: Graph, branch: Loop) -> Iterator[str]:
    """Yields what a branch hangs on: optional inputs that enter it, then its condition."""
    inflows = (
        edge for edge in graph.edges if edge.target.name == branch.name and edge.target_port in branch.inputs
    )
    maybe = [edge.origin for edge in inflows if edge.source.kind == "input" and edge.origin in graph.optional]
    if maybe:
        yield f"{' and '.join(dict.fromkeys(maybe))} given"
    if branch.condition:
        yield "its condition holds"


def _node(graph: Graph, key: NodeKey, identity: str) -> _Node:
    host = key.kind == "call" and graph.calls[key.name].stage.host
    return _Node(identity, key.kind, tuple(_lines(graph, key)), host)


def _lines(graph: Graph, key: NodeKey) -> Iterator[str]:
    if key.kind in ("enter", "exit"):
        yield "enter" if key.kind == "enter" else "leave"
        return
    yield key.name
    if key.kind == "input":
        yield show_spec(graph.inputs[key.name]) + (", optional" if key.name in graph.optional else "")
    elif key.kind == "call":
        stage = graph.calls[key.name].stage
        if stage.name != key.name:
            yield f"stage {stage.name}"


def _ports(source: str, target: str) -> str:
    names = [port for port in (source if source != "output" else "", target) if port]
    return " -> ".join(names)


def _to_svg(text: str) -> str:
    program = shutil.which("dot")
    if program is None:
        raise JobError(
            "An SVG is drawn by Graphviz, whose program 'dot' is not installed. Install Graphviz, or take "
            "--format mermaid or --format dot, which need nothing."
        )
    # A program that hangs is ended; one that is gone since it was looked up is no other fault than a broken one.
    try:
        process = subprocess.run(
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
    return process.stdout.rstrip("\n")
