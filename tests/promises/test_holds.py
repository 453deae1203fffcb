"""No false alarm: pipelines whose stages keep their promises are found to hold, whatever they are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec

WIDTH = 4
BATCH = Dim("batch", buckets=(4,), batch=True)
TOKENS = Dim("tokens", buckets=(8,))


class Masked(nn.Module):
    """Attention that leaves out what the mask says; ``additive``: the mask is added to the scores."""

    def __init__(self, *, additive: bool) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.additive = additive

    def forward(self, x, mask):
        scores = self.project(x) @ x.mT
        mask = mask[:, None]
        scores = scores + mask if self.additive else scores.masked_fill(~mask, -torch.inf)
        return torch.softmax(scores, -1) @ x


class Pooled(nn.Module):
    """A mean over the tokens that count."""

    def forward(self, x, mask):
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


STAGES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH)),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "softmax": lambda: nn.Softmax(-1),
    "batch norm in eval mode": lambda: Evaluated(),
    "relu": lambda: nn.ReLU(),
    "large": lambda: Scaled(1e4),
    "small": lambda: Scaled(1e-4),
    "positions": lambda: Positions(),
    "causal": lambda: Causal(),
}


class Evaluated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).reshape(x.shape)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Positions(nn.Module):
    """Positions of tokens: those that are kept have the same ones in any bucket."""

    def forward(self, x):
        return x + torch.arange(x.shape[1], device=x.device)[None, :, None]


class Causal(nn.Module):
    """Sums of what came before: padding at the end comes after all that is kept."""

    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]


@given(
    names=st.lists(st.sampled_from([*STAGES, "attention", "late attention"]), min_size=1, max_size=3),
    rows=st.integers(1, 4),
    tokens=st.integers(1, 8),
    seed=st.integers(0, 99),
    looped=st.booleans(),
)
@settings(max_examples=6, deadline=None)
def test_good_stages_in_any_order_hold(names, rows, tokens, seed, looped):
    torch.manual_seed(seed)
    pipeline = Pipeline("good")
    x = pipeline.input("x", TensorSpec((BATCH, TOKENS, WIDTH), pad=0))
    mask = pipeline.input("mask", TensorSpec((BATCH, TOKENS), torch.bool, pad=0))
    bias = pipeline.add("bias", lambda mask: torch.where(mask, 0.0, -torch.inf))(mask)
    for place, name in enumerate(names):
        if "attention" in name:
            stage = Masked(additive=name == "late attention").eval()
            x = pipeline.add(f"{name} {place}", stage)(x, bias if stage.additive else mask)
        else:
            x = pipeline.add(f"{name} {place}", STAGES[name]().eval())(x)
    if looped:
        body = Pipeline("body")
        ports = {
            "x": TensorSpec(("batch", "tokens", WIDTH)),
            "mask": TensorSpec(("batch", "tokens"), torch.bool),
        }
        fed = {port: body.input(port, spec) for port, spec in ports.items()}
        body.output("x", body.add("attend", Masked(additive=False).eval())(**fed))
        x = pipeline.loop("repeat", body, carry={"x": x}, inputs={"mask": mask}, max_steps=3)
    pipeline.output("bias", bias)
    pipeline.output("x", x)
    pipeline.output("pooled", pipeline.add("pool", Pooled())(x, mask))
    kept = torch.rand(rows, tokens) > 0.3
    kept[:, 0] = True
    report = pipeline.check({"x": torch.randn(rows, tokens, WIDTH), "mask": kept})
    assert report.ok, str(report)
    assert all(row.holds for row in report.rows), str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_good_stages_hold_in_any_precision(dtype: torch.dtype):
    torch.manual_seed(0)
    pipeline = Pipeline("precise")
    x = pipeline.input("x", TensorSpec((BATCH, 64), dtype, pad=0))
    hidden = pipeline.add("linear", nn.Linear(64, 64, dtype=dtype).eval())(x)
    pipeline.output("y", pipeline.add("norm", nn.LayerNorm(64, dtype=dtype).eval())(hidden))
    assert pipeline.check({"x": torch.randn(3, 64, dtype=dtype)}).ok


def test_images_beside_the_same_images_once_more_hold():
    """Guidance joins a batch with itself: what is kept lies in two parts."""
    pipeline = Pipeline("guided")
    x = pipeline.input("x", TensorSpec((BATCH, 4), pad=0))
    twice = pipeline.add("twice", lambda x: torch.cat([x, -x]))(x)
    judged = pipeline.add("judge", nn.Linear(4, 4).eval())(twice)
    pipeline.output("y", pipeline.add("apart", lambda x: x.chunk(2)[0] + 2 * x.chunk(2)[1])(judged))
    report = pipeline.check({"x": torch.randn(3, 4)})
    assert report.ok, str(report)


class Spread(nn.Module):
    """Gives each token what the one half as far has."""

    def forward(self, x, halved):
        return (
            x + halved[..., (torch.arange(x.shape[-1], device=x.device) // 2).clamp(max=halved.shape[-1] - 1)]
        )


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_size_that_follows_from_a_padded_one_is_compared_where_it_is_kept(kernel: int):
    """Windows of two end with what is kept; windows of three read on, into ones where there should be zeros."""
    torch.manual_seed(0)
    pipeline = Pipeline("halved")
    x = pipeline.input("x", TensorSpec((1, 4, Dim("tokens", buckets=(8, 16))), pad=1))
    halve = nn.Conv1d(4, 4, kernel, stride=2, padding=kernel // 3).eval()
    pipeline.output("y", pipeline.add("spread", Spread())(x, pipeline.add("halve", halve)(x)))
    report = pipeline.check({"x": torch.randn(1, 4, 5 if kernel == 3 else 6)})
    assert {row.stage for row in report.broken} == ({"halve"} if kernel == 3 else set()), str(report)
