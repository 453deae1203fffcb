"""The partial plan that passes hand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from orchestrator.adapter import Adapter, Place
from orchestrator.backend import Backend, CompilingBackend
from orchestrator.graph import Edge, Graph, NodeKey
from orchestrator.plan.records import (
    DimPlan,
    PlannedApplication,
    PlannedCall,
    PlannedEdge,
    PlannedProgram,
    PlannedState,
    PlannedValue,
    Residency,
)
from orchestrator.plan.steps import Step
from orchestrator.planner.infer.descriptions import StageDescriptions
from orchestrator.specs import AnyDim, PortSpec

__all__ = [
    "MAX_REPLICAS",
    "EdgeLocations",
    "EdgeSpec",
    "Fusion",
    "Location",
    "PlanContext",
    "PlanOptions",
    "RegionKey",
]


#: Programs of one application with equal code, where memory suffices.
MAX_REPLICAS = 4


@dataclass(frozen=True)
class PlanOptions:
    """The arguments of ``Pipeline.plan``.

    Attributes:
        device: Where stages run that nobody placed.
        placement: Stage, or inlined pipeline, to device.
        sizes: Name to bucket or buckets.
        residency: ``"a.out -> b.in"`` to a forced residency.
        memory: Budget in bytes or as text (``"16GB"``), for every device or by device.
        backend_options: Backend options for the whole plan.
        compile: Which regions are compiled, and how.
        tolerance: How far compiled results may be from eager ones; None: by dtype.
        resolve: Finds the backend class for a device string.
        families_with: Finds the device families, in the plan or not, that have an option of this name.
    """

    resolve: Callable[[str], tuple[str, type[Backend]]]
    device: str | torch.device = "cpu"
    placement: Mapping[str, str | torch.device] = field(default_factory=dict)
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    residency: Mapping[str, Residency | str] = field(default_factory=dict)
    memory: int | str | Mapping[str, int | str] | None = None
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    compile: str | Mapping[str, str] | None = None
    tolerance: float | None = None
    families_with: Callable[[str], tuple[str, ...]] = lambda _: ()


@dataclass(frozen=True)
class PlanContext:
    """A plan in the making; each pass fills its own fields and touches no other.

    Attributes:
        graph: The frozen graph.
        options: The arguments of ``Pipeline.plan``.
        descriptions: What is known of its stages so far, for trials and for the proof of the plan.
        replicas: How many programs of one application may have equal code; each costs a compilation and an output
            buffer.
        groups: (place) device to backend; absent for the host.
        backends: (place) device to the backend's registered name.
        devices: (place) stage to device, or ``"host"``.
        dims: (bucket, infer) named dims.
        calls: (infer, on_host) calls with their proven ports, in the dtypes their device holds, and with what their
            device hands to the host.
        counts: (infer) loop to the number of its iterations, as a dim.
        port_dtypes: (infer) call to the dtypes of its input ports as the stage's author wrote them.
        producer_specs: (infer) what each edge's producer gives.
        consumer_specs: (infer) what each edge's consumer reads.
        regions: (group) call, or entry of a loop, to its region, if it is in one.
        notes: (infer, fuse, hazard) what the plan warns of.
        fusions: (fuse) where the adapters of an edge go on a device without eager compute.
        locations: (locate) the two ends of each edge.
        residencies: (residency) edge to residency and reason.
        values, steps, staging, edges, outputs: (adapt) as in the plan; steps are ordered by hazard.
        spills: (hazard) edges that must go over the host, with the reason.
        clones: (updates) edges whose value is copied before it is updated in place, with the reason.
        programs: (hazard) programs of devices without eager compute.
        applications: (application) stages that share weights.
        states: (states) carries that live in an application.
        weights: (application) bytes for each device.
        buffers: (memory) bytes of output buffers for each device that has such.
        budget: (memory) bytes for each device that has one.
    """

    graph: Graph
    options: PlanOptions
    descriptions: StageDescriptions = field(default_factory=StageDescriptions)
    replicas: int = MAX_REPLICAS
    groups: Mapping[str, Backend] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, DimPlan] = field(default_factory=dict)
    calls: Mapping[str, PlannedCall] = field(default_factory=dict)
    counts: Mapping[str, AnyDim | None] = field(default_factory=dict)
    port_dtypes: Mapping[str, Mapping[str, torch.dtype]] = field(default_factory=dict)
    producer_specs: Mapping[Edge, PortSpec] = field(default_factory=dict)
    consumer_specs: Mapping[Edge, EdgeSpec] = field(default_factory=dict)
    regions: Mapping[NodeKey, RegionKey] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fusions: Mapping[Edge, Fusion] = field(default_factory=dict)
    locations: Mapping[Edge, EdgeLocations] = field(default_factory=dict)
    residencies: Mapping[Edge, tuple[Residency, str]] = field(default_factory=dict)
    values: tuple[PlannedValue, ...] = ()
    steps: tuple[Step, ...] = ()
    staging: tuple[Step, ...] = ()
    edges: tuple[PlannedEdge, ...] = ()
    outputs: tuple[tuple[str, int], ...] = ()
    spills: Mapping[Edge, str] = field(default_factory=dict)
    clones: Mapping[Edge, str] = field(default_factory=dict)
    programs: tuple[PlannedProgram, ...] = ()
    applications: tuple[PlannedApplication, ...] = ()
    states: tuple[PlannedState, ...] = ()
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

    def is_compiled(self, device: str) -> bool:
        """Tells whether a device group runs compiled programs only."""
        return isinstance(self.groups.get(device), CompilingBackend)

    def with_notes(self, *notes: str) -> PlanContext:
        """Returns the context with more notes; none is there twice."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


@dataclass(frozen=True)
class EdgeSpec:
    """The spec that a consumer reads, and the conversions from the producer's value.

    Attributes:
        spec: What arrives.
        conversions: Fixed pads, slices and casts, in order.
        rule: The pad rule in force where named dims grow to their bucket.
    """

    spec: PortSpec
    conversions: tuple[Adapter, ...] = ()
    rule: int | float | str | None = None


@dataclass(frozen=True)
class Fusion:
    """Where the adapters of an edge between two stages of one device go.

    Attributes:
        place: On the device: ``producer``, ``consumer`` or ``program``.
        over_host: A trip over the host is cheaper than that.
        reason: The choice and its alternatives, for the edge's reason.
    """

    place: Place
    over_host: bool
    reason: str


@dataclass(frozen=True)
class RegionKey:
    """A region: its data-dependent dims, in the order of the graph's dims, and its level."""

    dims: tuple[str, ...]
    level: int


class Location(NamedTuple):
    """One end of an edge: the device group (or host), the memory, and whether its values are unpadded there."""

    device: str
    memory: str
    unpadded: bool


class EdgeLocations(NamedTuple):
    """Both ends of an edge."""

    source: Location
    target: Location
