"""Copies of values that somebody else may write into: tensors, NumPy arrays, and what containers hold of them."""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import torch

from orchestrator.runner.device_values import device_value_of

__all__ = ["copy_request", "own_copy"]

#: Containers that are made anew from their items; one of a class of its own may hold more than these.
_CONTAINERS = (list, tuple, dict)

#: Types of values that nobody changes.
_IMMUTABLE = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    enum.Enum,
    frozenset,
    PurePath,
    torch.dtype,
    torch.device,
)


def _map_items(function: Callable[[Any], Any], value: Any) -> Any:
    """Returns a list, tuple or dict with the function of each item."""
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    return type(value)(map(function, value))


def own_copy(value: Any) -> Any:
    """Returns a copy of a tensor, a NumPy array or a plain container of them, with its own memory; else the value."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    kind = type(value)
    if kind in _CONTAINERS:
        return _map_items(own_copy, value)
    return value.copy() if (kind.__module__, kind.__name__) == ("numpy", "ndarray") else value


def copy_request(request: Any) -> tuple[Any, bool]:
    """Copies a request.

    Returns:
        The copy, and whether it shares nothing with the request that may change. A request that is no mapping stays as
        it is, to be refused.
    """
    if not isinstance(request, Mapping):
        return request, True
    copier = _RequestCopier()
    return {name: copier.copy(value) for name, value in request.items()}, copier.is_independent


class _RequestCopier:
    """Copies the values of one request.

    Attributes:
        is_independent: Whether all that may change could be copied so far.
    """

    def __init__(self) -> None:
        self.is_independent = True

    def copy(self, value: Any) -> Any:
        """Copies a tensor, NumPy array or byte array, or what a container or a dataclass holds of them.

        What a session left on a device stays as it is: nobody writes into it.
        """
        kind = type(value)
        if device_value_of(value) is not None:
            return value
        if isinstance(value, torch.Tensor):
            # Of other classes and layouts is what the check of a request refuses.
            is_plain = kind in (torch.Tensor, torch.nn.Parameter) and not value.is_nested
            return value.detach().clone() if is_plain and value.layout is torch.strided else value
        if isinstance(value, bytearray) or hasattr(value, "__array_interface__"):
            return copy.copy(value)
        if kind in _CONTAINERS or kind is set:
            return _map_items(self.copy, value)
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(map(self.copy, value))
        # A container of a class of its own keeps what else it holds: its shallow copy gets copies of the items.
        if dataclasses.is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type):
            twin: Any = copy.copy(value)
            vars(twin).update({name: self.copy(part) for name, part in vars(value).items()})
            return twin
        if isinstance(value, dict):
            twin = copy.copy(value)
            twin.update({name: self.copy(part) for name, part in value.items()})
            return twin
        self.is_independent = self.is_independent and isinstance(value, _IMMUTABLE)
        return value
