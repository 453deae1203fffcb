"""A plan for a device that compiles, and functions that break one thing in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from orchestrator import Pipeline, Plan
from orchestrator.adapter import Adapter, Place
from orchestrator.plan import AdaptStep
from orchestrator.program import ProgramInput, ProgramOutput
from tests.kit import Double, host, spec
from tests.planner.broken import Break, edge, find, item, made_by
from tests.planner.devices import DEVICE, Plus, on, ranked

__all__ = [
    "add_input",
    "as_raw",
    "download_named",
    "gathered",
    "gives",
    "idle",
    "late_fold",
    "later",
    "make",
    "only_rank_0",
    "own_buffer",
    "placed",
    "plan",
    "program",
    "route_removed",
    "runs",
    "runs_on_host",
    "takes",
    "without",
]


#: Where the sample's adapters are.
ADAPTERS = {
    "enc.output -> wide.x": "producer",
    "mid.output -> slim.x": "consumer",
    "mid.output -> long.x": "program",
}


def make() -> Pipeline:
    """A twin, a reader that was moved, an adapter in each place, constants, parts that ranks hold, a host stage."""
    pipeline = ranked("programs")
    x = pipeline.input("x", spec("b", 4, pad=0))
    mid = pipeline.add("mid", Plus())(x)
    enc, dec = pipeline.add("enc", Double()), pipeline.add("dec", Plus())
    one, two = enc(x), enc(mid)
    pipeline.output("y", pipeline.add("join", lambda a, b: a + b)(one, two))
    pipeline.output("wide", pipeline.add("wide", Plus(), inputs={"x": spec("b", 6, pad=0)})(one))
    slim = pipeline.add("slim", Plus(), inputs={"x": spec("b", 3, allow_slice=True)})(mid)
    pipeline.output("long", pipeline.add("long", Plus(), inputs={"x": spec("b", 8, pad=1)})(mid))
    first, second = dec(x), dec(mid)
    pipeline.output("late", pipeline.add("blue", Plus())(second))
    pipeline.output("early", pipeline.add("red", Plus())(first))
    scaled = pipeline.add("scale", lambda v, k, c: v * k + c)(mid, 3.0, torch.ones(4))
    parts = pipeline.add("parts", Double(), config={"sharded": {"output": 1}})(x)
    pipeline.output("whole", pipeline.add("whole", Plus())(parts))
    pipeline.output("slim", slim)
    pipeline.output("seen", host(pipeline, "see", lambda v: v, out=spec("b", 4))(scaled))
    return pipeline


def plan(pipeline: Pipeline) -> Plan:
    return on(pipeline, sizes={"b": (2, 4)}, tp_degree=2, adapters=ADAPTERS)


def program(name: str, /, **changes: Any) -> Break:
    """Changes fields of a program."""

    def change(plan: Plan) -> Plan:
        at = [one.name for one in plan.programs].index(name)
        return item(plan, "programs", at, **changes)

    return change


def takes(name: str, /, at: int = 0, **changes: Any) -> Break:
    """Changes what a program takes."""

    def change(plan: Plan) -> Plan:
        inputs = list(plan.program(name).inputs)
        inputs[at] = replace(inputs[at], **changes)
        return program(name, inputs=tuple(inputs))(plan)

    return change


def gives(name: str, edit: Callable[[tuple[ProgramOutput, ...]], tuple[ProgramOutput, ...]]) -> Break:
    """Changes what a program gives, with the bytes of its buffers told as they are then."""

    def change(plan: Plan) -> Plan:
        outputs = edit(plan.program(name).outputs)
        before, after = (
            sum(one.spec.nbytes({"b": size}) for one in found for size in (2, 4))
            for found in (plan.program(name).outputs, outputs)
        )
        told = plan.buffers[0][1] + after - before
        return replace(program(name, outputs=outputs)(plan), buffers=((DEVICE, told),))

    return change


def without(name: str) -> Break:
    """A program is left out, and its buffers."""

    def change(plan: Plan) -> Plan:
        fewer = gives(name, lambda _: ())(plan)
        return replace(fewer, programs=tuple(one for one in fewer.programs if one.name != name))

    return change


def runs(call: str, name: str) -> Break:
    """A call, or the adapters of a value, run another program."""

    def change(plan: Plan) -> Plan:
        at = next(at for at, one in enumerate(plan.steps) if one.label == call and one.program)
        return item(plan, "steps", at, program=name)

    return change


def placed(origin: str, kind: str, place: Place) -> Break:
    """An adapter is done elsewhere, and the edges say so too."""

    def change(plan: Plan) -> Plan:
        at = find(plan, "adapt", origin, kind)
        old = plan.steps[at].adapter
        new = replace(old, place=place)
        edges = (
            replace(one, adapters=tuple(new if other == old else other for other in one.adapters))
            if one.source == origin
            else one
            for one in plan.edges
        )
        return replace(item(plan, "steps", at, adapter=new), edges=tuple(edges))

    return change


def later(name: str, kind: str, after: str) -> Break:
    """A step comes right after a call."""

    def move(plan: Plan) -> Plan:
        at = find(plan, "adapt", name, kind) if kind else find(plan, "call", name)
        steps = [*plan.steps[:at], *plan.steps[at + 1 :]]
        to = next(place for place, one in enumerate(steps) if one.op == "call" and one.label == after)
        return replace(plan, steps=(*steps[: to + 1], plan.steps[at], *steps[to + 1 :]))

    return move


def gathered(dims: tuple[Any, ...], *, everywhere: bool = True) -> Break:
    """Parts that are joined to something else, said everywhere."""

    def change(plan: Plan) -> Plan:
        at = find(plan, "adapt", "parts.output", "gather")
        old, index = plan.steps[at].adapter, plan.steps[at].outputs[0]
        new = replace(old, dims=dims)
        changed = item(plan, "steps", at, adapter=new)
        if everywhere:
            changed = item(changed, "values", index, spec=replace(plan.values[index].spec, dims=dims))
        way = next(one.adapters for one in plan.edges if one.target == "whole.x")
        return edge("whole.x", adapters=tuple(new if one == old else one for one in way))(changed)

    return change


def add_input(plan: Plan) -> Plan:
    one = plan.program("mid")
    return program("mid", inputs=(*one.inputs, ProgramInput("w", spec("b", 4))))(plan)


def idle(plan: Plan) -> Plan:
    """A program that no step runs, with its bytes."""
    one = plan.program("mid")
    size = sum(item_.spec.nbytes({"b": bucket}) for item_ in one.outputs for bucket in (2, 4))
    more = replace(one, name="mid[2]", route=7)
    return replace(plan, programs=(*plan.programs, more), buffers=((DEVICE, plan.buffers[0][1] + size),))


def as_raw(plan: Plan) -> Plan:
    """What a program gives is also said to be padded, by a fold into a producer that there is not."""
    at = find(plan, "adapt", "x", "upload")
    up = plan.steps[at].outputs[0]
    index = len(plan.values)
    adapter = Adapter("pad", ("b", 9), 0, place="producer")
    values = (*plan.values, replace(plan.values[up], spec=spec("b", 9)))
    extra = AdaptStep((up,), (index,), "x", adapter, device=DEVICE, frees=(index,))
    steps = (*plan.steps[: at + 1], extra, *plan.steps[at + 1 :])
    return replace(plan, values=values, steps=steps)


def download_named(plan: Plan) -> Plan:
    """A download reads the name that a consumer's fold gave, which nobody makes."""
    at = find(plan, "adapt", "mid.output", "slice")
    name = plan.steps[at].outputs[0]
    index = len(plan.values)
    values = (*plan.values, replace(plan.values[name], memory="host"))
    down = Adapter("download", device="host")
    extra = AdaptStep((name,), (index,), "mid.output", down, device=DEVICE, frees=(index,))
    return replace(plan, values=values, steps=(*plan.steps[: at + 1], extra, *plan.steps[at + 1 :]))


def route_removed(plan: Plan) -> Plan:
    return runs("enc#2", "enc")(without("enc[route 1]")(plan))


def own_buffer(plan: Plan) -> Plan:
    """``enc#2`` reads what ``enc`` gave, and runs the same program."""
    at, source = find(plan, "call", "enc#2"), made_by("enc")(plan)
    step_ = replace(plan.steps[at], inputs=(source,))
    changed = edge("enc#2.x", source="enc.output", value=source, adapters=())(
        item(plan, "steps", at, **vars(step_))
    )
    return route_removed(changed)


def late_fold(plan: Plan) -> Plan:
    """The producer's fold comes after the program has run again."""
    return later("enc.output", "pad", "enc#2")(route_removed(plan))


def only_rank_0(plan: Plan) -> Plan:
    """What is joined is downloaded from rank 0 instead."""
    at = find(plan, "adapt", "parts.output", "gather")
    down = Adapter("download", device="host")
    old, index = plan.steps[at].adapter, plan.steps[at].outputs[0]
    changed = item(item(plan, "steps", at, adapter=down), "values", index, spec=spec("b", 4))
    up = find(changed, "adapt", "parts.output", "upload")
    changed = item(changed, "values", changed.steps[up].outputs[0], spec=spec("b", 4))
    way = next(one.adapters for one in plan.edges if one.target == "whole.x")
    return edge("whole.x", adapters=tuple(down if one == old else one for one in way))(changed)


def runs_on_host(plan: Plan) -> Plan:
    return item(plan, "steps", find(plan, "call", "see"), program="see")
