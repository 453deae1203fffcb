"""``orchestrator draw``: the graph as text that draws a picture, or as the picture.

Mermaid and DOT are written here; an SVG is what Graphviz's ``dot`` makes of the DOT. Nothing leaves the
machine.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Debug, Settings, Target
from orchestrator.cli.report import reporting

__all__ = ["command"]


class DrawingFormat(str, enum.Enum):
    """Languages in which a graph is drawn."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


def command(
    target: Target,
    format: Annotated[
        DrawingFormat | None,
        typer.Option(
            "--format", "-f", help="By default from the file's ending, else mermaid.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write to a file, not to stdout.", show_default=False
        ),
    ] = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Draw a pipeline's graph as Mermaid, DOT or SVG."""
    with reporting(debug=debug):
        from orchestrator.cli.diagram import draw
        from orchestrator.cli.targets import build_target

        # The graph is drawn whole before the file is touched.
        kind = format or _by_ending(out)
        text = draw(build_target(target, settings).graph, kind.value)
        if out is None:
            typer.echo(text)
        else:
            from orchestrator.cli.output_files import write_text

            write_text(out, text + "\n")


def _by_ending(out: Path | None) -> DrawingFormat:
    endings = {".dot": DrawingFormat.DOT, ".gv": DrawingFormat.DOT, ".svg": DrawingFormat.SVG}
    return (
        endings.get(out.suffix.lower(), DrawingFormat.MERMAID) if out is not None else DrawingFormat.MERMAID
    )
