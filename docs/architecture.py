"""The picture of the architecture, drawn from the code: packages on their floors, and which imports which.

    python docs/architecture.py           # writes docs/images/architecture.svg; `make architecture` does the same

Floors are the layers that `pyproject.toml` gives to import-linter. Arrows are imports as the files have them, less
those that follow from others (if a imports b and b imports c, a's import of c is not drawn) and those within a floor.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import networkx as nx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PICTURE", "draw"]

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
CORE = ROOT / "orchestrator"
#: Distributions beside the core, on the floor above it.
OTHERS = {
    "stages": ROOT / "stages" / "orchestrator_stages",
    "neuron": ROOT / "plugins" / "neuron" / "orchestrator_neuron",
}

WIDTH, FLOOR, GAP, BOX = 1440, 92, 16, 52
STYLE = """
  text { font-family: sans-serif; text-anchor: middle; fill: #1b2733 }
  .name { font-size: 15px; font-weight: 600 }
  .rooms { font-size: 11px; fill: #51606e }
  .core { fill: #eef4fb; stroke: #5b86b5 }
  .other { fill: #fdf3e4; stroke: #c58b34 }
  path { fill: none; stroke: #9aa8b5; stroke-width: 1.2; marker-end: url(#tip) }
"""


class Box(NamedTuple):
    """A package or module in the picture.

    Attributes:
        name: Its name.
        rooms: The folders in it.
        x: Its middle.
        y: Its top.
    """

    name: str
    rooms: str
    x: float
    y: float

    @property
    def width(self) -> float:
        """Wide enough for the longer of its two lines."""
        return _width(self.name, self.rooms)


def draw() -> str:
    """Returns the picture as SVG."""
    floors = [list(OTHERS), *_layers()]
    boxes = {box.name: box for number, floor in enumerate(floors) for box in _boxes(floor, number)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(floors) * FLOOR + GAP}">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" style="fill:#9aa8b5;stroke:none;marker-end:none"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    # Arrows first: where one passes a floor that it has no business on, the boxes there hide it.
    lines += [_arrow(boxes[source], boxes[target]) for source, target in _arrows(floors)]
    lines += [line for box in boxes.values() for line in _rectangle(box)]
    return "\n".join([*lines, "</svg>", ""])


def _layers() -> list[list[str]]:
    """Returns the names on each floor of the core, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [re.split(r"\s*[|:]\s*", layer) for layer in layers if layer != "__main__"]


def _boxes(floor: list[str], number: int) -> Iterator[Box]:
    rooms = {name: ", ".join(_rooms(_folder(name))) for name in floor}
    widths = {name: _width(name, rooms[name]) for name in floor}
    left = (WIDTH - sum(widths.values()) - GAP * (len(floor) - 1)) / 2
    for name in floor:
        yield Box(name, rooms[name], left + widths[name] / 2, number * FLOOR + GAP)
        left += widths[name] + GAP


def _width(name: str, rooms: str) -> float:
    return max(9 * len(name), 6 * len(rooms)) + 24


def _folder(name: str) -> Path:
    return OTHERS.get(name, CORE / name)


def _rooms(folder: Path) -> list[str]:
    """Returns the packages directly in a folder."""
    return sorted(init.parent.name for init in folder.glob("*/__init__.py"))


def _arrows(floors: list[list[str]]) -> list[tuple[str, str]]:
    """Returns the imports between floors that do not follow from others."""
    number = {name: at for at, floor in enumerate(floors) for name in floor}
    graph = nx.DiGraph()
    for name in number:
        targets = {target for target in _imports(name) if target in number}
        graph.add_edges_from((name, target) for target in targets if number[target] > number[name])
    return sorted(nx.transitive_reduction(graph).edges)


def _imports(name: str) -> Iterator[str]:
    """Yields the parts of the core that a package or module imports, for type checking and in functions too."""
    folder = _folder(name)
    paths = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (part.split(".")[1] for part in names if part.startswith("orchestrator."))


def _arrow(source: Box, target: Box) -> str:
    start, end = source.y + BOX, target.y - 1
    bend = (start + end) / 2
    return (
        f'<path d="M {source.x:.0f} {start} C {source.x:.0f} {bend:.0f} {target.x:.0f} {bend:.0f} '
        f'{target.x:.0f} {end}"/>'
    )


def _rectangle(box: Box) -> Iterator[str]:
    kind = "other" if box.name in OTHERS else "core"
    yield (
        f'<rect class="{kind}" x="{box.x - box.width / 2:.0f}" y="{box.y}" width="{box.width:.0f}" '
        f'height="{BOX}" rx="6"/>'
    )
    yield f'<text class="name" x="{box.x:.0f}" y="{box.y + (22 if box.rooms else 31)}">{escape(box.name)}</text>'
    if box.rooms:
        yield f'<text class="rooms" x="{box.x:.0f}" y="{box.y + 40}">{escape(box.rooms)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
