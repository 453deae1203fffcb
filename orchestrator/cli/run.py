"""``orchestrator run``: one request, from files to files."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, Debug, Device, Placement, Settings, Sizes, Target, parse_pairs
from orchestrator.cli.report import UsageError, reporting

if TYPE_CHECKING:
    from orchestrator.cli.resolve import Built
    from orchestrator.plan import Plan

__all__ = ["command"]


class Picture(str, enum.Enum):
    """What pictures are written as."""

    PNG = "png"
    JPG = "jpg"


class Tensors(str, enum.Enum):
    """What tensors are written as."""

    NPY = "npy"
    SAFETENSORS = "safetensors"


def command(
    target: Target,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=FILE",
            help="A file, or text for a text input. Repeatable.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    placement: Placement = None,
    sizes: Sizes = None,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write the outputs here.", show_default=False),
    ] = None,
    format: Annotated[Picture, typer.Option("--format", help="What pictures are written as.")] = Picture.PNG,
    tensors: Annotated[Tensors, typer.Option("--tensors", help="What tensors are written as.")] = Tensors.NPY,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run one request and write or show its outputs."""
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.cli.planning import Wishes
        from orchestrator.cli.resolve import build

        wishes = Wishes(device, placement, sizes)
        built = build(target, settings)
        request = _request(built, parse_pairs("--input", inputs, "NAME=FILE"))
        _make_folder(out)
        plan = wishes.plan(built)
        results, stats = _run(plan, request)
        reply.data = {
            "pipeline": plan.pipeline,
            "devices": [group.device for group in plan.groups],
            "outputs": _keep(results, out, format.value, tensors.value),
            "stats": _plain(stats),
            "plan": _plain(plan.summary),
        }
        if not as_json:
            _print(reply.data["outputs"])


def _request(built: Built, files: dict[str, str]) -> dict[str, Any]:
    """Returns the request's inputs; files and settings must give each of them once."""
    from orchestrator.cli.io import describe_input, read_input
    from orchestrator.errors import nearest

    specs = built.graph.inputs
    for name in files:
        if name not in specs:
            raise UsageError(f"{built.graph.name!r} has no input {name!r}.{nearest(name, specs)}")
        if name in built.inputs:
            raise UsageError(f"The input {name!r} is given twice, by --input and by --set.")
    missing = [
        describe_input(name, specs[name]) for name in specs if name not in files and name not in built.inputs
    ]
    if missing:
        listed = "\n  ".join(missing)
        raise UsageError(f"{built.graph.name!r} needs more inputs, each as --input NAME=FILE:\n  {listed}")
    return {
        name: read_input(name, files[name], spec)
        if name in files
        else read_input(name, built.inputs[name], spec, literal=True)
        for name, spec in specs.items()
    }


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

    with progress() as shown:
        shown.phase(f"loading {plan.pipeline}")
        with plan.load() as session:
            shown.phase(f"running {plan.pipeline}", len(plan.calls))
            return session.run(request), dict(session.stats)


def _keep(results: dict[str, Any], out: Path | None, picture: str, tensors: str) -> dict[str, Any]:
    from orchestrator.cli.io import describe, write_output

    if out is None:
        return {name: describe(name, value) for name, value in results.items()}
    return {
        name: {"file": str(write_output(out, name, value, picture=picture, tensors=tensors))}
        for name, value in results.items()
    }


def _plain(value: Any) -> Any:
    from orchestrator.cli.plain import to_plain

    return to_plain(value)


def _print(outputs: dict[str, Any]) -> None:
    """Prints where outputs were written, or a table of the tensors and all else in full."""
    from orchestrator.cli.show import print_table

    written = [(name, found["file"]) for name, found in outputs.items() if "file" in found]
    if written:
        print_table(("output", "file"), written)
    tensors = [(name, found) for name, found in outputs.items() if "shape" in found]
    if tensors:
        columns = ("output", "shape", "dtype", "min", "max", "mean")
        print_table(
            columns, [[name, *(_cell(found[column]) for column in columns[1:])] for name, found in tensors]
        )
    others = [(name, found["value"]) for name, found in outputs.items() if "value" in found]
    for name, value in others:
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        typer.echo(text if len(outputs) == 1 else f"{name}:\n{text}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
