"""Hazards: whatever calls what, no step reads what a later run of the same program destroyed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from orchestrator import Pipeline, Plan, PlanError, Residency
from orchestrator.planner.verify.steps import verify
from orchestrator.testing import run_reference
from tests.planner.devices import DEVICE, STIFF, on
from tests.planner.overwriting import both_read, is_safe, own_output, patterns, region_patterns
from tests.planner.replay import stale_reads, wanted_results

pytestmark = pytest.mark.usefixtures("shared_store", "shared_trials")

FIXED: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}


def planned(pipeline: Pipeline, draw: Any, **options: Any) -> Plan:
    """Plans with a random place for adapters and perhaps an edge forced to the host."""
    device = draw(st.sampled_from([DEVICE, STIFF]))
    options["adapters"] = draw(st.sampled_from(["cost", "producer", "consumer", "program", "host"]))
    try:
        plan = on(pipeline, device, **options)
    except PlanError as error:
        if "as its author made it" not in str(error):
            raise
        options["adapters"] = "cost"
        plan = on(pipeline, device, **options)
    free = [str(edge) for edge in plan.edges if edge.residency is Residency.DEVICE]
    forced = draw(st.lists(st.sampled_from(free), max_size=2)) if free else []
    return on(pipeline, device, residency=dict.fromkeys(forced, "host"), **options) if forced else plan


@given(patterns(), st.data())
@settings(**FIXED, max_examples=48)
def test_no_pattern_of_calls_reads_what_was_destroyed(pipeline: Pipeline, data: Any):
    plan = planned(pipeline, data.draw)
    assert is_safe(plan, pipeline)
    again = pipeline.bind(Plan.from_json(plan.to_json()))
    assert again == plan


@given(region_patterns(), st.data())
@settings(**FIXED, max_examples=48)
def test_no_pattern_of_calls_in_regions_reads_what_was_destroyed(pipeline: Pipeline, data: Any):
    assert stale_reads(planned(pipeline, data.draw)) == []


@given(patterns(), st.data())
@settings(**FIXED, max_examples=48)
def test_the_replay_finds_what_the_pass_is_for(pipeline: Pipeline, data: Any):
    """Where nobody solves hazards, the replay is as strict as the device; where the plans agree, it finds none."""
    ignored, solved = (planned(pipeline, data.draw, hazards=wish) for wish in ("ignore", "solve"))
    assert stale_reads(solved) == []
    if wanted_results(pipeline.freeze(), ignored):
        event("no result hangs on it")
    else:
        assert stale_reads(ignored)
        event("results are wrong")


def watched(plan: Plan) -> Plan:
    """A plan whose hazards nobody solved, handed out as one of a device that has some."""
    groups = (replace(group, options=(("adapters", "cost"),)) for group in plan.groups)
    return replace(plan, groups=tuple(groups), notes=())


@given(st.one_of(patterns(), region_patterns()), st.data())
@settings(**FIXED, max_examples=72)
def test_verify_and_the_replay_agree(pipeline: Pipeline, data: Any):
    """They share no code; what one refuses the other finds, and nothing else."""
    plan = watched(planned(pipeline, data.draw, hazards="ignore"))
    found = stale_reads(plan)
    event("safe" if not found else "stale")
    if found:
        with pytest.raises(
            PlanError, match=r"has run again|the buffer that it writes|comes after its producer"
        ):
            verify(plan)
    else:
        assert verify(plan) is plan


@given(patterns(), st.data())
@settings(**FIXED, max_examples=36)
def test_verify_and_the_replay_agree_on_other_orders(pipeline: Pipeline, data: Any):
    plan = planned(pipeline, data.draw)
    at = data.draw(st.integers(0, len(plan.steps) - 1))
    to = data.draw(st.integers(0, len(plan.steps) - 1))
    steps = list(plan.steps)
    steps.insert(to, steps.pop(at))
    moved = replace(plan, steps=tuple(steps))
    try:
        verify(moved)
    except PlanError:
        event("refused")
    else:
        event("moved" if moved != plan else "as it was")
        assert is_safe(moved, pipeline)


@pytest.mark.parametrize("make", [both_read, own_output])
@pytest.mark.parametrize("calls", [2, 6])
@pytest.mark.parametrize("name", ["enc", "own"])
def test_the_replay_is_right_about_the_emulated_device(make: Any, calls: int, name: str):
    """What it calls stale gives wrong numbers there, and what it calls safe gives right ones."""
    pipeline = make(name, calls)
    inputs = {"x": torch.arange(8.0).reshape(2, 4)}
    (wanted,) = run_reference(pipeline.freeze(), inputs).values()
    for hazards in ("solve", "ignore"):
        plan = on(pipeline, STIFF, hazards=hazards)
        with plan.load() as session:
            (given_,) = session(**inputs).values()
        assert torch.equal(given_, wanted) == (not stale_reads(plan)) == (hazards == "solve")
