"""The pipeline `chat` on the emulated device: the answers of the processor, and tokens alone that leave it."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from orchestrator_stages.demos.chat.pipeline import chat, example_inputs

DEVICE = "neuron-emulated"
LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")


def test_the_answer_is_that_of_the_processor_at_the_planned_cost():
    pipeline = chat()
    request = example_inputs({})
    with pipeline.plan("cpu").load() as session:
        expected = session(**request)
    plan = pipeline.plan(DEVICE)
    stays = {
        edge.source: edge.residency.name
        for edge in plan.edges
        if edge.target in ("model/projector.states", "model/merge.features")
    }
    assert stays == {"model/vision.output": "DEVICE", "model/projector.output": "DEVICE"}
    with plan.load() as session:
        assert session(**request) == expected
        stats = session.stats
    assert {name: stats["measured"][DEVICE][name] for name in LINK} == {name: stats[name] for name in LINK}
