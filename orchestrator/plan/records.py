"""The records of a plan: what will run, where, at which sizes, and why. Data without weights.

A *value* is one tensor (or Python object) at one place in one form: the same output on its device, padded, and on
the host, cut back, is three values. A *step* reads and makes values. A *region* is a step with a body: the calls
in which a born dim lives, run as a whole in chunks, once, or (zero items) not at all. A *loop* is another: its body
runs once for each iteration.

Values are *unpadded* (named dims at the size of the request) or not (at their bucket). The host sees unpadded values
only.

Where a device group has no eager compute, a call runs a *program*, and an adapter step does nothing by itself: it says
what is folded into the program before or after it (``Adapter.place``), or runs a weightless program.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.adapter import Adapter
from orchestrator.plan.steps import HOST, Step
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator.specs import PortSpec, TensorSpec, combinations

__all__ = [
    "CompiledRegion",
    "DimPlan",
    "PlanData",
    "PlannedApplication",
    "PlannedCall",
    "PlannedEdge",
    "PlannedGroup",
    "PlannedProgram",
    "PlannedState",
    "PlannedValue",
    "Residency",
    "StateUpdate",
]


class Residency(enum.Enum):
    """Where an edge's value lives between its two ends."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True)
class DimPlan:
    """A named dim of the whole graph.

    Attributes:
        name: The name.
        buckets: Compiled sizes, ascending; for ``any`` the one size it was inferred at.
        any: Any size runs; nothing is padded.
        decided_by: ``call.port`` that decides its size during a request; empty for dims of inputs.
        can_pad: Smaller sizes than a bucket run, padded.
        can_chunk: Larger sizes than the largest bucket run, in chunks.
        batch: Its author promises that items along it are independent (``Dim(batch=True)``).
        loose: No stage runs at one of its buckets, only the host sees it: every size runs as it is.
        declared_buckets: Buckets that ``Dim(...)`` declares; empty for a name without, whose sizes ``plan(sizes=...)``
            gives.
        whole: Why larger sizes cannot run in chunks, whatever is promised, a clause; empty: nothing is in the way.
        exact: Nothing is padded along it (``Dim(exact=True)``).
    """

    name: str
    buckets: tuple[int, ...]
    any: bool = False
    decided_by: str = ""
    can_pad: bool = False
    can_chunk: bool = False
    batch: bool = False
    loose: bool = False
    declared_buckets: tuple[int, ...] = ()
    whole: str = ""
    exact: bool = False

    @property
    def unbounded(self) -> bool:
        """Whether every size runs as it is, at no bucket."""
        return self.any or self.loose


@dataclass(frozen=True)
class PlannedGroup:
    """A device group.

    Attributes:
        device: The device string, in the backend's one spelling.
        backend: The backend's registered name.
        ranks: Tensors for each logical value.
        host_memory: Its values live in host memory: nothing crosses a link.
        runs_programs: It has no eager compute: calls run programs.
        output_buffers: Outputs of one program that live at once; 0 is no limit.
        options: Backend options in force.
    """

    device: str
    backend: str
    ranks: int = 1
    host_memory: bool = False
    runs_programs: bool = False
    output_buffers: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def memory(self) -> str:
        """Name of the memory its values live in."""
        return HOST if self.host_memory else self.device

    @property
    def overwrites_outputs(self) -> bool:
        """Whether programs have output buffers, which their next run overwrites."""
        return self.runs_programs and self.output_buffers > 0

    def option(self, name: str, default: Any = None) -> Any:
        """Returns an option in force."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class HostOperations:
    """What a call does on the host at some sizes, for want of these operations on its device: all crosses the link.

    Attributes:
        sizes: Size of each dim of the call's inputs.
        names: The operations, each once.
        uploads: Tensors that go up.
        upload_bytes: Bytes of these.
        downloads: Tensors that come down.
        download_bytes: Bytes of these.
    """

    sizes: tuple[tuple[str, int], ...]
    names: tuple[str, ...]
    uploads: int
    upload_bytes: int
    downloads: int
    download_bytes: int


@dataclass(frozen=True)
class PlannedCall:
    """One call with its proven ports.

    Attributes:
        name: The call.
        stage: Its stage.
        device: The device group, or ``"host"``.
        inputs: Fed ports and what they get.
        outputs: Ports and what they give.
        returns: How the stage hands its outputs over: ``single``, ``tuple``, ``dict``, ``keys`` (a dict whose keys are
            no strings; a port is called as its key reads), or ``at 0 2`` (a tuple that holds tensors there, and else
            what is no output).
        is_declared: Outputs rest on the author's word (host and opaque stages) and are checked at each call.
        shares: An output may lie in memory that is not its own: an input's, a parameter's, another output's; those of
            ``aliases`` do not count.
        aliases: Outputs that are an input, updated in place: each with that input's port.
        host_operations: What it does on the host, for each combination of buckets at which it does.
    """

    name: str
    stage: str
    device: str
    inputs: tuple[tuple[str, PortSpec], ...]
    outputs: tuple[tuple[str, PortSpec], ...]
    returns: str = "single"
    is_declared: bool = False
    shares: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    host_operations: tuple[HostOperations, ...] = ()

    def host_operations_at(self, sizes: Mapping[str, int]) -> HostOperations | None:
        """Returns what it does on the host at these sizes of dims."""
        return next(
            (
                item
                for item in self.host_operations
                if all(sizes.get(name) == size for name, size in item.sizes)
            ),
            None,
        )


@dataclass(frozen=True)
class PlannedValue:
    """One value in one form at one place.

    Attributes:
        origin: ``call.port``, or the name of an input or constant.
        spec: Its dims and dtype, or its Python type.
        memory: ``"host"`` or a device.
        unpadded: Named dims are at the request's own size, not at a bucket.
        constant: It is staged at load and outlives requests.
    """

    origin: str
    spec: PortSpec
    memory: str
    unpadded: bool
    constant: bool = False


@dataclass(frozen=True)
class PlannedProgram:
    """One program: compiled code with one output buffer for each bucket.

    Attributes:
        name: Its name.
        device: The device group.
        stage: The stage that it runs; empty: adapters alone.
        inputs: Fed ports, in the order of the stage's; a constant that is compiled in goes by its name.
        outputs: What it gives, in order.
        route: Tells apart programs of an application that take the same shapes; above 0 it has a routing input.
        to_host: Its one output is read on the host only.
    """

    name: str
    device: str
    stage: str
    inputs: tuple[ProgramInput, ...]
    outputs: tuple[ProgramOutput, ...]
    route: int = 0
    to_host: bool = False

    def combinations(self, buckets: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
        """Returns the combinations of buckets it is compiled for, the largest last."""
        names = dict.fromkeys(
            name for item in self.inputs if item.spec is not None for name in item.spec.names
        )
        return list(combinations(names, buckets))


@dataclass(frozen=True)
class PlannedApplication:
    """Stages of one device group that share weights: the entry points of one application.

    Attributes:
        device: The device group.
        stages: Its stages, two or more, in the order of the graph.
        weights: Bytes of weights of all of them, each once, one rank.
    """

    device: str
    stages: tuple[str, ...]
    weights: int

    @property
    def name(self) -> str:
        """The names of its stages."""
        return " + ".join(self.stages)


@dataclass(frozen=True)
class StateUpdate:
    """What one loop does to a state.

    Attributes:
        carry: The carry that it is in this loop, ``loop.name``.
        port: The port of the call in the body that reads it in each iteration.
        output: The output of that call that it is afterwards.
    """

    carry: str
    port: str
    output: str


@dataclass(frozen=True)
class PlannedState:
    """A carry that lives in an application, and is updated there: it is never handed over.

    Attributes:
        name: The carry of the first loop, ``loop.name``.
        device: The device group.
        spec: Its form at the largest buckets; smaller requests use a corner of it.
        start: Where what it begins with comes from, ``call.port``; that call writes it.
        updates: What is done to it by each loop, in order: all but the first begin with what the one before it left.
    """

    name: str
    device: str
    spec: TensorSpec
    start: str
    updates: tuple[StateUpdate, ...]

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of the values that it is, one after another."""
        return self.start, *(part for update in self.updates for part in (update.carry, update.output))


@dataclass(frozen=True)
class PlannedLock:
    """What one request at a time uses.

    Attributes:
        name: Its first member.
        members: Programs whose output buffers it guards, and states.
    """

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class CompiledRegion:
    """A run of calls on one torch device, and the adapters between them, that becomes one program for each size.

    Attributes:
        name: Its calls, in short.
        device: The device group.
        calls: Its calls, in order; in the steps nothing but adapters is between them.
        is_required: It may not run eagerly instead.
        tolerance: The largest difference from eager results, relative to the largest magnitude of a result; 0: one
            that suits its dtype.
    """

    name: str
    device: str
    calls: tuple[str, ...]
    is_required: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True)
class PlannedEdge:
    """One edge, decided and explained.

    Attributes:
        source: ``call.port``, or the name of an input or constant.
        target: ``call.port``, or the name of an output.
        spec: What the producer gives.
        residency: Where the value lives in between.
        bytes: Of one rank, at the largest buckets.
        adapters: What is done to it on the way.
        reason: Why, in a sentence.
        cost: Estimated microseconds on the link, all ranks; 0.0 where nothing crosses it.
        value: The value the consumer reads, by index.
    """

    source: str
    target: str
    spec: PortSpec
    residency: Residency
    bytes: int
    adapters: tuple[Adapter, ...]
    reason: str
    cost: float
    value: int

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True)
class PlanData:
    """What a plan says; :class:`~orchestrator.plan.model.Plan` adds what can be done with it.

    The first values are the inputs, in order.

    Attributes:
        pipeline: The pipeline's name.
        dims: Named dims.
        groups: Device groups in use.
        inputs: Names of inputs to what they take.
        outputs: Names of outputs to the value handed back, by index.
        optional: Inputs that a request may leave out.
        calls: Calls in the order of running.
        values: All values; steps and edges speak of them by index.
        edges: Edges in the order of reading.
        steps: What runs, in order.
        staging: What is done once, at load: constants put where they are read.
        programs: Programs of groups without eager compute.
        applications: Stages that share weights; one that shares none is an application by itself, and is not here.
        states: Carries that live in an application.
        locks: What one request at a time uses, in the order in which every request takes it; steps say from where to
            where.
        weights: Bytes of weights for each device, one rank.
        buffers: Bytes of the programs' own output buffers, and of states, for each device that has such, one rank.
        budget: Memory budget for each device in bytes, where there is one.
        notes: What the planner warns of, a sentence each.
        compiled: Regions that run as one program.
    """

    pipeline: str
    dims: tuple[DimPlan, ...]
    groups: tuple[PlannedGroup, ...]
    inputs: tuple[tuple[str, PortSpec], ...]
    outputs: tuple[tuple[str, int], ...]
    calls: tuple[PlannedCall, ...]
    values: tuple[PlannedValue, ...]
    edges: tuple[PlannedEdge, ...]
    steps: tuple[Step, ...]
    staging: tuple[Step, ...] = ()
    programs: tuple[PlannedProgram, ...] = ()
    applications: tuple[PlannedApplication, ...] = ()
    states: tuple[PlannedState, ...] = ()
    locks: tuple[PlannedLock, ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    buffers: tuple[tuple[str, int], ...] = ()
    budget: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    compiled: tuple[CompiledRegion, ...] = ()

    def call(self, name: str) -> PlannedCall:
        """Returns a call by name."""
        return next(call for call in self.calls if call.name == name)

    def application(self, program: PlannedProgram) -> str:
        """Returns the name of the application that a program is in: with all whose stages share its stage's weights."""
        shared = (item.name for item in self.applications if program.stage in item.stages)
        return next(shared, program.stage or program.name)

    def program(self, name: str) -> PlannedProgram:
        """Returns a program by name."""
        return next(program for program in self.programs if program.name == name)
