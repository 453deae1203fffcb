"""Arrange small pictures into a large one, for people.

Pictures of 32 pixels are hard to see, so they are enlarged; ``scale`` 1 leaves them as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import Dim, TensorSpec
from orchestrator_stages.digits.nets import SIDE
from orchestrator_stages.host import HostStage

SHEET = TensorSpec((Dim("height", any=True), Dim("width", any=True)), torch.uint8)
"""A grey picture of any size."""


def enlarge(pictures: Tensor, scale: int) -> Tensor:
    """Returns ``pictures`` ``[n, h, w]`` uint8 with sides ``scale`` times as long, smoothly."""
    if scale == 1:
        return pictures
    large = functional.interpolate(pictures[:, None].float(), scale_factor=scale, mode="bicubic")
    return large[:, 0].clamp(0, 255).round().to(torch.uint8)


def arrange(pictures: Tensor) -> Tensor:
    """Returns ``pictures`` ``[rows, columns, h, w]`` as one, ``[rows * h, columns * w]``."""
    return pictures.transpose(1, 2).flatten(2, 3).flatten(0, 1)


class Sheet(HostStage):
    """Host stage: ``pictures`` ``[batch, SIDE, SIDE]`` to a ``picture`` that shows them all, in reading order.

    Args:
        columns: Pictures in a row, at most; the last row is filled with black.
        scale: How much larger they are shown.
    """

    def __init__(self, columns: int = 10, scale: int = 4) -> None:
        super().__init__(tag="sheet")
        self.columns = columns
        self.scale = scale
        self.inputs = {"pictures": TensorSpec(("batch", SIDE, SIDE), torch.uint8)}
        self.outputs = {"picture": SHEET}

    def forward(self, pictures: Tensor) -> Tensor:
        """Arranges the pictures of one request."""
        columns = min(self.columns, len(pictures))
        missing = torch.zeros(-len(pictures) % columns, SIDE, SIDE, dtype=torch.uint8)
        large = enlarge(torch.cat([pictures, missing]), self.scale)
        return arrange(large.reshape(-1, columns, *large.shape[1:]))


class Strip(HostStage):
    """Host stage: ``previews`` ``[steps, batch, SIDE, SIDE]`` to a ``strip``: a row for each picture, noise first.

    Args:
        columns: Steps that are shown, at most, equally far apart; the last one always is.
        scale: How much larger they are shown.
    """

    def __init__(self, columns: int = 10, scale: int = 4) -> None:
        super().__init__(tag="strip")
        self.columns = columns
        self.scale = scale
        self.inputs = {"previews": TensorSpec((Dim("steps", any=True), "batch", SIDE, SIDE), torch.uint8)}
        self.outputs = {"strip": SHEET}

    def forward(self, previews: Tensor) -> Tensor:
        """Arranges the previews of one request."""
        columns = min(self.columns, len(previews))
        shown = torch.linspace(0, len(previews) - 1, columns).round().long() if columns > 1 else [-1]
        large = enlarge(previews[shown].transpose(0, 1).flatten(0, 1), self.scale)
        return arrange(large.reshape(-1, columns, *large.shape[1:]))
