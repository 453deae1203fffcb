"""What two objects have in common that act alike on shapes."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["key_of", "structure"]


def structure(target: Any) -> Any:
    """Returns a hashable key: equal for objects that act alike on shapes. Unknown objects count by identity."""
    if isinstance(target, torch.nn.Module):
        return (type(target), tuple((name, key_of(value)) for name, value in sorted(target.__dict__.items())))
    return key_of(target)


_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, type)


def key_of(value: Any) -> Any:
    """Returns a hashable key of any value; a tensor counts by its form."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.dtype, str(value.device))
    if isinstance(value, torch.nn.Module):
        return structure(value)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(key_of(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return (type(value), frozenset(key_of(item) for item in value))
    if isinstance(value, dict):
        return (type(value), tuple((key_of(name), key_of(item)) for name, item in value.items()))
    return ("object", id(value))
