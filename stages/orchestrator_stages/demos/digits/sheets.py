"""Arrange small pictures into a large one, for people.

Pictures of 32 pixels are hard to see, so they are enlarged, and the digits fill them to the edge, so that they get
a margin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.digits.nets import SIDE


def any_size(name: str) -> TensorSpec:
    """Returns the spec of a grey picture whose sides are called ``{name}_height`` and ``{name}_width``."""
    return TensorSpec((Dim.dynamic(f"{name}_height"), Dim.dynamic(f"{name}_width")), torch.uint8)


def enlarge(pictures: Tensor, scale: int, margin: int) -> Tensor:
    """Returns ``pictures`` ``[n, h, w]`` uint8 with a black margin and sides ``scale`` times as long."""
    with_margin = functional.pad(pictures, (margin, margin, margin, margin))
    if scale == 1:
        return with_margin
    large = functional.interpolate(with_margin[:, None].float(), scale_factor=scale, mode="bicubic")
    return large[:, 0].clamp(0, 255).round().to(torch.uint8)


def arrange(pictures: Tensor, columns: int) -> Tensor:
    """Returns ``pictures`` ``[rows * columns, h, w]`` as one, ``[rows * h, columns * w]``, in reading order."""
    rows = pictures.reshape(-1, columns, *pictures.shape[1:])
    return rows.transpose(1, 2).flatten(2, 3).flatten(0, 1)


class PictureGrid(HostStage):
    """What :class:`Sheet` and :class:`Strip` have in common.

    Args:
        tag: A name for messages and for the sides of the result.
        columns: Pictures in a row, at most.
        scale: How much larger they are shown.
        margin: Pixels around each of them, before it is enlarged.

    Raises:
        ValueError: One of them is too small.
    """

    def __init__(self, tag: str, columns: int, scale: int, margin: int) -> None:
        super().__init__(tag=tag)
        for option, value, least in (("columns", columns, 1), ("scale", scale, 1), ("margin", margin, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{option} is an int of at least {least}, not {value!r}.")
        self.columns = columns
        self.scale = scale
        self.margin = margin

    def arrange_pictures(self, pictures: Tensor, columns: int) -> Tensor:
        """Returns ``pictures`` ``[n, h, w]`` in rows of ``columns``, enlarged."""
        return arrange(enlarge(pictures, self.scale, self.margin), columns)


class Sheet(PictureGrid):
    """Host stage: ``pictures`` ``[batch, SIDE, SIDE]`` to a ``picture`` that shows them all, in reading order.

    Args:
        columns: Pictures in a row, at most; the last row is filled with black.
        scale: How much larger they are shown.
        margin: Pixels around each of them, before it is enlarged.
    """

    def __init__(self, columns: int = 10, scale: int = 4, margin: int = 4) -> None:
        super().__init__("sheet", columns, scale, margin)
        self.inputs = {"pictures": TensorSpec(("batch", SIDE, SIDE), torch.uint8)}
        self.outputs = {"picture": any_size("sheet")}

    def forward(self, pictures: Tensor) -> Tensor:
        """Arranges the pictures of one request."""
        columns = min(self.columns, len(pictures))
        missing = pictures.new_zeros(-len(pictures) % columns, SIDE, SIDE)
        return self.arrange_pictures(torch.cat([pictures, missing]), columns)


class Strip(PictureGrid):
    """Host stage: ``previews`` ``[steps, batch, SIDE, SIDE]`` to a ``strip``: a row for each picture, noise first.

    Args:
        columns: Steps that are shown, at most, equally far apart; the last one always is.
        scale: How much larger they are shown.
        margin: Pixels around each of them, before it is enlarged.
    """

    def __init__(self, columns: int = 10, scale: int = 4, margin: int = 4) -> None:
        super().__init__("strip", columns, scale, margin)
        self.inputs = {"previews": TensorSpec((Dim.dynamic("steps"), "batch", SIDE, SIDE), torch.uint8)}
        self.outputs = {"strip": any_size("strip")}

    def forward(self, previews: Tensor) -> Tensor:
        """Arranges the previews of one request."""
        steps = len(previews)
        columns = min(self.columns, steps)
        places = [steps - 1 - round(place * (steps - 1) / max(columns - 1, 1)) for place in range(columns)][
            ::-1
        ]
        return self.arrange_pictures(previews[places].transpose(0, 1).flatten(0, 1), columns)
