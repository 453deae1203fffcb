"""A wrapper's model without content: what it is made of is seen, nothing is read or drawn for it."""

from __future__ import annotations

import copy
from typing import Any

from torch._subclasses import fake_tensor

from orchestrator.isolation.copies import Isolation
from orchestrator.isolation.leftovers import Leftovers
from orchestrator.stage import ModelWrapper

__all__ = ["outline"]


def outline(wrapper: ModelWrapper) -> Any:
    """Makes a wrapper's model of fake tensors; the wrapper stays as it is.

    Raises:
        Exception: It cannot be made like this.
    """
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    leftovers = Leftovers(mode, Isolation(mode))
    leftovers.bindings.note(wrapper)
    models: list[Any] = []
    with leftovers.watch(models), mode:
        models.append(copy.copy(wrapper).make_model())
    return models[0]
