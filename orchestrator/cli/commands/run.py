"""``orchestrator run``: one request, from files to files.

Who gives no input at all gets the pipeline's example inputs, if its author made some. Where a device counts what it
does by itself, as an emulated one may, its counts are shown next to those of the plan; they are no result of the
request, so they go to stderr.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from orchestrator.cli.report import UsageError, reporting

if TYPE_CHECKING:
    from orchestrator.plan import Plan

__all__ = ["command"]


class PictureFormat(str, enum.Enum):
    """Endings of the files that pictures are written to."""

    PNG = "png"
    JPG = "jpg"


class TensorFormat(str, enum.Enum):
    """Endings of the files that tensors are written to."""

    NPY = "npy"
    SAFETENSORS = "safetensors"


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
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write the outputs here.", show_default=False),
    ] = None,
    format: Annotated[
        PictureFormat, typer.Option("--format", help="What pictures are written as.")
    ] = PictureFormat.PNG,
    tensors: Annotated[
        TensorFormat, typer.Option("--tensors", help="What tensors are written as.")
    ] = TensorFormat.NPY,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run one request and write or show its outputs."""
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.cli.plan_arguments import PlanArguments
        from orchestrator.cli.request import make_examples, make_request
        from orchestrator.cli.targets import build_target

        # What is cheap to refuse comes first: options, then files, then the plan. Examples need the plan's sizes.
        plan_arguments = PlanArguments(device, placement, sizes, residency, memory, options)
        build_result = build_target(target, settings)
        user_request = make_request(build_result, parse_pairs("--input", inputs, "NAME=FILE"))
        _make_folder(out)
        plan = plan_arguments.plan(build_result)
        results, stats = _run(
            plan, make_examples(build_result, plan, "running") if user_request is None else user_request
        )
        reply.data = {
            "pipeline": plan.pipeline,
            "devices": [group.device for group in plan.groups],
            "inputs": "examples" if user_request is None else "given",
            "outputs": _write_or_describe(results, out, format.value, tensors.value),
            "stats": _plain(stats),
            "plan": _plain(plan.summary),
        }
        if not as_json:
            _print(reply.data["outputs"])
            _print_measured(plan, stats)


def _make_folder(out: Path | None) -> None:
    """Makes the folder before the run, so that its result has a place to go."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {str(out)!r} cannot be a folder: {error.strerror or error}.") from error


def _run(plan: Plan, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from orchestrator.cli.progress import progress

    with progress() as display:
        display.phase(f"loading {plan.pipeline}")
        with plan.load() as session:
            display.phase(f"running {plan.pipeline}", plan)
            return session.run(request), dict(session.stats)


def _write_or_describe(
    results: dict[str, Any], out: Path | None, picture: str, tensors: str
) -> dict[str, Any]:
    from orchestrator.cli.values import describe, write_outputs

    if out is None:
        return {name: describe(name, value) for name, value in results.items()}
    files = write_outputs(out, results, picture=picture, tensors=tensors)
    return {name: {"file": str(path)} for name, path in files.items()}


def _plain(value: Any) -> Any:
    from orchestrator.cli.json_values import to_plain

    return to_plain(value)


def _print(outputs: dict[str, Any]) -> None:
    """Prints where outputs were written, or a table of the tensors and all else in full."""
    from orchestrator.cli.tables import print_table

    # An output went to a file, or is a tensor (or a list of them) of which figures are shown, or is shown in full.
    files = [(name, summary["file"]) for name, summary in outputs.items() if "file" in summary]
    if files:
        print_table(("output", "file"), files)
    tensors = [(name, summary) for name, summary in outputs.items() if "shape" in summary]
    for name, summary in outputs.items():
        tensors += [(f"{name}[{at}]", item) for at, item in enumerate(summary.get("items", ()))]
    if tensors:
        columns = ("output", "shape", "dtype", "min", "max", "mean")
        print_table(
            columns,
            [[name, *(_cell(summary[column]) for column in columns[1:])] for name, summary in tensors],
        )
    others = [(name, summary["value"]) for name, summary in outputs.items() if "value" in summary]
    for name, value in others:
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        typer.echo(text if len(outputs) == 1 else f"{name}:\n{text}")


def _print_measured(plan: Plan, stats: Mapping[str, Any]) -> None:
    """Prints to stderr each device's own counts, next to the plan's for this request."""
    from orchestrator.cli.tables import print_table

    with contextlib.redirect_stdout(sys.stderr):
        for device, counts in stats.get("measured", {}).items():
            plan_counts = {**stats, "peak_bytes": stats["peak_bytes"].get(device)}
            rows = [_measured_row(name, plan_counts.get(name), count) for name, count in counts.items()]
            print_table(("what", "plan", "measured"), rows, title=f"Counted by {device}:")
            if "estimated_seconds" in counts:
                typer.echo("The latency is an estimate by the figures of the cost model; nothing was timed.")
            elsewhere = [call.name for call in plan.calls if call.device != device]
            if elsewhere:
                typer.echo(f"The plan also counts what runs elsewhere: {', '.join(elsewhere)}.")


def _measured_row(name: str, plan_count: int | None, count: float) -> tuple[str, str, str]:
    if name == "estimated_seconds":
        return "estimated latency", "-", f"{count * 1000:.3g} ms"
    return name.replace("_", " "), "-" if plan_count is None else f"{plan_count:,}", f"{count:,}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
