"""Trials that all plans of a process share: results of a large stage at some sizes, while it stays unchanged.

A trial is known by the stage's fingerprint, which describes all that an artifact depends on (its code, the globals that
the code reads, attributes, forms of its weights), by what the fingerprint leaves out (training mode, devices), and by
torch's defaults of the moment. A stage that holds something that cannot be read is tried in each plan anew; so is one
whose model is not built yet, and a small one, whose trials are cheaper than its fingerprint.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import torch

from orchestrator.duplicate import owner_of
from orchestrator.fingerprint.fingerprint import fingerprint
from orchestrator.fingerprint.opaque import token_uses
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["SharedTrials"]

#: A module of fewer parts is tried sooner than described.
LARGE = 8

#: Results that are remembered; the oldest goes first.
LIMIT = 20_000

#: By key of the trial; None: the stage refused it.
_RESULTS: dict[Hashable, Any] = {}


class SharedTrials:
    """The view that one plan has of the trials of its process: a stage is described once a plan."""

    def __init__(self) -> None:
        self._descriptions: dict[int, Hashable | None] = {}

    def key(
        self, stage: Stage, arguments: tuple[tuple[str, Any], ...], capture: bool
    ) -> tuple[Hashable, ...] | None:
        """Returns the key of a trial among all of this process; None: it is not shared."""
        if id(stage) not in self._descriptions:
            self._descriptions[id(stage)] = _describe(stage)
        description = self._descriptions[id(stage)]
        if description is None or not all(_is_plain(value) for _, value in arguments):
            return None
        return (description, tuple((name, type(value), value) for name, value in arguments), capture)

    def result(self, key: Hashable | None) -> Any:
        """Returns the result of a trial; None: nobody made it, or the stage refused."""
        return None if key is None else _RESULTS.get(key)

    def is_refused(self, key: Hashable | None) -> bool:
        """Tells whether it is known that the stage refuses."""
        return key is not None and _RESULTS.get(key, self) is None

    def put(self, key: Hashable | None, result: Any) -> None:
        """Remembers the result of a trial; None: the stage refused."""
        if key is None:
            return
        while len(_RESULTS) >= LIMIT:
            _RESULTS.pop(next(iter(_RESULTS)), None)
        _RESULTS[key] = result


def _is_plain(value: Any) -> bool:
    """Tells whether an argument says by itself all that a stage can see of it: shape and dtype, or a plain constant."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return True
    return value is None or type(value) in (bool, int, float, complex, str, bytes)


def _describe(stage: Stage) -> Hashable | None:
    """Returns all that trials of a stage depend on; None: its trials are not shared."""
    # A model that is not built yet stays so: planning reads no weights, and describing it might build it.
    owner = owner_of(stage.target)
    model = owner.__dict__.get("_model") if isinstance(owner, ModelWrapper) else owner
    if not isinstance(model, torch.nn.Module):
        return None
    if len(list(itertools.islice(model.modules(), LARGE))) < LARGE:
        return None
    # An object without content of its own may have changed since: then the walk has used a token of this process.
    uses = token_uses()
    text = repr(fingerprint(stage))
    if token_uses() != uses + 1:
        return None
    return (text, _modes(model), torch.get_default_dtype(), str(torch.get_default_device()))


def _modes(model: torch.nn.Module) -> Hashable:
    """Training mode and devices of a model, which its fingerprint leaves out."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    modes = tuple(part.training for part in model.modules())
    return modes, tuple(str(tensor.device) for tensor in tensors)
