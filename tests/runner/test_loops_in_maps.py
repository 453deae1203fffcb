"""A loop that decides its length, in a map of several batches: each batch is counted with its own iterations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec

DEVICE = "neuron-emulated"


class Grow(nn.Module):
    """Adds one, and is done once all is above three."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x + 1, "done": (x > 3).all().reshape(1)}


def growing() -> Pipeline:
    step = Pipeline("step")
    grown = step.add("grow", Grow())(step.input("x", TensorSpec(("n", "width"))))
    step.output("x", grown["x"])
    step.output("done", grown["done"])
    body = Pipeline("body")
    x = body.input("x", TensorSpec((Dim("n", (2,)), Dim("width", (2, 4))), pad=9))
    body.output("y", body.loop("until", step, carry={"x": x}, until="done", max_steps=10))
    pipeline = Pipeline("growing")
    pipeline.output("ys", pipeline.map("each", body, over={"x": pipeline.input("xs", list)}))
    return pipeline


@pytest.mark.parametrize("widths", [(2, 3), (4,), (2, 4, 2, 1, 3)])
def test_each_batch_is_counted_with_its_own_iterations(widths: tuple[int, ...]):
    items = [torch.full((width,), float(width)) for width in widths]
    with growing().plan(DEVICE).load() as session:
        found = session(xs=items)["ys"]
        stats = session.stats
    measured = stats["measured"][DEVICE]
    assert [len(item) for item in found] == list(widths)
    assert all((item > 4).all() for item in found)
    for name in ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"):
        assert stats[name] == measured[name], name
