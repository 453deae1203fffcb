"""What a device family must offer: the contract between the runner and a backend.

A :class:`Backend` object stands for one *device group*: a device string such as ``cuda:0``. Making one is
free and touches no device, so planning works on a laptop; :meth:`Backend.open` is the first call that does.
To the runner, a value on the device is an opaque *handle*.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

from orchestrator.store import Artifact, ArtifactStore

if TYPE_CHECKING:
    from orchestrator.adapter import Adapter
    from orchestrator.stage import Stage

__all__ = ["Artifact", "Backend", "Capabilities", "Handle", "Link"]

#: A value on a device; only its backend looks inside.
Handle: TypeAlias = Any


@dataclass(frozen=True)
class Link:
    """Cost of the way between host and device.

    Attributes:
        bytes_per_second: One direction; 0 means that there is no link (host memory).
        dispatch_seconds: One program start.
        source: Where the figures come from.
    """

    bytes_per_second: float = 0.0
    dispatch_seconds: float = 0.0
    source: str = "host memory: nothing crosses a link"

    def seconds(self, size: int) -> float:
        """Returns the estimated time for ``size`` bytes over the link."""
        return size / self.bytes_per_second if self.bytes_per_second else 0.0


@dataclass(frozen=True)
class Capabilities:
    """What the planner must know of a device group.

    Attributes:
        ranks: Tensors for each logical value; an upload is one for each rank.
        eager: Tensor ops may run outside a compiled program, so adapters are ops.
        static_shapes: Only compiled sizes run; ``Dim(any=True)`` is illegal here.
        output_buffers: Outputs of one program that live at once; 0 is no limit.
        peer_copy: Values go straight to another device of the same backend.
        host_memory: Values live in host memory: no link, no copies, nothing counted.
        refcounted: A handle frees its memory with its last reference; else ``free`` is called.
        deferred: Downloads complete at ``synchronize``; it is called before anyone reads them.
        link: Cost figures with their source.
    """

    ranks: int = 1
    eager: bool = True
    static_shapes: bool = False
    output_buffers: int = 0
    peer_copy: bool = True
    host_memory: bool = False
    refcounted: bool = True
    deferred: bool = False
    link: Link = Link()


class Backend(abc.ABC):
    """One device group of one device family.

    Args:
        device: A device string of this family, e.g. ``cuda`` or ``cuda:1``.
        options: Values for names in :attr:`option_types`.
    """

    #: Option names this family knows, with the type of their value.
    option_types: ClassVar[Mapping[str, type]] = {}

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.device = self.canonical(device)
        self.options = dict(options or {})

    @classmethod
    @abc.abstractmethod
    def accepts(cls, device: str) -> bool:
        """Tells, without touching a device, whether the string names a device of this family."""

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns the one spelling of a device string (``cuda`` is ``cuda:0``)."""
        return device

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What the planner must know; touches no device."""

    def open(self) -> None:
        """Takes the device into use.

        Raises:
            CompileError: It is not there.
        """

    def close(self) -> None:
        """Gives back what :meth:`open` and the loaded stages took."""

    @abc.abstractmethod
    def compile(
        self, stage: Stage, sizes: Mapping[str, int], adapters: tuple[Adapter, ...], store: ArtifactStore
    ) -> Artifact:
        """Compiles a stage for one bucket, with the adapters folded into it, into the store."""

    @abc.abstractmethod
    def load(self, artifacts: tuple[Artifact, ...], stage: Stage) -> Callable[..., Any]:
        """Returns the callable that takes and returns handles; its weights are on the device."""

    @abc.abstractmethod
    def upload(self, value: torch.Tensor) -> Handle:
        """Puts a host tensor on the device (on every rank)."""

    @abc.abstractmethod
    def download(self, handle: Handle) -> torch.Tensor:
        """Brings a value (of rank 0) to the host; readable after :meth:`synchronize`."""

    @abc.abstractmethod
    def copy(self, handle: Handle, device: str) -> Handle:
        """Brings a value from another device of this family to this one."""

    @abc.abstractmethod
    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns the function ``(handle, sizes of the result) -> handle`` of a pad, slice, cut or cast.

        Where values are freed by call, its result, like that of :meth:`part` and :meth:`copy`, is a handle of its own.
        """

    @abc.abstractmethod
    def join(self, handles: list[Handle], dim: int) -> Handle:
        """Joins the results of chunks along a dim."""

    @abc.abstractmethod
    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Takes one chunk of a value along a dim."""

    @abc.abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Handle:
        """Makes a value of this shape with undefined content (a region that zero items skip)."""

    def free(self, handle: Handle) -> None:
        """Frees a value at once; called only where :attr:`Capabilities.refcounted` is false."""

    def synchronize(self) -> None:
        """Waits until downloads have arrived; called only where :attr:`Capabilities.deferred` is true."""
