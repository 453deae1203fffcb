"""What the distribution registers: every name can be loaded, and by name a stage is what it is by hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

import orchestrator_stages
from orchestrator import ModelWrapper, Pipeline
from orchestrator_stages.demos.faces.letterbox import PHOTO, PhotoFrame
from orchestrator_stages.demos.speech.checkpoint import find_package


class Recorder:
    """Stands in for a registry."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}

    def add(self, name: str, target: str, *, summary: str = "") -> None:
        assert summary, name
        self.paths[name] = target


def recorded(hook: Any) -> dict[str, str]:
    registry = Recorder()
    hook(registry)
    return registry.paths


STAGES = recorded(orchestrator_stages.orchestrator_register_stages)
PIPELINES = recorded(orchestrator_stages.orchestrator_register_pipelines)


def load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def test_the_families_are_there():
    assert set(PIPELINES) == {
        *("vision-text", "model5", "faces", "digits", "speech", "chat"),
        *("translate", "scene-text", "sign"),
    }
    families = {name.partition(".")[0] for name in STAGES}
    assert families == {"vision-text", "faces", "digits", "translate", "scene-text", "speech", "chat"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_needs_no_options(name):
    if name.startswith("chat."):
        pytest.importorskip("transformers")
    assert isinstance(load(STAGES[name])(), ModelWrapper | torch.nn.Module)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_needs_no_options(name):
    if name == "speech" and find_package() is None:
        pytest.skip("its weights are in a package that is not installed")
    if name == "chat":
        pytest.importorskip("transformers")
    pipeline = load(PIPELINES[name])()
    assert isinstance(pipeline, Pipeline)
    pipeline.freeze()
    assert name in str(pipeline.plan(device="cuda"))


@pytest.mark.parametrize("name", ["vision-text", "model5"])
@pytest.mark.parametrize("batch", [1, 3])
def test_example_inputs_are_what_the_pipeline_takes(name, batch):
    pipeline = load(PIPELINES[name])(batch=batch)
    before = torch.get_rng_state()
    first, second = (pipeline.example_inputs({"batch": batch}) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    assert all(value.equal(second[port]) for port, value in first.items())
    specs = pipeline.freeze().inputs
    assert {port: (tuple(value.shape), value.dtype) for port, value in first.items()} == {
        port: (spec.shape({"batch": batch}), spec.dtype) for port, spec in specs.items()
    }


def test_stages_by_name_with_options():
    pipeline = Pipeline("mine")
    image = pipeline.input("image", PHOTO)
    square, frame = pipeline.add("fit", "faces.letterbox", device="host", config={"size": 64})(image)
    levels = pipeline.add("levels", "faces.pyramid", config={"sides": [24, 12]})(square)
    judged = pipeline.add("judge", "faces.pnet")(levels["level1"])
    pipeline.output("scores", judged["scores"])
    pipeline.output("frame", frame)
    with pipeline.plan(device="cpu").load() as session:
        result = session(image=torch.zeros(128, 32, 3, dtype=torch.uint8))
    assert result["scores"].shape == (1, 7, 7)
    assert result["frame"] == PhotoFrame(128, 32, 64, 16)
