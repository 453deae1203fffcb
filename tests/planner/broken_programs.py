"""Plans for a device that compiles, broken on purpose: what `verify` must say of each, and what only `bind` can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from orchestrator import Pipeline, Plan, Residency
from orchestrator.adapter import Adapter, Place
from orchestrator.plan import Step
from orchestrator.program import ProgramInput, ProgramOutput
from tests.kit import Double, host, spec
from tests.planner.broken import Break, edge, find, item, made_by
from tests.planner.devices import DEVICE, Plus, on, ranked

__all__ = ["BROKEN", "FOREIGN", "UNSEEN", "make", "plan", "unfoldable"]

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


def both(*breaks: Break) -> Break:
    def change(plan: Plan) -> Plan:
        for one in breaks:
            plan = one(plan)
        return plan

    return change


def runs(call: str, name: str) -> Break:
    """A call, or the adapters of a value, run another program."""

    def change(plan: Plan) -> Plan:
        at = next(at for at, one in enumerate(plan.steps) if one.name == call and one.program)
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
        to = next(place for place, one in enumerate(steps) if one.op == "call" and one.name == after)
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
    extra = Step("adapt", "x", (up,), (index,), adapter, DEVICE, frees=(index,))
    steps = (*plan.steps[: at + 1], extra, *plan.steps[at + 1 :])
    return replace(plan, values=values, steps=steps)


def download_named(plan: Plan) -> Plan:
    """A download reads the name that a consumer's fold gave, which nobody makes."""
    at = find(plan, "adapt", "mid.output", "slice")
    name = plan.steps[at].outputs[0]
    index = len(plan.values)
    values = (*plan.values, replace(plan.values[name], memory="host"))
    extra = Step(
        "adapt",
        "mid.output",
        (name,),
        (index,),
        Adapter("download", device="host"),
        DEVICE,
        frees=(index,),
    )
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


LONG = "adapt mid.output"
PAD = Adapter("pad", ("b", 9), 0)

#: What is broken, to a function that breaks it, and what the message must say. `verify` alone must refuse each.
BROKEN: dict[str, tuple[Break, str]] = {
    # Where adapters are.
    "a fold without a place": (placed("enc.output", "pad", ""), "has no place in a program"),
    "an adapter on the host with a place": (
        placed("x", "pad", "producer"),
        "has a place in a program",
    ),
    "an upload with a place": (placed("x", "upload", "consumer"), "has a place in a program"),
    "a download with a place": (
        placed("join.output", "download", "producer"),
        "has a place in a program",
    ),
    "a gather with a place": (
        placed("parts.output", "gather", "consumer"),
        "has a place in a program",
    ),
    "a cut on the host with a place": (
        placed("join.output", "cut", "program"),
        "has a place in a program",
    ),
    "an adapter in the consumer that is said to be in the producer": (
        placed("mid.output", "slice", "producer"),
        "program 'mid' does not give what 'slim' reads",
    ),
    "an adapter in the producer that is said to be in the consumer": (
        placed("enc.output", "pad", "consumer"),
        "program 'wide' takes another form at 'x'",
    ),
    "an adapter in the consumer that is said to be a program": (
        placed("mid.output", "slice", "program"),
        "runs '', no program",
    ),
    "a program of adapters that is said to be in the consumer": (
        placed("mid.output", "pad", "consumer"),
        "program 'long' takes another form at 'x'",
    ),
    "a program of adapters that is said to be in the producer": (
        placed("mid.output", "pad", "producer"),
        "does not give what",
    ),
    "an edge that says another place than its step": (
        edge("wide.x", adapters=(Adapter("pad", ("b", 6), 0, place="consumer"),)),
        "does not list the adapters on its way",
    ),
    "a fold into a producer that there is not": (as_raw, "folded into a producer that there is not"),
    "a producer's fold that comes after the next run": (late_fold, "comes after its producer"),
    "a download of what a consumer folds": (download_named, "reads a value whose adapters no program does"),
    # Programs and steps.
    "a program is missing": (without("join"), "runs 'join', no program"),
    "a program of adapters is missing": (without(LONG), f"runs '{LONG}', no program"),
    "a call without a program": (runs("join", ""), "runs '', no program"),
    "a call that runs another stage's program": (runs("wide", "red"), "is not of 'wide'"),
    "a call that runs adapters": (runs("long", LONG), "is not of 'long'"),
    "adapters that run a stage's program": (runs("mid.output", "mid"), "is not of 'adapters'"),
    "a host stage that runs a program": (runs_on_host, "has a program where calls run by themselves"),
    "a program never runs": (idle, "program ['mid[2]'] never runs"),
    "a program is there twice": (
        lambda plan: replace(plan, programs=(*plan.programs, plan.programs[0])),
        "two programs have one name",
    ),
    "a program of another stage": (program("wide", stage="red"), "is not of 'wide'"),
    "a program of no stage": (program("wide", stage=""), "is not of 'wide'"),
    "a program on another device": (program("wide", device="host"), "is not of 'wide' on neuron-emulated"),
    # What programs take.
    "a program that takes another port": (takes("wide", port="y"), "takes other ports"),
    "a program that takes too much": (add_input, "takes other ports"),
    "a program that takes nothing": (program("wide", inputs=()), "takes other ports"),
    "a program whose inputs change places": (
        lambda plan: program("join", inputs=plan.program("join").inputs[::-1])(plan),
        "takes other ports",
    ),
    "a program that takes another shape": (takes("wide", spec=spec("b", 7)), "takes another form at 'x'"),
    "a program that takes another dtype": (
        takes("wide", spec=spec("b", 6, dtype=torch.bfloat16)),
        "takes another form at 'x'",
    ),
    "a program that does what nobody asked for": (
        takes("wide", adapters=(PAD,)),
        "takes another form at 'x'",
    ),
    "a program that does not do what it should": (takes("slim", adapters=()), "takes another form at 'x'"),
    "a program that takes a constant for a tensor": (
        takes("wide", spec=None, constant="constant#1"),
        "takes another form at 'x'",
    ),
    "a program that takes a tensor for a constant": (
        takes("scale", 1, spec=spec("b", 4)),
        "has another constant at 'k'",
    ),
    "a program with another constant": (
        takes("scale", 1, constant="constant#2"),
        "has another constant at 'k'",
    ),
    "a program with a constant that there is not": (
        takes("scale", 1, constant="constant#9"),
        "has another constant at 'k'",
    ),
    "adapters that do something else": (takes(LONG, adapters=(PAD,)), "does not do what"),
    "adapters that do nothing": (takes(LONG, adapters=()), "does not do what"),
    "adapters that take another form": (takes(LONG, spec=spec("b", 5)), "takes another form than"),
    "adapters that take nothing": (program(LONG, inputs=()), "does not do what"),
    # What programs give.
    "a program that does not give what is read raw": (
        gives("enc", lambda outputs: outputs[1:]),
        "does not give what 'join' reads",
    ),
    "a program that does not give what is read adapted": (
        gives("enc", lambda outputs: outputs[:1]),
        "does not give what 'wide' reads",
    ),
    "a program that gives another port": (
        gives("mid", lambda outputs: (replace(outputs[0], port="other"),)),
        "does not give what",
    ),
    "a program that gives it adapted otherwise": (
        gives("enc", lambda outputs: (outputs[0], replace(outputs[1], adapters=(PAD,)))),
        "does not give what 'wide' reads",
    ),
    "a program that gives another shape": (
        gives("mid", lambda outputs: (replace(outputs[0], spec=spec(4, "b")),)),
        "does not give what",
    ),
    "a program that gives another dtype": (
        gives("mid", lambda outputs: (replace(outputs[0], spec=spec("b", 4, dtype=torch.float16)),)),
        "does not give what",
    ),
    "a program said to give the host what stays": (
        program("mid", to_host=True),
        "reads on the device what 'mid' gives the host",
    ),
    # Routes, and one output buffer for each program.
    "a twin without a route": (program("enc[route 1]", route=0), "take the same shapes"),
    "two values in one buffer": (
        route_removed,
        "'join' reads 'enc.output' after its program 'enc' has run again",
    ),
    "a reader that is moved behind the next run": (
        later("red", "", "dec#2"),
        "'red' reads 'dec.output' after its program 'dec' has run again",
    ),
    "a call that reads the buffer that it writes": (own_buffer, "'enc#2' reads the buffer that it writes"),
    "more bytes of buffers than there are": (
        lambda plan: replace(plan, buffers=((DEVICE, plan.buffers[0][1] + 1),)),
        "bytes of output buffers",
    ),
    "buffers that are forgotten": (lambda plan: replace(plan, buffers=()), "bytes of output buffers"),
    "buffers of an unknown device": (
        lambda plan: replace(plan, buffers=(*plan.buffers, ("cpu", 8))),
        "bytes of output buffers",
    ),
    "buffers that do not fit the budget": (
        lambda plan: replace(plan, budget=((DEVICE, plan.buffers[0][1]),)),
        "needs more memory than its budget",
    ),
    # Parts.
    "parts that are joined to something else": (gathered(("b", 12)), "which is no gather"),
    "parts that are joined along a named dim": (gathered((8, 4)), "which is no gather"),
    "parts that are not joined": (gathered(("b", 4)), "which is no gather"),
    "parts that are joined along two dims": (gathered((4, 8)), "which is no gather"),
    "parts that are joined to what the step does not say": (gathered(("b", 12), everywhere=False), "turns"),
    "parts of which rank 0's is read": (only_rank_0, "takes"),
    "parts that are said to stay on the device": (
        edge("whole.x", residency=Residency.DEVICE),
        "said to stay on the device but goes over the host",
    ),
    "a value on the device that is said to go over the host": (
        edge("wide.x", residency=Residency.HOST),
        "said to go over the host but stays on the device",
    ),
}


#: Plans that are sound by themselves, but are none of this pipeline: `bind` must refuse each.
FOREIGN: dict[str, Break] = {
    "a group that computes eagerly": lambda plan: item(plan, "groups", 0, compiled=False),
    "a group of unlimited buffers": lambda plan: item(plan, "groups", 0, output_buffers=0),
    "a group whose hazards nobody looks at": lambda plan: item(
        plan, "groups", 0, options=(*plan.groups[0].options, ("hazards", "ignore"))
    ),
    "a program written for another dtype": takes("mid", dtype=torch.int64),
    "a group of fewer ranks": lambda plan: item(plan, "groups", 0, ranks=1),
}

#: Plans that should be refused by `verify` and are not (reported).
UNSEEN: dict[str, Break] = {
    "a program that gives one value twice": gives("mid", lambda outputs: outputs * 2),
    "a program that gives what its stage does not": gives(
        "mid", lambda outputs: (*outputs, ProgramOutput("other", spec("b", 4)))
    ),
    "adapters that give another port": gives(LONG, lambda outputs: (replace(outputs[0], port="other"),)),
    "adapters that give another shape": gives(
        LONG, lambda outputs: (replace(outputs[0], spec=spec(8, "b")),)
    ),
    "adapters that are done twice": gives(LONG, lambda outputs: (replace(outputs[0], adapters=(PAD,)),)),
    "adapters that give nothing": gives(LONG, lambda outputs: ()),
}


def unfoldable(name: str, calls: int) -> Pipeline:
    """A value with a pad on its way, of a stage that on some device is compiled as it is."""
    pipeline = ranked("unfoldable")
    own = pipeline.add(name, Double())
    value = pipeline.input("x", spec(2, 4))
    for _ in range(calls):
        value = own(value)
    pipeline.output("y", pipeline.add("r", Plus(), inputs={"x": spec(6, 4, pad=0)})(value))
    return pipeline
