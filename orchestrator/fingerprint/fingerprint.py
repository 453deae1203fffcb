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
from collections.abc import Iterator
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


def fingerprint(stage: Stage) -> list[Any]:
    """Describes a stage for a content key, alike in every process: code, config, ports, forms of its weights.

    The content of weights is no part of it: a program is compiled for their shapes and dtypes. That of other tensors
    is, and reading it takes about a second per gigabyte.
    """
    return _describe(stage)[0]


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


def _describe(stage: Stage) -> tuple[list[Any], ObjectWalk]:
    """The fingerprint of a stage, and the walk that it is of."""
    ports = [(port.name, repr(port.spec), port.optional, port.keyword) for port in stage.inputs]
    outputs = [(port.name, repr(port.spec)) for port in stage.outputs]
    roots = (stage.target, dict(sorted(stage.config.items())), *_global_hooks())
    text, walk = _digest(roots)
    return [_VERSION, ports, outputs, text], walk


def _digest(roots: tuple[Any, ...]) -> tuple[str, ObjectWalk]:
    """The digest of objects, and the walk over them."""
    owner = owner_of(roots[0])
    if not isinstance(owner, ModelWrapper):
        walk = ObjectWalk(_weights(owner))
        return walk.digest(*roots), walk
    # A model that is not built yet is described by its outline, without content, so that a key needs no weights. Where
    # the outline does not say it all, the model itself is built.
    if owner.__dict__.get("_model") is None:
        with contextlib.suppress(Exception):
            walk = _of_wrapper(owner, outline(owner), strict=True)
            return walk.digest(*roots), walk
    model = None
    with contextlib.suppress(Exception):
        model = owner.model
    walk = _of_wrapper(owner, model)
    return walk.digest(*roots), walk


def _of_wrapper(wrapper: ModelWrapper, model: Any, strict: bool = False) -> ObjectWalk:
    """A wrapper counts the same before and after its model is built."""
    return ObjectWalk(_weights(model), {id(wrapper): {"_model": model}}, strict)


def _weights(owner: Any) -> Iterator[torch.Tensor]:
    if not isinstance(owner, torch.nn.Module):
        return
    yield from owner.parameters()
    for part in owner.modules():
        passing = part._non_persistent_buffers_set
        yield from (
            tensor for name, tensor in part._buffers.items() if tensor is not None and name not in passing
        )
