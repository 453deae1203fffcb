"""Attributes and slots of an object, looked at without running any code of its own."""

from __future__ import annotations

import types
from typing import Any

import torch

from orchestrator.isolation.copies import is_library

__all__ = ["attributes_of", "is_holder", "slots_of"]

#: Modules of Python whose objects are made to hold what others put there.
_HOLDERS = frozenset({"collections", "functools", "queue", "types", "weakref"})
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), torch.Tensor, torch.dtype, torch.device)


def is_holder(item: Any) -> bool:
    """Tells whether an object's attributes may be where code caches something: a module of torch, a class of others."""
    kind = type(item)
    if issubclass(kind, _PLAIN) or issubclass(kind, types.ModuleType):
        return False
    if issubclass(kind, torch.nn.Module):
        return True
    return kind.__module__ in _HOLDERS or not is_library(kind.__module__)


def attributes_of(item: Any) -> dict[str, Any] | None:
    """Returns an object's attributes as they lie there; None: it has none, or a class of its own for them."""
    try:
        space = object.__getattribute__(item, "__dict__")
    except AttributeError:
        return None
    return space if type(space) is dict else None


def slots_of(item: Any) -> dict[str, Any]:
    """Returns the descriptors of an object's slots, by attribute."""
    slots: dict[str, Any] = {}
    for kind in type(item).__mro__:
        if "__slots__" in vars(kind):
            slots |= {
                name: value
                for name, value in vars(kind).items()
                if isinstance(value, types.MemberDescriptorType)
            }
    return slots
