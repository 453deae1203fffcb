"""The shipped pipelines on the emulated device give what they give on the processor, at the cost that was planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import Pipeline
from orchestrator_stages.demos.faces.pipeline import faces
from orchestrator_stages.demos.model5 import model5
from orchestrator_stages.demos.vision_text import vision_text

pytestmark = pytest.mark.usefixtures("shared_store")

DEVICE = "neuron-emulated"
LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")


def run(
    pipeline: Pipeline, device: str, inputs: dict[str, Any], **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    with pipeline.plan(device, options=options or None).load() as session:
        return session(**inputs), session.stats


@pytest.mark.parametrize("size", [4, 3, 9])
@pytest.mark.parametrize("make", [vision_text, model5])
def test_toy_pipelines(make: Any, size: int):
    pipeline = make(batch=(1, 4))
    generator = torch.Generator().manual_seed(size)
    specs = pipeline.freeze().inputs.items()
    inputs = {name: torch.rand(spec.shape({"batch": size}), generator=generator) for name, spec in specs}
    results, stats = run(pipeline, DEVICE, inputs, tp_degree=2)
    torch.testing.assert_close(results, run(pipeline, "cpu", inputs)[0])
    assert {name: stats["measured"][DEVICE][name] for name in LINK} == {name: stats[name] for name in LINK}


def test_faces_in_a_photo():
    """A cascade with host stages in between, a stage called eight times, and sizes that are decided on the way."""
    data = pytest.importorskip("skimage.data")
    pipeline = faces()
    inputs = {"image": torch.from_numpy(data.astronaut())}
    results, stats = run(pipeline, DEVICE, inputs, tp_degree=2)
    reference, _ = run(pipeline, "cpu", inputs)
    (face,), (other,) = results["faces"], reference["faces"]
    assert face["box"] == pytest.approx(other["box"], abs=0.02)
    assert face["score"] == pytest.approx(other["score"], abs=2e-6)
    for point, expected_point in zip(face["landmarks"], other["landmarks"], strict=True):
        assert point == pytest.approx(expected_point, abs=0.02)
    assert {name: stats["measured"][DEVICE][name] for name in LINK} == {name: stats[name] for name in LINK}
