"""Binding what was planned tries nothing again; what was changed since, stage or text, is planned and compared anew."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan, PlanError
from orchestrator.planner import bind, proofs
from orchestrator.planner.infer.probe import Prober
from tests.kit import new, refuses, spec
from tests.planner.devices import DEVICE, ranked


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """One entry for each time that all passes run to compare a plan, or a stage runs on fake tensors."""
    noted: list[int] = []
    run, passes = Prober._run_alone, bind.run_passes

    def noting_run(self, *arguments):
        noted.append(1)
        return run(self, *arguments)

    def noting_passes(context):
        noted.append(1)
        return passes(context)

    monkeypatch.setattr(Prober, "_run_alone", noting_run)
    monkeypatch.setattr(bind, "run_passes", noting_passes)
    proofs._PROOFS.clear()
    return noted


class Cut(nn.Module):
    """Gives as many columns as an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.width = 3

    def forward(self, x):
        return self.linear(x)[..., : 2 if self.training else self.width]


def pipeline(stage, take: Callable[..., Pipeline] = new) -> Pipeline:
    made = take()
    x = made.input("x", spec(Dim("n", buckets=(2, 4)), 3, pad=0))
    made.output("y", made.add("s", stage)(x, torch.ones(3)) if stage is add else made.add("s", stage)(x))
    return made


def add(x, other):
    return x + other


def bound_without_trials(make: Callable[[], Pipeline], device: str, runs: list[int]) -> bool:
    """Binds the plan of one pipeline to the next that is made alike."""
    plan = make().plan(device)
    read = Plan.from_json(plan.to_json())
    runs.clear()
    assert make().bind(read) == plan
    return not runs


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_plan_is_bound_without_trials(runs, device):
    module = Cut().eval()
    for stage in (module, add, nn.Linear(3, 3), lambda x: x * 2):
        assert bound_without_trials(lambda stage=stage: pipeline(stage, ranked), device, runs)


def test_an_equal_module_made_anew_is_the_one_that_was_planned(runs):
    assert bound_without_trials(lambda: pipeline(Cut().eval()), "cpu", runs)


def test_what_binds_a_plan_of_other_hands_once_does_not_plan_again(runs):
    module = Cut().eval()
    read = Plan.from_json(pipeline(module).plan().to_json())
    proofs._PROOFS.clear()
    pipeline(module).bind(read)
    assert runs
    runs.clear()
    pipeline(module).bind(read)
    assert not runs


@pytest.mark.parametrize("change", ["width", "mode", "hook", "part", "dtype"])
def test_a_stage_that_was_changed_is_planned_anew(runs, change):
    """Each change gives other columns, or another dtype: a bind that trusts the plan would give wrong numbers."""
    module = Cut().eval()
    plan = pipeline(module).plan()
    if change == "width":
        module.width = 2
    elif change == "mode":
        module.train()
    elif change == "hook":
        module.register_forward_hook(lambda module, inputs, output: output[..., :1])
    elif change == "part":
        module.linear = nn.Linear(3, 2).eval()
    elif change == "dtype":
        module.double()
    refuses(PlanError, "", lambda: pipeline(module).bind(plan))


def test_what_a_function_reads_belongs_to_it(runs):
    module = Cut().eval()

    def call(x):
        return module(x)

    plan = pipeline(call).plan()
    module.train()
    refuses(PlanError, "does not fit", lambda: pipeline(call).bind(plan))


def test_a_stage_that_holds_what_cannot_be_read_is_planned_anew(runs):
    module = Cut().eval()
    module.rows = (row for row in [1])
    assert not bound_without_trials(lambda: pipeline(module), "cpu", runs)


@pytest.mark.parametrize("entry", ["shares", "returns", "is_declared", "outputs"])
def test_what_trials_say_is_not_taken_from_a_text(runs, entry):
    """The text of a plan is public, and so is all that it could carry to vouch for itself."""
    plan = pipeline(nn.Flatten()).plan()
    (call,) = plan.calls
    ((port, whole),) = call.outputs
    changed = {
        "shares": not call.shares,
        "returns": "tuple",
        "is_declared": True,
        "outputs": ((port, replace(whole, dtype=torch.float64)),),
    }[entry]
    other = replace(plan, calls=(replace(call, **{entry: changed}),))
    refuses(PlanError, "", lambda: pipeline(nn.Flatten()).bind(other))
    assert runs


def test_another_graph_of_the_same_names_is_planned_anew(runs):
    plan = pipeline(nn.Linear(3, 3)).plan()
    other = new()
    x = other.input("x", spec(Dim("n", buckets=(2, 4)), 3, pad=0, dtype=torch.float64))
    other.output("y", other.add("s", nn.Linear(3, 3).double())(x))
    refuses(PlanError, "does not fit", lambda: other.bind(plan))
    assert runs


def test_weights_that_stages_no_longer_share_take_their_own_memory(runs):
    def twice(one: nn.Module, two: nn.Module) -> Pipeline:
        made = new()
        made.output("y", made.add("b", two)(made.add("a", one)(made.input("x", spec(2, 3)))))
        return made

    shared = nn.Linear(3, 3)
    plan = twice(shared, shared).plan("cuda:0", memory=1000)
    assert twice(shared, shared).bind(plan, memory=1000) == plan
    refuses(PlanError, "weights", lambda: twice(shared, nn.Linear(3, 3)).bind(plan, memory=1000))
    runs.clear()
    refuses(PlanError, "memory", lambda: twice(shared, shared).bind(plan, memory=60))
    assert not runs


def test_a_plan_that_is_remembered_holds_no_model(runs):
    module = nn.Linear(3, 3)
    plan = pipeline(module).plan()
    proofs._PROOFS.clear()
    pipeline(module).bind(plan)
    assert len(proofs._PROOFS) == 1
    reference = weakref.ref(module)
    del module, plan
    gc.collect()
    assert reference() is None


def test_only_so_many_plans_are_remembered(runs):
    for number in range(proofs.LIMIT + 3):
        made = new(f"p{number}")
        made.output("y", made.add("s", nn.Identity())(made.input("x", spec(2))))
        made.plan()
    assert len(proofs._PROOFS) == proofs.LIMIT
