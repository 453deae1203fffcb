"""Descriptions of stages: equal ones do the same in trials, whenever and in whichever plan they are made.

A description holds the stage's fingerprint, which says all that an artifact depends on (its code, the globals that the
code reads, attributes, forms of its weights), what the fingerprint leaves out (training mode, devices), and torch's
defaults of the moment. A stage that holds something that cannot be read has none; nor has one whose model is not built
yet, since planning reads no weights and a description might build it.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from orchestrator.duplicate import owner_of
from orchestrator.fingerprint.fingerprint import fingerprint_and_modes
from orchestrator.fingerprint.opaque import token_uses
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["StageDescriptions"]


class StageDescriptions:
    """What one plan knows of its stages: each is described once, when that is first asked for."""

    def __init__(self) -> None:
        self._descriptions: dict[int, tuple[Stage, Hashable | None]] = {}

    def of(self, stage: Stage) -> Hashable | None:
        """Returns all that planning can see of a stage; None: nobody can tell."""
        # The stage is kept with its description, so that no other one comes to have its identity.
        if id(stage) not in self._descriptions:
            self._descriptions[id(stage)] = (stage, _describe(stage))
        return self._descriptions[id(stage)][1]


def _describe(stage: Stage) -> Hashable | None:
    # Planning runs no host stage, so its ports are all that it sees; but a wrapper may say what its inputs look like.
    if stage.host and stage.wrapper is None:
        return ("host", repr(stage.inputs), repr(stage.outputs))
    owner = owner_of(stage.target)
    if isinstance(owner, ModelWrapper) and owner.makes_model and owner.__dict__.get("_model") is None:
        return None
    # An object without content of its own may have changed since: then the walk has used a token of this process.
    uses = token_uses()
    text = repr(fingerprint_and_modes(stage))
    if token_uses() != uses + 1:
        return None
    return (text, str(torch.get_default_dtype()), str(torch.get_default_device()))
