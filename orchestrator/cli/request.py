"""The request of a command: files and settings, or the pipeline's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.report import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.resolve import Built
    from orchestrator.plan import Plan

__all__ = ["make_request"]


def make_request(built: Built, files: dict[str, str]) -> dict[str, Any] | None:
    """Returns the request's inputs; None for examples, where neither files nor settings give any.

    Raises:
        UsageError: An input is given twice, or is missing and not optional.
    """
    from orchestrator.cli.io import describe_input, read_input
    from orchestrator.errors import nearest

    specs = built.graph.inputs
    if not files and not built.inputs and built.pipeline.example_inputs is not None:
        return None
    for name in files:
        if name not in specs:
            raise UsageError(f"{built.graph.name!r} has no input {name!r}.{nearest(name, specs)}")
        if name in built.inputs:
            raise UsageError(f"The input {name!r} is given twice, by --input and by --set.")
    missing = [name for name in specs if name not in files and name not in built.inputs]
    optional = built.graph.optional
    if not optional.issuperset(missing):
        lines = [
            describe_input(name, specs[name]) + (" (optional)" if name in optional else "")
            for name in sorted(missing, key=optional.__contains__)
        ]
        listed = "\n  ".join(lines)
        raise UsageError(f"{built.graph.name!r} needs more inputs, each as --input NAME=FILE:\n  {listed}")
    return {
        name: read_input(name, files[name], spec)
        if name in files
        else read_input(name, built.inputs[name], spec, literal=True)
        for name, spec in specs.items()
        if name not in missing
    }


def make_examples(built: Built, plan: Plan, what: str) -> dict[str, Any]:
    """Returns the example inputs at the largest sizes of the plan, and says on stderr that they are used.

    Args:
        built: The pipeline; it has example inputs.
        plan: Its plan.
        what: What is done with them, e.g. ``running``.

    Raises:
        InputError: They cannot be made.
    """
    from orchestrator.promises.check import example_request

    inputs = example_request(built.pipeline.name, built.pipeline.example_inputs, plan)
    at = ", ".join(f"{dim.name}={dim.buckets[-1]}" for dim in plan.dims)
    told = f"No input is given: {what} the examples of {built.pipeline.name!r}{at and f' at {at}'}."
    typer.echo(told, err=True)
    return inputs
