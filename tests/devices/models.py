"""Two towers and a head: small enough for a test, with a branch and a join."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 6)

    def forward(self, seen: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([seen, said], dim=1))


def two_towers() -> tuple[Pipeline, dict[str, nn.Module]]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        modules = {"vision": Encoder().eval(), "text": nn.Linear(12, 32).eval(), "head": Head().eval()}
    batch = Dim("batch", buckets=(4, 8), batch=True)
    pipeline = Pipeline("two-towers")
    image = pipeline.input("image", TensorSpec((batch, 3, 16, 16), pad=0))
    text = pipeline.input("text", TensorSpec((batch, 12), pad="repeat_first"))
    stages = {name: pipeline.add(name, module) for name, module in modules.items()}
    pipeline.output("logits", stages["head"](stages["vision"](image), stages["text"](text)))
    return pipeline, modules
