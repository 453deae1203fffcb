"""Which edges are in the body of which loop, and what crosses the link there: once, in each iteration, never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.plan.chunks import Run
from orchestrator.plan.count import Counter
from orchestrator.plan.iterations import repeats
from orchestrator.plan.records import PlanData, PlannedEdge
from orchestrator.plan.steps import PlannedLoop, Step, walk
from orchestrator.specs import TensorSpec

__all__ = ["Block", "describe", "outline"]


@dataclass(frozen=True)
class Block:
    """A loop, map or branch with its edges.

    Attributes:
        step: Its step; None: what is in none.
        items: Edges and inner blocks, in order.
    """

    step: Step | None
    items: tuple[PlannedEdge | Block, ...]


def outline(plan: PlanData) -> Block:
    """Returns the edges of a plan, those of each body in a block of its own, at the place of its first edge."""
    return _Outline(plan).block(None)


class _Outline:
    def __init__(self, plan: PlanData) -> None:
        self.plan = plan
        self.steps = {step.name: step for step in walk(plan.steps) if step.loop is not None}
        self.around: dict[str, str] = {}
        for name, step in self.steps.items():
            for inner in walk(step.body):
                if inner.op == "call" or inner.loop is not None:
                    self.around[inner.name] = name  # the innermost loop comes last
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
        seen = set()
        for edge in self.plan.edges:
            inner = self._child(self.owner[edge], loop or "")
            if inner is None:
                continue
            if not inner:
                items.append(edge)
            elif inner not in seen:
                seen.add(inner)
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


def describe(plan: PlanData, step: Step) -> list[str]:
    """Returns what is said of a loop above its edges."""
    loop = step.loop
    assert loop is not None
    lines = [f"{_NAMES[loop.kind]} {loop.name!r}: {'; '.join(_facts(plan, loop))}"]
    if any(not group.host_memory for group in plan.groups):
        once, each, never = _crossings(plan, step)
        per = {"loop": "in each iteration", "map": "for each batch", "when": "if it runs"}[loop.kind]
        carried = f"; {show_bytes(never)} stays on the device from one to the next" if never else ""
        lines.append(f"  over the link: {show_bytes(once)} once, {show_bytes(each)} {per}{carried}")
    return lines


_NAMES = {"loop": "loop", "map": "map", "when": "branch"}


def show_bytes(size: float) -> str:
    """Returns ``602 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _port(plan: PlanData, index: int) -> str:
    return plan.values[index].origin.rpartition(".")[2]


def _facts(plan: PlanData, loop: PlannedLoop) -> Iterator[str]:
    heads = [_port(plan, head) for _, head, _ in loop.carries]
    slices = [_port(plan, part) for _, part in loop.slices]
    if loop.kind == "when":
        missing = [
            name for name in plan.optional if name in {plan.values[whole].origin for whole, _ in loop.slices}
        ]
        conditions = [f"{name!r} is given" for name in missing]
        conditions += [] if loop.condition is None else [f"{plan.values[loop.condition].origin!r} is true"]
        yield f"runs if {' and '.join(conditions)}, else gives what is there otherwise"
        return
    if loop.kind == "map":
        yield f"over {', '.join(slices)}, in batches by the buckets of {loop.dim!r}, order kept"
        return
    largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
    (_, count), *_ = repeats(plan, loop, Run(largest, largest))
    decided = loop.dim or (loop.slices and getattr(plan.values[loop.slices[0][0]].spec, "names", ())[:1])
    yield f"{'at most ' if decided else ''}{count} iteration{'s' if count != 1 else ''}"
    if loop.until is not None:
        every = "" if loop.check_every == 1 else f", looked at every {loop.check_every} iterations"
        yield f"until {plan.values[loop.until].origin!r}{every}"
    if heads:
        yield f"carries {', '.join(heads)}"
    if slices:
        yield f"slices {', '.join(slices)}"
    if loop.collects:
        parts = [plan.values[index].origin for index in loop.collects]
        yield f"collects {', '.join(parts)}"


def _crossings(plan: PlanData, step: Step) -> tuple[int, int, int]:
    """Bytes over the link at the largest buckets: to begin with, in an iteration, and carried without crossing it."""
    loop = step.loop
    assert loop is not None
    largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
    run = Run(largest, largest)
    counter = Counter(plan)
    inner = counter.steps(step.body, run)
    made_by = {index: other for other in walk(plan.steps) if not other.body for index in other.outputs}
    before: dict[int, Step] = {}
    todo = [index for index in step.inputs if index in made_by]
    while todo:
        other = made_by.get(todo.pop())
        if other is not None and other.op == "adapt" and other.outputs[0] not in before:
            before[other.outputs[0]] = other
            todo += other.inputs
    once = counter.steps(tuple(before.values()), run)
    linked = {group.memory for group in plan.groups if not group.host_memory}
    carried = [plan.values[head] for _, head, _ in loop.carries] if loop.kind == "loop" else []
    never = sum(
        value.spec.nbytes(largest)
        for value in carried
        if isinstance(value.spec, TensorSpec) and value.memory in linked
    )
    return once.upload_bytes + once.download_bytes, inner.upload_bytes + inner.download_bytes, never
