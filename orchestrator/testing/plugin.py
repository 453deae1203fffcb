"""What the testing kit registers, like everybody else's plugin: the null device, and toy stages and pipelines.

Everything is named by an import path, so that registering imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.plugin import hookimpl

if TYPE_CHECKING:
    from orchestrator.registry import BackendRegistry, PipelineRegistry, StageRegistry

_HOME = "orchestrator.testing.stages"

#: Registered name to class and summary.
TOYS = {
    "toy.double": ("Double", "twice its input"),
    "toy.add": ("Add", "the sum of two inputs"),
    "toy.concat": ("Concat", "two inputs side by side, along the last dim"),
    "toy.split": ("SplitHalves", "two halves of the last dim, as a tuple"),
    "toy.stats": ("TotalAndShift", "sums and shifted values, as a dict"),
    "toy.linear": ("Linear", "a seeded linear layer"),
    "toy.fixed": ("FixedWidth", "takes one width only: smaller values are padded, larger ones cut"),
    "toy.crops": ("Crops", "host stage that decides how many rows it gives"),
    "toy.rows": ("Rows", "host stage that gives the number of rows as a Python int"),
    "toy.fail": ("Fail", "raises when it really runs, not while it is planned"),
    "toy.slow": ("Slow", "sleeps, then adds one"),
}


@hookimpl
def orchestrator_register_backends(registry: BackendRegistry) -> None:
    """Registers the null backend."""
    registry.add(
        "null",
        "orchestrator.testing.null:NullBackend",
        devices=("null",),
        summary="allocates nothing, records every call (for tests)",
    )


@hookimpl
def orchestrator_register_stages(registry: StageRegistry) -> None:
    """Registers the toy stages."""
    for name, (attribute, summary) in TOYS.items():
        registry.add(name, f"{_HOME}:{attribute}", summary=f"{summary} (for tests)")


@hookimpl
def orchestrator_register_pipelines(registry: PipelineRegistry) -> None:
    """Registers the toy pipeline."""
    registry.add("toy.diamond", f"{_HOME}:diamond", summary="fan-out, fan-in and two outputs (for tests)")
