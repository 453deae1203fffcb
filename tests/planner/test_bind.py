"""Plans are somebody's word. Kinds: rules of the verifier that no test held, and plans that switch off a proof."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from orchestrator import Pipeline, Plan, PlanError
from orchestrator.adapter import Adapter
from orchestrator.plan.records import Residency
from orchestrator.plan.steps import AdaptStep, Carry, LoopStep
from orchestrator.planner.verify.steps import verify
from tests.kit import Double, chain, host, refuses, spec
from tests.planner.broken import find, item, make
from tests.planner.devices import DEVICE, Plus
from tests.planner.devices import ranked as new
from tests.planner.test_loops import sample as looping

# What `verify` refuses by one rule alone, everywhere else told consistently.


def read_at_its_own_size(plan: Plan) -> Plan:
    """A stage on the device reads what was uploaded before it was padded; its edge says so."""
    upload, pad = find(plan, "adapt", "x", "upload"), find(plan, "adapt", "x", "pad")
    early = plan.steps[upload].outputs
    steps = [step for at, step in enumerate(plan.steps) if at != pad]
    at = next(at for at, step in enumerate(steps) if step.label == "wide")
    steps[at] = replace(steps[at], inputs=early, frees=early)
    edges = [
        replace(edge, value=early[0], adapters=edge.adapters[:1]) if edge.target == "wide.input" else edge
        for edge in plan.edges
    ]
    return replace(plan, steps=tuple(steps), edges=tuple(edges))


def staging_that_frees(plan: Plan) -> Plan:
    """A constant is put in place, freed, and put in place again."""
    (step,) = plan.staging
    return replace(plan, staging=(replace(step, frees=step.outputs), step))


def carry_that_changes_place(plan: Plan) -> Plan:
    """The next value of a carry is brought to the host at the end of an iteration; its edge says so."""
    at = next(at for at, step in enumerate(plan.steps) if isinstance(step, LoopStep))
    step = plan.steps[at]
    assert isinstance(step, LoopStep)
    carry, *others = step.carries
    index = len(plan.values)
    value = plan.values[carry.yielded]
    down = Adapter("download", device="host")
    frees = () if carry.yielded in step.collects else (carry.yielded,)
    moved = AdaptStep((carry.yielded,), (index,), value.origin, down, device=value.memory, frees=frees)
    name = f"{plan.values[carry.argument].origin}[next]"
    edges = [
        replace(edge, value=index, adapters=(*edge.adapters, down), residency=Residency.HOST)
        if edge.target == name
        else edge
        for edge in plan.edges
    ]
    steps = list(plan.steps)
    carries = (Carry(carry.initial, carry.argument, index), *others)
    steps[at] = replace(step, carries=carries, body=(*step.body, moved))
    values = (*plan.values, replace(value, memory="host"))
    return replace(plan, steps=tuple(steps), edges=tuple(edges), values=values)


RULES: dict[str, tuple[Callable[[], Plan], Callable[[Plan], Plan], str]] = {
    "a read at the wrong size": (
        lambda: make().plan(sizes={"b": (2, 4)}),
        read_at_its_own_size,
        "at its own size",
    ),
    "staging that frees": (
        lambda: make().plan(sizes={"b": (2, 4)}),
        staging_that_frees,
        "at load does not bring a constant to its place",
    ),
    "a carry that changes place": (
        lambda: looping().plan("null:0"),
        carry_that_changes_place,
        "in another form or place",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_broken_alone_is_named(name: str):
    planned, change, rule = RULES[name]
    plan = planned()
    assert verify(plan) is plan
    refuses(PlanError, rule, lambda: verify(change(plan)))


# What only the pipeline can tell.


def loop(**changes: Any) -> Callable[[Plan], Plan]:
    """Changes the first loop, wherever it stands."""

    def change(plan: Plan) -> Plan:
        at = next(at for at, step in enumerate(plan.steps) if isinstance(step, LoopStep))
        return item(plan, "steps", at, **changes)

    return change


def counted() -> Pipeline:
    """A loop of so many steps that decides nothing else."""
    body = new("body")
    body.output("x", body.add("double", Double())(body.input("x", spec(2))))
    pipeline = new()
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": pipeline.input("x", spec(2))}, max_steps=5))
    return pipeline


def ended() -> Pipeline:
    """A loop that looks whether it is done at every second step."""
    body = new("body")
    x = body.add("step", lambda x: (x + 1, x > 3, x < 3), outputs=("x", "done", "other"))(
        body.input("x", spec(1))
    )
    for name, value in zip(("x", "done", "other"), x, strict=True):
        body.output(name, value)
    pipeline = new()
    carry = {"x": pipeline.input("x", spec(1))}
    y = pipeline.loop("loop", body, carry=carry, until="done", max_steps=9, check_every=2, outputs=("x",))
    pipeline.output("y", y)
    return pipeline


LOOPS: dict[str, tuple[Callable[[], Pipeline], Callable[[Plan], Plan]]] = {
    "fewer steps": (counted, loop(max_steps=2)),
    "more steps": (counted, loop(max_steps=6)),
    "no steps": (counted, loop(max_steps=0)),
    "a look at every step": (ended, loop(check_every=1)),
    "a look at no step": (ended, loop(check_every=100)),
    "another limit": (ended, loop(max_steps=3)),
    "a value that is watched": (counted, loop(progress_outputs=(("x", 0),))),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_loop_counts_as_the_pipeline_says(name: str, device: str):
    """A plan that is sound in itself, but runs a loop another number of times, gives other numbers."""
    pipeline, change = LOOPS[name]
    plan = pipeline().plan(device)
    assert pipeline().bind(Plan.from_json(plan.to_json())) == plan
    changed = change(plan)
    assert changed != plan
    refuses(PlanError, "'loop'", lambda: pipeline().bind(changed))


def twice() -> Pipeline:
    """One stage called twice, both results alive: on a device with one output buffer they are in each other's way."""
    pipeline = new()
    plus = pipeline.add("plus", Plus())
    one, two = plus(pipeline.input("x", spec(2))), plus(pipeline.input("z", spec(2)))
    pipeline.output("y", pipeline.add("join", lambda a, b: a * 10 + b)(one, two))
    return pipeline


#: Options that switch off a proof, or reach beyond the device.
CODE_OPTIONS = [("hazards", "ignore"), ("compiler_args", "--dump=/")]


@pytest.mark.parametrize(("name", "value"), CODE_OPTIONS)
def test_a_plan_does_not_bring_an_option_that_is_for_code_to_give(name: str, value: str):
    plan = twice().plan(DEVICE, options={name: value})
    read = Plan.from_json(plan.to_json())
    refuses(
        PlanError,
        (f"{name}={value!r}", "pipeline.bind(plan, options=", DEVICE),
        lambda: twice().bind(read),
    )
    assert twice().bind(read, options={name: value}) == plan
    refuses(PlanError, name, lambda: twice().bind(twice().plan(DEVICE), options={name: value}))


def test_a_plan_with_ordinary_options_brings_them():
    plan = twice().plan(DEVICE, options={"tp_degree": 2, "torch_dtype": "bfloat16"})
    assert twice().bind(Plan.from_json(plan.to_json())) == plan


def test_a_plan_that_states_more_memory_than_there_is_does_not_fit():
    pipeline = new()
    pipeline.output("y", pipeline.add("double", Double())(pipeline.input("x", spec("rows", 4))))
    ((device, known),) = pipeline.plan(DEVICE, sizes={"rows": 1}).budget
    large = pipeline.plan(DEVICE, sizes={"rows": known // 16}, memory=4 * known)
    for budget in ((), ((device, 4 * known),), ((device, sys.maxsize),)):
        stated = Plan.from_json(replace(large, budget=budget).to_json())
        refuses(PlanError, "memory", lambda stated=stated: pipeline.bind(stated))
    assert pipeline.bind(Plan.from_json(large.to_json()), memory=4 * known) == large


def test_the_text_of_a_plan_is_json():
    """RFC 8259 has no word for what is not finite. Kind K24."""
    for pad in (float("nan"), float("inf"), -float("inf")):
        text = chain(Double(), takes=spec("n", pad=pad)).plan(sizes={"n": 4}).to_json()
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        for word in ("NaN", "Infinity", "-Infinity"):
            broken = text.replace('"summary": {', f'"summary": {{"odd": {word},')
            refuses(PlanError, f"{word} is no JSON", lambda broken=broken: Plan.from_json(broken))


class _Runs(ModuleType):
    """A module whose attributes are code, as lazy imports are."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the text of a plan ran code for {name}")


def test_a_type_in_a_plan_is_looked_up_and_nothing_runs(monkeypatch: pytest.MonkeyPatch):
    pipeline = new()
    pipeline.output("y", host(pipeline, "h", lambda p: p, y=str)(pipeline.input("prompt", str)))
    text = pipeline.plan().to_json()
    monkeypatch.setitem(sys.modules, "lazy", _Runs("lazy"))
    for name in (
        "lazy:Thing",
        "lazy:Thing.part",
        "builtins:str.nothing",
        "builtins:print",
        "os:system",
        "torch",
    ):
        changed = text.replace("builtins:str", name)
        refuses(PlanError, name, lambda changed=changed: Plan.from_json(changed))
