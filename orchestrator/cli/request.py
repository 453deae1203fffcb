"""The request of a command: files and settings, or the pipeline's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.report import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.targets import BuiltPipeline
    from orchestrator.plan import Plan

__all__ = ["make_request"]


def make_request(build_result: BuiltPipeline, files: dict[str, str]) -> dict[str, Any] | None:
    """Returns the request's inputs; None for examples, where neither files nor settings give any.

    Raises:
        UsageError: An input is given twice, or is missing and not optional.
    """
    from orchestrator.cli.values import describe_input, read_input
    from orchestrator.errors import nearest

    # Examples are for a user who names no input at all; whoever names one has to name all that are needed.
    specs = build_result.graph.inputs
    if not files and not build_result.inputs and build_result.pipeline.example_inputs is not None:
        return None
    for name in files:
        if name not in specs:
            raise UsageError(f"{build_result.graph.name!r} has no input {name!r}.{nearest(name, specs)}")
        if name in build_result.inputs:
            raise UsageError(f"The input {name!r} is given twice, by --input and by --set.")
    missing = [name for name in specs if name not in files and name not in build_result.inputs]
    optional = build_result.graph.optional
    if not optional.issuperset(missing):
        lines = [
            describe_input(name, specs[name]) + (" (optional)" if name in optional else "")
            for name in sorted(missing, key=optional.__contains__)
        ]
        text = "\n  ".join(lines)
        raise UsageError(
            f"{build_result.graph.name!r} needs more inputs, each as --input NAME=FILE:\n  {text}"
        )
    return {
        name: read_input(name, files[name], spec)
        if name in files
        else read_input(name, build_result.inputs[name], spec, literal=True)
        for name, spec in specs.items()
        if name not in missing
    }


def make_examples(build_result: BuiltPipeline, plan: Plan, what: str) -> dict[str, Any]:
    """Returns the example inputs at the largest sizes of the plan, and says on stderr that they are used.

    Args:
        build_result: The pipeline; it has example inputs.
        plan: Its plan.
        what: The verb of the command, e.g. ``running``.

    Raises:
        InputError: They cannot be made.
    """
    from orchestrator.promises.check import example_request

    inputs = example_request(build_result.pipeline.name, build_result.pipeline.example_inputs, plan)
    at = ", ".join(f"{dim.name}={dim.buckets[-1]}" for dim in plan.dims)
    message = f"No input is given: {what} the examples of {build_result.pipeline.name!r}{at and f' at {at}'}."
    typer.echo(message, err=True)
    return inputs
