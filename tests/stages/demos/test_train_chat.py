"""The training script of ``chat``, for a few steps: the same bytes again, and a folder like any other checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from tests.stages.demos.scripts import import_script

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_script("train_chat")


@pytest.fixture
def train(script, tmp_path, monkeypatch) -> Callable[[str], dict[str, bytes]]:
    def run(name: str) -> dict[str, bytes]:
        words = ["train_chat.py", "--out", str(tmp_path / name), "--sight-steps=2", "--speech-steps=2"]
        monkeypatch.setattr(sys, "argv", words)
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            script.main()
        torch.set_num_threads(threads)
        return {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}

    return run


def test_training_twice_gives_the_same_bytes(train, tmp_path):
    first = train("first")
    assert first == train("second")
    assert {"NOTICE", "SHA256SUMS", "model.safetensors", "config.json", "tokenizer.json"} <= first.keys()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "first")
    assert next(model.parameters()).dtype is torch.float16
    assert transformers.AutoProcessor.from_pretrained(tmp_path / "first").image_token == "<image>"


def test_what_the_head_tells_is_where_the_shapes_are(script):
    from orchestrator_stages.demos.chat.scenes import draw, random_scene

    scenes = [random_scene(script.random.Random(seed)) for seed in range(50)]
    traits = script.traits_of(scenes)
    assert (traits[..., :3] > 0).all(-1).sum() == sum(len(scene.shapes) for scene in scenes)
    # Another way to the same: the patch around the middle of a shape is not of the ground's colour.
    pictures = (
        draw(scenes, script.SIDE).unfold(2, script.PATCH, script.PATCH).unfold(3, script.PATCH, script.PATCH)
    )
    middles = pictures[..., script.PATCH // 2, script.PATCH // 2].flatten(2).transpose(1, 2)
    grounds = torch.tensor([{"black": 0.04, "white": 0.96}[scene.ground] for scene in scenes])
    is_shape = ((middles - grounds[:, None, None]).abs() > 1e-3).any(-1)
    assert bool(is_shape[(traits[..., :3] > 0).all(-1)].all())


def test_only_answers_are_learned_and_their_loss_is_that_of_the_model_itself(script):
    from orchestrator_stages.demos.chat.model import make_config, make_processor

    tokenizer = make_processor().tokenizer
    with torch.random.fork_rng(devices=[]):
        pictures, groups = script.Conversations(tokenizer, 9, seed=0).batch(pictures=2, questions=4, groups=2)
        model = transformers.LlavaForConditionalGeneration(make_config(tokenizer)).eval()
    assert torch.cat([rows.pictures for rows in groups]).sort().values.tolist() == [0] * 4 + [1] * 4
    assert groups[0].input_ids.shape[1] < groups[1].input_ids.shape[1]
    for rows in groups:
        for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
            is_learned = labels != script.NO_LABEL
            assert ids[is_learned].equal(labels[is_learned])
            answers = tokenizer.decode(labels[is_learned]).split("<eos>")
            assert len(answers) == 2
            assert "?" not in answers[0]
        with torch.no_grad():
            features = torch.stack(list(model.get_image_features(pixel_values=pictures).pooler_output))
            losses = script.answer_losses(model, features, rows)
            expected = model(rows.input_ids, pictures[rows.pictures], labels=rows.labels).loss
        torch.testing.assert_close(losses.mean(), expected)
