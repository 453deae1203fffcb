"""Plans broken on purpose, one rule each: what `verify` must catch, and what only the pipeline can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from orchestrator import Dim, Pipeline, Plan, Residency
from orchestrator.adapter import Adapter
from orchestrator.plan import AdaptStep, CallStep, Step
from orchestrator.plan.steps import body_of, with_body
from tests.kit import Double, host, linear, new, spec

__all__ = ["BROKEN", "FOREIGN", "make"]

Break = Callable[[Plan], Plan]


def make() -> Pipeline:
    """Two devices, a host stage, a constant, padding, a born dim with a region, three outputs."""
    pipeline = new("sample")
    x = pipeline.input("x", spec("b", 4, pad=0))
    wide = pipeline.add("wide", linear(4, 6), device="null:0")(x)
    near = pipeline.add("near", Double(), device="null:0")(wide)
    far = pipeline.add("far", lambda v, w, c: v + w + c, device="null:1")(wide, near, torch.ones(6))
    pipeline.output("y", far)
    stage = host(
        pipeline,
        "find",
        lambda v: (v.new_ones(3, 6), [1, 2, 3]),
        crops=spec(Dim("n", (2, 4)), 6, pad=0),
        notes=list,
    )
    crops, notes = stage(near)
    pipeline.output("z", pipeline.add("small", linear(6, 2), device="null:0")(crops))
    pipeline.output("notes", notes)
    return pipeline


def find(plan: Plan, op: str, name: str = "", kind: str = "") -> int:
    """The position of a top-level step."""
    for position, step in enumerate(plan.steps):
        fits = isinstance(step, AdaptStep) and step.adapter.kind == kind if kind else True
        if step.op == op and name in ("", step.label) and fits:
            return position
    raise AssertionError(f"the sample plan has no {op} {name} {kind}")


def item(plan: Plan, table: str, position: int, **changes: Any) -> Plan:
    """The plan with some fields of one entry of a table changed."""
    entries = list(getattr(plan, table))
    entries[position] = replace(entries[position], **changes)
    return replace(plan, **{table: tuple(entries)})


def step(op: str, name: str = "", kind: str = "", /, **changes: Any) -> Break:
    return lambda plan: item(plan, "steps", find(plan, op, name, kind), **changes)


def body(**changes: Any) -> Break:
    """Changes the call inside the region."""

    def change(plan: Plan) -> Plan:
        region = plan.steps[find(plan, "region")]
        inner = [replace(one, **changes) if isinstance(one, CallStep) else one for one in region.body]
        return item(plan, "steps", find(plan, "region"), body=tuple(inner))

    return change


def order(edit: Callable[[list[Step]], list[Step]]) -> Break:
    return lambda plan: replace(plan, steps=tuple(edit(list(plan.steps))))


def swap(plan: Plan) -> Plan:
    one, other = find(plan, "call", "wide"), find(plan, "call", "near")
    steps = list(plan.steps)
    steps[one], steps[other] = steps[other], steps[one]
    return replace(plan, steps=tuple(steps))


def free_early(plan: Plan) -> Plan:
    """The value that two stages read is freed by the first."""
    first, shared = find(plan, "call", "near"), plan.steps[find(plan, "call", "near")].inputs[0]
    return item(plan, "steps", first, frees=(*plan.steps[first].frees, shared))


def free_twice(plan: Plan) -> Plan:
    at = find(plan, "call", "far")
    return item(plan, "steps", at, frees=plan.steps[at].frees * 2)


def never_free(plan: Plan) -> Plan:
    at = next(position for position, one in enumerate(plan.steps) if one.frees)
    return item(plan, "steps", at, frees=plan.steps[at].frees[1:])


def free(pick: Callable[[Plan], int]) -> Break:
    def change(plan: Plan) -> Plan:
        last = len(plan.steps) - 1
        return item(plan, "steps", last, frees=(*plan.steps[last].frees, pick(plan)))

    return change


def swapped(inputs: tuple[int, ...]) -> tuple[int, ...]:
    """The first two, which are of one shape, change places."""
    return (inputs[1], inputs[0], *inputs[2:])


def inline(plan: Plan) -> Plan:
    at = find(plan, "region")
    return replace(plan, steps=(*plan.steps[:at], *plan.steps[at].body, *plan.steps[at + 1 :]))


def value(pick: Callable[[Plan], int], **changes: Any) -> Break:
    return lambda plan: item(plan, "values", pick(plan), **changes)


def edge(target: str, /, **changes: Any) -> Break:
    def change(plan: Plan) -> Plan:
        at = next(position for position, one in enumerate(plan.edges) if one.target == target)
        return item(plan, "edges", at, **changes)

    return change


def made_by(name: str) -> Callable[[Plan], int]:
    return lambda plan: plan.steps[find(plan, "call", name)].outputs[0]


def padded(plan: Plan) -> int:
    return plan.steps[find(plan, "adapt", "x", "pad")].outputs[0]


def constant(plan: Plan) -> int:
    return next(index for index, one in enumerate(plan.values) if one.constant)


def adapter(name: str, kind: str, /, **changes: Any) -> Break:
    def change(plan: Plan) -> Plan:
        at = find(plan, "adapt", name, kind)
        return item(plan, "steps", at, adapter=replace(plan.steps[at].adapter, **changes))

    return change


def port(call: str, spec_: Any) -> Break:
    """A call is said to take something else."""

    def change(plan: Plan) -> Plan:
        at = [one.name for one in plan.calls].index(call)
        return item(
            plan, "calls", at, inputs=((plan.calls[at].inputs[0][0], spec_), *plan.calls[at].inputs[1:])
        )

    return change


def output(name: str, pick: Callable[[Plan], int]) -> Break:
    return lambda plan: replace(
        plan, outputs=tuple((one, pick(plan) if one == name else index) for one, index in plan.outputs)
    )


def region(**changes: Any) -> Break:
    return step("region", **changes)


#: What is broken, to a function that breaks it. `verify` alone must refuse each.
BROKEN: dict[str, Break] = {
    "two steps change places": swap,
    "the steps run backwards": order(lambda steps: steps[::-1]),
    "a call is left out": order(lambda steps: [one for one in steps if one.label != "near"]),
    "an adapter is left out": order(
        lambda steps: [one for one in steps if one.op != "adapt" or one.label != "x"]
    ),
    "a call runs twice": order(lambda steps: [*steps, next(one for one in steps if one.label == "find")]),
    "a step of an unknown kind": order(
        lambda steps: [
            Step(one.inputs, one.outputs, device=one.device, frees=one.frees) if one.label == "near" else one
            for one in steps
        ]
    ),
    "an unknown call": step("call", "near", name="nearer"),
    "a call on another device": step("call", "near", device="null:1"),
    "a call on a device that is no group": step("call", "near", device="cuda:0"),
    "a call fed too few values": step("call", "far", inputs=()),
    "a call that gives too many values": lambda plan: step("call", "wide", outputs=(1, 2, 3))(plan),
    "two inputs of a call change places": lambda plan: item(
        plan, "steps", find(plan, "call", "far"), inputs=swapped(plan.steps[find(plan, "call", "far")].inputs)
    ),
    "a call reads a value on another device": lambda plan: step("call", "near", inputs=(0,))(plan),
    "a call reads a value that is not there": step("call", "near", inputs=(999,)),
    "a call reads a negative value": step("call", "near", inputs=(-1,)),
    "a value is freed early": free_early,
    "a value is freed twice": free_twice,
    "a value is never freed": never_free,
    "an output is freed": free(lambda plan: dict(plan.outputs)["y"]),
    "a constant is freed": free(constant),
    "a value that is not there is freed": free(lambda plan: 999),
    "a value in another memory": value(made_by("wide"), memory="null:1"),
    "a value in no memory": value(made_by("wide"), memory="attic"),
    "a value of another origin": value(made_by("wide"), origin="near.output"),
    "a value of another shape": value(made_by("wide"), spec=spec("b", 7)),
    "a value of another dtype": value(made_by("wide"), spec=spec("b", 6, dtype=torch.float16)),
    "a value of another rank": value(made_by("wide"), spec=spec("b", 6, 1)),
    "a value with an unknown dim": value(made_by("wide"), spec=spec("q", 6)),
    "a padded value at its own size": value(padded, unpadded=True),
    "what a call makes at its own size": value(made_by("far"), unpadded=True),
    "what a host stage makes at a bucket": value(made_by("find"), unpadded=False),
    "an input at a bucket": value(lambda plan: 0, unpadded=False),
    "an input that is a constant": value(lambda plan: 0, constant=True),
    "an input of another name": value(lambda plan: 0, origin="w"),
    "a constant that is none": value(constant, constant=False),
    "a value that is said to be a constant": value(made_by("near"), constant=True),
    "an upload to another device": adapter("x", "upload", device="null:1"),
    "an upload to the host": adapter("x", "upload", device="host"),
    "an upload counted elsewhere": step("adapt", "x", "upload", device="null:1"),
    "an adapter under another name": step("adapt", "x", "upload", origin="y"),
    "a pad to another shape": adapter("x", "pad", dims=("b", 9)),
    "a pad that shrinks": lambda plan: value(padded, spec=spec("b", 3))(
        adapter("x", "pad", dims=("b", 3))(plan)
    ),
    "a pad with another rule": adapter("x", "pad", rule=7),
    "a pad that does not reach its bucket": adapter("x", "pad", to_bucket=False),
    "a pad that is a cut": adapter("x", "pad", kind="cut"),
    "a cast nobody asked for": adapter("x", "pad", kind="cast", dtype=torch.float64),
    "a download that is an upload": adapter("near.output", "download", kind="upload"),
    "an adapter of nothing": step("adapt", "x", "pad", adapter=None),
    "an edge of other bytes": edge("near.x", bytes=1),
    "an edge of another shape": edge("near.x", spec=spec("b", 7)),
    "an edge from elsewhere": edge("near.x", source="far.output"),
    "an edge to a port that is not there": edge("near.x", target="near.q"),
    "an edge to another value": edge("near.x", value=0),
    "an edge that hides its adapters": edge("wide.input", adapters=()),
    "an edge that invents an adapter": edge("near.x", adapters=(Adapter("download", device="host"),)),
    "an edge said to be on the host": edge("near.x", residency=Residency.HOST),
    "an edge from the host said to be on the device": edge("wide.input", residency=Residency.DEVICE),
    "an edge to a result said to be on the device": edge("y", residency=Residency.DEVICE),
    "a constant's edge said to be on the host": edge("far.c", residency=Residency.HOST),
    "an edge is left out": lambda plan: replace(plan, edges=plan.edges[1:]),
    "an edge is there twice": lambda plan: replace(plan, edges=(*plan.edges, plan.edges[0])),
    "a port that takes another shape": port("near", spec("b", 7)),
    "a port that takes another dtype": port("near", spec("b", 6, dtype=torch.int64)),
    "a port that takes a Python type": port("near", list),
    "a call is there twice": lambda plan: replace(plan, calls=(*plan.calls, plan.calls[0])),
    "a call never runs": lambda plan: replace(plan, calls=(*plan.calls, replace(plan.calls[0], name="idle"))),
    "a dim is there twice": lambda plan: replace(plan, dims=plan.dims * 2),
    "a dim is left out": lambda plan: replace(plan, dims=plan.dims[1:]),
    "a dim without buckets": lambda plan: item(plan, "dims", 0, buckets=()),
    "a dim with a bucket of zero": lambda plan: item(plan, "dims", 0, buckets=(0, 4)),
    "a dim with buckets out of order": lambda plan: item(plan, "dims", 0, buckets=(4, 2)),
    "a dim of another largest bucket": lambda plan: item(plan, "dims", 0, buckets=(2, 8)),
    "a group is left out": lambda plan: replace(plan, groups=plan.groups[1:]),
    "a group is there twice": lambda plan: replace(plan, groups=plan.groups * 2),
    "an output is another value": output("y", made_by("wide")),
    "an output is not cut back": output("y", made_by("far")),
    "an output is an input": output("y", lambda plan: 0),
    "an output is not there": output("y", lambda plan: 999),
    "an output is left out": lambda plan: replace(plan, outputs=plan.outputs[1:]),
    "an output is there twice": lambda plan: replace(plan, outputs=(*plan.outputs, plan.outputs[0])),
    "a region reads less than its body": region(inputs=()),
    "a region reads one value twice": region(inputs=(14, 14)),
    "a region gives nothing": region(outputs=()),
    "a region gives something else": region(outputs=(0,)),
    "a region of no dims": region(dims=()),
    "a region of a dim that is not born": region(dims=("b",)),
    "a region of an unknown dim": region(dims=("q",)),
    "a region without a body": region(body=()),
    "a region whose body runs outside it": inline,
    "a region's call on another device": body(device="null:1"),
    "a region's call frees what is not its own": body(frees=(0,)),
    "a dim that is born nowhere": lambda plan: item(plan, "dims", 1, decided_by=""),
    "a constant is not put in place": lambda plan: replace(plan, staging=()),
    "a constant goes to another device": lambda plan: item(plan, "staging", 0, device="null:0"),
    "a constant is freed at load": lambda plan: item(plan, "staging", 0, frees=plan.staging[0].inputs),
    "a call runs at load": lambda plan: replace(
        plan,
        staging=(*plan.staging, plan.steps[find(plan, "call", "wide")]),
        steps=tuple(one for one in plan.steps if one.label != "wide"),
    ),
    "a budget for an unknown device": lambda plan: replace(plan, budget=(("cuda:0", 10**9),)),
    "a budget that is too small": lambda plan: replace(plan, budget=(("null:0", 10),)),
    "a budget of nothing": lambda plan: replace(plan, budget=(("null:0", 0),)),
}


def all_pads(plan: Plan) -> Plan:
    """Another pad rule in every step and on every edge: consistent, and wrong."""

    def other(one: Adapter) -> Adapter:
        return replace(one, rule=7) if one.kind == "pad" else one

    def change(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(
            replace(one, adapter=other(one.adapter))
            if isinstance(one, AdaptStep)
            else with_body(one, change(body_of(one)))
            for one in steps
        )

    edges = tuple(replace(one, adapters=tuple(map(other, one.adapters))) for one in plan.edges)
    return replace(plan, steps=change(plan.steps), edges=edges)


#: Plans that are sound by themselves, but are none of this pipeline: `bind` must refuse each.
FOREIGN: dict[str, Break] = {
    "of another pipeline": lambda plan: replace(plan, pipeline="other"),
    "another pad rule everywhere": all_pads,
    "outputs in another order": lambda plan: replace(plan, outputs=plan.outputs[::-1]),
    "a call of another stage": lambda plan: item(plan, "calls", 0, stage="near"),
    "a call of an unknown stage": lambda plan: item(plan, "calls", 0, stage="nobody"),
    "outputs handed over in another way": lambda plan: item(plan, "calls", 0, returns="dict"),
    "outputs that are checked though inferred": lambda plan: item(plan, "calls", 0, is_declared=True),
    "a group of another backend": lambda plan: item(plan, "groups", 0, backend="torch"),
    "a group of more ranks": lambda plan: item(plan, "groups", 0, ranks=4),
    "a group with another option": lambda plan: item(plan, "groups", 0, options=(("ranks", 2),)),
    "a group with an unknown option": lambda plan: item(plan, "groups", 0, options=(("tp_degree", 2),)),
    "sizes that are not padded": lambda plan: item(plan, "dims", 0, can_pad=False),
    "sizes that run in no chunks": lambda plan: item(plan, "dims", 0, can_chunk=True),
    "a dim of any size": lambda plan: item(plan, "dims", 0, any=True),
    "a dim that another stage decides": lambda plan: item(plan, "dims", 1, decided_by="near.output"),
    "buckets the dim does not have": lambda plan: item(plan, "dims", 1, buckets=(3, 4)),
    "other weights": lambda plan: replace(plan, weights=(("null:0", 1), ("null:1", 0))),
    "a cost that was not estimated": edge("wide.input", cost=0.0),
}
