"""Verify: a plan broken on purpose is refused, handed over as it is or through its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from orchestrator import Pipeline, Plan, PlanError
from orchestrator.plan import serial
from orchestrator.plan.locks import with_locks
from orchestrator.planner.verify.steps import verify
from tests.kit import Double, chain, linear, refuses, spec
from tests.planner import broken_programs, program_breaks
from tests.planner.broken import BROKEN, FOREIGN, make
from tests.planner.devices import DEVICE, STIFF, Plus, on, ranked

SAMPLE = make()
PLAN = SAMPLE.plan(sizes={"b": (2, 4)})

Break = Callable[[Plan], Plan]


def as_json(plan: Plan) -> str:
    """JSON of a plan that is too broken to be summed up."""
    body = {
        item.name: serial._encode(getattr(plan, item.name)) for item in fields(plan) if item.name != "loader"
    }
    return json.dumps({"format": serial.FORMAT, "version": serial.VERSION, **body})


def test_the_sample_is_sound():
    assert verify(PLAN) is PLAN
    assert SAMPLE.bind(Plan.from_json(as_json(PLAN))) == PLAN
    assert len(BROKEN) + len(FOREIGN) > 100


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_refused(change: Break):
    broken = change(PLAN)
    assert broken != PLAN
    error = refuses(PlanError, "", lambda: verify(broken))
    assert len(str(error)) > 30


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_refused_from_json_too(change: Break):
    text = as_json(change(PLAN))
    refuses(PlanError, "", lambda: SAMPLE.bind(Plan.from_json(text)))


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_plan_of_this_pipeline_is_refused(change: Break):
    foreign = change(PLAN)
    assert foreign != PLAN
    refuses(PlanError, "", lambda: SAMPLE.bind(foreign))
    refuses(PlanError, "", lambda: SAMPLE.bind(Plan.from_json(as_json(foreign))))


def test_an_error_says_which_rule_and_carries_the_plan():
    broken = BROKEN["a value is never freed"](PLAN)
    error = refuses(PlanError, ("'sample'", "never freed", "instead of editing"), lambda: verify(broken))
    assert error.plan is broken
    assert "never freed" in error.rule


def test_a_plan_fits_a_pipeline_drawn_anew():
    bound = make().bind(Plan.from_json(PLAN.to_json()))
    assert bound == PLAN
    assert bound.loader is not None


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (chain(linear(4, 4), takes=spec("b", 4, pad=0)), "weights"),
        (chain(linear(4, 3), linear(3, 3), takes=spec("b", 4, pad=0)), "calls"),
        (chain(linear(4, 3), takes=spec("b", 4)), "inputs"),
        (chain(linear(4, 3), takes=spec("b", 4, pad=1)), "inputs"),
        (chain(linear(4, 3), takes=spec("c", 4, pad=0)), "'b'"),
        (chain(linear(5, 3), takes=spec("b", 5, pad=0)), "inputs"),
    ],
)
def test_a_pipeline_that_changed_takes_no_old_plan(other, word):
    plan = chain(linear(4, 3), takes=spec("b", 4, pad=0)).plan(sizes={"b": 4})
    refuses(PlanError, word, lambda: other.bind(plan))


def test_another_order_that_is_sound_is_accepted():
    """Verify proves a plan, whoever made it: it does not ask for the planner's own."""
    at = next(index for index, step in enumerate(PLAN.steps) if step.label == "far")
    later = [step for step in PLAN.steps if step.label in ("far", "far.output")]
    rest = [step for step in PLAN.steps if step not in later]
    moved = replace(PLAN, steps=(*rest, *later))
    assert at < len(PLAN.steps) - 2
    assert verify(moved) is moved


def test_an_unbound_plan_cannot_be_loaded_or_compiled(tmp_path):
    bare = Plan.from_json(PLAN.to_json())
    refuses(PlanError, ("pipeline.bind(plan)", "'sample'"), bare.load)
    refuses(PlanError, "pipeline.bind(plan)", lambda: bare.compile(tmp_path))


COMPILED_SAMPLE = program_breaks.make()
COMPILED = program_breaks.plan(COMPILED_SAMPLE)
BROKEN_PROGRAMS = [pytest.param(*case, id=name) for name, case in broken_programs.BROKEN.items()]


def test_the_sample_of_programs_is_sound():
    assert verify(COMPILED) is COMPILED
    assert COMPILED_SAMPLE.bind(Plan.from_json(COMPILED.to_json())) == COMPILED
    assert program_breaks.make().bind(COMPILED) == COMPILED


@pytest.mark.parametrize(("change", "rule"), BROKEN_PROGRAMS)
def test_broken_programs_are_refused_by_the_rule_they_break(change: Break, rule: str):
    """Their locks are those of the broken plan: they are no rule that is broken here."""
    broken = with_locks(change(COMPILED))
    assert broken != COMPILED
    error = refuses(PlanError, rule, lambda: verify(broken))
    assert len(str(error)) > 30
    refuses(PlanError, rule, lambda: COMPILED_SAMPLE.bind(Plan.from_json(as_json(broken))))


@pytest.mark.parametrize("change", broken_programs.FOREIGN.values(), ids=broken_programs.FOREIGN)
def test_programs_of_another_pipeline_are_refused(change: Break):
    foreign = change(COMPILED)
    assert foreign != COMPILED
    refuses(PlanError, "", lambda: COMPILED_SAMPLE.bind(Plan.from_json(as_json(foreign))))


def unfoldable(name: str, calls: int) -> Pipeline:
    """A value with a pad on its way, of a stage that on some device is compiled as it is."""
    pipeline = ranked("unfoldable")
    own = pipeline.add(name, Double())
    value = pipeline.input("x", spec(2, 4))
    for _ in range(calls):
        value = own(value)
    pipeline.output("y", pipeline.add("r", Plus(), inputs={"x": spec(6, 4, pad=0)})(value))
    return pipeline


@pytest.mark.parametrize(("calls", "options"), [(1, {}), (2, {"adapters": "consumer"})], ids=["fold", "twin"])
def test_a_plan_that_folds_into_what_is_compiled_as_it_is_does_not_fit(calls, options):
    """The stage could be folded into, and compiled a second time, where the plan was made."""
    pipeline = unfoldable("own", calls)
    elsewhere = on(pipeline, **options)
    moved = Plan.from_json(elsewhere.to_json().replace(DEVICE, STIFF))
    assert verify(moved)
    refuses(PlanError, "own", lambda: pipeline.bind(moved))
