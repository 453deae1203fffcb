"""``orchestrator check``: what a pipeline promises, tried on one request."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import (
    AsJson,
    Debug,
    Device,
    Inputs,
    Memory,
    Options,
    Placement,
    Residencies,
    Settings,
    Sizes,
    Target,
    parse_pairs,
)
from orchestrator.cli.report import EXIT_FAILURE, reporting

__all__ = ["command"]


def command(
    target: Target,
    inputs: Inputs = None,
    device: Device = "cpu",
    placement: Placement = None,
    sizes: Sizes = None,
    residency: Residencies = None,
    memory: Memory = None,
    options: Options = None,
    settings: Settings = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NUMBER",
            help="The largest relative difference that counts as equal; by default one that suits the dtype.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Try what a pipeline promises (pad rules, batch=True) at each of its stages.

    The exit code is 0 if all that could be tried holds, and 1 if a promise is broken.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.cli.json_values import to_plain
        from orchestrator.cli.plan_arguments import PlanArguments
        from orchestrator.cli.request import make_examples, make_request
        from orchestrator.cli.targets import build_target
        from orchestrator.plugin import default_manager
        from orchestrator.promises.check import check_promises

        # What is cheap to refuse comes first: options, then files, then the plan; a request runs last.
        plan_arguments = PlanArguments(device, placement, sizes, residency, memory, options)
        build_result = build_target(target, settings)
        user_request = make_request(build_result, parse_pairs("--input", inputs, "NAME=FILE"))
        plan = plan_arguments.plan(build_result)
        request = make_examples(build_result, plan, "checking") if user_request is None else user_request
        report = check_promises(build_result.pipeline.freeze(), plan, default_manager(), request, tolerance)
        reply.data = {
            "pipeline": report.pipeline,
            "device": report.device,
            "inputs": "examples" if user_request is None else "given",
            "ok": report.ok,
            "first": report.first and report.first.stage,
            "rows": to_plain(report.rows),
        }
        if not as_json:
            typer.echo(str(report))
    if not report.ok:
        typer.echo(f"error: {report.conclusion}", err=True)
        raise typer.Exit(EXIT_FAILURE)
