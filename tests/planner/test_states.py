"""Carries that live in an application: which do, what the plan says of them, and what no plan may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator import Dim, Plan, PlanError, Residency
from orchestrator.plan.records import PlannedState, StateUpdate
from orchestrator.planner.verify.states import check_states
from orchestrator.planner.verify.steps import verify
from tests.kit import refuses
from tests.states import CACHE, Writer, generation

EMULATED = "neuron-emulated"
UPDATE = StateUpdate("talk.cache", "talk/decode.cache", "talk/decode.cache")
STATE = PlannedState("talk.cache", EMULATED, CACHE, "prefill.cache", (UPDATE,))


def buffers(plan: Plan) -> int:
    """Bytes of the output buffers of a plan's programs."""
    return sum(
        item.spec.nbytes({}) for program in plan.programs for item in program.outputs if not item.state
    )


def test_a_cache_that_a_stage_updates_in_place_is_a_state_and_counted_once():
    plan = generation(Writer()).plan(EMULATED)
    assert plan.states == (STATE,)
    assert plan.notes == (
        "'talk/decode' takes turns between two programs of 'talk/decode': what one iteration gave is still there "
        "while the next one reads it.",
    )
    assert dict(plan.buffers)[EMULATED] == CACHE.nbytes({}) + buffers(plan)
    (edge,) = (edge for edge in plan.edges if edge.target == "talk/decode.cache")
    assert edge.reason.endswith("updated in place, a state of its application")
    lines = [" ".join(line.split()) for line in str(plan).splitlines()]
    assert "talk.cache [1, 6, 4] float32 96 B prefill.cache talk/decode.cache" in lines
    assert any("cache (a state)" in line for line in lines)


def test_on_a_device_that_computes_eagerly_there_are_no_states():
    assert generation(Writer()).plan("cpu").states == ()


def test_programs_hand_no_state_over():
    plan = generation(Writer()).plan(EMULATED)
    names = {program.name for program in plan.programs}
    assert names == {"prefill", "talk/decode", "talk/decode[route 1]"}
    for program in plan.programs:
        taken = [item.port for item in program.inputs if item.state]
        given = [item.port for item in program.outputs if item.state]
        assert (taken, given) == ([] if program.name == "prefill" else ["cache"], ["cache"])


OBSTACLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "collected": ({"collect": ("token", "cache")}, {}, "'talk.cache[]' reads it, too"),
    "an output": ({"collect": ("token",), "outputs": ("token", "cache")}, {}, "'caches' reads it, too"),
    "a constant": ({"start": torch.zeros(1, 6, 4)}, {}, "no stage of the same application"),
    "another device": ({"placement": {"prefill": "cpu"}}, {}, "no stage of the same application"),
    "over the host": (
        {},
        {"residency": {"prefill.cache -> talk.cache": Residency.HOST}},
        "something is done to it on 'prefill.cache -> talk.cache'",
    ),
}


@pytest.mark.parametrize(("how", "options", "reason"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_stands_in_the_way_of_a_state_is_said(how: Any, options: Any, reason: str):
    plan = generation(Writer(), **how).plan(EMULATED, **options)
    assert plan.states == ()
    assert any("'talk/decode.cache'" in note and reason in note for note in plan.notes), plan.notes
    assert not any(item.state for program in plan.programs for item in (*program.inputs, *program.outputs))


def test_a_cache_is_as_large_as_the_largest_bucket_and_there_once():
    plan = generation(Writer(), batch=Dim("batch", (1, 2))).plan(EMULATED)
    (state,) = plan.states
    assert state.spec.shape({}) == (2, *CACHE.shape({})[1:])
    assert dict(plan.buffers)[EMULATED] == 2 * CACHE.nbytes({}) + sum(
        item.spec.nbytes({"batch": size})
        for program in plan.programs
        for item in program.outputs
        for size in (1, 2)
        if not item.state
    )


def test_loops_after_one_another_update_one_state():
    plan = generation(Writer(), loops=(1, 2, 1)).plan(EMULATED)
    (state,) = plan.states
    loops = ["talk", "talk-1", "talk-2"]
    assert state == replace(
        STATE, updates=tuple(StateUpdate(f"{name}.cache", *[f"{name}/decode.cache"] * 2) for name in loops)
    )
    assert dict(plan.buffers)[EMULATED] == CACHE.nbytes({}) + buffers(plan)
    text = " ".join(str(plan).split())
    assert "prefill.cache talk/decode.cache, talk-1/decode.cache, talk-2/decode.cache" in text
    plan = generation(Writer(), loops=(1, 2), outputs=("token[]", "cache")).plan(EMULATED)
    assert plan.states == ()
    reasons = [note for note in plan.notes if "'caches-1' reads it, too" in note]
    assert [reason[: reason.index(" is")] for reason in reasons] == [
        "'talk/decode.cache'",
        "'talk-1/decode.cache'",
    ]


@pytest.mark.parametrize("promise", [False, True])
def test_prompts_that_a_host_stage_decides_have_a_state_of_each_chunk(promise: bool):
    batch = Dim("batch", (1, 2), batch=promise)
    plan = generation(Writer(), batch=batch, loops=(1, 2), reads=True).plan(EMULATED)
    assert len(plan.states) == 1
    assert {dim.name: dim.can_chunk for dim in plan.dims}["batch"] == promise
    verify(plan)


def test_what_cuts_a_request_at_its_edge_cuts_a_state():
    plan = generation(Writer(), batch=Dim("batch", (1, 2), batch=True)).plan(EMULATED)
    assert plan.states == ()
    assert any("may be cut into chunks along 'batch'" in note for note in plan.notes)
    # The same values, but of a plan that may cut them.
    plan = generation(Writer(), batch=Dim("batch", (1, 2))).plan(EMULATED)
    dims = tuple(replace(dim, batch=True, can_chunk=dim.name == "batch") for dim in plan.dims)
    refuses(PlanError, "may run several times", lambda: check_states(replace(plan, dims=dims)))


CHAINS = {
    "a loop less": lambda state: replace(state, updates=state.updates[:1]),
    "another order": lambda state: replace(state, updates=state.updates[::-1]),
    "each by itself": None,
}


@pytest.mark.parametrize("damage", CHAINS.values(), ids=CHAINS.keys())
def test_a_chain_that_cannot_be_is_refused(damage: Any):
    plan = generation(Writer(), loops=(1, 2)).plan(EMULATED)
    (state,) = plan.states
    first, second = state.updates
    apart = (
        replace(state, updates=(first,)),
        replace(state, name=second.carry, start="talk.cache", updates=(second,)),
    )
    states = apart if damage is None else (damage(state),)
    refuses(PlanError, "", lambda: verify(replace(plan, states=states)))


def test_states_survive_json_and_binding():
    pipeline = generation(Writer())
    plan = pipeline.plan(EMULATED)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert pipeline.bind(again).states == plan.states


def _updated(**changes: str) -> PlannedState:
    return replace(STATE, updates=(replace(UPDATE, **changes),))


def _without_marks(plan: Plan, inputs: bool, outputs: bool) -> Plan:
    programs = tuple(
        replace(
            program,
            inputs=tuple(replace(item, state="") if inputs else item for item in program.inputs),
            outputs=tuple(replace(item, state="") if outputs else item for item in program.outputs),
        )
        for program in plan.programs
    )
    return replace(plan, programs=programs)


BROKEN = {
    "no states": lambda plan: replace(plan, states=()),
    "twice": lambda plan: replace(plan, states=(STATE, STATE)),
    "another name": lambda plan: replace(plan, states=(replace(STATE, name="talk.token"),)),
    "another start": lambda plan: replace(plan, states=(replace(STATE, start="prefill.token"),)),
    "another port": lambda plan: replace(plan, states=(_updated(port="talk/decode.token"),)),
    "another output": lambda plan: replace(plan, states=(_updated(output="talk/decode.token"),)),
    "another carry": lambda plan: replace(plan, states=(_updated(carry="talk.token"),)),
    "another device": lambda plan: replace(plan, states=(replace(STATE, device="cpu"),)),
    "another form": lambda plan: replace(plan, states=(replace(STATE, spec=replace(CACHE, dims=(1, 6, 5))),)),
    "nobody reads it": lambda plan: _without_marks(plan, True, False),
    "nobody writes it": lambda plan: _without_marks(plan, False, True),
    "nobody knows it": lambda plan: _without_marks(plan, True, True),
    "too few bytes": lambda plan: replace(plan, buffers=((EMULATED, dict(plan.buffers)[EMULATED] - 96),)),
    "several applications": lambda plan: replace(plan, applications=()),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_a_state_that_cannot_be_is_refused(damage: Any):
    plan = generation(Writer()).plan(EMULATED)
    refuses(PlanError, "", lambda: verify(damage(plan)))
