"""Training mode is refused wherever the module hides, and so is a module that has no shape yet."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from orchestrator import Pipeline, PlanError, TensorSpec


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, flag=False):
        return self.dropout(x)

    def encode(self, x):
        return self.dropout(x)


class Attention(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5)

    def forward(self, x):
        return self.lstm(x)[0]


def plan(stage):
    pipeline = Pipeline("modes")
    x = pipeline.input("x", TensorSpec((2, 4)))
    pipeline.output("y", pipeline.add("stage", stage)(x))
    return pipeline.plan(device="cpu")


@pytest.mark.parametrize(
    "make",
    [
        Encoder,
        lambda: Encoder().encode,
        lambda: functools.partial(Encoder(), flag=True),
        lambda: functools.partial(Encoder().forward, flag=True),
        lambda: Attention(0.3),
        Recurrent,
    ],
)
def test_dropout_in_training_mode_is_refused_wherever_it_is(make):
    with pytest.raises(PlanError, match=r"training mode.*\.eval\(\)") as caught:
        plan(make())
    assert caught.value.stage == "stage"


@pytest.mark.parametrize(
    "make", [lambda: Encoder().eval().encode, lambda: Attention(0.0), lambda: nn.Linear(4, 4)]
)
def test_what_acts_alike_in_every_call_is_planned(make):
    plan(make())


def test_a_lazy_module_has_to_be_called_once():
    module = nn.LazyLinear(3)
    with pytest.raises(PlanError, match=r"lazy parameter 'weight'.*call the module once"):
        plan(module)
    module(torch.rand(2, 4))
    plan(module)


def test_training_mode_is_looked_at_again_when_a_plan_is_loaded():
    """Kind K20: what held when planning may have changed."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    planned = plan(module)
    module.train()
    with pytest.raises(PlanError, match=r"training mode.*\.eval\(\)"):
        planned.load()
    module.eval()
    planned.load().close()
