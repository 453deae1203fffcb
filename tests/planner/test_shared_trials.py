"""Trials that plans share, and combinations of sizes that need not be tried: counted by runs on fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import Dim, ModelWrapper, PlanError
from orchestrator.planner.infer import shared_trials
from orchestrator.planner.infer.probe import Prober
from tests.kit import new, spec


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """One entry for each run of a stage on fake tensors."""
    noted, run = [], Prober._run_alone

    def noting(self, *arguments):
        noted.append(1)
        return run(self, *arguments)

    monkeypatch.setattr(Prober, "_run_alone", noting)
    monkeypatch.setattr(shared_trials, "_RESULTS", {})
    return noted


class Large(nn.Module):
    """A module of nine parts with an attribute that its code reads."""

    def __init__(self, parts: int = 8) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(parts - 1))
        self.width = 3
        self.options = {"keep": True}

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x[..., : self.width] if self.options["keep"] else x * 2


def pipeline(stage, *dims):
    made = new()
    made.output(
        "y", made.add("s", stage)(made.input("x", spec(*(dims or (Dim("n", buckets=(2, 4)),)), 3, pad=0)))
    )
    return made


def test_two_plans_of_a_large_stage_try_it_once(runs):
    module = Large().eval()
    first, count = pipeline(module).plan(), len(runs)
    assert pipeline(module).plan() == first
    assert len(runs) == count > 0


def test_an_equal_module_is_not_tried_again(runs):
    first, count = pipeline(Large().eval()).plan(), len(runs)
    assert pipeline(Large().eval()).plan() == first
    assert len(runs) == count


@pytest.mark.parametrize("change", ["width", "options", "part", "dtype", "default", "hook"])
def test_a_module_that_was_changed_is_tried_again(runs, change):
    module = Large().eval()
    pipeline(module).plan()
    count = len(runs)
    if change == "width":
        module.width = 2
    elif change == "options":
        module.options["keep"] = False
    elif change == "part":
        module.parts[0] = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)).eval()
    elif change == "hook":
        module.register_forward_hook(lambda module, inputs, output: output * 2)
    before = torch.get_default_dtype()
    try:
        if change == "default":
            torch.set_default_dtype(torch.float64)
        if change == "dtype":
            module.double()
            with pytest.raises(PlanError):
                pipeline(module).plan()
        else:
            pipeline(module).plan()
    finally:
        torch.set_default_dtype(before)
    assert len(runs) > count


def test_planning_builds_no_model_to_describe_it():
    """Kind: a walk over a stage that builds what it walks over."""
    built = []

    class Lazy(ModelWrapper):
        model_cls = Large

        def make_model(self):
            model = Large().eval()
            model.table = torch.arange(4)  # without content where the model is made of fake tensors
            built.append(type(model.table))
            return model

    wrapper = Lazy()
    pipeline(wrapper).plan()
    assert torch.Tensor not in built
    assert wrapper.__dict__.get("_model") is None


def test_a_small_stage_is_tried_by_each_plan(runs):
    module = nn.Linear(3, 3)
    pipeline(module).plan()
    count = len(runs)
    pipeline(module).plan()
    assert len(runs) == 2 * count


def test_a_stage_that_holds_what_cannot_be_read_is_tried_by_each_plan(runs):
    module = Large().eval()
    module.rows = (row for row in [1])
    pipeline(module).plan()
    count = len(runs)
    pipeline(module).plan()
    assert len(runs) == 2 * count


def test_sizes_of_many_buckets_change_together(runs):
    """Two dims of eight buckets are 64 combinations; with the sizes between them 16 trials see each size of each."""
    powers = tuple(2**place for place in range(8))
    dims = [Dim(name, buckets=powers) for name in "bt"]
    plan = pipeline(lambda x: x * 2, *dims).plan()
    assert len(runs) == 16
    assert str(plan.call("s").outputs[0][1]) == str(plan.call("s").inputs[0][1])


def test_a_size_of_two_dims_is_tried_at_every_combination(runs):
    """A product of two: it is not known to be one before it was seen where they grow alone."""
    powers = tuple(2**place for place in range(5))
    dims = [Dim(name, buckets=powers) for name in "bt"]
    with pytest.raises(PlanError, match=r"\[b\*t, 3\].*derived size"):
        pipeline(lambda x: x.flatten(0, 1), *dims).plan()
    assert len(runs) >= 25


def test_a_combination_that_is_refused_is_named(runs):
    def small(x):
        if x.shape[0] * x.shape[1] > 8:
            raise ValueError("too large")
        return x

    powers = tuple(2**place for place in range(5))
    with pytest.raises(PlanError, match="too large"):
        pipeline(small, *(Dim(name, buckets=powers) for name in "bt")).plan()
