"""The training script, for a few steps: what it says of the data, and the same bytes again."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from orchestrator_stages.demos.digits.nets import DigitDenoiser, LatentDecoder, PromptEncoder
from orchestrator_stages.demos.digits.words import NUMBERS, encode
from tests.stages.demos.scripts import import_script

# Importing it takes two seconds, so that only who runs these tests does.
pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")
NETS = {"text": PromptEncoder, "denoiser": DigitDenoiser, "decoder": LatentDecoder}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return import_script("train_digits")


@pytest.fixture
def train(script, tmp_path, monkeypatch) -> Callable[[str], dict[str, bytes]]:
    def run(name: str) -> dict[str, bytes]:
        words = [
            "train_digits.py",
            "--out",
            str(tmp_path / name),
            "--autoencoder-steps=4",
            "--denoiser-steps=4",
        ]
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
    assert first.keys() == {"NOTICE", "SHA256SUMS", *(f"{name}.safetensors" for name in NETS)}
    for name, net in NETS.items():
        net().load_state_dict(load_file(tmp_path / "first" / f"{name}.safetensors"))


def test_captions_say_what_is_true_in_words_that_are_known(script):
    digits, chance = script.read_digits(), random.Random(0)
    for index in range(200):
        words = script.caption(digits, index, chance).split()
        encode(" ".join(words))
        assert set(words) & set(NUMBERS) == {NUMBERS[digits.labels[index]]}
        for word, thirds, third in (
            ("thin", digits.inks, 0),
            ("bold", digits.inks, 2),
            ("left", digits.slants, 0),
            ("right", digits.slants, 2),
        ):
            assert word not in words or thirds[index] == third


def test_a_stroke_that_leans_right_has_a_slant(script):
    picture = torch.eye(8).flip(1)[None, None]
    assert script.measure_slant(picture).item() == pytest.approx(1.0)
    assert script.measure_slant(picture.flip(3)).item() == pytest.approx(-1.0)
    assert script.measure_slant(picture.flip(2)).item() == pytest.approx(-1.0)
