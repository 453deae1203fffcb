"""``orchestrator validate``: build, check and plan, run nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestrator.cli.options import (
    AsJson,
    Debug,
    Device,
    Memory,
    Options,
    Placement,
    Residencies,
    Settings,
    Sizes,
    Target,
)
from orchestrator.cli.report import reporting

if TYPE_CHECKING:
    from orchestrator.graph import Graph

__all__ = ["command"]


def command(
    target: Target,
    device: Device = "cpu",
    placement: Placement = None,
    sizes: Sizes = None,
    residency: Residencies = None,
    memory: Memory = None,
    options: Options = None,
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a pipeline's graph and its plan.

    The exit code is 0 if both hold, and 1 if not.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.cli.planning import Wishes
        from orchestrator.cli.resolve import build

        wishes = Wishes(device, placement, sizes, residency, memory, options)
        built = build(target, settings)
        graph = built.pipeline.validate()
        counts = {
            "inputs": len(graph.inputs),
            "stages": len(graph.stages),
            "calls": len(graph.calls),
            "loops": len(graph.loops),
            "outputs": len(graph.outputs),
        }
        if not as_json:
            listed = ", ".join(
                f"{name} {count}{_more(graph, name)}" for name, count in counts.items() if count
            )
            typer.echo(f"OK  graph of {graph.name!r}: {listed}")
        plan = wishes.plan(built)
        devices = [group.device for group in plan.groups]
        reply.data = {
            "valid": True,
            "pipeline": graph.name,
            "graph": counts,
            "devices": devices,
            "plan": plan.summary,
        }
        if not as_json:
            typer.echo(f"OK  plan on {', '.join(devices) or 'the host'}: edges {len(plan.edges)}")


def _more(graph: Graph, what: str) -> str:
    """What is said of a count besides."""
    return f" (optional {len(graph.optional)})" if what == "inputs" and graph.optional else ""
