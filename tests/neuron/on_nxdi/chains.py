"""A chain with a large value between its stages, as in NxD Inference's own large pipeline test."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator import Pipeline, TensorSpec

#: 32 x 1440 x 1280 floats are 236 MB.
LARGE = (32, 1440, 1280)


class Spread(nn.Module):
    """Makes ``[batch, rows, columns]`` of ``[batch, rows]``."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, None] * self.weight


class Gather(nn.Module):
    """Makes ``[batch, rows]`` of ``[batch, rows, columns]``."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0, 1, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def chain(sizes: tuple[int, int, int]) -> Pipeline:
    """Three stages with two large values between them."""
    batch, rows_, columns = sizes
    pipeline = Pipeline("chain")
    value = pipeline.input("x", TensorSpec((batch, rows_)))
    for name, module in (
        ("spread", Spread(columns)),
        ("halve", nn.Threshold(0.0, 0.0)),
        ("gather", Gather(columns)),
    ):
        value = pipeline.add(name, module.eval())(value)
    pipeline.output("y", value)
    return pipeline
