"""What differs between two plans of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from orchestrator.errors import PlanError
from orchestrator.plan.count import summarise
from orchestrator.plan.records import PlanData, PlannedEdge, PlannedProgram
from orchestrator.plan.steps import Step, adapter_of, body_of
from orchestrator.specs import show_spec
from orchestrator.tables import table

__all__ = ["PlanDiff", "diff"]


@dataclass(frozen=True)
class PlanDiff:
    """Rows of what, this plan, the other plan; falsy when there are none."""

    rows: tuple[tuple[str, str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "The plans are equal."
        return "\n".join(table([("what", "this plan", "other plan"), *self.rows], indent=""))


def diff(one: PlanData, other: PlanData) -> PlanDiff:
    """Compares two plans, part by part.

    Raises:
        PlanError: One of them is no plan.
    """
    if not isinstance(other, PlanData):
        raise PlanError(f"A plan is compared with a plan, not with {other!r}.")
    if one == other:
        return PlanDiff(())
    facts = [dict(_facts(plan)) for plan in (one, other)]
    names = dict.fromkeys((*facts[0], *facts[1]))
    rows = [(name, facts[0].get(name, "-"), facts[1].get(name, "-")) for name in names]
    rows = [row for row in rows if row[1] != row[2]]
    return PlanDiff(tuple(rows or _details(one, other)))


def _details(one: PlanData, other: PlanData) -> Iterator[tuple[str, str, str]]:
    """The parts that differ in what the facts leave out, such as their order."""
    for item in fields(one):
        parts = getattr(one, item.name), getattr(other, item.name)
        if item.compare and parts[0] != parts[1]:
            yield f"details of {item.name}", str(parts[0]), str(parts[1])


def _facts(plan: PlanData) -> Iterator[tuple[str, str]]:
    yield "pipeline", plan.pipeline
    for dim in plan.dims:
        yield (
            f"dim {dim.name}",
            f"{dim.buckets}{' any' if dim.any else ''}, padded {dim.can_pad}, batch {dim.batch}, "
            f"chunked {dim.can_chunk}",
        )
    for group in plan.groups:
        yield f"group {group.device}", f"{group.backend}, ranks {group.ranks}, {dict(group.options)}"
    for name, spec in plan.inputs:
        yield f"input {name}", show_spec(spec)
    for call in plan.calls:
        gives = ", ".join(f"{port} {show_spec(spec)}" for port, spec in call.outputs)
        yield f"call {call.name}", f"on {call.device}: {gives}"
    # What was decided, then the steps that follow from it: where the decisions differ, these say why steps do.
    for edge in plan.edges:
        yield f"edge {edge}", _edge(edge)
    yield from _on_devices(plan)
    for position, step in enumerate(plan.steps):
        yield f"step {position}", _step(step)
    for name, count in summarise(plan, {}).items():
        yield f"total {name}", str(count)
    for position, note in enumerate(plan.notes):
        yield f"note {position}", note


def _on_devices(plan: PlanData) -> Iterator[tuple[str, str]]:
    for program in plan.programs:
        yield f"program {program.name}", _program(program)
    for application in plan.applications:
        yield f"application {application.name}", f"on {application.device}: {application.weights} of weights"
    for state in plan.states:
        yield (
            f"state {state.name}",
            f"{show_spec(state.spec)} on {state.device}, from {state.start} by "
            f"{', '.join(update.output for update in state.updates)}",
        )
    for what, sizes in (("weights", plan.weights), ("buffers", plan.buffers), ("budget", plan.budget)):
        for device, size in sizes:
            yield f"{what} {device}", str(size)


def _program(program: PlannedProgram) -> str:
    gives = "; ".join(
        ", ".join([f"{item.port} {show_spec(item.spec)}", *map(str, item.adapters)])
        for item in program.outputs
    )
    takes = ", ".join(", ".join([item.port, *map(str, item.adapters)]) for item in program.inputs)
    return f"{program.stage or 'adapters'} on {program.device}, route {program.route}: {takes} -> {gives}"


def _edge(edge: PlannedEdge) -> str:
    adapters = ", ".join(str(adapter) for adapter in edge.adapters) or "no adapter"
    return f"{edge.residency.value}, {show_spec(edge.spec)}, {adapters}, {edge.reason}"


def _step(step: Step) -> str:
    body = body_of(step)
    inside = f" {{{'; '.join(map(_step, body))}}}" if body else ""
    what = adapter_of(step) or step.device
    return f"{step.op} {step.label} ({what}) {step.inputs} -> {step.outputs}, frees {step.frees}{inside}"
