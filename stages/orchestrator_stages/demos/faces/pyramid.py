"""Show one picture in many sizes, so that a network with a window of one size finds faces of every size.

A *level* is one of those sizes. A face that fills the window of ``PNet`` in a small level is a large face in
the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator_stages.demos.faces.letterbox import SIZE
from orchestrator_stages.demos.faces.nets import WINDOW


def level_sides(size: int = SIZE, min_face: float = 40, factor: float = 0.709) -> tuple[int, ...]:
    """Returns the sides of the levels in pixels, largest first; there is at least one.

    Args:
        size: Side of the square picture.
        min_face: The smallest face to be found, in pixels of the square; it fills the window in the first
            level.
        factor: A level's side over that of the one before, below 1; 0.709 halves the area.

    Raises:
        ValueError: The smallest face is larger than the picture, or the levels would not shrink.
    """
    if not 1 <= min_face <= size:
        raise ValueError(f"min_face is at least 1 and at most the square's size, {size}, not {min_face}.")
    if not 0 < factor < 1:
        raise ValueError(f"factor is more than 0 and less than 1, not {factor}.")
    sides = []
    side = size * WINDOW / min_face
    while side >= WINDOW:
        sides.append(round(side))
        side *= factor
    return tuple(sides)


def level_names(sides: Sequence[int]) -> tuple[str, ...]:
    """Returns the port names of the levels: ``level1``, ``level2``, ..."""
    return tuple(f"level{number}" for number in range(1, len(sides) + 1))


class Pyramid(nn.Module):
    """Resizes a square picture to every level by averaging areas.

    Args:
        sides: Sides of the levels, as :func:`level_sides` gives them.
    """

    def __init__(self, sides: Sequence[int] = level_sides()) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, square: Tensor) -> dict[str, Tensor]:
        """Returns the levels ``[1, 3, side, side]``, float32, of ``square`` ``[1, 3, size, size]``."""
        picture = square.to(torch.float32)
        return {
            name: functional.interpolate(picture, size=(side, side), mode="area")
            for name, side in zip(level_names(self.sides), self.sides, strict=True)
        }
