"""``orchestrator plan``: decide everything, run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the plan as JSON.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print the plan: where each tensor lives, how it gets there, and why.

    No device is touched, so a plan for a GPU can be made anywhere.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.cli.plan_arguments import PlanArguments
        from orchestrator.cli.targets import build_target

        # Options are checked before the pipeline is built, which may take a checkpoint's time.
        plan_arguments = PlanArguments(device, placement, sizes, residency, memory, options)
        plan = plan_arguments.plan(build_target(target, settings))
        reply.text = plan.to_json()
        if out is not None:
            from orchestrator.cli.output_files import write_text

            write_text(out, reply.text + "\n")
        if not as_json:
            typer.echo(f"The plan is in {out}." if out is not None else str(plan))
