"""Make a photo small enough for the detector, and remember how to get back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import Dim, TensorSpec
from orchestrator_stages.faces.letterbox import PHOTO, Frame
from orchestrator_stages.host import HostStage
from orchestrator_stages.scene_text.detector import CELL

SIDES = (256, 512, 768, 1024)
"""Pixels along a side of a photo that the detector is compiled for; multiples of 32."""


class Fit(HostStage):
    """Host stage: ``photo`` to ``fitted`` ``[1, 3, rows, 2, columns, 2]`` uint8, by cells, and its ``frame``.

    Args:
        sides: Sides in pixels that the detector is compiled for. A photo that is higher or wider than the largest
            is made smaller; then each side goes to the smallest that holds it, filled with black.
        enlarge: A photo with room to spare is enlarged by at most this factor. Small letters may need it.
    """

    def __init__(self, sides: tuple[int, ...] = SIDES, enlarge: float = 1.0) -> None:
        super().__init__(tag="fit")
        self.side = max(sides)
        self.enlarge = enlarge
        cells = [side // CELL for side in sides]
        dims = (1, 3, Dim("rows", cells), CELL, Dim("columns", cells), CELL)
        self.inputs = {"photo": PHOTO}
        self.outputs = {"fitted": TensorSpec(dims, torch.uint8, pad=0), "frame": Frame}

    def forward(self, photo: Tensor) -> tuple[Tensor, Frame]:
        """Fits one photo."""
        height, width = photo.shape[:2]
        scale = min(self.side / max(height, width), self.enlarge)
        frame = Frame(height, width, max(1, round(height * scale)), max(1, round(width * scale)))
        picture = photo.permute(2, 0, 1)[None]
        if (frame.height, frame.width) != (height, width):
            size = (frame.height, frame.width)
            picture = functional.interpolate(picture, size=size, mode="bilinear", antialias=True)
        whole = functional.pad(picture, (0, frame.width % CELL, 0, frame.height % CELL))
        rows, columns = (size // CELL for size in whole.shape[2:])
        return whole.reshape(1, 3, rows, CELL, columns, CELL), frame
