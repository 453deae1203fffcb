"""Random pipelines with a placement, options, forced residencies, and requests that they can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from orchestrator import Plan, Residency
from orchestrator.graph import Graph
from tests.properties.graphs import Case, Draw, cases

DEVICES = ("cpu", "null:0", "null:1")


def examples(count: int, *, fuzzed: bool = True) -> int:
    """How many examples to try: fewer in the quick profile, many more where new ones are looked for.

    Args:
        count: How many there are to a full run.
        fuzzed: ``make fuzz`` tries thousands of the same kind; three fifths are enough for CI then.
    """
    profile = settings.get_current_profile_name()
    fixed = 3 * count // 5 if fuzzed else count
    return {"quick": max(3, count // 5), "explore": 40 * count}.get(profile, fixed)


@dataclass(frozen=True)
class Trial:
    """A case with a plan, and sizes of two requests; its text is what a person needs to repeat it."""

    case: Case
    plan: Plan
    first: dict[str, int]
    second: dict[str, int]

    def __repr__(self) -> str:
        graph = self.case.pipeline.freeze()
        inputs = [
            f"  {name} = {spec} pad={getattr(spec, 'pad', None)}" for name, spec in graph.inputs.items()
        ]
        calls = [f"  {call.name} on {call.device}: {_feeds(graph, call.name)}" for call in self.plan.calls]
        outputs = [f"  {_feeds(graph, name, 'output')} -> {name}" for name in graph.outputs]
        options = [f"  {group.device} {dict(group.options)}" for group in self.plan.groups]
        forced = [f"  {edge} forced" for edge in self.plan.edges if edge.reason.startswith("forced")]
        sizes = [f"  sizes {self.case.sizes}, requests {self.first} and {self.second}"]
        return "\n".join(["", *inputs, *calls, *outputs, *options, *forced, *sizes])

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))


def _feeds(graph: Graph, name: str, kind: str = "call") -> str:
    edges = [edge for edge in graph.edges if (edge.target.kind, edge.target.name) == (kind, name)]
    target = type(graph.calls[name].stage.target).__name__ if kind == "call" else ""
    return f"{target}({', '.join(edge.origin for edge in edges)})" if kind == "call" else edges[0].origin


@st.composite
def trials(draw: Draw, fails: bool = False) -> Trial:
    """Random pipelines, planned, with requests."""
    case = draw(cases().filter(lambda case: bool(case.fails)) if fails else cases())
    plan = draw(plans(case))
    return Trial(case, plan, draw(requests(case, plan)), draw(requests(case, plan)))


@st.composite
def plans(draw: Draw, case: Case) -> Plan:
    """A random plan of a case: placement, options of the null devices, forced residencies."""
    graph = case.pipeline.freeze()
    placed = [name for name, stage in graph.stages.items() if not stage.host]
    placement = {name: draw(st.sampled_from(DEVICES)) for name in placed}
    options = {}
    if any(device.startswith("null") for device in placement.values()):
        options = {
            "compute": True,
            "eager": draw(st.booleans()),
            "deferred": draw(st.booleans()),
            "peer_copy": draw(st.booleans()),
            "ranks": draw(st.integers(1, 3)),
            "static_shapes": draw(st.booleans()),
            "output_buffers": draw(st.integers(0, 1)),
        }
    asked = {"placement": placement, "sizes": case.sizes, "options": options}
    plan = case.pipeline.plan(**asked)
    calls = {call.name: call for call in plan.calls}
    free = [
        str(edge)
        for edge in plan.edges
        if edge.residency is Residency.DEVICE
        and edge.source.partition(".")[0] in calls
        and edge.adapters is not None
    ]
    chosen = draw(st.lists(st.sampled_from(free), max_size=2, unique=True)) if free else []
    return case.pipeline.plan(**asked, residency=dict.fromkeys(chosen, Residency.HOST)) if chosen else plan


@st.composite
def requests(draw: Draw, case: Case, plan: Plan) -> dict[str, int]:
    """Sizes that a plan can run: buckets, smaller ones where it pads, larger ones where it runs in chunks."""
    sizes = {}
    for dim in case.outer(plan):
        largest = dim.buckets[-1]
        able = list(dim.buckets)
        if dim.can_pad:
            able += range(1, largest)
        if dim.can_chunk:
            able += [2 * largest, *(range(largest + 1, 2 * largest + 2) if dim.can_pad else ())]
        sizes[dim.name] = draw(st.sampled_from(sorted(set(able))))
    return sizes
