"""A wrapper's model without content: what it is made of is seen, nothing is read or drawn for it."""

from __future__ import annotations

import copy
from typing import Any

from orchestrator.isolation.cached_mode import fake_mode
from orchestrator.isolation.copies import Isolation
from orchestrator.isolation.leftovers import Leftovers
from orchestrator.stage import ModelWrapper

__all__ = ["outline"]


def outline(wrapper: ModelWrapper) -> Any:
    """Makes a wrapper's model of fake tensors; the wrapper stays as it is.

    Raises:
        Exception: It cannot be made like this.
    """
    mode = fake_mode()
    leftovers = Leftovers(mode, Isolation(mode))
    leftovers.bindings.note(wrapper)
    models: list[Any] = []
    with leftovers.watch(models), mode:
        models.append(copy.copy(wrapper).make_model())
    return models[0]
