"""Random pipelines with loops.

A body is built as a pipeline is, with loops of its own. What it needs that its loop does not give it (a tensor to
slice, a limit) it asks the builder around it for, down to an input of the whole pipeline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st

from orchestrator import Pipeline, Plan, TensorSpec
from orchestrator.testing import stages
from tests.properties.graphs import BUCKETS, OPERATIONS, PADS, WIDTHS, Builder, Case, Draw, Slot, plugins

STEPS = "steps"
#: Most slices of the named length, and of a fixed one.
MOST = 3
DEEPEST = 3


class Count(torch.nn.Module):
    """Counts up from zero; done at a limit."""

    def forward(self, k: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        following = k + 1
        return following, following >= limit


def squash(x: torch.Tensor) -> torch.Tensor:
    """Keeps what is carried small."""
    return x / (1 + x.abs())


@dataclass(frozen=True)
class Ends:
    """How often a loop runs that decides it.

    Attributes:
        dim: The dim that it decides.
        limit: A number, or the input that it reads.
        slices: How many there are: a number, a name, or None.
        most: Most iterations; None: as many as there are slices.
        every: Iterations from one look to the next; 0: it only has a limit.
    """

    dim: str
    limit: float | str
    slices: int | str | None
    most: int | None
    every: int

    def ran(self, inputs: dict[str, torch.Tensor], sizes: dict[str, int]) -> int:
        """How often its body runs in each run of it."""
        slices = [] if self.slices is None else [sizes.get(str(self.slices), self.slices)]
        bound = min([*slices, *([] if self.most is None else [self.most])])
        if not self.every:
            return bound
        limit = float(inputs[self.limit]) if isinstance(self.limit, str) else self.limit
        return min(bound, self.every * math.ceil(max(1, math.ceil(limit)) / self.every))


@dataclass
class LoopCase(Case):
    """A pipeline with loops.

    Attributes:
        ends: Loops that decide how often they run.
    """

    ends: list[Ends] = field(default_factory=list)


@dataclass
class LoopBuilder(Builder):
    """Adds random stages and loops to a pipeline.

    Attributes:
        needs: Inputs that the builder around it must feed, to what they take.
        ends: Loops that decide how often they run; a limit is a number, or a name in ``needs``.
        inputs_: How many inputs it has.
    """

    needs: dict[str, Slot] = field(default_factory=dict)
    ends: list[Ends] = field(default_factory=list)
    inputs_: int = 0

    @property
    def operations(self) -> tuple[str, ...]:
        return (*OPERATIONS, *("loop",) * (8 if not self.depth else 3))

    def demand(self, slot: Slot) -> tuple[Any, str]:
        """Adds an input, which whoever is around must feed; returns its value and its name."""
        name = f"n{self.inputs_}"
        self.inputs_ += 1
        value = self.pipeline.input(name, slot.spec(pad=0))
        self.needs[name] = slot
        return value, name

    def source(self, slot: Slot) -> Any:
        """Finds or makes a value of a form: one that is there, a constant, or an input."""
        found = [other.value for other in self.slots if other.form == slot.form]
        ways = ["there"] * 2 * bool(found) + ["input"]
        fixed = all(isinstance(dim, int) for dim in slot.lead)
        way = self.draw(st.sampled_from([*ways, *(["constant"] if fixed else [])]))
        if way == "there":
            return self.draw(st.sampled_from(found[-5:]))
        if way == "constant":
            shape = (*slot.lead, slot.width)
            return torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(slot.dtype)
        value, _ = self.demand(slot)
        if self.draw(st.booleans()):
            value = self.add(stages.Double())(value)
        self.slots.append(replace(slot, value=value))
        return value

    def loop(self) -> None:
        if self.depth < DEEPEST:
            _Loop(self).draw()

    def inner(self) -> None:
        """Builds a pipeline, perhaps with loops, and calls it as a stage, once or twice."""
        slot = self.pick(lambda slot: "n" not in slot.lead)
        if self.depth or slot is None:
            return
        pipeline = Pipeline("inner")
        value = pipeline.input("x", slot.spec(pad=0))
        builder = type(self)(self.draw, pipeline, depth=1, fails=self.fails)
        builder.give(value, slot)
        builder.grow(self.draw(st.integers(0, 2)))
        builder.loop()
        results = builder.slots[-2:]
        for number, result in enumerate(results):
            pipeline.output(f"y{number}", result.value)
        handle = self.add(pipeline)
        name = f"s{self.count}"
        for number in range(self.draw(st.integers(1, 2))):
            fed = self.feed(builder)
            ends = [self.end_here(end, builder, fed) for end in builder.ends]
            self.ends += [replace(end, dim=inside(end.dim, name, number)) for end in ends]
            given = handle(slot.value, **{port: value for port, (value, _) in fed.items()})
            values = given if len(results) > 1 else [given]
            for value, result in zip(values, results, strict=True):
                self.slots.append(Slot(value, result.lead, result.width, result.dtype))

    def feed(self, builder: LoopBuilder) -> dict[str, tuple[Any, str]]:
        """Feeds what a builder within needs: to a value, and the input that it is, if it is one of a limit."""
        limits = {end.limit for end in builder.ends}
        return {
            name: self.demand(slot) if name in limits else (self.source(slot), "")
            for name, slot in builder.needs.items()
        }

    def end_here(self, end: Ends, builder: LoopBuilder, fed: dict[str, tuple[Any, str]]) -> Ends:
        """The end of a loop within, as it is seen here."""
        return replace(end, limit=fed[end.limit][1]) if isinstance(end.limit, str) else end


def inside(dim: str, name: str, number: int = 0) -> str:
    """The dim of a loop within a loop or pipeline, by the loop's new name."""
    path = dim.removeprefix("steps of ")
    return f"steps of {name}/{path}" + (f"#{number + 1}" if number else "")


@dataclass
class _Loop:
    """Builds one loop."""

    around: LoopBuilder

    def draw(self) -> None:
        around, draw = self.around, self.around.draw
        around.count += 1
        self.name = f"s{around.count}"
        self.body = type(around)(draw, Pipeline("body"), depth=around.depth + 1, fails=around.fails)
        self.body.depth = max(self.body.depth, 1)
        self.asked: dict[str, Any] = {"carry": {}, "each": {}, "inputs": {}}
        self.length = self._length()
        self.forms: dict[str, Slot] = {}
        for number in range(draw(st.integers(1, 3))):
            self._carry(f"c{number}")
        for number in range(draw(st.integers(0, 2)) if self.length else 0):
            self._each(f"e{number}")
        for number in range(draw(st.integers(0, 2))):
            slot = around.pick(self._fits)
            self._enter("inputs", f"v{number}", slot.value, slot)
        self.body.grow(draw(st.integers(1, 5)))
        self._finish()

    def _fits(self, slot: Slot) -> bool:
        """Items of a region stay outside: what leaves a region must carry its dim."""
        return "n" not in slot.lead

    def _length(self) -> int | str | None:
        return self.around.draw(st.sampled_from([None, MOST, STEPS, STEPS]))

    def _enter(self, kind: str, port: str, value: Any, slot: Slot) -> Any:
        """Adds an input of the body, fed with a value."""
        pad = self.around.draw(st.sampled_from(PADS))
        given = self.body.pipeline.input(port, slot.spec(pad=pad))
        self.body.slots.append(replace(slot, value=given))
        self.asked[kind][port] = value
        return given

    def _carry(self, port: str) -> None:
        around, draw = self.around, self.around.draw
        slot = around.pick(self._fits)
        value = slot.value if draw(st.integers(0, 3)) else around.source(slot)
        if draw(st.integers(0, 3)) == 0:  # the body's input takes more: what it starts with is padded
            slot = replace(slot, width=slot.width + 1)
            value = slot.value
        self.forms[port] = slot
        self._enter("carry", port, value, slot)

    def _each(self, port: str) -> None:
        around, draw = self.around, self.around.draw
        leads = [slot.lead for slot in around.slots if "n" not in slot.lead and STEPS not in slot.lead]
        lead = draw(st.sampled_from([*leads[-4:], (2,)]))
        width = draw(st.sampled_from(WIDTHS))
        value = around.source(Slot(None, (self.length, *lead), width))
        self._enter("each", port, value, Slot(None, lead, width))

    def _finish(self) -> None:
        around, body, draw = self.around, self.body, self.around.draw
        made = body.slots[len(self.asked["carry"]) + len(self.asked["each"]) + len(self.asked["inputs"]) :]
        following = {port: self._following(slot) for port, slot in self.forms.items()}
        collects = draw(st.lists(st.sampled_from(made or body.slots), max_size=2))
        bounds = self._bounds()
        for name, value in following.items():
            body.pipeline.output(name, value)
        for number, slot in enumerate(collects):
            body.pipeline.output(f"o{number}", slot.value)
        fed = around.feed(body)
        self.asked["inputs"] |= {port: value for port, (value, _) in fed.items()}
        ends = [around.end_here(end, body, fed) for end in body.ends]
        own = f"steps of {self.name}"
        around.ends += [
            replace(end, dim=own if end.dim == "own" else inside(end.dim, self.name)) for end in ends
        ]
        names = [f"o{number}" for number in range(len(collects))]
        results = [*self.forms, *names]
        given = around.pipeline.loop(
            self.name, body.pipeline, **self.asked, **bounds, collect=names, outputs=results
        )
        values = dict(zip(results, given if len(results) > 1 else [given], strict=True))
        around.slots += [replace(slot, value=values[port]) for port, slot in self.forms.items()]
        decided = any(end.dim == "own" for end in body.ends)
        for name, slot in zip(names, collects, strict=True):
            if decided:
                around.others.append(values[name])
            else:
                count = bounds["max_steps"] if self.count is None else self.count
                around.slots.append(replace(slot, value=values[name], lead=(count, *slot.lead)))

    def _following(self, slot: Slot) -> Any:
        """The next value of a carry: something made, another carry, or itself."""
        found = [other for other in self.body.slots if other.form == slot.form]
        chosen = self.around.draw(st.sampled_from(found[-4:]))
        if self.around.draw(st.integers(0, 3)):
            return self.body.add(squash)(chosen.value)
        return chosen.value

    def _bounds(self) -> dict[str, Any]:
        """When the loop ends."""
        body, draw = self.body, self.around.draw
        sliced = self.length if self.asked["each"] else None
        most = draw(st.integers(0, MOST + 1)) if sliced is None or draw(st.integers(0, 3)) == 0 else None
        bounds: dict[str, Any] = {"max_steps": most}
        self.count = sliced
        if sliced is not None and most is not None:
            self.count = min(sliced, most) if isinstance(sliced, int) else STEPS
        if draw(st.booleans()):
            bounds |= {"until": "done", "check_every": draw(st.sampled_from((1, 1, 2, 3)))}
            limit = Slot(None, (), 1)
            value, name = body.demand(limit)
            k = body.pipeline.input("k", TensorSpec((1,)))
            following, done = body.add(Count(), outputs=("k", "done"))(k, value)
            body.pipeline.output("k", following)
            body.pipeline.output("done", done)
            self.asked["carry"]["k"] = torch.zeros(1)
            body.ends.append(Ends("own", name, sliced, most, bounds["check_every"]))
        elif isinstance(sliced, str) and most is not None:
            body.ends.append(Ends("own", 0.0, sliced, most, 0))
        return bounds


def sizes_in_plan(
    case: LoopCase, plan: Plan, sizes: dict[str, int], inputs: dict[str, Any]
) -> dict[str, int]:
    """Sizes of every name of a plan in one request, those that a loop decides included."""
    known = {str(dim.name) for dim in plan.dims}
    decided = {end.dim: end.ran(inputs, sizes) for end in case.ends if end.dim in known}
    born = {dim.name: case.crops[0].counts[-1] for dim in plan.dims if dim.name == "n"}
    return {**sizes, **born, **decided}


@st.composite
def loop_cases(draw: Draw, kind: type[LoopBuilder] = LoopBuilder) -> LoopCase:
    """Random pipelines with at least one loop, with their buckets."""
    pipeline = Pipeline("random", plugins=plugins())
    builder = kind(draw, pipeline)
    builder.inputs()
    builder.grow(draw(st.integers(0, 3)))
    builder.loop()
    builder.grow(draw(st.integers(0, 4)))
    builder.outputs()
    names = {name for spec in pipeline.freeze().inputs.values() for name in spec.names}
    sizes = {name: draw(st.sampled_from(BUCKETS)) for name in sorted(names - {STEPS})}
    if STEPS in names:
        sizes[STEPS] = (MOST,)
    return LoopCase(pipeline, sizes, builder.crops, builder.fails, builder.ends)
