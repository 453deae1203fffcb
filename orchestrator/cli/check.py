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
from orchestrator.cli.report import FAILED, reporting

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
        from orchestrator.cli.plain import to_plain
        from orchestrator.cli.planning import Wishes
        from orchestrator.cli.request import make_examples, make_request
        from orchestrator.cli.resolve import build
        from orchestrator.plugin import default_manager
        from orchestrator.promises.check import check_promises

        wishes = Wishes(device, placement, sizes, residency, memory, options)
        built = build(target, settings)
        given = make_request(built, parse_pairs("--input", inputs, "NAME=FILE"))
        plan = wishes.plan(built)
        request = make_examples(built, plan, "checking") if given is None else given
        report = check_promises(built.pipeline.graph, plan, default_manager(), request, tolerance)
        reply.data = {
            "pipeline": report.pipeline,
            "device": report.device,
            "inputs": "examples" if given is None else "given",
            "ok": report.ok,
            "first": report.first and report.first.stage,
            "rows": to_plain(report.rows),
        }
        if not as_json:
            typer.echo(str(report))
    if not report.ok:
        typer.echo(f"error: {report.conclusion}", err=True)
        raise typer.Exit(FAILED)
