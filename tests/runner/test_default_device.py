"""Results are on the host, whatever ``torch.set_default_device`` says."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Dim, Pipeline, TensorSpec


@pytest.fixture
def _elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_of_every_size_are_on_the_host(count):
    pipeline = Pipeline("elsewhere")
    number = pipeline.input("number", int)
    crops = pipeline.add(
        "find",
        lambda number: torch.ones(number, 4, device="cpu"),
        device="host",
        outputs={"items": TensorSpec((Dim("n", buckets=(2, 4), batch=True), 4), pad=0)},
    )(number)
    pipeline.output("twice", pipeline.add("double", lambda x: x * 2)(crops))
    with pipeline.plan(device="cpu").load() as session:
        result = session(number=count)["twice"]
    assert (result.device.type, result.shape) == ("cpu", (count, 4))
