"""The plan and what can be done with it: printed, counted, compared, stored and loaded.

Its parts are in :mod:`orchestrator.plan.records`; what is done with them stands in files that know these records alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from orchestrator.errors import PlanError
from orchestrator.plan.count import summarise
from orchestrator.plan.diff import PlanDiff, diff
from orchestrator.plan.records import PlanData
from orchestrator.plan.serial import from_json, to_json
from orchestrator.plan.text import render

__all__ = ["Loader", "Plan"]


#: What a loaded plan is: a session. The plan lies below the runner, so the class is named by who attaches a loader.
SessionT = TypeVar("SessionT", default=Any)


class Loader(Protocol[SessionT]):
    """Turns a plan into a session; attached by ``Pipeline.plan`` and ``Pipeline.bind``."""

    def compile(self, plan: Plan[SessionT], path: str | os.PathLike[str]) -> Plan[SessionT]:
        """Compiles every stage into a store at ``path``; returns the plan that loads from it."""

    def load(self, plan: Plan[SessionT], *, warm: bool = True) -> SessionT:
        """Loads every stage, makes devices that compile ready for every bucket if ``warm``, and returns a session."""


@dataclass(frozen=True)
class Plan(PlanData, Generic[SessionT]):
    """A frozen, printable plan; made by ``Pipeline.plan``, ``Pipeline.bind`` and :meth:`from_json`."""

    loader: Loader[SessionT] | None = field(default=None, compare=False, repr=False)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of one request at the largest buckets, keyed like ``Session.stats``."""
        return self.summary_for({})

    def summary_for(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Returns the counts of one request at these sizes of names; a missing name is at its largest bucket.

        Raises:
            PlanError: An unknown name, or a size the plan cannot run.
        """
        return summarise(self, sizes)

    def to_json(self) -> str:
        """Returns the plan as JSON; :meth:`from_json` reads it back."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Reads a plan from JSON; bind it to its pipeline with ``pipeline.bind(plan)`` before loading.

        Raises:
            PlanError: It is truncated, of another version, or no plan.
        """
        return from_json(text, Plan)

    def diff(self, other: Plan) -> PlanDiff:
        """Compares two plans; the result is falsy when they are equal, and its ``str`` is a table."""
        return diff(self, other)

    def compile(self, path: str | os.PathLike[str]) -> Plan[SessionT]:
        """Compiles every stage into a store at ``path`` and returns the plan that loads from it.

        Of a region that cannot be compiled it has a note, and runs it eagerly.

        Raises:
            PlanError: The plan is bound to no pipeline.
            CompileError: A stage cannot be compiled.
        """
        return self._bound().compile(self, path)

    def load(self, *, warm: bool = True) -> SessionT:
        """Loads every stage and returns a session that runs requests.

        Args:
            warm: Devices that compile at the first call of a shape, or whose programs are slow at their first run, do
                that now for every combination of buckets, so that no request waits for it; other devices have nothing
                to do. It leaves nothing behind, and counts as no request.

        Raises:
            PlanError: The plan is bound to no pipeline.
            CompileError: A device is not there, or a stage cannot be loaded.
        """
        return self._bound().load(self, warm=warm)

    def _bound(self) -> Loader[SessionT]:
        if self.loader is None:
            raise PlanError(
                f"This plan of {self.pipeline!r} is data without stages (it was read from JSON); "
                f"get one that can be loaded with pipeline.bind(plan).",
                plan=self,
            )
        return self.loader

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the data alone; what comes back is bound to no pipeline."""
        return {**self.__dict__, "loader": None}

    def __str__(self) -> str:
        return render(self)
