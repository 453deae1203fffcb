"""Verify, second part: every port and output has its one edge, and the edge tells the truth about the steps."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedEdge, PlannedValue, Residency
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopLikeStep,
    LoopStep,
    iter_steps,
)
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["check_edges", "demand", "same_spec", "wrong"]


def demand(plan: Plan, holds: bool, what: str) -> None:
    """Raises :class:`PlanError` unless a rule holds.

    Args:
        plan: The plan.
        holds: Whether it does.
        what: What is wrong otherwise.
    """
    if not holds:
        raise wrong(plan, what)


def wrong(plan: Plan, what: str) -> PlanError:
    """Returns the error that says what is wrong with a plan."""
    return PlanError(
        f"The plan of {plan.pipeline!r} is wrong: {what}. Plan the pipeline again instead of editing the plan.",
        plan=plan,
        rule=what,
    )


def same_spec(one: PortSpec, other: PortSpec) -> bool:
    """Tells whether two ports carry the same: equal dims and dtype, or the same Python type."""
    if isinstance(one, TensorSpec) and isinstance(other, TensorSpec):
        return one.same_form(other)
    return one is other


def check_edges(plan: Plan, call_steps: Mapping[str, CallStep]) -> None:
    """Checks the edges of a plan against its steps.

    Args:
        plan: The plan; its steps were replayed already.
        call_steps: Call to step.

    Raises:
        PlanError: They differ.
    """
    _Edges(plan, call_steps).run()


class _Edges:
    def __init__(self, plan: Plan, call_steps: Mapping[str, CallStep]) -> None:
        self.plan = plan
        self.call_steps = call_steps
        self.calls = {call.name: call for call in plan.calls}
        self.memory = {HOST: HOST, **{group.device: group.memory for group in plan.groups}}
        self.constants = {value.origin for value in plan.values if value.constant}
        leaves = iter_steps((*plan.staging, *plan.steps), LeafStep)
        self.producers = {index: step for step in leaves for index in step.outputs}
        self.loops = {step.name: step for step in iter_steps(plan.steps, LoopLikeStep)}

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, what)

    def run(self) -> None:
        # What each port reads, told by the steps alone: outputs, ports of calls, and what enters and leaves loops.
        edges = {edge.target: edge for edge in self.plan.edges}
        self._demand(len(edges) == len(self.plan.edges), "two edges feed one port")
        port_values: dict[str, int] = dict(self.plan.outputs)
        for name, step in self.call_steps.items():
            ports = (f"{name}.{port}" for port, _ in self.calls[name].inputs)
            port_values.update(zip(ports, step.inputs, strict=True))
        for loop in self.loops.values():
            port_values.update(self._of_loop(loop))
        self._demand(
            set(edges) == set(port_values),
            f"edges and ports differ: {sorted(set(edges) ^ set(port_values))[:2]}",
        )
        # Then each edge against it: from the value back over its adapters to where it came from.
        largest = {dim.name: dim.buckets[-1] for dim in self.plan.dims}
        for target, edge in edges.items():
            self._demand(
                edge.value == port_values[target],
                f"the edge '{edge}' ends in another value than {target!r} reads",
            )
            adapters, root = self._adapters_to(edge.value)
            self._demand(root.origin == edge.source, f"{target!r} reads {root.origin!r}, not {edge.source!r}")
            self._demand(
                adapters == list(edge.adapters), f"the edge '{edge}' does not list the adapters on its way"
            )
            size = edge.spec.nbytes(largest) if isinstance(edge.spec, TensorSpec) else 0
            self._demand(
                edge.bytes == size and same_spec(edge.spec, root.spec),
                f"the edge '{edge}' carries {root.spec}",
            )
            self._residency(edge, [adapter.kind for adapter in adapters])

    def _of_loop(self, step: LoopLikeStep) -> dict[str, int]:
        """What enters and leaves a loop, by the ports that the origins of its values tell."""
        values = self.plan.values
        ports = {values[carry.argument].origin: carry.initial for carry in step.carries}
        ports |= {values[entry.part].origin: entry.whole for entry in step.slices}
        ports |= {f"{values[carry.argument].origin}[next]": carry.yielded for carry in step.carries}
        pairs = zip(step.collects, step.stacks, strict=True)
        ports |= {values[index].origin: part for part, index in pairs}
        match step:
            case BranchStep(condition=int(condition)) | LoopStep(condition=int(condition)):
                ports[f"{step.name}.[when]"] = condition
        match step:
            case LoopStep(until=int(until)):
                ends = [edge.target for edge in self.plan.edges if edge.target.endswith("[until]")]
                ports[next(end for end in ends if end.startswith(f"{step.name}."))] = until
        return ports

    def _adapters_to(self, index: int) -> tuple[list[Adapter], PlannedValue]:
        adapters: list[Adapter] = []
        while isinstance(step := self.producers.get(index), AdaptStep):
            adapters.insert(0, step.adapter)
            index = step.inputs[0]
        return adapters, self.plan.values[index]

    def _residency(self, edge: PlannedEdge, kinds: list[str]) -> None:
        devices = [self._device(name) for name in (edge.source, edge.target)]
        ends = [device for device in devices if device is not None]
        if len(ends) < len(devices):
            return  # an end of a loop, which is where its value is: the record of the loop tells
        if edge.source in self.constants:
            where = Residency.HOST if ends[1] == HOST else Residency.DEVICE
            self._demand(edge.residency is where, f"the constant of '{edge}' is not where it is read")
        elif HOST in ends:
            self._demand(
                edge.residency is Residency.HOST,
                f"the edge '{edge}' begins or ends on the host but is on the device",
            )
        over_host = bool({"download", "gather", "upload"} & set(kinds))
        if edge.residency is Residency.DEVICE and HOST not in ends:
            self._demand(
                not over_host, f"the edge '{edge}' is said to stay on the device but goes over the host"
            )
        elif HOST not in ends and HOST not in {self.memory[device] for device in ends}:
            self._demand(over_host, f"the edge '{edge}' is said to go over the host but stays on the device")

    def _device(self, end: str) -> str | None:
        name = end.rpartition(".")[0]
        call = self.calls.get(name)
        return call.device if call else None if name in self.loops else HOST
