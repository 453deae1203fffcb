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
        from orchestrator.cli.plan_arguments import PlanArguments
        from orchestrator.cli.targets import build_target

        # Options are checked before the pipeline is built, which may take a checkpoint's time.
        plan_arguments = PlanArguments(device, placement, sizes, residency, memory, options)
        build_result = build_target(target, settings)
        graph = build_result.pipeline.freeze()
        counts = {
            "inputs": len(graph.inputs),
            "stages": len(graph.stages),
            "calls": len(graph.calls),
            "loops": len(graph.loops),
            "outputs": len(graph.outputs),
        }
        if not as_json:
            text = ", ".join(
                f"{name} {count}{_remark(graph, name)}" for name, count in counts.items() if count
            )
            typer.echo(f"OK  graph of {graph.name!r}: {text}")
        # The graph is said to be well before the plan may fail.
        plan = plan_arguments.plan(build_result)
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


def _remark(graph: Graph, what: str) -> str:
    """Returns the remark behind a count."""
    return f" (optional {len(graph.optional)})" if what == "inputs" and graph.optional else ""
