"""Verify, second part: every port and output has its one edge, and the edge tells the truth about the steps."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedEdge, PlannedValue, Residency
from orchestrator.plan.steps import HOST, PlannedLoop, Step, walk
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


def check_edges(plan: Plan, called: Mapping[str, Step]) -> None:
    """Checks the edges of a plan against its steps.

    Args:
        plan: The plan; its steps were replayed already.
        called: Call to step.

    Raises:
        PlanError: They differ.
    """
    _Edges(plan, called).run()


class _Edges:
    def __init__(self, plan: Plan, called: Mapping[str, Step]) -> None:
        self.plan = plan
        self.called = called
        self.calls = {call.name: call for call in plan.calls}
        self.memory = {HOST: HOST, **{group.device: group.memory for group in plan.groups}}
        self.constants = {value.origin for value in plan.values if value.constant}
        steps = (*walk(plan.staging), *walk(plan.steps))
        self.makers = {index: step for step in steps if not step.body for index in step.outputs}
        self.loops = {step.name: step.loop for step in steps if step.loop is not None}
        self.heads = {index for loop in self.loops.values() for index in loop.heads}

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, what)

    def run(self) -> None:
        edges = {edge.target: edge for edge in self.plan.edges}
        self._demand(len(edges) == len(self.plan.edges), "two edges feed one port")
        wanted: dict[str, int] = dict(self.plan.outputs)
        for name, step in self.called.items():
            ports = (f"{name}.{port}" for port, _ in self.calls[name].inputs)
            wanted.update(zip(ports, step.inputs, strict=True))
        for loop in self.loops.values():
            wanted.update(self._of_loop(loop))
        self._demand(
            set(edges) == set(wanted), f"edges and ports differ: {sorted(set(edges) ^ set(wanted))[:2]}"
        )
        largest = {dim.name: dim.buckets[-1] for dim in self.plan.dims}
        for target, edge in edges.items():
            self._demand(
                edge.value == wanted[target], f"the edge '{edge}' ends in another value than {target!r} reads"
            )
            way, root = self._way(edge.value)
            self._demand(root.origin == edge.source, f"{target!r} reads {root.origin!r}, not {edge.source!r}")
            self._demand(
                way == list(edge.adapters), f"the edge '{edge}' does not list the adapters on its way"
            )
            size = edge.spec.nbytes(largest) if isinstance(edge.spec, TensorSpec) else 0
            self._demand(
                edge.bytes == size and same_spec(edge.spec, root.spec),
                f"the edge '{edge}' carries {root.spec}",
            )
            self._residency(edge, [adapter.kind for adapter in way])

    def _of_loop(self, loop: PlannedLoop) -> dict[str, int]:
        """What enters and leaves a loop, by the ports that the origins of its values tell."""
        values = self.plan.values
        found = {values[head].origin: start for start, head, _ in loop.carries}
        found |= {values[part].origin: whole for whole, part in loop.slices}
        found |= {f"{values[head].origin}[next]": following for _, head, following in loop.carries}
        step = next(step for step in walk(self.plan.steps) if step.loop is loop)
        stacked = step.outputs[len(loop.carries) :]
        found |= {values[index].origin: part for part, index in zip(loop.collects, stacked, strict=True)}
        if loop.condition is not None:
            found[f"{loop.name}.[when]"] = loop.condition
        if loop.until is not None:
            ends = [edge for edge in self.plan.edges if edge.target.endswith("[until]")]
            name = next(edge.target for edge in ends if edge.target.startswith(f"{loop.name}."))
            found[name] = loop.until
        return found

    def _way(self, index: int) -> tuple[list[Adapter], PlannedValue]:
        way: list[Adapter] = []
        while (step := self.makers.get(index)) is not None and step.adapter is not None:
            way.insert(0, step.adapter)
            index = step.inputs[0]
        return way, self.plan.values[index]

    def _residency(self, edge: PlannedEdge, kinds: list[str]) -> None:
        found = [self._device(name) for name in (edge.source, edge.target)]
        ends = [device for device in found if device is not None]
        if len(ends) < len(found):
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
