"""Modules that cannot be compiled as they are: scripts, and those that look at their training mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator import Pipeline, TensorSpec
from orchestrator.errors import PlanError
from orchestrator.stage import ModelWrapper


def _plan(target: Any, device: str = "neuron-emulated", **more: Any) -> Any:
    pipeline = Pipeline("one")
    x = pipeline.input("x", TensorSpec((2, 4)))
    pipeline.output("y", pipeline.add("net", target, **more)(x))
    return pipeline.plan(device=device)


def _scripted_inside() -> nn.Module:
    return nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(4, 4)))


def _function(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", ["nxdi", "neuron-emulated"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.jit.script(nn.Linear(4, 4)), "scripted or traced module,"),
        (lambda: torch.jit.trace(nn.Linear(4, 4), torch.zeros(2, 4)), "scripted or traced module,"),
        (_scripted_inside, "scripted or traced module in '1'"),
        (lambda: torch.jit.script(_function), "scripted function"),
    ],
)
def test_scripts_are_refused_while_planning(device: str, make: Any, what: str) -> None:
    with pytest.raises(PlanError) as excinfo:
        _plan(make(), device, inputs=("x",))
    for part in ("'net'", what, "Give the ", "torch.jit.script"):
        assert part in str(excinfo.value)
    assert _plan(make(), "cpu", inputs=("x",))


class Looks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.training else x


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (lambda y: functional.dropout(y, 0.5, self.training))(self.linear(x))


class Ignores(Drops):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Does not look at its training mode."""
        return functional.dropout(self.linear(x), 0.5, training=False)


@pytest.mark.parametrize("device", ["nxdi", "neuron-emulated"])
@pytest.mark.parametrize(("target", "part"), [(Looks(), "the module itself"), (nn.Sequential(Drops()), "0")])
def test_a_stage_that_looks_at_its_training_mode_is_noted(device: str, target: nn.Module, part: str) -> None:
    (note,) = (note for note in _plan(target.train(), device).notes if "training mode" in str(note))
    for words in ("'net'", f"({part})", device, "eval mode", ".eval()"):
        assert words in str(note)
    assert not any("training mode" in str(note) for note in _plan(target.eval(), device).notes)


class LooksWrapper(ModelWrapper):
    model_cls = Looks


@pytest.mark.parametrize(
    "target", [nn.Linear(4, 4), nn.Sequential(Ignores()), LooksWrapper(), lambda x: x * 2]
)
def test_others_are_not(target: Any) -> None:
    assert not any("training mode" in str(note) for note in _plan(target).notes)
