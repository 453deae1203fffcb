"""The reader: which letters the crop of a word shows, from left to right.

It is a CRNN: convolutions turn the crop into a row of strips, two bidirectional LSTMs read that row, and each
strip is given a letter, or the *blank* where none begins. The module knows nothing of files;
:mod:`orchestrator_stages.demos.scene_text.trained` fills it.

Source: Shi et al., "An End-to-End Trainable Neural Network for Image-based Sequence Recognition" (2015), in the
layout that EasyOCR calls ``english_g2``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

HEIGHT = 64
"""Pixels that a crop is high."""

STRIP = 4
"""Pixels of a crop along the width of a strip."""

LETTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""What a strip may show; a strip's number is its place here plus one, and 0 for the blank."""

BLANK = 0


class Glance(nn.Module):
    """Convolutions: crops ``[n, 1, 64, width]`` to strips ``[n, width / 4 - 1, 256]``."""

    def __init__(self) -> None:
        super().__init__()
        relu, flatten = nn.ReLU(), nn.MaxPool2d((2, 1))
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), relu, nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), relu, nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), relu,
            nn.Conv2d(128, 128, 3, padding=1), relu, flatten,
            nn.Conv2d(128, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), relu,
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), relu, flatten,
            nn.Conv2d(256, 256, 2), relu,
        )  # fmt: skip

    def forward(self, crops: Tensor) -> Tensor:
        """Looks at a batch of crops."""
        maps: Tensor = self.layers(crops)
        return maps.mean(2).transpose(1, 2)


class Context(nn.Module):
    """Reads a row of strips in both directions: ``[n, strips, 256]`` to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.output = nn.Linear(512, 256)

    def forward(self, strips: Tensor) -> Tensor:
        """Reads a batch of rows."""
        read, _ = self.both(strips)
        result: Tensor = self.output(read)
        return result


class Reader(nn.Module):
    """Gives each strip of a crop a letter.

    ``crops`` ``[words, 64, strips, 4]`` uint8, grey, a view of ``[words, 64, width]``, gives ``letters``
    ``[words, strips]`` int64, numbers as ``LETTERS`` says, and ``sureness`` ``[words, strips]``, 0 to 1. The network
    sees one strip less than there are; the last one is blank.
    """

    def __init__(self) -> None:
        super().__init__()
        self.glance = Glance()
        self.context = nn.Sequential(Context(), Context())
        self.letter = nn.Linear(256, len(LETTERS) + 1)

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        """Reads a batch of words."""
        pixels = crops.flatten(2).to(torch.float32)[:, None] / 127.5 - 1
        chances = self.letter(self.context(self.glance(pixels))).softmax(-1)
        sureness, letters = chances.max(-1)
        return {
            "letters": functional.pad(letters, (0, 1), value=BLANK),
            "sureness": functional.pad(sureness, (0, 1), value=1.0),
        }
