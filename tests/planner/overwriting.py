"""Pipelines whose stages run again while what they gave is still to be read: some by hand, and any."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from orchestrator import Dim, Pipeline, Plan, Residency
from tests.kit import Double, host, spec
from tests.planner.devices import Plus, ranked
from tests.planner.replay import stale_reads, wanted_results

__all__ = [
    "CROPS",
    "add",
    "both_read",
    "is_safe",
    "late_reader",
    "on_host",
    "own_output",
    "patterns",
    "region_patterns",
]

CROPS = spec(Dim("n", (2, 4), batch=True), 4, pad=0)


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def late_reader(name: str = "enc") -> Pipeline:
    """``enc`` runs again before ``red`` reads what it gave first, but it need not."""
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add(name, Double())
    first, second = enc(x), enc(pipeline.add("mid", Plus())(x))
    pipeline.output("late", pipeline.add("blue", Plus())(second))
    pipeline.output("early", pipeline.add("red", Plus())(first))
    return pipeline


def both_read(name: str = "enc", calls: int = 2) -> Pipeline:
    """One stage reads what all calls of ``enc`` gave."""
    pipeline = ranked()
    value, enc = pipeline.input("x", spec(2, 4)), pipeline.add(name, Double())
    values = []
    for number in range(calls):
        value = pipeline.add(f"m{number}", Plus())(value)
        values.append(enc(value))
    ports = tuple(f"p{number}" for number in range(calls))
    pipeline.output("y", pipeline.add("join", lambda *given: sum(given), inputs=ports)(*values))
    return pipeline


def own_output(name: str = "enc", calls: int = 2) -> Pipeline:
    """``enc(enc(x))``."""
    pipeline = ranked()
    value, enc = pipeline.input("x", spec(2, 4)), pipeline.add(name, Double())
    for _ in range(calls):
        value = enc(value)
    pipeline.output("y", value)
    return pipeline


def on_host(plan: Plan) -> list[str]:
    """Edges between two calls that go over the host."""
    ends = {call.name for call in plan.calls}
    return [
        str(edge)
        for edge in plan.edges
        if edge.residency is Residency.HOST
        and {edge.source.rpartition(".")[0], edge.target.rpartition(".")[0]} <= ends
    ]


def is_safe(plan: Plan, pipeline: Pipeline) -> bool:
    return not stale_reads(plan) and wanted_results(pipeline.freeze(), plan)


def two_outputs(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + 1, x - 1


class Calls:
    """Values of one form, and stages that are added when they are first called.

    Args:
        pipeline: The pipeline.
        rows: The first dim of all values; they are ``[rows, 4]``.
        draw: Draws from a strategy.
    """

    def __init__(self, pipeline: Pipeline, rows: Any, draw: Any) -> None:
        self.pipeline, self.rows, self.draw = pipeline, rows, draw
        self.handles: dict[str, Any] = {}
        self.values: list[Any] = []

    def _add(self, name: str, stage: Any, **more: Any) -> Any:
        if name not in self.handles:
            self.handles[name] = self.pipeline.add(name, stage, **more)
        return self.handles[name]

    def _pick(self) -> Any:
        return self.draw(st.sampled_from(self.values[-5:]))

    def one(self) -> None:
        self.values.append(self._add("one", Double())(self._pick()))

    def own(self) -> None:
        self.values.append(self._add("own", Double())(self._pick()))

    def two(self) -> None:
        self.values += self._add("two", two_outputs, outputs=("a", "b"))(self._pick())

    def join(self) -> None:
        self.values.append(self._add("join", add)(self._pick(), self._pick()))

    def wide(self) -> None:
        """A stage that takes wider values than there are; and back again."""
        wide = self._add("wide", Plus(), inputs={"x": spec(self.rows, 6, pad=0)})
        narrow = self._add("narrow", Plus(), inputs={"x": spec(self.rows, 4, allow_slice=True)})
        self.values.append(narrow(wide(self._pick())))

    def make(self, count: int) -> None:
        for _ in range(count):
            getattr(self, self.draw(st.sampled_from(["one", "one", "own", "own", "two", "join", "wide"])))()


def give(pipeline: Pipeline, draw: Any, values: list[Any]) -> None:
    """Hands out the last value and some others."""
    chosen = draw(st.lists(st.sampled_from(values), max_size=3))
    for number, value in enumerate([values[-1], *chosen]):
        pipeline.output(f"y{number}", value)


@st.composite
def patterns(draw: Any) -> Pipeline:
    """Few stages, called many times; perhaps a host stage between."""
    pipeline = ranked()
    calls = Calls(pipeline, 2, draw)
    calls.values.append(pipeline.input("x", spec(2, 4)))
    calls.make(draw(st.integers(1, 6)))
    if draw(st.booleans()):
        kept = host(pipeline, "h", lambda v: v, out=spec(2, 4))
        calls.values.append(kept(draw(st.sampled_from(calls.values))))
    calls.make(draw(st.integers(1, 4)))
    give(pipeline, draw, calls.values[1:])
    return pipeline


@st.composite
def region_patterns(draw: Any) -> Pipeline:
    """Few stages, called in two regions of one dim, and outside them."""
    pipeline = ranked()
    x = pipeline.input("x", spec(3, 4))
    calls = Calls(pipeline, "n", draw)
    calls.values.append(host(pipeline, "find", lambda x: x, crops=CROPS)(x))
    pool, loose = pipeline.add("pool", lambda x: x.mean(0)), []
    used = keep = None
    last = pipeline.add("last", Plus())  # on the device, so that what is kept begins another region
    near = pipeline.add("near", Double())
    loose.append(near(x))
    for _ in range(draw(st.integers(1, 2))):
        calls.make(draw(st.integers(1, 4)))
        for _ in range(draw(st.integers(0, 2))):
            loose.append(pool(draw(st.sampled_from(calls.values))))
        used = used or pipeline.add("used", lambda v, o: v + o.sum(0))
        calls.values.append(used(draw(st.sampled_from(calls.values)), draw(st.sampled_from(loose))))
        loose.append(near(loose[0]))
        keep = keep or host(pipeline, "keep", lambda v: v, kept=spec("n", 4, pad=0))
        calls.values.append(keep(last(draw(st.sampled_from(calls.values)))))
    loose.append(pool(calls.values[-1]))
    late = draw(st.lists(st.sampled_from(loose), min_size=2, max_size=5))
    ports = tuple(f"p{number}" for number in range(len(late)))
    tail = pipeline.add("tail", lambda *given: sum(one.sum() for one in given), inputs=ports)
    pipeline.output("last", tail(*late))
    give(pipeline, draw, calls.values)
    return pipeline
