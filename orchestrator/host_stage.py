"""A base class for stages of plain Python that know their own ports.

A host stage never runs while a pipeline is planned, so it declares what it gives. A stage of this kind does
so itself: ``pipeline.add("propose", "faces.propose", device="host")`` needs no ``outputs=``.
"""

from __future__ import annotations

from typing import Any

from orchestrator.stage import ModelWrapper

__all__ = ["HostStage"]


class HostStage(ModelWrapper):
    """A host stage; a subclass sets ``inputs`` and ``outputs`` and overrides ``forward``.

    There is no model: ``forward`` computes by itself, and takes and returns Python values as well as tensors.
    """

    def forward(self, *values: Any, **named: Any) -> Any:
        """Runs the stage on the values of its input ports."""
        raise NotImplementedError(f"{type(self).__name__} does not override forward.")
