"""What of a stage goes into a content key: all that its compiled program depends on, weights left out.

*Weights* are the parameters and persistent buffers of the stage's module: a program is compiled for their shapes and
dtypes, and a checkpoint fills them. Everything else is baked into the program and counts by content: code, config,
attributes, other tensors, values that a function closes over, its defaults, and the globals that it reads.

Not seen are what code looks up by a computed name and what it imports while it runs, and the mode (a stage is compiled
in eval mode).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.duplicate import owner_of
from orchestrator.stage import ModelWrapper, Stage
from orchestrator.store.walk import Walk

__all__ = ["digest", "fingerprint"]

#: Goes up when the same stage is described in another way.
_VERSION = 2


def fingerprint(stage: Stage) -> list[Any]:
    """Describes a stage for a content key, alike in every process: code, config, ports, forms of its weights.

    The content of weights is no part of it: a program is compiled for their shapes and dtypes.
    """
    ports = [(port.name, repr(port.spec), port.optional, port.keyword) for port in stage.inputs]
    given = [(port.name, repr(port.spec)) for port in stage.outputs]
    return [_VERSION, ports, given, _digest(stage.target, dict(sorted(stage.config.items())))]


def digest(value: Any) -> str:
    """Returns the digest of any value by its content, alike in every process; tensors in it count by content too."""
    return Walk(()).digest(value)


def _digest(target: Any, config: dict[str, Any]) -> str:
    owner = owner_of(target)
    if not isinstance(owner, ModelWrapper):
        return Walk(_weights(owner)).digest(target, config)
    if owner.__dict__.get("_model") is None:
        with contextlib.suppress(Exception):
            return _digest_wrapper(target, owner, _outline(owner), config)
    model = None
    with contextlib.suppress(Exception):
        model = owner.model
    return _digest_wrapper(target, owner, model, config)


def _digest_wrapper(target: Any, wrapper: ModelWrapper, model: Any, config: dict[str, Any]) -> str:
    """A wrapper counts the same before and after its model is built."""
    return Walk(_weights(model), {id(wrapper): {"_model": model}}).digest(target, config)


def _outline(wrapper: ModelWrapper) -> Any:
    """Returns a wrapper's model without content.

    Raises:
        Exception: It cannot be built like this.
    """
    with torch.device("meta"):
        return copy.copy(wrapper).make_model()


def _weights(owner: Any) -> Iterator[torch.Tensor]:
    if not isinstance(owner, torch.nn.Module):
        return
    yield from owner.parameters()
    for part in owner.modules():
        passing = part._non_persistent_buffers_set
        yield from (
            tensor for name, tensor in part._buffers.items() if tensor is not None and name not in passing
        )
