"""Copying what a user handed over: the copy is made to run elsewhere, and the original is left as it is.

A module may hold what cannot be copied: a lock, an open file, a tensor computed from others (as the older form of
weight normalisation keeps it). The copy shares the first kind with the original, and gets a plain tensor for the last.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["duplicate", "owner_of"]

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
    try:
        made = copy.deepcopy(target, trial)
    except Exception:
        trial = {**memo, **_uncopied(owner_of(target), memo)}
        made = copy.deepcopy(target, trial)
    # deepcopy keeps the originals alive in a list under the memo's own identity, so that no identity is used again.
    kept = trial.pop(id(trial), [])
    memo.update(trial)
    memo.setdefault(id(memo), []).extend(kept)
    return made


def _uncopied(owner: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """Attributes that cannot be copied, by identity: themselves, or a tensor's values without their history."""
    parts: Iterable[Any] = owner.modules() if isinstance(owner, torch.nn.Module) else [owner]
    found: dict[int, Any] = {}
    for part in parts:
        for name, value in getattr(part, "__dict__", {}).items():
            if name in _OWN or id(value) in memo or isinstance(value, torch.nn.Module):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                plain = isinstance(value, torch.Tensor)
                found[id(value)] = copy.deepcopy(value.detach(), dict(memo)) if plain else value
    return found
