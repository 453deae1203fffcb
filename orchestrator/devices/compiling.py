"""What a device family without eager compute must offer: programs are compiled, stored, loaded and run.

The order of calls is :meth:`~CompilingBackend.key`, :meth:`~CompilingBackend.warm_up` and
:meth:`~CompilingBackend.build` (in forked processes) where the store lacks the key, then in the process that runs the
session ``open``, :meth:`~CompilingBackend.load_application`, staging of constants,
one run of each program where the first one is slow, :meth:`~orchestrator.backend.Backend.begin_counting`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from orchestrator.adapter import Adapter, apply, part_of
from orchestrator.devices.base import Backend, Handle

if TYPE_CHECKING:
    from orchestrator.program import Application
    from orchestrator.stage import Stage

__all__ = ["CompilingBackend"]


class CompilingBackend(Backend):
    """A device family that runs compiled programs only; it has no eager compute.

    What it is asked to compile are applications: the programs of stages that share weights, with the adapters folded
    into them. ``adapt``, ``join`` and ``part`` are called only where no program can do it; here they go over the host.
    """

    #: Whether programs can read and write memory of their application (``Application.states``) in place.
    keeps_states: ClassVar[bool] = False
    #: Whether ``adapt`` copies a value (a ``clone``) into other memory of the device; else it goes over the host.
    #: Programs leave on such a device whatever they give, ``Program.to_host`` or not.
    copies_values: ClassVar[bool] = False
    #: Whether the first run of a loaded program takes longer than later ones; then each runs once at load, but those of
    #: an application with states, where it would leave something behind.
    slow_first_run: ClassVar[bool] = False

    def foldable(self, stage: Stage) -> bool:
        """Tells whether adapters can be compiled into a stage, and whether it can be compiled a second time."""
        return True

    def needs_model(self, stage: Stage) -> bool:
        """Tells whether a stage's model, with its weights, is needed on the host to compile or to load it."""
        return True

    def can_join(self, one: Stage, other: Stage) -> bool:
        """Tells whether two stages that share weights can be entry points of one application.

        Its programs are compiled with one set of options, so here stages with options of their own are kept apart.
        """
        return self.foldable(one) and self.foldable(other) and not (one.config or other.config)

    def own_states(self, stage: Stage) -> frozenset[str]:
        """Returns the ports of a stage that are memory of its application, which its author compiled in.

        No value leaves by such an output or comes in by such an input, so the planner refuses whatever needs one.
        """
        return frozenset()

    @abc.abstractmethod
    def key(self, application: Application) -> str:
        """Returns the content key of an application: all that its programs depend on, weights left out."""

    def warm_up(self) -> None:
        """Imports what :meth:`build` needs, once before the processes that build are forked."""

    @abc.abstractmethod
    def build(self, application: Application, folder: Path) -> None:
        """Compiles an application into an empty folder; runs in a process of its own.

        Raises:
            CompileError: It cannot be compiled.
        """

    @abc.abstractmethod
    def load_application(self, application: Application, folder: Path) -> Mapping[str, Callable[..., Any]]:
        """Loads an application with its weights; returns the callable of each program by name.

        Raises:
            CompileError: It does not fit the device, or its weights do not fit.
        """

    @abc.abstractmethod
    def gather(self, handle: Handle, dim: int) -> torch.Tensor:
        """Brings the parts that all ranks hold to the host and joins them; one download for each rank."""

    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns the function of an adapter that no program does: over the host."""
        return lambda handle, sizes: self.upload(apply(adapter, self._read(handle), sizes))

    def join(self, handles: list[Handle], dim: int) -> Handle:
        """Joins the results of chunks, over the host."""
        return self.upload(torch.cat([self._read(handle) for handle in handles], dim))

    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Takes a chunk, over the host."""
        return self.upload(part_of(self._read(handle), dim, start, size))

    def copy(self, handle: Handle, device: str) -> Handle:
        """Copies a value, over the host."""
        return self.upload(self._read(handle))

    def _read(self, handle: Handle) -> torch.Tensor:
        """Brings a value to the host, and waits for it where downloads are deferred."""
        value = self.download(handle)
        if self.capabilities.deferred:
            self.synchronize()
        return value
