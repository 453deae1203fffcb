"""What builds an artifact: a device family that compiles, or the compiler of a region."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.program import Application

__all__ = ["Builder"]


class Builder(Protocol):
    """Builds applications into folders; see :class:`~orchestrator.backend.CompilingBackend`."""

    @property
    def device(self) -> str:
        """The device it builds for."""

    def warm_up(self) -> None:
        """Imports what :meth:`build` needs, once before the processes that build are forked."""

    def build(self, application: Application, folder: Path) -> None:
        """Compiles an application into an empty folder; runs in a process of its own."""
