"""The partial plan that passes hand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from orchestrator.adapter import Adapter, Place
from orchestrator.backend import Backend, CompilingBackend
from orchestrator.graph import Edge, Graph
from orchestrator.plan.model import (
    DimPlan,
    PlannedCall,
    PlannedEdge,
    PlannedProgram,
    PlannedValue,
    Residency,
    Step,
)
from orchestrator.specs import AnyDim, PortSpec

__all__ = ["MAX_TWINS", "Draft", "EdgeForm", "Fold", "Request"]


#: Programs of one application with equal code, where memory suffices.
MAX_TWINS = 4


@dataclass(frozen=True)
class Request:
    """What the user asked ``Pipeline.plan`` for.

    Attributes:
        device: Where stages run that nobody placed.
        placement: Stage, or inlined pipeline, to device.
        sizes: Name to bucket or buckets.
        residency: ``"a.out -> b.in"`` to a forced residency.
        memory: Budget in bytes or as text (``"16GB"``), for every device or by device.
        options: Backend options for the whole plan.
        resolve: Finds the backend class for a device string.
    """

    resolve: Callable[[str], tuple[str, type[Backend]]]
    device: str | torch.device = "cpu"
    placement: Mapping[str, str | torch.device] = field(default_factory=dict)
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    residency: Mapping[str, Residency | str] = field(default_factory=dict)
    memory: int | str | Mapping[str, int | str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A plan in the making; each pass fills its own fields and touches no other.

    Attributes:
        graph: The frozen graph.
        request: What was asked for.
        twins: How many programs of one application may have equal code; each costs a compilation and an output buffer.
        groups: (place) device to backend; absent for the host.
        backends: (place) device to the backend's registered name.
        devices: (place) stage to device, or ``"host"``.
        dims: (bucket, infer) named dims.
        calls: (infer) calls with their proven ports, in the dtypes their device holds.
        counts: (infer) loop to the number of its iterations, as a dim.
        written: (infer) call to the dtypes of its fed ports as the stage's author wrote them.
        sources: (infer) what each edge's producer gives.
        forms: (infer) what each edge's consumer reads.
        notes: (infer, fold, hazard) what the plan warns of.
        folds: (fold) where the adapters of an edge go on a device without eager compute.
        residencies: (residency) edge to residency and reason.
        values, steps, staging, edges, outputs: (adapt) as in the plan; steps are ordered by hazard.
        spilled: (hazard) edges that must go over the host, with the reason.
        programs: (hazard) programs of devices without eager compute.
        weights: (memory) bytes for each device.
        buffers: (memory) bytes of output buffers for each device that has such.
        budget: (memory) bytes for each device that has one.
    """

    graph: Graph
    request: Request
    twins: int = MAX_TWINS
    groups: Mapping[str, Backend] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, DimPlan] = field(default_factory=dict)
    calls: Mapping[str, PlannedCall] = field(default_factory=dict)
    counts: Mapping[str, AnyDim | None] = field(default_factory=dict)
    written: Mapping[str, Mapping[str, torch.dtype]] = field(default_factory=dict)
    sources: Mapping[Edge, PortSpec] = field(default_factory=dict)
    forms: Mapping[Edge, EdgeForm] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folds: Mapping[Edge, Fold] = field(default_factory=dict)
    residencies: Mapping[Edge, tuple[Residency, str]] = field(default_factory=dict)
    values: tuple[PlannedValue, ...] = ()
    steps: tuple[Step, ...] = ()
    staging: tuple[Step, ...] = ()
    edges: tuple[PlannedEdge, ...] = ()
    outputs: tuple[tuple[str, int], ...] = ()
    spilled: Mapping[Edge, str] = field(default_factory=dict)
    programs: tuple[PlannedProgram, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)

    @property
    def buckets(self) -> dict[str, tuple[int, ...]]:
        """Compiled sizes of each name."""
        return {name: dim.buckets for name, dim in self.dims.items()}

    @property
    def largest(self) -> dict[str, int]:
        """The largest compiled size of each name."""
        return {name: dim.buckets[-1] for name, dim in self.dims.items()}

    def device_of(self, call: str) -> str:
        """Returns the device of a call, or ``"host"``."""
        return self.devices[self.graph.calls[call].stage.name]

    def compiled(self, device: str) -> bool:
        """Tells whether a device group runs compiled programs only."""
        return isinstance(self.groups.get(device), CompilingBackend)

    def noted(self, *notes: str) -> Draft:
        """Returns the draft with more notes; none is there twice."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


@dataclass(frozen=True)
class EdgeForm:
    """What a consumer reads, and what makes it of the producer's value.

    Attributes:
        spec: What arrives.
        fits: Fixed pads, slices and casts, in order.
        rule: The pad rule in force where named dims grow to their bucket.
    """

    spec: PortSpec
    fits: tuple[Adapter, ...] = ()
    rule: int | float | str | None = None


@dataclass(frozen=True)
class Fold:
    """Where the adapters of an edge between two stages of one device go.

    Attributes:
        place: On the device: ``producer``, ``consumer`` or ``program``.
        over_host: A trip over the host is cheaper than that.
        reason: The choice and its alternatives, for the edge's reason.
    """

    place: Place
    over_host: bool
    reason: str
