"""Small pipelines of each kind, for devices that compile one shape at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec

WIDTH = 8
N = Dim("n", (2, 4, 8))


def three_stages(dim: Dim = N) -> Pipeline:
    """Three small stages of one class, one after the other, on a padded dim."""
    torch.manual_seed(0)
    pipeline = Pipeline("three")
    value = pipeline.input("x", TensorSpec((dim, WIDTH), pad=0.0))
    for name in "abc":
        net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()).eval()
        value = pipeline.add(name, net)(value)
    pipeline.output("y", value)
    return pipeline


def one_stage(stage: Any, *shape: Any, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A pipeline of one stage that takes one tensor."""
    pipeline = Pipeline("one")
    pipeline.output("y", pipeline.add("net", stage)(pipeline.input("x", TensorSpec(shape, dtype))))
    return pipeline


class Running(nn.Module):
    """Two operations that the board lacks, one of them on a weight, among others that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, WIDTH + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.cumsum(0) * self.weight.cumprod(0)) + 1


def running() -> Pipeline:
    """Three stages, of which the second has operations that the board lacks."""
    torch.manual_seed(0)
    pipeline = Pipeline("running")
    value = pipeline.input("x", TensorSpec((N, WIDTH), pad=0.0))
    for name, net in (
        ("first", nn.Linear(WIDTH, WIDTH)),
        ("sum", Running()),
        ("last", nn.Linear(WIDTH, WIDTH)),
    ):
        value = pipeline.add(name, net.eval())(value)
    pipeline.output("y", value)
    return pipeline


class Scale(nn.Module):
    """One step: the state through a layer, times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(state)) * factor


def add_to(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Updates a state in place."""
    return state.add_(x)


def loop(in_place: bool) -> Pipeline:
    """Three iterations over slices, collected; in place a state is updated beside it."""
    torch.manual_seed(0)
    body = Pipeline("body")
    state, factor = body.input("state", TensorSpec((2, WIDTH))), body.input("factor", TensorSpec((1,)))
    step = body.add("step", Scale().eval())(state, factor)
    if in_place:
        step = body.add("add", add_to, aliases={"output": "state"})(state, step)
    body.output("state", step)
    pipeline = Pipeline("loop")
    start, factors = (
        pipeline.input("x", TensorSpec((2, WIDTH))),
        pipeline.input("factors", TensorSpec((3, 1))),
    )
    pipeline.output("y", pipeline.loop("it", body, carry={"state": start}, each={"factor": factors}))
    return pipeline


def items() -> Pipeline:
    """A map over any number of items, in batches."""
    torch.manual_seed(0)
    body = Pipeline("body")
    item = body.input("item", TensorSpec((Dim("b", (1, 2), batch=True), WIDTH), pad=0.0))
    body.output("y", body.add("net", nn.Linear(WIDTH, WIDTH).eval())(item))
    pipeline = Pipeline("items")
    pipeline.output("y", pipeline.map("it", body, over={"item": pipeline.input("items", list)}))
    return pipeline


class Attention(nn.Module):
    """Attention of torch, which each device has in a form of its own."""

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)


def attention() -> Pipeline:
    """Attention over two inputs."""
    pipeline = Pipeline("attention")
    q, k = (pipeline.input(name, TensorSpec((1, 2, 4, WIDTH))) for name in "qk")
    pipeline.output("y", pipeline.add("net", Attention())(q, k))
    return pipeline


def rows(*counts: int) -> list[dict[str, Any]]:
    """Requests of ``x`` with so many rows each."""
    return [{"x": torch.randn(count, WIDTH)} for count in counts]
