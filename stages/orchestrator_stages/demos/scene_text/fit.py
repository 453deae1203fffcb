"""Make a photo small enough for the detector, and remember how to get back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.faces.letterbox import PHOTO, PhotoFrame
from orchestrator_stages.demos.scene_text.detector import CELL

SIDES = (256, 512, 768, 1024)
"""Pixels along a side of a photo that the detector is compiled for; multiples of 32."""


class Fit(HostStage):
    """Host stage: ``photo`` to ``fitted`` ``[1, 3, rows, 2, columns, 2]`` uint8, by cells, and its ``frame``.

    The detector sees what lies beside the photo too, so this stage fills it up to a compiled size: no pad rule could
    promise that the filling does not matter.

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
        self.rows, self.columns = (Dim(name, cells) for name in ("rows", "columns"))
        dims = (1, 3, self.rows, CELL, self.columns, CELL)
        self.inputs = {"photo": PHOTO}
        self.outputs = {"fitted": TensorSpec(dims, torch.uint8), "frame": PhotoFrame}

    def forward(self, photo: Tensor) -> tuple[Tensor, PhotoFrame]:
        """Fits one photo."""
        height, width = photo.shape[:2]
        scale = min(self.side / max(height, width), self.enlarge)
        frame = PhotoFrame(height, width, max(1, round(height * scale)), max(1, round(width * scale)))
        picture = photo.permute(2, 0, 1)[None]
        if (frame.height, frame.width) != (height, width):
            size = (frame.height, frame.width)
            picture = functional.interpolate(picture, size=size, mode="bilinear", antialias=True)
        rows, columns = (_smallest_bucket(dim, size) for dim, size in self._cells(frame))
        filling = (0, columns * CELL - frame.width, 0, rows * CELL - frame.height)
        whole = functional.pad(picture, filling)
        return whole.reshape(1, 3, rows, CELL, columns, CELL), frame

    def _cells(self, frame: PhotoFrame) -> tuple[tuple[Dim, int], ...]:
        """Rows and columns of cells that show the photo, each with its dim."""
        return (self.rows, -(-frame.height // CELL)), (self.columns, -(-frame.width // CELL))


def _smallest_bucket(dim: Dim, size: int) -> int:
    """The smallest compiled size that holds one."""
    return next(bucket for bucket in dim.buckets if bucket >= size)
