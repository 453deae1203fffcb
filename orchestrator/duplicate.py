"""Copying an object of a user's: the copy is made to run elsewhere, and the original is left as it is.

A module may hold something that cannot be copied: a lock, an open file, a tensor computed from others (as the older
form of weight normalisation keeps it). The copy shares the first kind with the original, and gets a plain tensor for
the last.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["duplicate", "fill_meta", "owner_of"]

#: Where modules keep what a copy has of its own: each module in them is looked at by itself.
_OWN = frozenset({"_parameters", "_buffers", "_modules"})


def owner_of(target: Any) -> Any:
    """Returns the object whose state a callable uses: that of a bound method, through ``functools.partial``."""
    while isinstance(target, functools.partial):
        target = target.func
    return getattr(target, "__self__", target)


def duplicate(target: Any, memo: dict[int, Any]) -> Any:
    """Copies deeply, and shares what cannot be copied.

    Args:
        target: A module, a bound method, or any callable.
        memo: Copies made before, by identity, as for :func:`copy.deepcopy`; new ones are added.

    Raises:
        Exception: Whatever :func:`copy.deepcopy` does, if the object itself cannot be copied.
    """
    # A copy that failed leaves unfinished objects in its memo, so each attempt has one of its own.
    trial = dict(memo)
    with warnings.catch_warnings():
        # Torch warns of its own class when an exported module is copied.
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
        try:
            result = copy.deepcopy(target, trial)
        except Exception:
            trial = {**memo, **_replacements(owner_of(target), memo)}
            result = copy.deepcopy(target, trial)
    # deepcopy keeps the originals alive in a list under the memo's own identity, so that no identity is used again.
    originals = trial.pop(id(trial), [])
    memo.update(trial)
    memo.setdefault(id(memo), []).extend(originals)
    return result


def fill_meta(owner: torch.nn.Module) -> dict[str, bool]:
    """Puts undefined content of the host in place of weights and buffers on the meta device; tied ones stay one.

    Returns:
        Names of the tensors that were replaced, each with whether the module computes it, so that no checkpoint has it.
    """
    # By identity of the meta tensor: weights that are tied stay one tensor.
    replacements: dict[int, torch.Tensor] = {}
    names: dict[str, bool] = {}
    for path, part in owner.named_modules():
        kinds: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for kind, name, tensor in [(each, *item) for each in kinds for item in each.items()]:
            if tensor is None or tensor.device.type != "meta":
                continue
            names[f"{path}.{name}" if path else name] = name in part._non_persistent_buffers_set
            if id(tensor) not in replacements:
                empty = torch.empty_like(tensor, device="cpu")
                weight = isinstance(tensor, torch.nn.Parameter)
                replacements[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if weight else empty
            kind[name] = replacements[id(tensor)]
    return names


def _replacements(owner: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """Attributes that cannot be copied, by identity: themselves, or a tensor's values without their history."""
    parts: Iterable[Any] = owner.modules() if isinstance(owner, torch.nn.Module) else [owner]
    replacements: dict[int, Any] = {}
    for part in parts:
        for name, value in getattr(part, "__dict__", {}).items():
            if name in _OWN or id(value) in memo or isinstance(value, torch.nn.Module):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                plain = isinstance(value, torch.Tensor)
                replacements[id(value)] = copy.deepcopy(value.detach(), dict(memo)) if plain else value
    return replacements
