"""Which edges are in the body of which loop, and what crosses the link there: once, in each iteration, never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.plan.chunks import SizeAssignment
from orchestrator.plan.count import Counter
from orchestrator.plan.iterations import repeats
from orchestrator.plan.records import PlanData, PlannedEdge
from orchestrator.plan.steps import (
    AdaptStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopLikeStep,
    LoopStep,
    MapStep,
    iter_steps,
)
from orchestrator.specs import TensorSpec

__all__ = ["Block", "describe", "outline"]


@dataclass(frozen=True)
class Block:
    """A loop, map or branch with its edges.

    Attributes:
        step: Its step; None: what is in none.
        items: Edges and inner blocks, in order.
    """

    step: LoopLikeStep | None
    items: tuple[PlannedEdge | Block, ...]


def outline(plan: PlanData) -> Block:
    """Returns the edges of a plan, those of each body in a block of its own, at the place of its first edge."""
    return _Outline(plan).block(None)


class _Outline:
    def __init__(self, plan: PlanData) -> None:
        self.plan = plan
        self.steps = {step.name: step for step in iter_steps(plan.steps, LoopLikeStep)}
        self.around: dict[str, str] = {}
        for name, step in self.steps.items():
            calls = iter_steps(step.body, CallStep)
            self.around |= dict.fromkeys(
                (inner.name for inner in calls), name
            )  # the innermost loop comes last
            self.around |= dict.fromkeys((inner.name for inner in iter_steps(step.body, LoopLikeStep)), name)
        self.owner = {edge: self._owner(edge) for edge in plan.edges}

    def _owner(self, edge: PlannedEdge) -> str:
        """The loop in whose body an edge ends."""
        name, _, port = edge.target.rpartition(".")
        if name in self.steps:
            return name if port.endswith("]") and port != "[when]" else self.around.get(name, "")
        return self.around.get(name, "")

    def block(self, loop: str | None) -> Block:
        """Returns the block of a loop; None: that of the plan."""
        items: list[PlannedEdge | Block] = []
        inner_loops = set()
        for edge in self.plan.edges:
            inner = self._child(self.owner[edge], loop or "")
            if inner is None:
                continue
            if not inner:
                items.append(edge)
            elif inner not in inner_loops:
                inner_loops.add(inner)
                items.append(self.block(inner))
        return Block(self.steps[loop] if loop else None, tuple(items))

    def _child(self, owner: str, loop: str) -> str | None:
        """The loop directly in another that an edge is in; empty: it is in that one itself; None: in neither."""
        if owner == loop:
            return ""
        while owner:
            around = self.around.get(owner, "")
            if around == loop:
                return owner
            owner = around
        return None


def describe(plan: PlanData, step: LoopLikeStep) -> list[str]:
    """Returns what is said of a loop above its edges."""
    lines = [f"{step.noun} {step.name!r}: {'; '.join(_facts(plan, step))}"]
    if any(not group.host_memory for group in plan.groups):
        once, each, never = _crossings(plan, step)
        per = {"loop": "in each iteration", "map": "for each batch", "branch": "if it runs"}[step.noun]
        on_device = f"; {show_bytes(never)} stays on the device from one to the next" if never else ""
        lines.append(f"  over the link: {show_bytes(once)} once, {show_bytes(each)} {per}{on_device}")
    return lines


def show_bytes(size: float) -> str:
    """Returns ``602 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _port(plan: PlanData, index: int) -> str:
    return plan.values[index].origin.rpartition(".")[2]


def _facts(plan: PlanData, step: LoopLikeStep) -> Iterator[str]:
    slices = [_port(plan, entry.part) for entry in step.slices]
    match step:
        case BranchStep():
            entries = {plan.values[entry.whole].origin for entry in step.slices}
            conditions = [f"{name!r} is given" for name in plan.optional if name in entries]
            conditions += (
                [] if step.condition is None else [f"{plan.values[step.condition].origin!r} is true"]
            )
            yield f"runs if {' and '.join(conditions)}, else gives what is there otherwise"
        case MapStep():
            yield f"over {', '.join(slices)}, in batches by the buckets of {step.items_dim!r}, order kept"
        case LoopStep():
            yield from _loop_facts(plan, step, slices)


def _loop_facts(plan: PlanData, loop: LoopStep, slices: list[str]) -> Iterator[str]:
    """How often a loop runs, what ends it, then what goes in and comes out."""
    largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
    (_, count), *_ = repeats(plan, loop, SizeAssignment(largest, largest))
    sliced_spec = plan.values[loop.slices[0].whole].spec if loop.slices else None
    # A dim of the request decides the number, or the loop itself on its way: then it is the most.
    is_open = loop.steps_dim or (isinstance(sliced_spec, TensorSpec) and sliced_spec.names[:1])
    yield f"{'at most ' if is_open else ''}{count} iteration{'s' if count != 1 else ''}"
    if loop.until is not None:
        every = "" if loop.check_every == 1 else f", looked at every {loop.check_every} iterations"
        yield f"until {plan.values[loop.until].origin!r}{every}"
    if loop.carries:
        yield f"carries {', '.join(_port(plan, carry.argument) for carry in loop.carries)}"
    if slices:
        yield f"slices {', '.join(slices)}"
    if loop.collects:
        yield f"collects {', '.join(plan.values[index].origin for index in loop.collects)}"


def _crossings(plan: PlanData, step: LoopLikeStep) -> tuple[int, int, int]:
    """Bytes over the link at the largest buckets: to begin with, in an iteration, and carried without crossing it."""
    largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
    run = SizeAssignment(largest, largest)
    counter = Counter(plan)
    inner = counter.steps(step.body, run)
    # What brings the inputs of the loop to their place crosses the link once: the adapters before it, back to calls.
    producers = {index: leaf for leaf in iter_steps(plan.steps, LeafStep) for index in leaf.outputs}
    before: dict[int, AdaptStep] = {}
    todo = list(step.inputs)
    while todo:
        match producers.get(todo.pop()):
            case AdaptStep(outputs=(target,)) as adapter if target not in before:
                before[target] = adapter
                todo += adapter.inputs
    once = counter.steps(tuple(before.values()), run)
    # Carries that live on the device would have to cross it in each iteration if the host ran the loop.
    memories = {group.memory for group in plan.groups if not group.host_memory}
    carries = [plan.values[carry.argument] for carry in step.carries] if step.noun == "loop" else []
    never = sum(
        value.spec.nbytes(largest)
        for value in carries
        if isinstance(value.spec, TensorSpec) and value.memory in memories
    )
    return once.upload_bytes + once.download_bytes, inner.upload_bytes + inner.download_bytes, never
