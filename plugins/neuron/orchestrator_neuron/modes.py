"""What a stage's module is in: a script, which cannot be compiled, or training mode, which is not compiled."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.duplicate import owner_of
from orchestrator.errors import PlanError
from orchestrator.stage import Stage

__all__ = ["check_scripts", "training_notes"]


def check_scripts(stage: Stage, device: str) -> None:
    """Refuses scripted and traced modules and functions.

    Raises:
        PlanError: The stage is one, or has one in it.
    """
    owner = _owner(stage)
    if isinstance(owner, torch.jit.ScriptFunction):
        raise _script(stage, device, "a scripted function", "the Python function")
    if isinstance(owner, torch.nn.Module):
        for path, part in owner.named_modules():
            if isinstance(part, torch.jit.ScriptModule):
                what = f"a scripted or traced module{f' in {path!r}' if path else ''}"
                raise _script(stage, device, what, "the nn.Module")


def _script(stage: Stage, device: str, what: str, original: str) -> PlanError:
    return PlanError(
        f"Stage {stage.name!r} is {what}, which cannot be exported: its Python code is gone, and a program on "
        f"{device!r} is compiled from that. Give {original} that torch.jit.script or torch.jit.trace was called with, "
        f"or run the stage on 'cpu'.",
        stage=stage.name,
    )


def training_notes(stage: Stage, device: str) -> Iterator[str]:
    """Yields a note where a module in training mode looks at the mode: programs are compiled in eval mode."""
    owner = _owner(stage)
    if not isinstance(owner, torch.nn.Module):
        return
    for path, part in owner.named_modules():
        if part.training and _asks_for_mode(type(part)):
            yield (
                f"Stage {stage.name!r} is in training mode, which forward of {type(part).__name__} "
                f"({path or 'the module itself'}) looks at; on {device!r} it is compiled in eval mode. Call .eval() on "
                f"it, so that it gives the same everywhere."
            )
            return


def _owner(stage: Stage) -> Any:
    wrapper = stage.wrapper
    return wrapper.__dict__.get("_model") if wrapper is not None else owner_of(stage.target)


def _asks_for_mode(kind: type) -> bool:
    forward = inspect.getattr_static(kind, "forward", None)
    if kind.__module__.partition(".")[0] == "torch" or not isinstance(forward, types.FunctionType):
        return False
    return "training" in _names(forward.__code__)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function uses, those of functions inside it too."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
