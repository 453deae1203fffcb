"""The example families: sizes, seeds, and the same results as their models called by hand."""

from __future__ import annotations

import pytest
import torch

from orchestrator import InputError, Pipeline
from orchestrator_stages.demos.model5 import model5, models
from orchestrator_stages.demos.vision_text import (
    FusionModel,
    FusionStage,
    VisionModel,
    VisionStage,
    vision_text,
)


def by_hand(inputs: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    model = models(seed)
    with torch.no_grad():
        m1 = model["m1"](inputs["x"])
        m2 = model["m2"](m1)
        m3 = model["m3"](m1, inputs["aux1"])
        m4 = model["m4"](inputs["aux1"], m1, inputs["aux2"], m2)
        return {"m3": m3, "m5": model["m5"](m4)}


def five(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 64), "aux1": torch.randn(batch, 16), "aux2": torch.randn(batch, 24)}


@pytest.mark.parametrize("batch", [1, 4])
def test_model5_is_exact_where_nothing_is_padded(batch):
    inputs = five(batch)
    with model5().plan(device="cpu").load() as session:
        result = session(**inputs)
    for name, expected in by_hand(inputs).items():
        assert result[name].equal(expected)


@pytest.mark.parametrize("batch", [2, 3, 5, 11])
def test_model5_pads_and_chunks(batch):
    inputs = five(batch)
    with model5().plan(device="cpu").load() as session:
        result = session(**inputs)
    for name, expected in by_hand(inputs).items():
        assert result[name].shape == expected.shape
        assert torch.allclose(result[name], expected, atol=1e-6)


def test_model5_uploads_a_shared_input_once_and_downloads_results_only():
    summary = model5().plan(device="cuda").summary
    assert summary["uploads"] == 3
    assert summary["downloads"] == 2
    assert summary["dispatches"] == 5


def test_model5_keeps_the_value_with_three_readers_on_the_device():
    plan = model5().plan(device="cuda")
    m1 = [edge for edge in plan.edges if edge.source == "m1.output"]
    assert [edge.target for edge in m1] == ["m2.input", "m3.m1", "m4.m1"]
    assert {edge.residency.name for edge in m1} == {"DEVICE"}


def test_vision_text_at_its_full_size():
    image, text = torch.randn(32, 3, 224, 224), torch.randn(32, 256)
    with vision_text().plan(device="cpu").load() as session:
        logits = session(image=image, text=text)["logits"]
    assert logits.shape == (32, 1024)
    with torch.no_grad():
        assert logits.equal(FusionModel()(VisionModel()(image), text))


def test_vision_text_pads_a_smaller_request_and_refuses_an_empty_one():
    image, text = torch.randn(1, 3, 224, 224), torch.randn(1, 256)
    with vision_text(batch=2, hidden=64).plan(device="cpu").load() as session:
        logits = session(image=image, text=text)["logits"]
        with pytest.raises(InputError):
            session(image=image[:0], text=text[:0])
    with torch.no_grad():
        expected = FusionModel(hidden=64)(VisionModel(hidden=64)(image), text)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_vision_text_stages_are_used_like_any_other():
    pipeline = Pipeline("mine")
    image = pipeline.input("image", VisionStage().inputs["image"])
    pipeline.output("features", pipeline.add("encode", VisionStage({"hidden": 8}))(image))
    plan = pipeline.plan(device="cuda", sizes={"batch": 4})
    (edge,) = [edge for edge in plan.edges if edge.target == "features"]
    assert tuple(edge.spec.dims) == ("batch", 8)
    assert FusionStage({"hidden": 8}).inputs["vision"].shape({"batch": 4}) == (4, 8)


def test_the_features_stay_on_the_device():
    plan = vision_text().plan(device="cuda")
    (edge,) = [edge for edge in plan.edges if edge.source == "vision.output"]
    assert edge.residency.name == "DEVICE"
    assert edge.bytes == 32 * 512 * 4


@pytest.mark.parametrize("make", [VisionModel, FusionModel, lambda: models()["m4"]])
def test_weights_are_the_same_each_time_and_leave_the_generator_alone(make):
    before = torch.get_rng_state()
    first, second = make().state_dict(), make().state_dict()
    assert torch.get_rng_state().equal(before)
    assert all(first[name].equal(second[name]) for name in first)


def test_another_seed_gives_other_weights():
    assert not VisionModel(seed=1).project.weight.equal(VisionModel().project.weight)
