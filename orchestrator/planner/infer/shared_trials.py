"""Trials that all plans of a process share: results of a large stage at some sizes, while it stays unchanged.

A trial is known by the stage's description (:mod:`orchestrator.planner.infer.descriptions`). A stage without one is
tried in each plan anew, and so is a small one, whose trials are cheaper than its description.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import Any

import torch

from orchestrator.duplicate import owner_of
from orchestrator.planner.infer.descriptions import StageDescriptions
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["SharedTrials"]

#: A module of fewer parts is tried sooner than described.
LARGE = 8

#: Results that are remembered; the oldest goes first.
LIMIT = 20_000

#: By key of the trial; None: the stage refused it.
_RESULTS: dict[Hashable, Any] = {}


class SharedTrials:
    """The view that one plan has of the trials of its process.

    Args:
        descriptions: Those of the plan.
    """

    def __init__(self, descriptions: StageDescriptions) -> None:
        self._descriptions = descriptions
        self._large: dict[int, bool] = {}

    def key(
        self, stage: Stage, arguments: tuple[tuple[str, Any], ...], capture: bool
    ) -> tuple[Hashable, ...] | None:
        """Returns the key of a trial among all of this process; None: it is not shared."""
        if id(stage) not in self._large:
            self._large[id(stage)] = _is_large(stage)
        description = self._descriptions.of(stage) if self._large[id(stage)] else None
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


def _is_large(stage: Stage) -> bool:
    """Tells whether trials of a stage cost more than its description."""
    owner = owner_of(stage.target)
    model = owner.__dict__.get("_model") if isinstance(owner, ModelWrapper) else owner
    return isinstance(model, torch.nn.Module) and len(list(itertools.islice(model.modules(), LARGE))) == LARGE
