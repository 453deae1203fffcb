"""The stage and the pipeline."""

from __future__ import annotations

from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec


class Scale(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def scales(first=2.0):
    pipeline = Pipeline("acme-scales")
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(2, 4)), 3), pad=0))
    small = pipeline.add("small", "acme.scale", config={"factor": first})
    large = pipeline.add("large", "acme.scale", config={"factor": 10.0})
    pipeline.output("y", large(small(x)))
    return pipeline
