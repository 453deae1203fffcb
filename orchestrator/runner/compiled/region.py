"""A compiled region as generated code calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from orchestrator.plan.compute_runs import ComputeRun
from orchestrator.plan.records import CompiledRegion

__all__ = ["LoadedRegion", "Program", "Programs"]

#: Takes contiguous tensors in the order of a run's inputs, and gives those of its outputs; it may empty the list.
Program: TypeAlias = "Callable[[list[Any]], list[Any]]"


class Programs(Protocol):
    """Finds the program for the shapes of the inputs that sizes change."""

    def get(self, shapes: tuple[Any, ...], /) -> Program | None:
        """Returns it; None: there is none, and the stages run eagerly."""


@dataclass(frozen=True)
class LoadedRegion:
    """A region with its programs.

    Attributes:
        record: The region of the plan.
        run: Its steps, and what crosses its ends.
        sized_inputs: Inputs with a named dim: their shapes choose the program.
        programs: Its programs.
    """

    record: CompiledRegion
    run: ComputeRun
    sized_inputs: tuple[int, ...]
    programs: Programs
