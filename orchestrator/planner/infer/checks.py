"""Checks before a stage is tried: training mode, and sizes decided where none may be."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy

from orchestrator.duplicate import owner_of
from orchestrator.errors import PlanError
from orchestrator.planner.context import PlanContext
from orchestrator.stage import Stage

__all__ = ["check_data_dependent", "check_mode"]


def check_data_dependent(context: PlanContext, name: str, stage: Stage, dim: str) -> None:
    """Refuses a stage that decides a size where shapes are compiled in, or anew in each iteration of a loop.

    Raises:
        PlanError: The stage decides a size there.
    """
    # A loop's values have one shape in all iterations; a size that the body decides would change between them.
    loop = context.graph.calls[name].loop
    if loop:
        raise PlanError(
            f"Stage {stage.name!r} (call {name!r}) decides the size of {dim!r} in the body of loop {loop!r}, where it "
            f"may differ from one iteration to the next. Give its output fixed sizes with a pad rule, or decide "
            f"{dim!r} before the loop.",
            stage=stage.name,
            call=name,
            dim=dim,
            loop=loop,
        )
    # A program has its shapes from compilation, so none of its outputs can have a size that contents decide.
    device = context.devices[stage.name]
    if context.is_compiled(device):
        raise PlanError(
            f"Stage {stage.name!r} (call {name!r}) decides the size of {dim!r} while it runs, but {device!r} "
            f"compiles static shapes. Make it a host stage (device='host'), or give a fixed size and a mask.",
            stage=stage.name,
            call=name,
            dim=dim,
        )


def check_mode(stage: Stage) -> None:
    """Refuses Dropout and BatchNorm in training mode: results would differ from call to call, or drift.

    Raises:
        PlanError: The stage is in training mode with one of them, or has a lazy parameter.
    """
    wrapper = stage.wrapper
    target = wrapper.__dict__.get("_model") if wrapper is not None else owner_of(stage.target)
    if stage.host or not isinstance(target, torch.nn.Module):
        return
    # A lazy parameter has no shape to copy as a fake tensor.
    lazy = next((path for path, value in target.named_parameters() if is_lazy(value)), None)
    if lazy is not None:
        raise PlanError(
            f"Stage {stage.name!r} has no shape yet for its lazy parameter {lazy!r}; call the module once on an "
            f"example before planning.",
            stage=stage.name,
            parameter=lazy,
        )
    for path, part in target.named_modules():
        if getattr(part, "training", False) and _is_random(part):
            raise PlanError(
                f"Stage {stage.name!r} is in training mode with a {type(part).__name__} "
                f"({path or 'the module itself'}); call .eval() on it first.",
                stage=stage.name,
                module=path,
            )


def _is_random(part: torch.nn.Module) -> bool:
    """Tells whether a module in training mode drops values or updates statistics."""
    if isinstance(part, torch.jit.ScriptModule):
        return any(word in part.original_name for word in ("Dropout", "BatchNorm"))
    if isinstance(part, (torch.nn.MultiheadAttention, torch.nn.RNNBase)):
        return part.dropout > 0
    return isinstance(part, (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm))
