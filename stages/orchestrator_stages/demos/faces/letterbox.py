"""Put a photo of any size into a square of one size, so that everything after it has static shapes.

The photo keeps its proportions and lies in the corner of pixel (0, 0); the rest of the square is filled. What
later stages find in the square is mapped back with the *frame*, which remembers both sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import Dim, HostStage, TensorSpec

SIZE = 512
"""Side of the square in pixels, unless an option says otherwise."""

PHOTO = TensorSpec((Dim.dynamic("height"), Dim.dynamic("width"), 3), torch.uint8)
"""A photo of any size, RGB, 0 to 255."""


class PhotoFrame(NamedTuple):
    """The sizes that lead from the square back to the photo, in pixels."""

    photo_height: int
    photo_width: int
    height: int
    """Rows of the square that show the photo."""
    width: int
    """Columns of the square that show the photo."""

    def to_photo(self, points: Tensor) -> Tensor:
        """Returns points ``[..., 2]`` (x, y) of the square in pixels of the photo."""
        return points * torch.tensor([self.photo_width / self.width, self.photo_height / self.height])


class Letterbox(HostStage):
    """Host stage: ``photo`` to ``square`` ``[1, 3, size, size]`` uint8, and its ``frame``.

    Args:
        size: Side of the square in pixels.
        enlarge: A photo smaller than the square is enlarged by at most this factor. The default leaves it as
            it is; a small picture of tiny faces needs more.
        fill: The value of the pixels around the photo, 0 to 255.
    """

    def __init__(self, size: int = SIZE, enlarge: float = 1.0, fill: int = 0) -> None:
        super().__init__(tag="letterbox")
        self.size = size
        self.enlarge = enlarge
        self.fill = fill
        self.inputs = {"photo": PHOTO}
        self.outputs = {"square": TensorSpec((1, 3, size, size), torch.uint8), "frame": PhotoFrame}

    def frame(self, height: int, width: int) -> PhotoFrame:
        """Returns how a photo of that size lies in the square; at least one pixel of it is seen."""
        scale = min(self.size / max(height, width), self.enlarge)
        return PhotoFrame(height, width, max(1, round(height * scale)), max(1, round(width * scale)))

    def forward(self, photo: Tensor) -> tuple[Tensor, PhotoFrame]:
        """Places one photo."""
        frame = self.frame(photo.shape[0], photo.shape[1])
        picture = photo.permute(2, 0, 1)[None]
        if (frame.height, frame.width) != tuple(photo.shape[:2]):
            size = (frame.height, frame.width)
            picture = functional.interpolate(picture, size=size, mode="bilinear", antialias=True)
        square = torch.full((1, 3, self.size, self.size), self.fill, dtype=torch.uint8)
        square[:, :, : frame.height, : frame.width] = picture
        return square, frame
