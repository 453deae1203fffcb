"""What the description of one object asks of the walk over all of them.

:mod:`~orchestrator.fingerprint.records` and :mod:`~orchestrator.fingerprint.functions` know how one object is
described; :mod:`~orchestrator.fingerprint.walk` knows which objects there are and in what order. It hands itself in, so
neither side imports the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Protocol

__all__ = ["Describer"]


class Describer(Protocol):
    """Speaks of values within a record, and sees to it that each object gets a record of its own."""

    def of(self, value: Any) -> Any:
        """Returns the text of a plain value, the number of an object."""

    def all(self, values: Iterable[Any]) -> list[Any]:
        """Describes values in order."""

    def pairs(self, pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
        """Describes pairs in order."""

    def elements(self, values: Iterable[Any]) -> list[str]:
        """Describes values that have no order, each apart from all else."""

    def state(self, value: Any) -> list[Any]:
        """Describes attributes and slots, by name."""

    def parts(self, value: Any) -> list[Any]:
        """Describes what an object holds; of a release, what pickling it would store."""

    def module_use(self, module: ModuleType, names: frozenset[str]) -> Any:
        """Returns the number of what code with these names uses of a module, one for all code that uses the same."""

    def note_module(self, name: object) -> None:
        """Notes the name of a module that code comes from: paths into its folder count from there."""
