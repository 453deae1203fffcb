"""Random pipelines of toy stages.

All stages work row by row, so that padding never changes the rows that are kept. A *slot* is a value that later
stages may read: its leading dims (names or ints), its width, and its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from orchestrator import Dim, ModelWrapper, Pipeline, Plan, TensorSpec
from orchestrator.plugin import PluginManager
from orchestrator.testing import stages
from orchestrator.testing.pytest_plugin import make_plugins

WIDTHS = (1, 3, 4, 6)
PADS = (0, 1.5, "repeat_first")
BUCKETS = ((2,), (4,), (2, 4), (1, 3, 5))
LEADS: tuple[tuple[int | str, ...], ...] = (("batch",), ("batch", "time"), (3,))

Draw = Callable[[Any], Any]


class Crops(stages.Crops):
    """Notes how many rows it gave; it may also run on a device, where it says what it gives."""

    opaque = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.counts: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = super().forward(x)
        self.counts.append(len(rows))
        return rows


class Opaque(ModelWrapper):
    """A stage that says what it gives, and cannot be inferred."""

    opaque = True

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.inputs = {"x": spec}
        self.outputs = {"y": spec}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.5


def twice(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x])


def half(x: torch.Tensor) -> torch.Tensor:
    return x[: len(x) // 2] + 1


def less(x: torch.Tensor) -> torch.Tensor:
    return x - 1


@dataclass(frozen=True)
class Slot:
    value: Any
    lead: tuple[int | str, ...]
    width: int
    dtype: torch.dtype = torch.float32

    @property
    def form(self) -> tuple[Any, ...]:
        return self.lead, self.width, self.dtype

    def spec(self, **more: Any) -> TensorSpec:
        return TensorSpec((*self.lead, self.width), self.dtype, **more)


@dataclass
class Case:
    """A pipeline with what it can be asked.

    Attributes:
        pipeline: The pipeline.
        sizes: Buckets of its named dims.
        crops: The stage that decides the born dim `n`, if any.
        fails: Stages that fail while they are armed.
    """

    pipeline: Pipeline
    sizes: dict[str, tuple[int, ...]]
    crops: list[Crops]
    fails: list[stages.Fail]

    def inputs(self, sizes: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        specs = self.pipeline.freeze().inputs.items()
        return {
            name: (torch.randn(spec.shape(sizes), generator=generator) * 3).to(spec.dtype)
            for name, spec in specs
        }

    def outer(self, plan: Plan) -> list[Any]:
        carried = {name for _, spec in plan.inputs for name in spec.names}
        return [dim for dim in plan.dims if dim.name in carried]


@dataclass
class Builder:
    """Adds random stages to a pipeline."""

    draw: Draw
    pipeline: Pipeline
    slots: list[Slot] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)
    again: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = field(default_factory=list)
    crops: list[Crops] = field(default_factory=list)
    fails: list[stages.Fail] = field(default_factory=list)
    depth: int = 0
    count: int = 0

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of methods that add something."""
        return OPERATIONS

    def add(self, stage: Any, **more: Any) -> Any:
        self.count += 1
        return self.pipeline.add(f"s{self.count}", stage, **more)

    def pick(self, fits: Callable[[Slot], bool] = lambda _: True) -> Slot | None:
        found = [slot for slot in self.slots if fits(slot)][-5:]
        return self.draw(st.sampled_from(found)) if found else None

    def give(
        self, value: Any, slot: Slot, width: int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.slots.append(Slot(value, slot.lead, width or slot.width, dtype or slot.dtype))

    def inputs(self) -> None:
        leads = self.draw(st.lists(st.sampled_from(LEADS), min_size=1, max_size=3))
        strict = self.draw(st.integers(0, 5)) == 0
        for number, lead in enumerate(leads):
            slot = Slot(None, lead, self.draw(st.sampled_from(WIDTHS)))
            pad = None if strict else self.draw(st.sampled_from(PADS))
            promised = (Dim(dim, batch=True) if isinstance(dim, str) else dim for dim in lead)
            spec = TensorSpec((*promised, slot.width), slot.dtype, pad=pad)
            self.give(self.pipeline.input(f"x{number}", spec), slot)

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            name = self.draw(st.sampled_from(self.operations))
            getattr(self, name)()

    def double(self) -> None:
        slot = self.pick()
        handle = self.add(stages.Double())
        self.give(handle(slot.value), slot)
        self.again.append((handle, slot.form, slot.form))

    def linear(self) -> None:
        slot = self.pick(lambda slot: slot.dtype == torch.float32)
        if slot is not None:
            width = self.draw(st.sampled_from(WIDTHS))
            config = {"features_in": slot.width, "features_out": width, "seed": self.count}
            handle = self.add(stages.Linear(config))
            self.give(handle(slot.value), slot, width)
            self.again.append((handle, slot.form, (slot.lead, width, slot.dtype)))

    def repeat(self) -> None:
        """Calls a stage that was called before."""
        fitting = [
            (handle, slot, result)
            for handle, form, result in self.again
            for slot in self.slots
            if slot.form == form
        ]
        if fitting:
            handle, slot, (lead, width, dtype) = self.draw(st.sampled_from(fitting))
            self.slots.append(Slot(handle(slot.value), lead, width, dtype))

    def sum(self) -> None:
        one = self.pick()
        other = self.pick(lambda slot: slot.form == one.form)
        kind = self.draw(st.integers(0, 3))
        constants = {2: torch.linspace(0, 1, one.width).to(one.dtype), 3: 2.5}
        handle = self.add(stages.Add())
        if kind == 0:
            self.give(handle(one.value), one)
        else:
            self.give(handle(one.value, b=constants.get(kind, other.value)), one)

    def concat(self) -> None:
        one = self.pick()
        other = self.pick(lambda slot: (slot.lead, slot.dtype) == (one.lead, one.dtype))
        self.give(self.add(stages.Concat())(one.value, other.value), one, one.width + other.width)

    def split(self) -> None:
        slot = self.pick(lambda slot: slot.width > 1)
        if slot is not None:
            left, right = self.add(stages.SplitHalves())(slot.value)
            self.give(left, slot, slot.width // 2)
            self.give(right, slot, slot.width - slot.width // 2)

    def stats(self) -> None:
        slot = self.pick()
        given = self.add(stages.TotalAndShift())(slot.value)
        self.give(given["total"], slot, 1)
        self.give(given["shifted"], slot)

    def fixed(self) -> None:
        slot = self.pick(lambda slot: len(slot.lead) == 1 and slot.dtype == torch.float32)
        if slot is not None:
            width = self.draw(st.sampled_from(WIDTHS))
            config = {"width": width, "pad": self.draw(st.sampled_from(PADS)), "dim": slot.lead[0]}
            self.give(self.add(stages.FixedWidth(config))(slot.value), slot, width)

    def cast(self) -> None:
        slot = self.pick()
        dtype = self.draw(st.sampled_from([torch.float32, torch.float64]))
        port = TensorSpec((*slot.lead, slot.width), dtype, allow_cast=True)
        self.give(self.add(stages.Double(), inputs={"x": port})(slot.value), slot, dtype=dtype)

    def derived(self) -> None:
        slot = self.pick(lambda slot: slot.lead != ("n",))
        if slot is not None:
            self.give(self.add(half)(self.add(twice)(slot.value)), slot)

    def opaque(self) -> None:
        slot = self.pick(lambda slot: "n" not in slot.lead)
        if slot is not None:
            self.give(self.add(Opaque(slot.spec()))(slot.value), slot)

    def fail(self) -> None:
        slot = self.pick()
        stage = stages.Fail()
        stage.is_armed = False
        self.fails.append(stage)
        self.give(self.add(stage)(slot.value), slot)

    def host(self) -> None:
        slot = self.pick()
        lead = tuple(Dim("n", buckets=(2, 4), batch=True) if dim == "n" else dim for dim in slot.lead)
        pad = self.draw(st.sampled_from(PADS))
        spec = TensorSpec((*lead, slot.width), slot.dtype, pad=pad)
        self.give(self.add(less, device="host", outputs={"y": spec})(slot.value), slot)

    def rows(self) -> None:
        slot = self.pick()
        self.others.append(self.add(stages.Rows(), device="host")(slot.value))

    def crop(self) -> None:
        slot = self.pick(lambda slot: slot.lead != ("n",) and slot.dtype == torch.float32)
        if slot is None or self.crops or self.depth:
            return
        width, pad = self.draw(st.sampled_from(WIDTHS)), self.draw(st.sampled_from(PADS))
        stage = Crops({"width": width, "pad": pad})
        self.crops.append(stage)
        # On a device, a stage that decides a dim must not see padding: its input has no other.
        on_host = self.draw(st.booleans()) or slot.lead != (3,)
        value = self.add(stage, device="host" if on_host else None)(slot.value)
        self.slots += [Slot(value, ("n",), width), Slot(self.add(stages.Double())(value), ("n",), width)]

    def inner(self) -> None:
        """Builds a pipeline, and calls it as a stage, once or twice."""
        slot = self.pick(lambda slot: "n" not in slot.lead)
        if self.depth or slot is None:
            return
        pipeline = Pipeline("inner")
        wider = self.draw(st.booleans())
        inside = Slot(None, slot.lead, slot.width + (2 if wider else 0), slot.dtype)
        value = pipeline.input("x", inside.spec(pad=0))
        builder = Builder(self.draw, pipeline, depth=1, fails=self.fails)
        builder.give(value, inside)
        if self.draw(st.booleans()):
            builder.fixed()
        builder.grow(self.draw(st.integers(1, 3)))
        results = builder.slots[-2:]
        for number, result in enumerate(results):
            pipeline.output(f"y{number}", result.value)
        handle = self.add(pipeline)
        for _ in range(self.draw(st.integers(1, 2))):
            given = handle(slot.value)
            values = given if len(results) > 1 else [given]
            for value, result in zip(values, results, strict=True):
                self.slots.append(Slot(value, result.lead, result.width, result.dtype))

    def outputs(self) -> None:
        last = self.slots[-1:]
        chosen = self.draw(st.lists(st.sampled_from(self.slots), max_size=3))
        values = [slot.value for slot in (*last, *chosen)]
        values += self.draw(st.lists(st.sampled_from(self.others), max_size=1)) if self.others else []
        for number, value in enumerate(values):
            self.pipeline.output(f"y{number}", value)


OPERATIONS = (
    *(
        "double",
        "linear",
        "linear",
        "repeat",
        "repeat",
        "sum",
        "sum",
        "concat",
        "split",
        "stats",
        "fixed",
        "fixed",
    ),
    *("cast", "derived", "opaque", "fail", "host", "rows", "crop", "crop", "inner", "inner"),
)

_plugins: list[PluginManager] = []


def plugins() -> PluginManager:
    """One manager for all pipelines."""
    if not _plugins:
        _plugins.append(make_plugins())
    return _plugins[0]


@st.composite
def cases(draw: Draw) -> Case:
    """Random pipelines with their buckets."""
    pipeline = Pipeline("random", plugins=plugins())
    builder = Builder(draw, pipeline)
    builder.inputs()
    builder.grow(draw(st.integers(1, 4)) * draw(st.integers(1, 3)))
    builder.outputs()
    names = {name for spec in pipeline.freeze().inputs.values() for name in spec.names}
    sizes = {name: draw(st.sampled_from(BUCKETS)) for name in sorted(names)}
    return Case(pipeline, sizes, builder.crops, builder.fails)
