"""What of a stage goes into a content key: all that its compiled program depends on, weights left out.

*Weights* are the parameters and persistent buffers of the stage's module: a program is compiled for their shapes and
dtypes, and a checkpoint fills them. Everything else is baked into the program and counts by content: code, config,
attributes, other tensors, values that a function closes over, its defaults, and the globals that it reads.

Not seen are what code looks up by a computed name and what it imports while it runs, what replaces a function of a
released package (``torch.nn.functional.linear = mine``), and the mode (a stage is compiled in eval mode).

What cannot be read in any way makes a fingerprint unique to this process: see :mod:`orchestrator.fingerprint.walk`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules import module

from orchestrator.duplicate import owner_of
from orchestrator.fingerprint.walk import ObjectWalk
from orchestrator.isolation import outline
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["digest", "fingerprint", "fingerprint_and_modes"]

#: Goes up when the same stage is described in another way.
_VERSION = 4


def fingerprint(stage: Stage, *others: Stage) -> list[Any]:
    """Describes a stage for a content key, alike in every process: code, config, ports, forms of its weights.

    The content of weights is no part of it: a program is compiled for their shapes and dtypes. That of other tensors
    is, and reading it takes about a second per gigabyte.

    Args:
        stage: The stage.
        others: Stages that are compiled with it: what they share with it, and with each other, is part of it.
    """
    return _describe(stage, *others)[0]


def fingerprint_and_modes(stage: Stage) -> tuple[list[Any], list[Any]]:
    """Describes a stage as :func:`fingerprint` does, and what that leaves out: modes of modules, devices of tensors.

    Returns:
        The fingerprint; for each module that it describes whether it is in training mode, and where each tensor is.
    """
    parts, walk = _describe(stage)
    # By type: an object may say of its class what it likes, and run code to say so.
    modes = [
        str(value.device) if issubclass(type(value), torch.Tensor) else getattr(value, "training", False)
        for value in walk.objects
        if issubclass(type(value), (torch.Tensor, torch.nn.Module))
    ]
    return parts, modes


def digest(value: Any) -> str:
    """Returns the digest of any value by its content, alike in every process; tensors in it count by content too."""
    return ObjectWalk().digest(value)


def _global_hooks() -> list[Any]:
    """Hooks that torch calls for every module."""
    hook_tables = (module._global_forward_pre_hooks, module._global_forward_hooks)
    return [list(hooks.values()) for hooks in hook_tables] if any(hook_tables) else []


def _describe(*stages: Stage) -> tuple[list[Any], ObjectWalk]:
    """The fingerprint of stages, and the walk that it is of."""
    inputs = [
        (port.name, repr(port.spec), port.optional, port.keyword) for stage in stages for port in stage.inputs
    ]
    outputs = [(port.name, repr(port.spec)) for stage in stages for port in stage.outputs]
    configs = [dict(sorted(stage.config.items())) for stage in stages]
    text, walk = _digest([stage.target for stage in stages], (*configs, *_global_hooks()))
    return [_VERSION, inputs, outputs, text], walk


def _digest(targets: Sequence[Any], others: Sequence[Any]) -> tuple[str, ObjectWalk]:
    """The digest of what stages run and of other objects, and the walk over them."""
    owners = [owner_of(target) for target in targets]
    wrappers = {id(owner): owner for owner in owners if isinstance(owner, ModelWrapper)}
    # A model that is not built yet is described by its outline, without content, so that a key needs no weights. Where
    # the outline does not say it all, the model itself is built.
    if any(wrapper.__dict__.get("_model") is None for wrapper in wrappers.values()):
        with contextlib.suppress(Exception):
            outlines = {key: _model_or_outline(wrapper) for key, wrapper in wrappers.items()}
            walk = _walk(owners, outlines, strict=True)
            return walk.digest(*targets, *others), walk
    models: dict[int, Any] = dict.fromkeys(wrappers)
    for key, wrapper in wrappers.items():
        with contextlib.suppress(Exception):
            models[key] = wrapper.model
    walk = _walk(owners, models)
    return walk.digest(*targets, *others), walk


def _model_or_outline(wrapper: ModelWrapper) -> Any:
    model = wrapper.__dict__.get("_model")
    return outline(wrapper) if model is None else model


def _walk(owners: Iterable[Any], models: Mapping[int, Any], strict: bool = False) -> ObjectWalk:
    """A wrapper counts the same before and after its model is built."""
    weights = [tensor for owner in owners for tensor in _weights(models.get(id(owner), owner))]
    return ObjectWalk(weights, {key: {"_model": model} for key, model in models.items()}, strict)


def _weights(owner: Any) -> Iterator[torch.Tensor]:
    if not isinstance(owner, torch.nn.Module):
        return
    yield from owner.parameters()
    for part in owner.modules():
        passing = part._non_persistent_buffers_set
        yield from (
            tensor for name, tensor in part._buffers.items() if tensor is not None and name not in passing
        )
