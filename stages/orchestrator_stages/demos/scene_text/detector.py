"""The detector: where in a photo there are letters, and which of them belong to one word.

It is CRAFT: the convolutions of VGG-16 with batch norm look at the photo in ever larger windows, then four steps
upwards join what the large windows saw with what the small ones did. The module knows nothing of files;
:mod:`orchestrator_stages.demos.scene_text.trained` fills it.

Photos go in by *cells* of two by two pixels, since the score maps have one value for each cell: ``[1, 3, rows,
2, columns, 2]`` is a view of ``[1, 3, 2 * rows, 2 * columns]``.

Source: Baek et al., "Character Region Awareness for Text Detection" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CELL = 2
"""Pixels along the side of a cell."""

MULTIPLE = 16
"""Sizes in cells are multiples of this: the largest windows halve a photo five times."""

MEAN = (123.675, 116.28, 103.53)
SPREAD = (58.395, 57.12, 57.375)
"""Mean and standard deviation of red, green and blue in the photos that VGG was trained on, 0 to 255."""


def _convolution(channels_in: int, channels_out: int, kernel: int = 3) -> list[nn.Module]:
    same = kernel // 2
    return [nn.Conv2d(channels_in, channels_out, kernel, padding=same), nn.BatchNorm2d(channels_out)]


class Backbone(nn.Module):
    """What is seen at each size of window, smallest first.

    The four parts end where the original network branches off. What it branches off is taken after the ReLU for
    the first three, although their last layer is the norm: there the ReLU that comes next writes into the very
    tensor that was branched off. The last part is followed by no ReLU, and its negative values count.
    """

    def __init__(self) -> None:
        super().__init__()
        relu, halve = nn.ReLU(), nn.MaxPool2d(2)
        self.parts = nn.ModuleList(
            [
                nn.Sequential(
                    *_convolution(3, 64), relu, *_convolution(64, 64), relu, halve,
                    *_convolution(64, 128), relu, *_convolution(128, 128), relu,
                ),
                nn.Sequential(
                    halve, *_convolution(128, 256), relu, *_convolution(256, 256), relu
                ),
                nn.Sequential(
                    *_convolution(256, 256), relu, halve,
                    *_convolution(256, 512), relu, *_convolution(512, 512), relu,
                ),
                nn.Sequential(
                    *_convolution(512, 512), relu, halve, *_convolution(512, 512), relu, *_convolution(512, 512)
                ),
            ]
        )  # fmt: skip
        self.top = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns five feature maps, at 1/2, 1/4, 1/8, 1/16 and 1/16 of the photo."""
        maps = []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        return [*maps, self.top(x)]


class Join(nn.Module):
    """Joins two maps of one size to one of fewer channels."""

    def __init__(self, channels_in: int, between: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels_in, between, 1), nn.ReLU(), *_convolution(between, channels_out), nn.ReLU()
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Returns a map of the size of ``fine``; ``coarse`` may be smaller."""
        if coarse.shape[2:] != fine.shape[2:]:
            coarse = functional.interpolate(coarse, size=fine.shape[2:], mode="bilinear")
        result: Tensor = self.layers(torch.cat([coarse, fine], 1))
        return result


class Detector(nn.Module):
    """Scores every cell of a photo.

    ``photo`` ``[1, 3, rows, 2, columns, 2]`` uint8 gives ``scores`` ``[1, 2, rows, columns]``: how likely a letter has
    its centre there, and how likely the middle between two letters of a word is there; about 0 to 1. Rows and columns
    are multiples of 16.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.joins = nn.ModuleList(
            [
                Join(1024 + 512, 512, 256),
                Join(256 + 512, 256, 128),
                Join(128 + 256, 128, 64),
                Join(64 + 128, 64, 32),
            ]
        )
        self.head = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 1), nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None], persistent=False)

    def forward(self, photo: Tensor) -> Tensor:
        """Scores one photo."""
        pixels = photo.flatten(4, 5).flatten(2, 3).to(torch.float32)
        *finer, x = self.backbone((pixels - self.mean) / self.spread)
        for join, fine in zip(self.joins, reversed(finer), strict=True):
            x = join(x, fine)
        scores: Tensor = self.head(x)
        return scores
