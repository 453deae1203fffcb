"""Which edges are in the body of which loop, and what crosses the link there: once, in each iteration, never."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    Step,
    body_of,
    iter_steps,
)
from orchestrator.specs import TensorSpec

__all__ = ["Block", "LoopDescriber", "outline"]


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
    return _Outline(plan).block("")


class _Outline:
    def __init__(self, plan: PlanData) -> None:
        self.steps: dict[str, LoopLikeStep] = {}
        self.around: dict[str, str] = {}
        self._note_steps(plan.steps, "")
        # One walk over the edges gives each to the block of its loop, and that block to the loops around it.
        self.items: dict[str, list[PlannedEdge | str]] = {"": []}
        for edge in plan.edges:
            loop = self._owner(edge)
            self._open(loop)
            self.items[loop].append(edge)

    def _note_steps(self, steps: Iterable[Step], loop: str) -> None:
        """Notes around each call and loop the innermost loop that it is in."""
        for step in steps:
            match step:
                case LoopLikeStep():
                    self.steps[step.name], self.around[step.name] = step, loop
                    self._note_steps(step.body, step.name)
                case CallStep():
                    self.around[step.name] = loop
                case _:
                    self._note_steps(body_of(step), loop)

    def _open(self, loop: str) -> None:
        """Puts the block of a loop, and of those around it, where its first edge comes."""
        missing: list[str] = []
        while loop not in self.items:
            missing.append(loop)
            loop = self.around[loop]
        for inner in reversed(missing):
            self.items[loop].append(inner)
            self.items[inner] = []
            loop = inner

    def _owner(self, edge: PlannedEdge) -> str:
        """The loop in whose body an edge ends."""
        name, _, port = edge.target.rpartition(".")
        if name in self.steps:
            return name if port.endswith("]") and port != "[when]" else self.around.get(name, "")
        return self.around.get(name, "")

    def block(self, loop: str) -> Block:
        """Returns the block of a loop; empty: that of the plan."""
        items = tuple(self.block(item) if isinstance(item, str) else item for item in self.items[loop])
        return Block(self.steps[loop] if loop else None, items)


class LoopDescriber:
    """Says of the loops of a plan what stands above their edges.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: PlanData) -> None:
        self._plan = plan
        largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
        self._run = SizeAssignment(largest, largest)
        self._counter = Counter(plan)
        self._linked = {group.memory for group in plan.groups if not group.host_memory}
        self._producers = {index: leaf for leaf in iter_steps(plan.steps, LeafStep) for index in leaf.outputs}

    def describe(self, step: LoopLikeStep) -> list[str]:
        """Returns what is said of a loop above its edges."""
        lines = [f"{step.noun} {step.name!r}: {'; '.join(_facts(self._plan, step, self._run))}"]
        if any(not group.host_memory for group in self._plan.groups):
            once, each, never = self._crossings(step)
            match step:
                case LoopStep():
                    per = "in each iteration"
                case MapStep():
                    per = "for each batch"
                case _:
                    per = "if it runs"
            carried = f"; {show_bytes(never)} stays on the device from one to the next" if never else ""
            lines.append(f"  over the link: {show_bytes(once)} once, {show_bytes(each)} {per}{carried}")
        return lines

    def _crossings(self, step: LoopLikeStep) -> tuple[int, int, int]:
        """Bytes over the link at the largest buckets: to begin with, in an iteration, and carried without crossing."""
        inner = self._counter.steps(step.body, self._run)
        # What brings the inputs of the loop to their place crosses once: the adapters before it, back to calls.
        before: dict[int, AdaptStep] = {}
        todo = list(step.inputs)
        while todo:
            match self._producers.get(todo.pop()):
                case AdaptStep(outputs=(target,)) as adapter if target not in before:
                    before[target] = adapter
                    todo += adapter.inputs
        once = self._counter.steps(tuple(before.values()), self._run)
        # Carries that live on the device would have to cross it in each iteration if the host ran the loop.
        carries = step.carries if isinstance(step, LoopStep) else ()
        values = [self._plan.values[carry.argument] for carry in carries]
        never = sum(
            value.spec.nbytes(self._run.bucket)
            for value in values
            if isinstance(value.spec, TensorSpec) and value.memory in self._linked
        )
        return once.upload_bytes + once.download_bytes, inner.upload_bytes + inner.download_bytes, never


def show_bytes(size: float) -> str:
    """Returns ``602 kB``: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _port(plan: PlanData, index: int) -> str:
    return plan.values[index].origin.rpartition(".")[2]


def _facts(plan: PlanData, step: LoopLikeStep, run: SizeAssignment) -> Iterator[str]:
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
            yield from _loop_facts(plan, step, slices, run)


def _loop_facts(plan: PlanData, loop: LoopStep, slices: list[str], run: SizeAssignment) -> Iterator[str]:
    """How often a loop runs, what ends it, then what goes in and comes out."""
    (_, count), *_ = repeats(plan, loop, run)
    sliced_spec = plan.values[loop.slices[0].whole].spec if loop.slices else None
    # A dim of the request decides the number, or the loop itself on its way: then it is the most.
    is_open = loop.steps_dim or (isinstance(sliced_spec, TensorSpec) and sliced_spec.names[:1])
    yield f"{'at most ' if is_open else ''}{count} iteration{'s' if count != 1 else ''}"
    if loop.condition is not None:
        yield f"none unless {plan.values[loop.condition].origin!r}"
    if loop.until is not None:
        every = "" if loop.check_every == 1 else f", looked at every {loop.check_every} iterations"
        yield f"until {plan.values[loop.until].origin!r}{every}"
    if loop.carries:
        yield f"carries {', '.join(_port(plan, carry.argument) for carry in loop.carries)}"
    if slices:
        yield f"slices {', '.join(slices)}"
    if loop.collects:
        yield f"collects {', '.join(plan.values[index].origin for index in loop.collects)}"
