"""Random pipelines with stages that update a value in place give what the same modules give by hand, on copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties import test_neuron
from tests.properties.graphs import Draw
from tests.properties.loops import LoopBuilder, LoopCase, loop_cases
from tests.properties.test_loops import load_from_json, run
from tests.properties.trials import Trial, examples, requests

pytestmark = pytest.mark.usefixtures("shared_store")


class Update(torch.nn.Module):
    """Moves a value towards another one, in place; also gives what it was, doubled."""

    def forward(self, past: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = past * 2
        past.mul_(0.5).add_(x, alpha=0.25)
        return before, past


def overwrite(past: torch.Tensor) -> torch.Tensor:
    """Writes into a part of a value."""
    past[..., :1] = past[..., :1] * 0.5 + 1
    return past


class UpdateBuilder(LoopBuilder):
    """Adds stages that update values in place, too."""

    @property
    def operations(self) -> tuple[str, ...]:
        return (*super().operations, *("update", "overwrite") * 6)

    def update(self) -> None:
        slot = self.pick()
        other = self.pick(lambda other: other.form == slot.form)
        stage = self.add(Update(), outputs=("before", "past"), aliases={"past": "past"})
        for value in stage(slot.value, other.value):
            self.give(value, slot)

    def overwrite(self) -> None:
        slot = self.pick()
        handle = self.add(overwrite, aliases={"output": "past"})
        self.give(handle(slot.value), slot)
        self.again.append((handle, slot.form, slot.form))


@st.composite
def trials(draw: Draw, neuron: bool = False) -> Trial:
    """Random pipelines with loops and updates, planned for the processor or the emulated device, with requests."""
    case: LoopCase = draw(loop_cases(UpdateBuilder))
    plan = draw(test_neuron.plans(case)) if neuron else case.pipeline.plan(sizes=case.sizes)
    return Trial(case, plan, draw(requests(case, plan)), draw(requests(case, plan)))


def check(trial: Trial) -> None:
    """Runs two requests, the first one twice; they change no tensor of the caller, and leave nothing for the next."""
    assert isinstance(trial.case, LoopCase)
    with load_from_json(trial) as session:
        for sizes, seed in ((trial.first, 1), (trial.second, 2), (trial.first, 1)):
            run(trial.case, session, sizes, seed)


@given(trials())
@settings(max_examples=examples(60))
def test_updates_are_seen_by_nobody_else(trial: Trial):
    check(trial)


@given(trials(neuron=True))
@settings(max_examples=examples(10))
def test_updates_on_a_device_that_compiles_are_those_by_hand(trial: Trial):
    check(trial)
