"""What a device family must offer: the contract between the runner and a backend.

A :class:`Backend` object stands for one *device group*: a device string such as ``cuda:0``. Making one is
free and touches no device, so planning works on a laptop; :meth:`Backend.open` is the first call that does.
To the runner, a value on the device is an opaque *handle*.

There are two kinds. An :class:`EagerBackend` runs a stage's own module and tensor ops as they come; a
:class:`~orchestrator.backend.CompilingBackend` runs compiled programs and nothing else. A backend subclasses one of
the two; what both do is in :class:`Backend`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

if TYPE_CHECKING:
    from orchestrator.adapter import Adapter
    from orchestrator.specs import PortSpec
    from orchestrator.stage import Stage

__all__ = ["Backend", "Capabilities", "EagerBackend", "Handle", "Link", "Operation"]

#: A value on a device; only its backend looks inside.
Handle: TypeAlias = Any


@dataclass(frozen=True)
class Operation:
    """One operation of torch that a stage runs.

    Attributes:
        name: Namespace and name, e.g. ``aten::cumsum``.
        overload: Which of the operations of that name, e.g. ``dim``; empty: the default one.
        reads: Bytes of each tensor that it takes.
        gives: Bytes of each tensor that it gives.
    """

    name: str
    overload: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Link:
    """Cost of the way between host and device.

    Attributes:
        bytes_per_second: One direction; 0 means that there is no link (host memory).
        dispatch_seconds: One program start.
        source: Where the figures come from.
        memory_bytes_per_second: Between a core and its own memory; 0 means that it is not accounted for.
    """

    bytes_per_second: float = 0.0
    dispatch_seconds: float = 0.0
    source: str = "host memory: nothing crosses a link"
    memory_bytes_per_second: float = 0.0

    def seconds(self, size: int) -> float:
        """Returns the estimated time for ``size`` bytes over the link."""
        return size / self.bytes_per_second if self.bytes_per_second else 0.0

    def memory_seconds(self, size: int) -> float:
        """Returns the estimated time to read or write ``size`` bytes of a core's own memory."""
        return size / self.memory_bytes_per_second if self.memory_bytes_per_second else 0.0


@dataclass(frozen=True)
class Capabilities:
    """What the planner must know of a device group.

    Attributes:
        ranks: Tensors for each logical value; an upload is one for each rank.
        eager: Tensor ops may run outside a compiled program, so adapters are ops.
        static_shapes: Only compiled sizes run; ``Dim.dynamic(name)`` is illegal here.
        output_buffers: Outputs of one program that live at once; 0 is no limit.
        peer_copy: Values go straight to another device of the same backend.
        host_memory: Values live in host memory: no link, no copies, nothing counted.
        refcounted: A handle frees its memory with its last reference; else ``free`` is called.
        falls_back: Operations that the device lacks run on the host; :meth:`Backend.host_operations` tells which.
        deferred: Downloads complete at ``synchronize``; it is called before anyone reads them.
        memory: Bytes of each rank's memory, the budget where the user gives none; 0: not known.
        link: Cost figures with their source.
    """

    ranks: int = 1
    eager: bool = True
    static_shapes: bool = False
    output_buffers: int = 0
    peer_copy: bool = True
    host_memory: bool = False
    refcounted: bool = True
    falls_back: bool = False
    deferred: bool = False
    memory: int = 0
    link: Link = Link()


class Backend(abc.ABC):
    """One device group of one device family: what devices of either kind do.

    Args:
        device: A device string of this family, e.g. ``cuda`` or ``cuda:1``.
        options: Values for names in :attr:`option_types`.
    """

    #: Option names this family knows, with the type (or types) of their value.
    option_types: ClassVar[Mapping[str, type | tuple[type, ...]]] = {}
    #: Options that code alone may give, since they switch off a proof or reach beyond the device, as arguments of a
    #: compiler do, with the value that is harmless. A plan read from a file cannot ask for another one by itself.
    code_options: ClassVar[Mapping[str, Any]] = {}

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

    @classmethod
    def substitute(cls, device: str) -> str | None:
        """Returns the device string of another family that this one stands for on this machine, or None.

        For a name that two families had, one after the other: what it means hangs on what is installed.
        """
        return None

    @classmethod
    def remark(cls, device: str) -> str:
        """Returns what a plan says of this spelling of a device; empty: nothing."""
        return ""

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What the planner must know; touches no device."""

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Takes the device into use.

        Args:
            budget: Bytes of each rank's memory that the plan may use; 0: all there are.
            reserved: Bytes of it that requests and constants take, so that loading leaves room for them.

        Raises:
            CompileError: It is not there.
        """

    def close(self) -> None:
        """Gives back what :meth:`open` and the loaded stages took; nothing where it failed or never ran."""

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

    def held_dtype(self, stage: Stage, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype in which the device holds a value of a stage: its own, or a narrower one."""
        return dtype

    def rank_form(self, stage: Stage) -> Stage:
        """Returns the stage as one rank runs it, for shapes and weights: another one where ranks hold parts of weights.

        It is asked while planning only, and each time with the same answer.

        Raises:
            PlanError: It cannot run on so many ranks.
        """
        return stage

    def sharded(self, stage: Stage) -> Mapping[str, int]:
        """Returns output ports whose ranks hold parts, with the dim along which they join."""
        return {}

    def sharded_inputs(self, stage: Stage) -> Mapping[str, int]:
        """Returns input ports of which each rank takes its part of the value, with the dim along which they join."""
        return {}

    def review(
        self, stage: Stage, inputs: Mapping[str, PortSpec], outputs: Mapping[str, PortSpec]
    ) -> Iterable[str]:
        """Looks at a stage that is about to be planned for this device.

        Args:
            stage: The stage.
            inputs: Fed ports with what they get.
            outputs: Output ports with what they give.

        Returns:
            Warnings, a sentence each; they become notes of the plan.

        Raises:
            PlanError: It cannot run here.
        """
        return ()

    def host_operations(self, stage: Stage, operations: Sequence[Operation]) -> Sequence[Operation]:
        """Returns those of a stage's operations that the device hands to the host, their tensors down and up again.

        Asked where :attr:`Capabilities.falls_back` is true, for each combination of sizes.

        Raises:
            PlanError: There are such, and they are refused.
        """
        return ()

    def begin_counting(self) -> None:
        """Starts what :meth:`measured` tells: all is loaded, constants are staged, and eager devices are warm."""

    def measured(self) -> Mapping[str, Any] | None:
        """Returns what the device itself counted since it was opened, or None where it counts nothing."""
        return None


class EagerBackend(Backend):
    """A device family that runs a stage's own module, and tensor ops beside it, without compiling anything.

    Nothing is stored for it, so a stage has no content key here and loading one looks at its weights alone.
    """

    @abc.abstractmethod
    def load(self, stage: Stage, sizes: Sequence[Mapping[str, int]] = ()) -> Callable[..., Any]:
        """Returns the callable that takes and returns handles; its weights are on the device.

        Args:
            stage: The stage.
            sizes: Every combination of sizes that it runs at; given where :attr:`Capabilities.static_shapes` is true.

        Raises:
            CompileError: It cannot be built, or not be brought to the device.
        """

    def with_host_operations(self, function: Callable[..., Any], names: Set[str]) -> Callable[..., Any]:
        """Returns the callable of a stage of which the plan says that these operations run on the host.

        Args:
            function: What :meth:`load` returned.
            names: Names of operations that ``host_operations`` gave.
        """
        return function

    def prepare(
        self, function: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None:
        """Makes a loaded stage ready for calls of these shapes; by default it is called once.

        Asked for every combination of sizes at load, where :attr:`Capabilities.static_shapes` is true.

        Args:
            function: What :meth:`load` returned.
            args: Handles and constants by position.
            keywords: The same by name.

        Raises:
            CompileError: It cannot be compiled at these shapes.
        """
        function(*args, **keywords)

    @abc.abstractmethod
    def select(self, handle: Handle, index: int) -> Handle:
        """Takes one slice along dim 0, without that dim."""

    @abc.abstractmethod
    def stack(self, handles: list[Handle]) -> Handle:
        """Joins values of one shape along a new dim 0; asked of devices that count references."""
